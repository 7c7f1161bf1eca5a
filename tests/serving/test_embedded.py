"""The embedded model: assembled out of its parts, it talks like SmolLM2 and counts shapes."""

from __future__ import annotations

import random
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

from recipes.smol_llava.evaluate import kept
from serving import base_model, embedded
from serving.settings import ServingSettings

ASKED = "How many shapes are there?"
CHATS: list[list[dict[str, str]]] = [
    [{"role": "user", "content": "What is the capital of France?"}],
    [{"role": "system", "content": "Answer in French."}, {"role": "user", "content": "And of\n\nItaly?  "}],
    [
        {"role": "user", "content": "1 + 22 = ?"},
        {"role": "assistant", "content": "23"},
        {"role": "user", "content": "Sure?"},
    ],
]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model, assembled once for this module."""
    return embedded.assemble(tmp_path_factory.mktemp("models") / embedded.directory_name())


@pytest.fixture(scope="module")
def model(directory: Path) -> Any:
    """The assembled model as transformers loads it."""
    return AutoModelForImageTextToText.from_pretrained(directory).eval()


@pytest.fixture(scope="module")
def processor(directory: Path) -> Any:
    """The assembled processor as transformers loads it."""
    return AutoProcessor.from_pretrained(directory)


@pytest.fixture(scope="module")
def smollm2() -> tuple[Any, Any]:
    """SmolLM2 and its tokenizer straight from the GGUF file, the model in bfloat16."""
    gguf = embedded.find_gguf()
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    weights = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16)
    return weights.eval(), tokenizer


def shapes(generator: random.Random) -> tuple[Image.Image, int]:
    """Draw one to four shapes of different colours on 96 x 96 pixels; also return how many."""
    picture = Image.new("RGB", (96, 96), generator.choice([(255, 255, 255), (30, 30, 30)]))
    pen = ImageDraw.Draw(picture)
    count = generator.randint(1, 4)
    colors = generator.sample(
        [(220, 40, 40), (40, 170, 60), (50, 80, 220), (240, 210, 50), (140, 60, 180)], count
    )
    for cell, color in zip(generator.sample(range(9), count), colors, strict=True):
        x, y, r = 16 + 32 * (cell % 3), 16 + 32 * (cell // 3), generator.randint(8, 14)
        draw = generator.choice([pen.ellipse, pen.rectangle])
        draw([x - r, y - r, x + r, y + r], fill=color)
    return picture, count


@pytest.mark.parametrize("chat", CHATS)
def test_template_without_image_is_smollm2s(
    processor: Any, smollm2: tuple[Any, Any], chat: list[Any]
) -> None:
    """A conversation without image is rendered character for character as SmolLM2's own template renders it."""
    parts = [turn | {"content": [{"type": "text", "text": turn["content"]}]} for turn in chat]
    for prompted in (True, False):
        expected = smollm2[1].apply_chat_template(chat, tokenize=False, add_generation_prompt=prompted)
        for conversation in (chat, parts):
            found = processor.apply_chat_template(
                conversation, tokenize=False, add_generation_prompt=prompted
            )
            assert found == expected


@pytest.mark.parametrize("kind", ["image", "image_url"])
@pytest.mark.parametrize("image_first", [True, False])
def test_template_with_image_is_the_trained_one(processor: Any, kind: str, *, image_first: bool) -> None:
    """With an image there is no default system prompt, and the image stands before the text wherever it was put."""
    parts = [{"type": kind}, {"type": "text", "text": ASKED}]
    chat = [{"role": "user", "content": parts if image_first else parts[::-1]}]
    rendered = processor.tokenizer.apply_chat_template(
        chat, chat_template=processor.chat_template, tokenize=False, add_generation_prompt=True
    )
    assert rendered == f"<|im_start|>user\n<image>\n{ASKED}<|im_end|>\n<|im_start|>assistant\n"


def test_it_talks_as_smollm2_does(model: Any, processor: Any, smollm2: tuple[Any, Any]) -> None:
    """Of SmolLM2's answers to the card's 50 questions, this model would say at least 9 of 10 words there, too."""
    assert kept(model, smollm2[0], processor, 50).same_choice >= 90


def test_tokens_are_smollm2s(processor: Any) -> None:
    """Numbers are split into digits even after blanks, turns end with <|im_end|>, and padding ends no turn."""
    tokenizer = processor.tokenizer
    assert tokenizer.tokenize("a  12") == ["a", "ĠĠ", "1", "2"]
    assert tokenizer.convert_ids_to_tokens([tokenizer.eos_token_id]) == ["<|im_end|>"]
    assert tokenizer.pad_token_id not in {None, tokenizer.eos_token_id}


def test_it_counts_shapes_and_stops(model: Any, processor: Any) -> None:
    """Asked how many shapes there are, it answers at least 9 of 10 pictures with the right number and nothing else."""
    generator = random.Random(7)
    drawn = [shapes(generator) for _ in range(20)]
    chats = [
        [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": ASKED}]}]
        for picture, _ in drawn
    ]
    inputs = processor.apply_chat_template(
        chats, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    ).to(torch.bfloat16)
    replies = model.generate(**inputs, max_new_tokens=4, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    answers = processor.batch_decode(replies, skip_special_tokens=True)
    right = sum(answer == str(count) for answer, (_, count) in zip(answers, drawn, strict=True))
    assert right >= 18, answers


def test_two_that_ask_at_once_get_one_model_of_the_same_bytes(directory: Path, tmp_path: Path) -> None:
    """Who asks first assembles the model, the other waits; the files are those of any other assembly, to the byte."""
    found: list[Path] = []
    settings = ServingSettings(model="")
    threads = [
        threading.Thread(target=lambda: found.append(base_model.resolve(settings, tmp_path)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [tmp_path / "models" / embedded.directory_name()] * 2
    assert [path for path in (tmp_path / "models").iterdir() if path.is_dir()] == [found[0]]
    names = sorted(path.name for path in directory.iterdir())
    assert names == sorted(path.name for path in found[0].iterdir())
    assert all((directory / name).read_bytes() == (found[0] / name).read_bytes() for name in names)

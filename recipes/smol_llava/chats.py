"""Has SmolLM2 itself answer questions without pictures, so that stage 2 can hold on to how it talks."""

from __future__ import annotations

import itertools
import json
import random
import tomllib
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from recipes.smol_llava.rows import Writer
from recipes.smol_llava.words import WORDS
from serving.embedded import find_gguf

ASKED: dict[str, list[str]] = tomllib.loads(
    Path(__file__).with_name("chats.toml").read_text(encoding="utf-8")
)
"""Questions as they are, and templates of others."""
ANSWER_TOKENS = 40
BATCH = 64


def prompts(count: int, *, held_out: bool) -> list[str]:
    """Return different questions; those held out never share a word with those trained on."""
    rng = random.Random(f"prompts/{held_out}")
    words = [word for index, word in enumerate(WORDS) if (index % 8 == 0) is held_out]
    found = [text for index, text in enumerate(ASKED["plain"]) if (index % 4 == 0) is held_out]
    for template in itertools.cycle(ASKED["templates"]):
        if len(found) >= count:
            return found[:count]
        found.append(
            template.format(rng.choice(words), rng.choice(words), rng.randint(1, 20), rng.randint(1, 20))
        )
    raise AssertionError


def smollm2() -> PreTrainedModel:
    """Return SmolLM2 as it comes, in bfloat16."""
    gguf = find_gguf()
    return AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16).eval()


def answered(writer: Writer, out: Path, count: int, device: torch.device) -> list[tuple[str, str]]:
    """Return questions with SmolLM2's greedy answers, of at most ANSWER_TOKENS tokens, asked once and kept in `out`."""
    path = out / "chats.json"
    if not path.exists():
        model, asked = smollm2().to(device), prompts(count, held_out=False)
        replies = [
            reply
            for start in range(0, count, BATCH)
            for reply in replies_to(model, writer, asked[start : start + BATCH])
        ]
        path.write_text(json.dumps(list(zip(asked, replies, strict=True))), encoding="utf-8")
    return [(question, answer) for question, answer in json.loads(path.read_text(encoding="utf-8"))]


@torch.no_grad()
def replies_to(model: PreTrainedModel, writer: Writer, questions: list[str]) -> list[str]:
    """Return the model's greedy answers to questions without pictures."""
    rows = [writer.without(question, "") for question in questions]
    asked = [row.ids[:-2] for row in rows]
    longest = max(len(ids) for ids in asked)
    ids_BT = torch.tensor([[0] * (longest - len(ids)) + ids for ids in asked], device=model.device)
    mask_BT = torch.tensor(
        [[0] * (longest - len(ids)) + [1] * len(ids) for ids in asked], device=model.device
    )
    made = model.generate(
        input_ids=ids_BT,
        attention_mask=mask_BT,
        max_new_tokens=ANSWER_TOKENS,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=2,
    )
    texts: list[str] = writer.tokenizer.batch_decode(made[:, longest:], skip_special_tokens=True)
    return texts

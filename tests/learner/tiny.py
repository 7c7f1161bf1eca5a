"""Tiny random image-text models of three families, with real processors, built offline in seconds.

Each family brings its own trap: LLaVA-1.5's template ends no turn, Qwen2-VL needs the positions of its images, SmolVLM
counts the images of a row in a dimension of its own.
"""

from __future__ import annotations

import hashlib
import io
import random
from pathlib import Path
from typing import Literal

import torch
from PIL import Image, ImageDraw
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)

from storage.records import ChatMessage, Conversation, Row, image_part, text_part

Family = Literal["llava", "qwen2_vl", "smolvlm"]
FAMILIES: tuple[Family, ...] = ("llava", "qwen2_vl", "smolvlm")
CONTEXT = 256
WIDTH = 32

_TEXTS = (
    "how many shapes are there? answer in a word. one two three four five six",
    "describe the picture in a few words. a red circle and a blue square. USER: ASSISTANT: user assistant system",
)

LLAVA_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' ' }}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
CHATML_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nyou are kind.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% for content in message['content'] %}{% if content['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SMOLVLM_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def build(family: Family, directory: Path) -> Path:
    """Write a tiny model of this family with its processor, and return the directory."""
    torch.manual_seed(0)
    {"llava": _llava, "qwen2_vl": _qwen2_vl, "smolvlm": _smolvlm}[family](directory)
    return directory


def _tokenizer(end: str, *special: str) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<pad>", end, *special],
    )
    tokenizer.train_from_iterator(_TEXTS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=end, pad_token="<pad>", additional_special_tokens=list(special)
    )


def _text(tokenizer: PreTrainedTokenizerFast) -> dict[str, float]:
    return {
        "vocab_size": len(tokenizer),
        "initializer_range": 0.2,
        "hidden_size": WIDTH,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": CONTEXT,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _llava(directory: Path) -> None:
    tokenizer = _tokenizer("</s>", "<image>")
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=16,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=LlamaConfig(**_text(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=4,
    )
    LlavaForConditionalGeneration(config).to(torch.bfloat16).save_pretrained(directory)
    LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA_TEMPLATE,
    ).save_pretrained(directory)


def _qwen2_vl(directory: Path) -> None:
    special = ("<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    tokenizer = _tokenizer("<|im_end|>", *special)
    vision = {
        "depth": 1,
        "embed_dim": 16,
        "hidden_size": WIDTH,
        "num_heads": 2,
        "patch_size": 8,
        "mlp_ratio": 2,
    }
    config = Qwen2VLConfig(
        text_config=_text(tokenizer)
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}},
        vision_config=vision,
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<|video_pad|>"),
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
    )
    Qwen2VLForConditionalGeneration(config).to(torch.bfloat16).save_pretrained(directory)
    Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(patch_size=8, min_pixels=16 * 16, max_pixels=64 * 64),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(patch_size=8),
        chat_template=CHATML_TEMPLATE,
    ).save_pretrained(directory)


def _smolvlm(directory: Path) -> None:
    special = ("<|im_start|>", "<image>", "<fake_token_around_image>", "<global-img>")
    tokenizer = _tokenizer("<end_of_utterance>", *special)
    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    }
    config = SmolVLMConfig(
        text_config=LlamaConfig(**_text(tokenizer)),
        vision_config=vision,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=tokenizer.pad_token_id,
    )
    SmolVLMForConditionalGeneration(config).to(torch.bfloat16).save_pretrained(directory)
    side = {"longest_edge": 32}
    SmolVLMProcessor(
        image_processor=SmolVLMImageProcessor(size=side, max_image_size=side, do_image_splitting=False),
        tokenizer=tokenizer,
        video_processor=SmolVLMVideoProcessor(size=side, max_image_size=side),
        image_seq_len=4,
        chat_template=SMOLVLM_TEMPLATE,
    ).save_pretrained(directory)


class Pictures:
    """Draws pictures of a few squares and hands them out by their SHA-256."""

    def __init__(self) -> None:
        self.by_sha256: dict[str, bytes] = {}

    def draw(self, squares: int, seed: int, size: tuple[int, int] = (32, 32)) -> str:
        """Draw a picture and return its SHA-256."""
        where = random.Random(seed)
        picture = Image.new("RGB", size, (255, 255, 255))
        for cell in where.sample(range(9), squares):
            left, top = 2 + cell % 3 * 10, 2 + cell // 3 * 10
            ImageDraw.Draw(picture).rectangle([left, top, left + 6, top + 6], fill=(200, 30, 30))
        encoded = io.BytesIO()
        picture.save(encoded, "PNG")
        sha256 = hashlib.sha256(encoded.getvalue()).hexdigest()
        self.by_sha256[sha256] = encoded.getvalue()
        return sha256

    def read(self, sha256: str) -> bytes:
        """Return the encoded picture."""
        return self.by_sha256[sha256]


WORDS = ("one", "two", "three", "four")


def row(position: int, messages: Conversation) -> Row:
    """Wrap a conversation as a training row."""
    sha256 = hashlib.sha256(repr(messages).encode()).hexdigest()
    return Row(
        id=position + 1, dataset_id=7, position=position, split="train", sha256=sha256, messages=messages
    )


def turn(role: Literal["system", "user", "assistant"], text: str, *images: str) -> ChatMessage:
    """Return a message with these images before its text."""
    return {"role": role, "content": [*map(image_part, images), text_part(text)]}


def counting_rows(pictures: Pictures, count: int) -> list[Row]:
    """Return rows that ask how many squares are in a picture."""
    return [
        row(
            index,
            [
                turn("user", "how many shapes are there?", pictures.draw(1 + index % 4, index)),
                turn("assistant", WORDS[index % 4]),
            ],
        )
        for index in range(count)
    ]


def mixed_rows(pictures: Pictures) -> list[Row]:
    """Return rows of every kind: one picture, several of several sizes, several turns, a system turn, text alone."""
    first, second, wide = pictures.draw(1, 1), pictures.draw(2, 2), pictures.draw(3, 3, (64, 32))
    return [
        row(0, [turn("user", "how many shapes are there?", first), turn("assistant", "one")]),
        row(
            1,
            [
                turn("user", "which has more?", first, wide, second),
                turn("assistant", "the middle one, with three"),
            ],
        ),
        row(
            2,
            [
                turn("user", "how many shapes are there?", second),
                turn("assistant", "two"),
                turn("user", "and here?", wide),
                turn("assistant", "three shapes"),
            ],
        ),
        row(3, [turn("user", "say a number"), turn("assistant", "four")]),
        row(
            4, [turn("system", "answer in a word."), turn("user", "count", wide), turn("assistant", "three")]
        ),
    ]

"""Makes rows of stage 2: conversations about pictures, and conversations without any, as tokens with their labels."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import IterableDataset
from transformers import LlavaProcessor

from recipes.smol_llava.drawing import Artist
from recipes.smol_llava.questions import Examiner, Question
from recipes.smol_llava.scenes import Scene
from recipes.smol_llava.see import pixels_of

IGNORED = -100
TURNS = {
    "shapes": 8,
    "emojis": 6,
    "emoji": 2,
    "board": 8,
    "chart": 8,
    "nothing": 1,
    "text": 2,
    "clock": 1,
    "arrow": 1,
}
"""Most questions in one conversation about one picture of a kind."""
TWO_PICTURES = 0.04
"""Share of conversations about two pictures."""
KINDS = {
    "shapes": 0.38, "text": 0.17, "emoji": 0.14, "emojis": 0.05, "chart": 0.10, "clock": 0.02, "board": 0.08,
    "arrow": 0.01, "nothing": 0.05,
}  # fmt: skip
"""How often each kind of picture is talked of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One conversation: tokens [T], labels [T] with IGNORED where there is no loss, pictures [P, 3, SIDE, SIDE]."""

    ids: list[int]
    labels: list[int]
    pixels: list[Tensor]


class Writer:
    """Turns conversations into tokens as the model's chat template does, turn by turn."""

    def __init__(self, processor: LlavaProcessor, patches: int) -> None:
        self.tokenizer = processor.tokenizer
        self.image = [self.tokenizer.convert_tokens_to_ids(processor.image_token)] * patches
        self.system = self._ids(
            "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        )
        self.newline = self._ids("\n")

    def about(self, pictures: Sequence[Scene], turns: Sequence[tuple[str, str]]) -> Row:
        """Write a conversation that begins with pictures; loss on answers and what ends them.

        What is written in a picture is answered letter by letter, a token each, as the image tokens tell it: what
        has been read need not be put together into the tokens that a word would have.
        """
        ids, labels = list[int](), list[int]()
        written = {scene.text for scene in pictures if scene.kind == "text"}
        for turn, (question, answer) in enumerate(turns):
            shown = [token for _ in pictures for token in (*self.image, *self.newline)] if turn == 0 else []
            asked = [
                *self._ids("<|im_start|>user\n"),
                *shown,
                *self._ids(f"{question}<|im_end|>\n<|im_start|>assistant\n"),
            ]
            self._append(ids, labels, asked, answer, spelled=answer in written)
        return Row(ids=ids, labels=labels, pixels=[pixels_of(scene.picture) for scene in pictures])

    def without(self, question: str, answer: str) -> Row:
        """Write one question without a picture, after the system prompt that SmolLM2 knows."""
        ids, labels = list(self.system), [IGNORED] * len(self.system)
        self._append(
            ids,
            labels,
            self._ids(f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"),
            answer,
            spelled=False,
        )
        return Row(ids=ids, labels=labels, pixels=[])

    def _append(
        self, ids: list[int], labels: list[int], asked: list[int], answer: str, *, spelled: bool
    ) -> None:
        told = [token for letter in answer for token in self._ids(letter)] if spelled else self._ids(answer)
        answered, after = [*told, *self._ids("<|im_end|>")], self.newline
        ids += [*asked, *answered, *after]
        labels += [*[IGNORED] * len(asked), *answered, *[IGNORED] * len(after)]

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids
        return ids


class Conversations(IterableDataset[dict[str, Tensor]]):
    """Endless batches of conversations about pictures, of similar length, of about `tokens` tokens each."""

    def __init__(self, cache: Path, writer: Writer, tokens: int, seed: str) -> None:
        self.cache, self.writer, self.tokens, self.seed = cache, writer, tokens, seed

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Draw and ask for ever, each worker its own pictures."""
        info = torch.utils.data.get_worker_info()
        rng = random.Random(f"{self.seed}/{info.id if info else 0}")
        artist, examiner = Artist.of(self.cache), Examiner()
        while True:
            drawn = [conversation(rng, artist, examiner, self.writer) for _ in range(192)]
            batches = list(batched(sorted(drawn, key=lambda row: len(row.ids)), self.tokens))
            rng.shuffle(batches)
            yield from (collate(batch) for batch in batches)


def conversation(rng: random.Random, artist: Artist, examiner: Examiner, writer: Writer) -> Row:
    """Draw one or two pictures and ask about them."""
    if rng.random() < TWO_PICTURES:
        scenes = [artist.draw(rng, rng.choice(("emoji", "text", "shapes"))) for _ in range(2)]
        answers = [
            (place, examiner.ask(rng, scene))
            for place, scene in zip(("first", "second"), scenes, strict=True)
        ]
        turns = [(f"About the {place} picture: {q.text}", q.answer) for place, q in answers if q is not None]
        if turns:
            rng.shuffle(turns)
            return writer.about(scenes, turns)
    while True:
        scene = artist.draw(rng, rng.choices(list(KINDS), list(KINDS.values()))[0])
        turns = [(question.text, question.answer) for question in interview(rng, examiner, scene)]
        if turns:
            return writer.about([scene], turns)


def interview(rng: random.Random, examiner: Examiner, scene: Scene) -> list[Question]:
    """Ask up to TURNS questions about a scene, none of them twice, and no two alike where there is but one fact."""
    asked: dict[tuple[str, str], Question] = {}
    for _ in range(rng.randint(1, TURNS[scene.kind])):
        question = examiner.ask(rng, scene)
        if question is not None:
            key = question.answer if scene.kind == "emoji" else question.text
            asked.setdefault((question.ability, key), question)
    return list(asked.values())


def batched(rows: Sequence[Row], tokens: int) -> Iterator[list[Row]]:
    """Cut rows sorted by length into batches whose padded size stays below `tokens`."""
    batch: list[Row] = []
    for row in rows:
        if batch and (len(batch) + 1) * len(row.ids) > tokens:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def collate(rows: Sequence[Row], pad: int = 0) -> dict[str, Tensor]:
    """Join rows to ids, labels and mask [B, T], padded on the right, and pictures [P, 3, SIDE, SIDE]."""
    longest = -(-max(len(row.ids) for row in rows) // 8) * 8
    pixels = list(itertools.chain.from_iterable(row.pixels for row in rows))
    return {
        "ids": torch.tensor([row.ids + [pad] * (longest - len(row.ids)) for row in rows]),
        "labels": torch.tensor([row.labels + [IGNORED] * (longest - len(row.labels)) for row in rows]),
        "mask": torch.tensor([[1] * len(row.ids) + [0] * (longest - len(row.ids)) for row in rows]),
        **({"pixels": torch.stack(pixels)} if pixels else {}),
    }

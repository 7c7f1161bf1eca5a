"""Says all that a picture shows in SmolLM2's own tokens, each at a place of its own: what image tokens learn to say.

A picture becomes as many image tokens as it has patches, so a caption may be that long. Every fact stands at a fixed
place (the colour of the second thing always at the same one), because all tokens are told at once. Things are listed by
colour, then by shape: an order without near ties, which no glance could settle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from recipes.smol_llava.scenes import SIDE, Scene, Thing
from recipes.smol_llava.shapes import COLORS, SHAPES
from recipes.smol_llava.words import CHARACTERS

EMPTY, GROUND, UNKNOWN = ".", "background", "unknown"
LEVELS = 9
"""Steps in which a coordinate is told: three for each third of a side."""
MARGIN = 5
"""Pixels around a thing whose patches still belong to it."""
WORDS_OF_PATCH = 4

Field = tuple[int, str]
"""Place of its first token, and what is said from there on."""


def caption(scene: Scene) -> list[Field]:
    """Return what a scene shows, in order of place, its kind first; of a crowd nothing is told.

    What does not fit before the next field is cut off.
    """
    return [] if scene.kind == "crowd" else [(0, scene.kind), *_TOLD[scene.kind](scene)]


def _shapes(scene: Scene) -> list[Field]:
    told = [(1, str(len(scene.things)))]
    for index, thing in enumerate(sorted(scene.things, key=by_attributes)):
        told += enumerate((thing.color, thing.name, level(thing.x), level(thing.y)), 2 + 4 * index)
    return told


def _emojis(scene: Scene) -> list[Field]:
    told = [(4 + 8 * index, f"{thing.place} {thing.name}") for index, thing in enumerate(scene.things)]
    return [(3, str(len(scene.things))), *told]


def _chart(scene: Scene) -> list[Field]:
    told = [(1, str(len(scene.heights)))]
    for index, (color, height) in enumerate(scene.heights.items()):
        told += enumerate((color, str(height)), 2 + 2 * index)
    return told


_TOLD: dict[str, Callable[[Scene], list[Field]]] = {
    "shapes": _shapes,
    "emojis": _emojis,
    "chart": _chart,
    "emoji": lambda scene: [(2, scene.subgroup), (10, scene.things[0].name)],
    "text": lambda scene: [*enumerate(scene.text, 1)],
    "board": lambda scene: [*enumerate(scene.cells, 1)],
    "clock": lambda scene: [(1, scene.text)],
    "arrow": lambda scene: [(1, scene.text)],
    "nothing": lambda _: [(1, UNKNOWN)],
}


def by_attributes(thing: Thing) -> tuple[int, int, float]:
    """Order things by colour, then by shape, and only what is alike from left to right."""
    return list(COLORS).index(thing.color), SHAPES.index(thing.name), thing.x


def level(pixels: float) -> str:
    """Return a coordinate as one digit, 0 to LEVELS - 1."""
    return str(min(LEVELS - 1, max(0, int(LEVELS * pixels / SIDE))))


def words_at(scene: Scene, x: float, y: float) -> list[str]:
    """Return the words for what is at a point of the picture."""
    if scene.kind == "nothing":
        return [UNKNOWN]
    if scene.kind in ("clock", "arrow"):
        return scene.text.replace("'", " ").split()
    nearest = min(
        scene.things, key=lambda thing: max(abs(thing.x - x), abs(thing.y - y)) - thing.size, default=None
    )
    if nearest is None or max(abs(nearest.x - x), abs(nearest.y - y)) > max(nearest.size, 4) + MARGIN:
        return [GROUND]
    return nearest.described.split()


class Lexicon:
    """The W tokens of SmolLM2 that captions are made of, and captions in them."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, tokens: list[int]) -> None:
        self.tokenizer = tokenizer
        self.tokens = tokens
        self.numbers = {token: number for number, token in enumerate(tokens)}
        self._said: dict[str, list[int]] = {}

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, names: Iterable[str]) -> Lexicon:
        """Collect the tokens of all that can be said, when these are the names of emoji and of their subgroups."""
        spoken = [
            EMPTY, GROUND, UNKNOWN, "emoji", "emojis", "shapes", "text", "chart", "board", "clock", "arrow", "nothing",
            *COLORS, *SHAPES, *CHARACTERS, "-",
            "half past 3", "o'clock", "up", "down", "left", "right", "top", "bottom", "center", "nought", "bar",
            *map(str, range(13)),
        ]  # fmt: skip
        spoken += [text for name in names for text in (name, *name.split())]
        tokens = {token for text in spoken for token in _tokens(tokenizer, text)}
        first = _tokens(tokenizer, EMPTY)
        return cls(tokenizer, [*first, *sorted(tokens - set(first))])

    def say(self, text: str) -> list[int]:
        """Return the numbers in the lexicon of a text's tokens."""
        if text not in self._said:
            self._said[text] = [self.numbers[token] for token in _tokens(self.tokenizer, text)]
        return self._said[text]

    def encode(self, scene: Scene, slots: int) -> Tensor:
        """Return a scene's caption as numbers in the lexicon [slots]; 0 is EMPTY."""
        row = [0] * slots
        fields = caption(scene)
        for (start, text), end in zip(fields, [*(start for start, _ in fields), slots][1:], strict=True):
            said = self.say(text)[: end - start]
            row[start : start + len(said)] = said
        return torch.tensor(row)

    def patches(self, scene: Scene, patch: int) -> Tensor:
        """Return for each patch the first tokens of the words for what it shows, or -1: [N, WORDS_OF_PATCH]."""
        side = SIDE // patch
        rows = []
        for index in range(side * side):
            said = words_at(scene, (index % side + 0.5) * patch, (index // side + 0.5) * patch)
            numbers = [self.say(word)[0] for word in said][:WORDS_OF_PATCH]
            rows.append(numbers + [-1] * (WORDS_OF_PATCH - len(numbers)))
        return torch.tensor(rows)


def _tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the tokens of a text within a sentence; a lone digit without the gap before it, a token of its own."""
    ids: list[int] = tokenizer(f" {text}", add_special_tokens=False).input_ids
    return ids[1:] if text[0].isdigit() else ids

"""What a picture shows, as facts from which captions, questions and answers follow. It knows no pixels."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from PIL.Image import Image

SIDE = 96
"""Pixels along each side of a picture, as the model sees it."""

Kind = Literal["shapes", "text", "emoji", "emojis", "chart", "clock", "board", "arrow", "crowd", "nothing"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Thing:
    """One thing in a picture and where its centre is, in pixels from the top left corner."""

    name: str
    """A shape, or what an emoji shows."""
    color: str = ""
    x: float
    y: float
    size: float
    """Half of its height, in pixels."""

    @property
    def place(self) -> str:
        """Which ninth of the picture its centre is in, in words."""
        row = ("top", "middle", "bottom")[min(2, int(3 * self.y / SIDE))]
        column = ("left", "center", "right")[min(2, int(3 * self.x / SIDE))]
        if row == "middle":
            return column
        return row if column == "center" else f"{row} {column}"

    @property
    def described(self) -> str:
        """Its colour, where it has one, and its name."""
        return f"{self.color} {self.name}".strip()


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A picture and what there is to say about it."""

    kind: Kind
    picture: Image
    things: list[Thing] = field(default_factory=list)
    """In reading order."""
    text: str = ""
    """What is written, shown by a clock, or pointed at by an arrow."""
    subgroup: str = ""
    """Of a single emoji."""
    group: str = ""
    heights: dict[str, int] = field(default_factory=dict)
    """Of a chart's bars, by their colour, from left to right."""
    cells: str = ""
    """Nine letters of a board, row by row: X, O or `-`."""


def reading_order(things: list[Thing]) -> list[Thing]:
    """Return things row by row of thirds, each from left to right."""
    return sorted(things, key=lambda thing: (int(3 * thing.y / SIDE), thing.x))

"""Draws single shapes of named colours."""

from __future__ import annotations

import math

from PIL import ImageDraw

from recipes.smol_llava.scenes import Thing

Color = tuple[int, int, int]

COLORS: dict[str, Color] = {
    "red": (220, 40, 40), "green": (40, 165, 60), "blue": (45, 80, 220), "yellow": (242, 212, 40),
    "purple": (140, 55, 180), "orange": (245, 135, 35), "pink": (246, 140, 190), "brown": (130, 80, 40),
    "cyan": (60, 205, 225),
}  # fmt: skip
SHAPES = ("circle", "square", "triangle", "star", "diamond", "cross", "ring", "heart", "pentagon")
ZOOM = 2
"""Shapes and diagrams are drawn this much larger and scaled down, which smooths their edges."""


def draw_shape(pen: ImageDraw.ImageDraw, thing: Thing, color: Color) -> None:
    """Draw one shape of SHAPES where `thing` says, enlarged by ZOOM."""
    x, y, r = thing.x * ZOOM, thing.y * ZOOM, thing.size * ZOOM
    match thing.name:
        case "circle":
            pen.ellipse([x - r, y - r, x + r, y + r], fill=color)
        case "square":
            pen.rectangle([x - r * 0.88, y - r * 0.88, x + r * 0.88, y + r * 0.88], fill=color)
        case "ring":
            pen.ellipse([x - r, y - r, x + r, y + r], outline=color, width=max(3, round(r * 0.35)))
        case "cross":
            pen.rectangle([x - r, y - r * 0.32, x + r, y + r * 0.32], fill=color)
            pen.rectangle([x - r * 0.32, y - r, x + r * 0.32, y + r], fill=color)
        case "heart":
            pen.ellipse([x - r, y - r * 0.9, x + r * 0.06, y + r * 0.16], fill=color)
            pen.ellipse([x - r * 0.06, y - r * 0.9, x + r, y + r * 0.16], fill=color)
            pen.polygon([(x - r * 0.92, y - r * 0.1), (x + r * 0.92, y - r * 0.1), (x, y + r)], fill=color)
        case _:
            pen.polygon([(x + dx * r, y + dy * r) for dx, dy in OUTLINES[thing.name]], fill=color)


def _regular(corners: int, inner: float = 1.0) -> list[tuple[float, float]]:
    """Return the corners of a regular polygon, every other one drawn in to `inner`."""
    return [
        (
            (1.0 if i % 2 == 0 else inner) * math.sin(2 * math.pi * i / corners),
            -(1.0 if i % 2 == 0 else inner) * math.cos(2 * math.pi * i / corners),
        )
        for i in range(corners)
    ]


OUTLINES = {
    "triangle": [(0.0, -1.0), (-1.0, 0.9), (1.0, 0.9)],
    "diamond": [(0.0, -1.0), (0.75, 0.0), (0.0, 1.0), (-0.75, 0.0)],
    "pentagon": _regular(5),
    "star": _regular(10, 0.42),
}

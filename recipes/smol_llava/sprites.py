"""Renders the emoji of every style once, to one packed array of small pictures, so that drawing is only pasting."""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import resvg_py
from numpy.typing import NDArray
from PIL import Image

from recipes.smol_llava.sources import STYLES, Concept, concepts, icons

SIDE = 80
"""Pixels of a sprite; a picture of the model has 96."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sprites:
    """Drawings of concepts: `pixels[i]` is an RGBA picture [SIDE, SIDE, 4] of `concepts[i]`."""

    pixels: NDArray[np.uint8]
    concepts: list[Concept]


def render(cache: Path) -> None:
    """Render all styles that have not been rendered yet."""
    known = concepts(cache)
    for style in STYLES:
        target = cache / "sprites" / f"{style.name}.npy"
        if target.exists():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        drawn = icons(style, cache)
        chosen = [concept for concept in known if concept.key in drawn]
        pixels = np.stack([_pixels(drawn[concept.key]) for concept in chosen])
        listed = json.dumps([asdict(concept) for concept in chosen])
        target.with_suffix(".json").write_text(listed, encoding="utf-8")
        np.save(target, pixels)


def load(cache: Path, *, held_out: bool) -> Sprites:
    """Map the sprites of the tested or of the trained styles into memory, those that are blank left out."""
    names = [style.name for style in STYLES if style.held_out is held_out]
    directory = cache / "sprites"
    pixels = [np.load(directory / f"{name}.npy") for name in names]
    listed = [json.loads((directory / f"{name}.json").read_text(encoding="utf-8")) for name in names]
    joined = np.concatenate(pixels)
    visible = joined[..., 3].any(axis=(1, 2))
    found = [Concept(**entry) for entries in listed for entry in entries]
    return Sprites(
        pixels=joined[visible],
        concepts=[concept for concept, seen in zip(found, visible, strict=True) if seen],
    )


def _pixels(svg: str) -> NDArray[np.uint8]:
    png = resvg_py.svg_to_bytes(svg_string=svg, width=SIDE, height=SIDE, skip_system_fonts=True)
    picture = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    return np.asarray(picture.resize((SIDE, SIDE)))

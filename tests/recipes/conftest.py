"""A cache of downloads in miniature: three emoji in every style, one face under every name."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import asdict
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from transformers import AutoTokenizer, LlavaProcessor

from recipes.smol_llava.drawing import Artist
from recipes.smol_llava.rows import Writer
from recipes.smol_llava.sources import FONTS, HELD_OUT_FONTS, STYLES, Concept
from recipes.smol_llava.sprites import SIDE
from serving import embedded

CONCEPTS = (
    Concept(name="red apple", subgroup="fruit", group="food and drink"),
    Concept(name="dog face", subgroup="mammals", group="animals and nature"),
    Concept(name="sailboat", subgroup="water transportation", group="travel and places"),
)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Downloads as `fetch` and `render` leave them, but tiny."""
    root = tmp_path_factory.mktemp("cache")
    (root / "sprites").mkdir()
    for style in STYLES:
        noise = np.random.default_rng(len(style.name))
        pixels = noise.integers(1, 256, (len(CONCEPTS), SIDE, SIDE, 4), dtype=np.uint8)
        np.save(root / "sprites" / f"{style.name}.npy", pixels)
        listed = json.dumps([asdict(concept) for concept in CONCEPTS])
        (root / "sprites" / f"{style.name}.json").write_text(listed, encoding="utf-8")
    face = Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    for name in (*FONTS, *HELD_OUT_FONTS):
        directory = root / "fonts" / f"fonts-{name}"
        directory.mkdir(parents=True)
        if name in {FONTS[0], HELD_OUT_FONTS[0]}:
            shutil.copyfile(face, directory / "face.ttf")
    return root


@pytest.fixture(scope="session")
def artist(cache: Path) -> Artist:
    """One who draws from that cache."""
    return Artist.of(cache)


@pytest.fixture(scope="session")
def processor() -> LlavaProcessor:
    """The embedded model's processor, as it is assembled."""
    gguf = embedded.find_gguf()
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, local_files_only=True)
    return embedded.processor(tokenizer)


@pytest.fixture(scope="session")
def writer(processor: LlavaProcessor) -> Writer:
    """One who writes rows of four image tokens a picture."""
    return Writer(processor, patches=4)


@pytest.fixture
def rng() -> random.Random:
    """The same numbers each time."""
    return random.Random(5)

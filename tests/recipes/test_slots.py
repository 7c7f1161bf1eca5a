"""Captions say all that a picture shows, each fact at a place of its own, in tokens of SmolLM2."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch

from recipes.smol_llava.drawing import KINDS, Artist
from recipes.smol_llava.scenes import SIDE, Scene, Thing
from recipes.smol_llava.see import PATCHES
from recipes.smol_llava.slots import (
    EMPTY,
    GROUND,
    UNKNOWN,
    WORDS_OF_PATCH,
    Lexicon,
    caption,
    level,
    words_at,
)

SHAPES = [
    Thing(name="star", color="blue", x=10, y=90, size=8),
    Thing(name="pentagon", color="red", x=80, y=50, size=8),
    Thing(name="circle", color="red", x=50, y=20, size=8),
]


@pytest.fixture(scope="module")
def lexicon(processor: Any, artist: Artist) -> Lexicon:
    """One for the emoji of these tests."""
    concepts = artist.sprites.concepts
    return Lexicon.of(processor.tokenizer, {text for one in concepts for text in (one.name, one.subgroup)})


def told(lexicon: Lexicon, scene: Scene) -> str:
    """Return a caption as SmolLM2 would read it."""
    row = lexicon.encode(scene, PATCHES)
    text: str = lexicon.tokenizer.decode([lexicon.tokens[number] for number in row.tolist()])
    return text.rstrip(f" {EMPTY}").strip()


def test_things_are_listed_by_color_then_by_shape(
    lexicon: Lexicon, artist: Artist, rng: random.Random
) -> None:
    """The order of things does not depend on where they are, and each has four tokens of its own."""
    picture = artist.draw(rng, "shapes").picture
    scene = Scene(kind="shapes", picture=picture, things=SHAPES)
    assert told(lexicon, scene) == "shapes3 red circle41 red pent74 blue star08"
    backwards = Scene(kind="shapes", picture=picture, things=SHAPES[::-1])
    assert torch.equal(lexicon.encode(scene, PATCHES), lexicon.encode(backwards, PATCHES))


def test_what_is_written_is_told_letter_by_letter(
    lexicon: Lexicon, artist: Artist, rng: random.Random
) -> None:
    """Every letter has a token, small and large ones different."""
    picture = artist.draw(rng, "text").picture
    assert told(lexicon, Scene(kind="text", picture=picture, text="Cat7")) == "text C a t7"


def test_the_name_of_an_emoji_stands_where_it_always_does(
    lexicon: Lexicon, artist: Artist, rng: random.Random
) -> None:
    """Its name begins at the same place however long its subgroup is."""
    for _ in range(10):
        scene = artist.draw(rng, "emoji")
        row = lexicon.encode(scene, PATCHES)
        said = lexicon.tokenizer.decode([lexicon.tokens[number] for number in row[10:].tolist() if number])
        assert said.strip() == scene.things[0].name


def test_a_level_is_a_third_of_a_third() -> None:
    """The first three levels are the first third of a side, and no pixel is outside all of them."""
    assert [level(pixel) for pixel in (0, 31.9, 32.1, 63.9, 64.1, 95.9)] == ["0", "2", "3", "5", "6", "8"]
    assert level(-1) == "0"
    assert level(SIDE + 1) == "8"


def test_every_kind_of_picture_can_be_told(lexicon: Lexicon, artist: Artist, rng: random.Random) -> None:
    """All that is said of any picture is in the lexicon, starts with its kind and fits into the image tokens."""
    for kind in KINDS:
        for _ in range(20):
            scene = artist.draw(rng, kind)
            fields = caption(scene)
            assert fields[0] == (0, kind)
            assert [start for start, _ in fields] == sorted({start for start, _ in fields})
            assert fields[-1][0] < PATCHES
            assert told(lexicon, scene).startswith(kind)
            named = lexicon.patches(scene, 16)
            assert named.shape == (PATCHES, WORDS_OF_PATCH)
            assert (named[:, 0] >= 0).all()


def test_words_at_a_point_are_those_of_what_is_there(artist: Artist, rng: random.Random) -> None:
    """At a shape's centre it is named, far from every shape there is ground, and in noise nothing is known."""
    for _ in range(20):
        scene = artist.draw(rng, "shapes")
        for thing in scene.things:
            assert words_at(scene, thing.x, thing.y) == [thing.color, thing.name]
        corners = [(x, y) for x in (1.0, SIDE - 1.0) for y in (1.0, SIDE - 1.0)]
        for x, y in corners:
            if all(math.hypot(thing.x - x, thing.y - y) > 45 for thing in scene.things):
                assert words_at(scene, x, y) == [GROUND]
    assert words_at(artist.draw(rng, "nothing"), 5, 5) == [UNKNOWN]

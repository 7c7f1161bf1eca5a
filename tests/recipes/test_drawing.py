"""Pictures show what their scenes say."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from recipes.smol_llava.drawing import KINDS, Artist
from recipes.smol_llava.scenes import SIDE, Thing
from recipes.smol_llava.shapes import COLORS


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_draws_the_same_picture(artist: Artist, kind: str) -> None:
    """A seed decides a picture and its facts, and another seed another picture."""
    one, again, other = (artist.draw(random.Random(seed), kind) for seed in (3, 3, 4))
    assert one.picture.tobytes() == again.picture.tobytes()
    assert one.things == again.things
    assert one.picture.size == (SIDE, SIDE)
    assert one.picture.tobytes() != other.picture.tobytes()


def test_shapes_have_their_color_where_they_are_said_to_be(artist: Artist, rng: random.Random) -> None:
    """At the centre of every filled shape, its colour is nearer than any other that has a name."""
    seen = 0
    for _ in range(30):
        scene = artist.draw(rng, "shapes")
        pixels = np.asarray(scene.picture)
        for thing in scene.things:
            if thing.name != "ring":
                found = tuple(int(part) for part in pixels[round(thing.y), round(thing.x)])
                assert min(COLORS, key=lambda name: math.dist(COLORS[name], found)) == thing.color
                seen += 1
    assert seen > 50


def test_shapes_do_not_touch(artist: Artist, rng: random.Random) -> None:
    """No two shapes of a picture overlap, so that each can be told apart."""
    for _ in range(30):
        things = artist.draw(rng, "shapes").things
        for index, one in enumerate(things):
            for other in things[index + 1 :]:
                assert math.hypot(one.x - other.x, one.y - other.y) > one.size + other.size


@pytest.mark.parametrize(
    ("x", "y", "place"),
    [(10, 10, "top left"), (48, 10, "top"), (90, 48, "right"), (48, 48, "center"), (10, 90, "bottom left")],
)
def test_places_are_named_by_ninths(x: float, y: float, place: str) -> None:
    """A place is the name of the ninth of the picture in which a centre lies."""
    assert Thing(name="star", x=x, y=y, size=5).place == place


def test_bars_are_as_high_as_the_chart_says(artist: Artist, rng: random.Random) -> None:
    """Of two bars, the one with the larger value covers more pixels of its colour."""
    for _ in range(10):
        scene = artist.draw(rng, "chart")
        pixels = np.asarray(scene.picture).astype(int)
        areas = {
            name: (np.abs(pixels - np.array(COLORS[name])).sum(axis=2) < 30).sum() for name in scene.heights
        }
        assert sorted(areas, key=areas.__getitem__) == sorted(scene.heights, key=scene.heights.__getitem__)


def test_letters_lie_where_they_are_said_to_be(artist: Artist, rng: random.Random) -> None:
    """Around the centre of every letter there is ink."""
    for _ in range(20):
        scene = artist.draw(rng, "text")
        assert "".join(thing.name for thing in scene.things) == scene.text
        pixels = np.asarray(scene.picture).astype(int)
        ground = pixels[0, 0]
        for thing in scene.things:
            x, y = min(int(thing.x), SIDE - 4), min(int(thing.y), SIDE - 4)
            around = pixels[max(0, y - 14) : y + 14, max(0, x - 8) : x + 8]
            assert np.abs(around - ground).max() > 60


def test_a_crowd_shows_a_thing_in_every_cell(artist: Artist, rng: random.Random) -> None:
    """A crowd has a square number of things, inside the picture, and around each centre something is drawn."""
    for _ in range(20):
        scene = artist.draw(rng, "crowd")
        assert math.isqrt(len(scene.things)) ** 2 == len(scene.things)
        pixels = np.asarray(scene.picture).astype(int)
        for thing in scene.things:
            assert 0 < thing.x < SIDE
            assert 0 < thing.y < SIDE
            left, top = max(0, int(thing.x - thing.size)), max(0, int(thing.y - thing.size))
            area = pixels[top : int(thing.y + thing.size) + 1, left : int(thing.x + thing.size) + 1]
            assert np.ptp(area.reshape(-1, 3), axis=0).max() > 20

"""Questions are fair and their answers right."""

from __future__ import annotations

import random
import re

import pytest

from recipes.smol_llava.drawing import KINDS, Artist
from recipes.smol_llava.questions import ABILITIES, NO_TEXT, PHRASES, UNKNOWN, Examiner, description
from recipes.smol_llava.scenes import Scene, Thing
from recipes.smol_llava.shapes import COLORS, SHAPES


@pytest.fixture
def scene() -> Scene:
    """Two red circles, and a blue star to the right below."""
    from PIL import Image

    return Scene(
        kind="shapes",
        picture=Image.new("RGB", (96, 96)),
        things=[
            Thing(name="circle", color="red", x=15, y=15, size=8),
            Thing(name="circle", color="red", x=15, y=48, size=8),
            Thing(name="star", color="blue", x=80, y=80, size=8),
        ],
    )


def asked(scene: Scene, ability: str, times: int = 60) -> dict[str, str]:
    """Ask many times and return the answers by question."""
    rng = random.Random(ability)
    questions = [Examiner().ask(rng, scene, ability) for _ in range(times)]
    return {question.text: question.answer for question in questions if question is not None}


def test_tested_phrasings_are_never_trained_on() -> None:
    """No phrasing kept for testing is among those trained on, and there are both of every kind."""
    for phrases in PHRASES.values():
        assert phrases["known"]
        assert phrases["new"]
        assert not set(phrases["known"]) & set(phrases["new"])


@pytest.mark.parametrize("held_out", [True, False])
def test_an_examiner_uses_only_his_phrasings(artist: Artist, *, held_out: bool) -> None:
    """Every question matches a phrasing of the kind that was asked for."""
    wanted = [text for phrases in PHRASES.values() for text in phrases["new" if held_out else "known"]]
    patterns = [
        re.compile(re.escape(text).replace(r"\{0\}", ".+").replace(r"\{1\}", ".+")) for text in wanted
    ]
    rng, examiner = random.Random(1), Examiner(held_out=held_out)
    questions = [examiner.ask(rng, artist.draw(rng, kind)) for kind in KINDS for _ in range(30)]
    for question in questions:
        assert question is None or any(pattern.fullmatch(question.text) for pattern in patterns), question


def test_color_and_shape_are_asked_only_where_one_thing_is_meant(scene: Scene) -> None:
    """The colour of "the circle" is not asked where there are two, and the star's is blue."""
    assert all("star" in text for text in asked(scene, "color"))
    assert set(asked(scene, "color").values()) == {"Blue"}
    assert set(asked(scene, "shape").values()) == {"Star"}


def test_counts_are_those_of_the_scene(scene: Scene) -> None:
    """All shapes, those of a name and those of a colour are counted right."""
    for text, answer in asked(scene, "count").items():
        wanted = (
            "2" if "circles" in text or "red" in text else "1" if "stars" in text or "blue" in text else "3"
        )
        assert answer == wanted, text


def test_relations_follow_the_coordinates() -> None:
    """Left, right, above and below are answered as the coordinates say, both ways round."""
    from PIL import Image

    left = Thing(name="ring", color="green", x=20, y=80, size=8)
    right = Thing(name="heart", color="pink", x=70, y=20, size=8)
    scene = Scene(kind="shapes", picture=Image.new("RGB", (96, 96)), things=[right, left])
    answers = asked(scene, "relation", times=200)
    assert len(answers) > 20
    for text, answer in answers.items():
        first_is_ring = text.index("ring") < text.index("heart")
        true_of_ring = "left" in text or "below" in text or "lower" in text
        assert answer == ("Yes" if first_is_ring == true_of_ring else "No"), text


def test_what_is_not_there_is_not_claimed(scene: Scene, artist: Artist, rng: random.Random) -> None:
    """A picture of nothing is answered as unknown, and one without text as having none."""
    nothing = artist.draw(rng, "nothing")
    assert set(asked(nothing, "name").values()) == {UNKNOWN}
    assert set(asked(nothing, "describe").values()) == {UNKNOWN}
    assert set(asked(scene, "reading").values()) == {NO_TEXT}
    for text, answer in asked(scene, "exists", times=200).items():
        there = any(thing.described in text for thing in scene.things)
        assert answer == ("Yes" if there else "No"), text


def test_a_description_names_everything(scene: Scene) -> None:
    """A description lists all things with their places."""
    assert (
        description(scene) == "A red circle (top left), a red circle (left) and a blue star (bottom right)."
    )


@pytest.mark.parametrize("kind", KINDS)
def test_every_ability_of_a_kind_can_be_asked(artist: Artist, kind: str) -> None:
    """For each kind of picture, every ability finds a question sooner or later."""
    rng, examiner = random.Random(2), Examiner()
    scenes = [artist.draw(rng, kind) for _ in range(40)]
    for ability, _ in ABILITIES[scenes[0].kind]:
        assert any(examiner.ask(rng, scene, ability) for scene in scenes), ability


def test_names_are_unambiguous() -> None:
    """No colour is a shape, so that a thing's description has one reading."""
    assert not set(COLORS) & set(SHAPES)

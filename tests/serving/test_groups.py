"""Instruction groups: which datasets belong together, and where a single request goes."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving import groups
from serving.groups import Codebook, assign, instruction_of, nearest, profiles_of, route, similarity

THINGS = (
    "dog",
    "red car",
    "tall tree",
    "old man",
    "wooden table",
    "street sign",
    "white boat",
    "kitchen clock",
)
FORMATS = {
    "word": "What is behind the {}?\nAnswer the question using a single word or phrase.",
    "letter": "Which of these is a {}?\nA.\nB.\nAnswer with the option's letter from the given choices directly.",
    "box": "Please provide the bounding box coordinate of the region this sentence describes: the {}.",
    "caption": "Write a short caption for this picture of a {}.",
}


def instructions(name: str, things: Sequence[str] = THINGS) -> list[str]:
    """Return instructions of one form about these things."""
    return [FORMATS[name].format(thing) for thing in things]


def book(*names: str) -> Codebook:
    """Return a codebook with a group for each form."""
    codebook = Codebook()
    for group, name in enumerate(names):
        codebook = codebook.extended(group, instructions(name))
    return codebook


def dense(text: str, vocabulary: Sequence[str], idf: np.ndarray) -> np.ndarray:
    """Return the TF-IDF of a text as a plain vector, from the textbook's definition."""
    found = [f" {word} "[i : i + 3] for word in re.findall(r"\w+", text.lower()) for i in range(len(word))]
    weights = np.array([found.count(gram) for gram in vocabulary]) * idf
    length = np.linalg.norm(weights)
    scaled: np.ndarray = weights / length if length else weights
    return scaled


def test_profiles_equal_a_float64_reference() -> None:
    """Weights are the textbook's TF-IDF over all instructions of all groups, and a group is the mean of its own."""
    codebook = book("word", "caption", "box")
    texts = [text for group in codebook.groups for text in group]
    vocabulary = sorted(
        {f" {w} "[i : i + 3] for t in texts for w in re.findall(r"\w+", t.lower()) for i in range(len(w))}
    )
    holding = np.array(
        [sum(gram in re.sub(r"\W+", "  ", f" {t.lower()} ") for t in texts) for gram in vocabulary]
    )
    idf = np.log((1 + len(texts)) / (1 + holding)) + 1
    found = profiles_of(codebook)
    assert set(found.rarity) == set(vocabulary)
    np.testing.assert_allclose([found.rarity[gram] for gram in vocabulary], idf)
    for group, mean in zip(codebook.groups, found.means, strict=True):
        wanted = np.mean([dense(text, vocabulary, idf) for text in group], axis=0)
        np.testing.assert_allclose(
            [mean.get(gram, 0.0) for gram in vocabulary], wanted / np.linalg.norm(wanted), atol=1e-12
        )


@pytest.mark.parametrize("name", FORMATS)
def test_dataset_joins_the_group_of_its_form(name: str) -> None:
    """Other questions of a known form go to its group, whatever they are about."""
    codebook = book(*FORMATS)
    fresh = instructions(name, ["grey bird", "phone", "mountain bike"])
    assert assign(fresh, codebook, 0.5) == list(FORMATS).index(name)


@pytest.mark.parametrize("name", FORMATS)
def test_dataset_of_a_new_form_opens_a_group(name: str) -> None:
    """A form that the codebook does not know gets the next number."""
    others = [other for other in FORMATS if other != name]
    assert assign(instructions(name), book(*others), 0.5) == len(others)


def test_similarity_is_what_joining_compares() -> None:
    """Two datasets alone share an adapter up to just that threshold; the same texts are wholly alike."""
    one, other = ["Answer with a letter."], ["Answer with one word."]
    alike = similarity(one, other)
    book = Codebook().extended(0, one)
    assert assign(other, book, alike - 1e-9) == 0
    assert assign(other, book, alike + 1e-9) == 1
    assert similarity(one, one) == pytest.approx(1)
    assert similarity(one, ["Quelle heure?"]) == 0


def test_first_dataset_opens_the_first_group() -> None:
    """An empty codebook has no group to compare with."""
    assert assign(instructions("word"), Codebook(), 0.5) == 0


def test_threshold_decides_how_alike_is_alike() -> None:
    """At 0 everything joins the nearest group, at 1 only what is equal."""
    codebook = book("word", "box")
    assert assign(instructions("caption"), codebook, 0.0) < 2
    assert assign(instructions("word", THINGS[:3]), book("caption"), 1.0) == 1
    assert assign(instructions("box"), codebook, 1 - 1e-9) == 1


def test_group_of_many_different_texts_resembles_itself() -> None:
    """The mean over pairs alone would be small for a varied group; its own texts must find it all the same."""
    varied = [f"What about the {thing}?" for thing in THINGS]
    codebook = Codebook().extended(0, instructions("word")).extended(1, varied)
    assert assign(varied, codebook, 0.99) == 1


@pytest.mark.parametrize("name", FORMATS)
def test_request_is_routed_by_itself(name: str) -> None:
    """Each single question of a form goes to the group of that form."""
    for text in instructions(name, ["grey bird", "phone"]):
        assert nearest(text, book(*FORMATS))[0] == list(FORMATS).index(name)


@pytest.mark.parametrize("text", ["", "   \n ", "!?", "zzz qqq", "你好"])
def test_request_that_resembles_nothing_goes_to_the_base_model(text: str) -> None:
    """Texts without a known word raise nothing and resemble no group, nor does any text one of an empty codebook."""
    for codebook in (book(*FORMATS), Codebook()):
        assert nearest(text, codebook) == (0, 0.0)
        assert route(text, codebook, 0.3) is None


def test_floor_is_where_a_group_begins_to_answer() -> None:
    """A text goes to the group that it resembles most if that is as much as the floor, and not if it is a bit less."""
    text = "Answer the question in a word or two, please."
    group, alike = nearest(text, book(*FORMATS))
    assert 0 < alike < 1
    assert route(text, book(*FORMATS), alike) == group
    assert route(text, book(*FORMATS), alike + 1e-9) is None


def test_words_of_any_script_count() -> None:
    """Instructions are told apart where words have no blanks between them."""
    codebook = Codebook().extended(0, ["这张图片里有什么？"]).extended(1, ["请用一个词回答问题。"])
    assert nearest("请用一个词回答", codebook)[0] == 1
    assert nearest("图片里有什么", codebook)[0] == 0


@given(st.lists(st.lists(st.text(max_size=20), max_size=4), max_size=4), st.text(max_size=30))
@settings(deadline=None, max_examples=60)
def test_codebook_survives_json_and_every_text_has_a_group(texts: list[list[str]], text: str) -> None:
    """What is stored with a generation comes back equal; routing any text at all gives a group that exists."""
    codebook = Codebook()
    for group, several in enumerate(texts):
        codebook = codebook.extended(group, several)
    again = Codebook.from_json(codebook.to_json())
    assert again == codebook
    assert 0 <= nearest(text, again)[0] < max(1, len(texts))
    assert 0 <= assign([text], again, 0.5) <= len(texts)


def test_extending_adds_each_instruction_once_and_leaves_the_old_codebook() -> None:
    """The codebook of an earlier generation does not change when a later one learns."""
    before = book("word", "box")
    after = before.extended(1, [*instructions("box"), "where is it?"])
    assert before == book("word", "box")
    assert set(after.groups[1]) == {*map(instruction_of, instructions("box")), "where is it?"}
    assert len(after.groups[1]) == len(before.groups[1]) + 1


def test_large_group_is_sampled_alike_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the limit the same instructions stay, whatever order they come in and in however many datasets."""
    monkeypatch.setattr(groups, "MOST_OF_A_GROUP", 5)
    several = [f"question {i}" for i in range(20)]
    at_once = Codebook().extended(0, several)
    in_turn = Codebook().extended(0, several[:7:-1]).extended(0, several[:8])
    assert len(at_once.groups[0]) == 5
    assert at_once == in_turn


def test_instruction_is_the_last_line_with_text() -> None:
    """The form of an answer is asked for at the end; a single line is its own instruction."""
    assert instruction_of("Which one?\nA. x\nB. y\nAnswer with a letter. \n\n") == "Answer with a letter."
    assert instruction_of("how many?") == "how many?"
    assert instruction_of(" \n") == ""

"""Which adapter answers: decided by the question and the generation alone, and never by what is not whole."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from serving.groups import profiles_of
from serving.router import CODEBOOK, adapter_for, question_of, served_name
from storage.errors import AdapterChanged
from storage.records import Conversation, Generation, User, image_part, text_part
from storage.store import Store
from tests.serving.adapters import claimed_round, grouped, published, write_lora

WORD = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."

Publish = Callable[..., Generation]


def asked(*turns: str) -> Conversation:
    """Return a conversation of these turns, the first and the last of them a person's."""
    return [
        {"role": "assistant" if number % 2 else "user", "content": [text_part(text)]}
        for number, text in enumerate(turns)
    ]


@pytest.fixture
def publish(store: Store, admin: User, tmp_path: Path) -> Publish:
    """Publish a generation that has trained the second of two groups; generation 4 has trained the first."""

    def published_with(floor: float = 0.0) -> Generation:
        directory = write_lora(tmp_path / "new", seed=1)
        groups = grouped(directory, [WORD, LETTER], [4, None], floor)
        return published(store, claimed_round(store, admin), directory, groups=groups)

    return published_with


def test_the_newest_question_chooses_the_adapter(publish: Publish) -> None:
    """Each turn goes to its own group, however the conversation began."""
    routed = publish()
    assert adapter_for(routed, asked(f"Which?\n{LETTER}")) == routed.number
    assert adapter_for(routed, asked(f"Which?\n{LETTER}", "B", f"What is it?\n{WORD}")) == 4
    assert adapter_for(routed, asked(f"What is it?\n{WORD}", "a dog", f"Which?\n{LETTER}")) == routed.number


def test_without_a_floor_the_nearest_answers(publish: Publish) -> None:
    """What resembles no group at all goes to the first, what resembles one a little to that one."""
    routed = publish()
    assert adapter_for(routed, asked("你好")) == 4
    assert adapter_for(routed, asked("Which letter?")) == routed.number


def test_below_the_floor_the_base_model_answers(publish: Publish) -> None:
    """A generation with a floor leaves to the base model what resembles no group enough."""
    routed = publish(0.5)
    assert adapter_for(routed, asked("你好")) == adapter_for(routed, asked("Which letter?")) == 0
    assert adapter_for(routed, asked(f"Which?\n{LETTER}")) == routed.number


def test_a_picture_after_its_question_does_not_change_the_route(publish: Publish) -> None:
    """A turn without text has no instruction; that of the turn before counts."""
    routed = publish()
    conversation = asked(f"Which?\n{LETTER}", "B")
    conversation.append({"role": "user", "content": [image_part("0" * 64)]})
    assert adapter_for(routed, conversation) == routed.number
    assert question_of([conversation[-1]]) == ""


def test_a_generation_without_groups_and_the_base_model_answer_everything(
    store: Store, admin: User, tmp_path: Path
) -> None:
    """Without groups the served name is the generation's own, and no codebook is looked for."""
    plain = published(store, claimed_round(store, admin), write_lora(tmp_path / "new", seed=1))
    assert served_name(store.generations, plain.number, asked(WORD)) == plain.name
    assert served_name(store.generations, 0, asked(WORD)) == "assistant@0"
    assert (plain.groups, plain.adapters) == (None, (plain.number,))


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"groups": 1}'])
def test_a_broken_codebook_is_named(publish: Publish, content: str | None) -> None:
    """Nothing is guessed without the codebook; the error says which file of which directory is to be restored."""
    routed = publish()
    (routed.directory / CODEBOOK).unlink()
    if content is not None:
        (routed.directory / CODEBOOK).write_text(content)
    with pytest.raises(AdapterChanged, match=f"{routed.sha256}.*{CODEBOOK}"):
        adapter_for(routed, asked(WORD))


def test_a_codebook_is_read_once(publish: Publish) -> None:
    """A directory never changes, so a chat does not wait for a file."""
    routed = publish()
    assert adapter_for(routed, asked(LETTER)) == routed.number
    (routed.directory / CODEBOOK).unlink()
    assert adapter_for(routed, asked(LETTER)) == routed.number


def test_those_who_ask_at_once_after_a_swap_have_the_codebook_weighed_once(publish: Publish) -> None:
    """Weighing takes long; the first one does it, and the others wait for it."""
    routed = publish()
    profiles_of.cache_clear()
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: adapter_for(routed, asked(LETTER)), range(32)))
    assert found == {routed.number}
    assert profiles_of.cache_info().misses == 1

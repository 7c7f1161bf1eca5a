"""What datasets promise: a split for ever, and states that only move as they may."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.datasets import split, ties
from storage.errors import RoundInProgress, UnknownDataset, WrongState
from storage.records import Conversation, DatasetState, User, image_part
from storage.store import Store
from tests.conftest import question, questions


@given(st.lists(st.integers(0, 12), min_size=1, max_size=60))
def test_no_picture_is_on_both_sides(pictures: list[int]) -> None:
    """Rows about the same picture fall on one side, and something always remains to train on."""
    rows = [question(f"{i}?", "a", image=f"{picture:064x}") for i, picture in enumerate(pictures)]
    sides = split(rows, 0.2)
    both = {p for p, s in zip(pictures, sides, strict=True) if s == "train"} & {
        p for p, s in zip(pictures, sides, strict=True) if s == "holdout"
    }
    assert not both
    assert "train" in sides
    assert ("holdout" in sides) == (len(set(pictures)) > 1)


@given(st.lists(st.lists(st.integers(0, 9), max_size=3), max_size=30))
def test_rows_that_share_any_picture_are_tied(shown: list[list[int]]) -> None:
    """Rows belong together exactly if a chain of shared pictures leads from one to the other."""
    rows = [[str(picture) for picture in pictures] for pictures in shown]
    found = ties(rows)
    for start, pictures in enumerate(rows):
        reached = set(pictures)
        while True:
            wider = reached.union(*(row for row in rows if reached & set(row)))
            if wider == reached:
                break
            reached = wider
        assert found[start] == min(reached, default=None)


def test_no_picture_of_several_is_on_both_sides() -> None:
    """Of a row with two pictures neither is shown on the other side, whichever rows show one of them alone."""
    rows = [question(f"{i}?", "a", image=f"{i:064x}") for i in range(30)]
    both: list[Conversation] = []
    for one, other in zip(rows[::2], rows[1::2], strict=True):
        asked, answer = one
        both.append([{"role": "user", "content": [*asked["content"], *other[0]["content"]]}, answer])
    sides = split([*rows, *both], 0.2)
    assert "holdout" in sides
    for i in range(15):
        assert sides[2 * i] == sides[2 * i + 1] == sides[30 + i]


@given(st.lists(st.lists(st.integers(0, 40), max_size=2), min_size=2, max_size=60))
def test_as_many_rows_are_kept_aside_as_there_shall_be(shown: list[list[int]]) -> None:
    """However pictures tie rows together, at most the share is kept aside, or else the smallest group there is."""
    rows = [question(f"{i}?", "a") for i in range(len(shown))]
    for row, pictures in zip(rows, shown, strict=True):
        row[0]["content"] = [
            *map(image_part, (f"{picture:064x}" for picture in pictures)),
            *row[0]["content"],
        ]
    held = split(rows, 0.2).count("holdout")
    tied = ties([f"{picture:064x}" for picture in pictures] for pictures in shown)
    sizes = Counter(i if picture is None else picture for i, picture in enumerate(tied))
    assert held <= max(1, round(len(rows) * 0.2)) or held == min(sizes.values())
    assert (held > 0) == (len(sizes) > 1)


def test_many_rows_about_one_picture_are_split_at_once() -> None:
    """Time grows with the rows, not with their square: a hundred thousand that share a picture are no trouble."""
    assert set(ties([f"{number}", "reference"] for number in range(100_000))) == {"0"}


def test_the_split_is_for_ever(store: Store, admin: User) -> None:
    """The same rows split the same way whenever and in whatever order they come."""
    rows = questions(50)
    first = store.datasets.add("a", admin.id, rows)
    second = store.datasets.add("b", admin.id, rows[::-1])
    held = [{row.sha256 for row in store.datasets.rows(d.id, "holdout")} for d in (first, second)]
    assert held[0] == held[1]
    assert first.holdout_rows == 10


def test_only_waiting_data_is_approved(store: Store, admin: User) -> None:
    """Approval queues what waits, once; withdrawing is possible at any time and final."""
    dataset = store.datasets.add("a", admin.id, questions(5))
    assert store.datasets.approve(dataset.id, "ada").state is DatasetState.QUEUED
    with pytest.raises(WrongState, match="queued"):
        store.datasets.approve(dataset.id, "ada")
    assert store.datasets.withdraw(dataset.id, "ada").state is DatasetState.WITHDRAWN
    with pytest.raises(UnknownDataset):
        store.datasets.approve(99, "ada")


def test_data_in_a_round_is_not_withdrawn_under_it(store: Store, admin: User) -> None:
    """While an unfinished round learns a dataset it cannot be withdrawn; after a cancel it can, and stays so."""
    dataset = store.datasets.add("a", admin.id, questions(5), approved_by="ada")
    found = store.rounds.enqueue("ada")
    with pytest.raises(RoundInProgress, match=f"Round {found.id}"):
        store.datasets.withdraw(dataset.id, "ada")
    store.rounds.cancel(found.id, "ada")
    assert store.datasets.withdraw(dataset.id, "ada").state is DatasetState.WITHDRAWN


def test_every_row_knows_its_pictures(store: Store, admin: User) -> None:
    """Rows are stored in their order, and each picture of a row once, however often the row shows it."""
    first, second = (store.blobs.put(data, "image/png") for data in (b"a", b"b"))
    rows = [question("1?", "a", image=first), question("2?", "b"), question("3?", "c", image=second)]
    rows[2][0]["content"] += [image_part(first), image_part(second)]
    dataset = store.datasets.add("a", admin.id, rows)
    found = store.datasets.rows(dataset.id)
    assert [row.messages for row in found] == rows
    assert [row.position for row in found] == [0, 1, 2]
    for row in found:
        shown = store.database.rows("SELECT sha256 FROM row_images WHERE row_id = ?", [row.id])
        assert sorted(image["sha256"] for image in shown) == sorted(set(row.images))

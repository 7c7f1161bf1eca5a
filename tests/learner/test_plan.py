"""What a round is going to train: without groups the one adapter, with them that of the group it belongs to."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from learner.plan import Plan, join, plan_round
from serving.groups import Codebook
from serving.router import CODEBOOK
from storage.records import Conversation, Dataset, DatasetState, User
from storage.store import Store
from tests.conftest import question
from tests.storage.test_generations import promoted

WORD = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."
CAPTION = "Write a short caption for this picture."


def rows(form: str, subject: str) -> list[Conversation]:
    """Return rows that ask for answers of one form."""
    return [question(f"What about {subject} {number}?\n{form}", "yes") for number in range(8)]


def add(store: Store, admin: User, form: str, subject: str) -> Dataset:
    """Queue a dataset of one form."""
    return store.datasets.add(subject, admin.id, rows(form, subject), approved_by=admin.name)


def plan(store: Store, new: Sequence[Dataset], threshold: float = 0.5, most_groups: int = 3) -> Plan:
    """Return the plan of a round over new datasets, after everything that was learned."""
    earlier = store.datasets.list(DatasetState.LEARNED)
    champion = store.generations.champion()
    return plan_round(store, champion, new, earlier, threshold=threshold, floor=0.1, most_groups=most_groups)


def learned(
    store: Store, admin: User, form: str, subject: str, groups: dict[str, Any] | None = None
) -> Dataset:
    """Carry a dataset to a promotion by a generation with these groups."""
    number = promoted(store, admin)
    dataset = store.datasets.list()[-1]
    for row, content in zip(store.datasets.rows(dataset.id), rows(form, subject), strict=False):
        store.database.run("UPDATE rows SET messages = ? WHERE id = ?", [json.dumps(content), row.id])
    if groups is not None:
        store.database.run(
            "UPDATE generations SET manifest = ? WHERE number = ?", [json.dumps({"groups": groups}), number]
        )
    return dataset


def keep(store: Store, planned: Plan) -> dict[str, Any]:
    """Write the codebook of a plan to where the next generation will be; return what its manifest says."""
    assert planned.grouping is not None
    directory = store.generations.root / f"hash{len(store.rounds.list()) + 1}"
    directory.mkdir()
    (directory / CODEBOOK).write_text(planned.grouping.codebook.to_json())
    facts: dict[str, Any] = json.loads(json.dumps(planned.grouping.facts()))
    return facts


def two_groups(store: Store, admin: User) -> None:
    """Teach answers in a word, then letters: two groups, the second of them trained by generation 2."""
    groups = keep(store, plan(store, [add(store, admin, WORD, "dogs")]))
    store.datasets.withdraw(1, admin.name)
    groups["datasets"] = [[2]]
    learned(store, admin, WORD, "dogs", groups)
    letters = add(store, admin, LETTER, "choices")
    groups = keep(store, plan(store, [letters]))
    store.datasets.withdraw(letters.id, admin.name)
    groups["datasets"] = [[2], [4]]
    learned(store, admin, LETTER, "choices", groups)


def test_without_a_threshold_a_round_goes_on_from_the_champion(store: Store, admin: User) -> None:
    """Off is off: one adapter, everything that waits, everything that was learned, and no word about groups."""
    new = [add(store, admin, WORD, "dogs"), add(store, admin, LETTER, "choices")]
    assert plan(store, new, threshold=0.0) == Plan(parent=None, earlier=())
    dataset = learned(store, admin, WORD, "cats")
    new = [add(store, admin, CAPTION, "birds")]
    champion = store.generations.get(1)
    earlier = store.datasets.list(DatasetState.LEARNED)
    assert dataset.id in {found.id for found in earlier}
    assert plan(store, new, threshold=0.0) == Plan(parent=champion, earlier=tuple(earlier))


def test_first_round_opens_a_group_and_leaves_other_datasets(store: Store, admin: User) -> None:
    """A round has one adapter, so of several queued datasets it takes those like the first one."""
    dogs, letters, cats = (
        add(store, admin, form, subject)
        for form, subject in ((WORD, "dogs"), (LETTER, "choices"), (WORD, "cats"))
    )
    planned = plan(store, [dogs, letters, cats])
    assert planned.parent is None
    assert planned.left == (letters,)
    assert planned.grouping is not None
    assert planned.grouping.facts() == {
        "adapters": [{"generation": None, "sha256": None}],
        "datasets": ((dogs.id, cats.id),),
        "floor": 0.1,
        "origin": 0,
    }
    again = plan(store, [dogs, cats])
    assert (again.grouping, again.left) == (planned.grouping, ())


def test_dataset_goes_on_with_the_adapter_of_its_group(store: Store, admin: User) -> None:
    """The round starts from that adapter, remembers that group's datasets alone, and keeps the other adapter."""
    two_groups(store, admin)
    assert store.generations.champion() == 2
    cats = add(store, admin, WORD, "cats")
    planned = plan(store, [cats])
    assert planned.parent == store.generations.get(1)
    assert [dataset.id for dataset in planned.earlier] == [2]
    assert planned.grouping is not None
    facts = planned.grouping.facts()
    assert facts["adapters"] == [
        {"generation": None, "sha256": None},
        {"generation": 2, "sha256": "hash2"},
    ]
    assert (facts["datasets"], facts["origin"]) == (((2, cats.id), (4,)), 1)


def test_dataset_like_no_group_opens_one(store: Store, admin: User) -> None:
    """A new adapter starts from the bare base model, with nothing to protect; the others stay as they are."""
    two_groups(store, admin)
    planned = plan(store, [add(store, admin, CAPTION, "birds")])
    assert (planned.parent, planned.earlier) == (None, ())
    assert planned.grouping is not None
    assert [found and found.number for found in planned.grouping.adapters] == [1, 2, None]


def test_turned_off_again_no_group_is_opened_and_none_is_lost(store: Store, admin: User) -> None:
    """With groups in the champion a threshold of 0 means that every dataset goes on with the nearest."""
    two_groups(store, admin)
    planned = plan(store, [add(store, admin, CAPTION, "birds")], threshold=0.0)
    assert planned.grouping is not None
    assert planned.parent is not None
    assert len(planned.grouping.adapters) == 2


def test_without_room_for_another_group_the_nearest_learns(store: Store, admin: User) -> None:
    """Where servers take no third adapter, what resembles no group goes on with the one it resembles most."""
    two_groups(store, admin)
    birds = add(store, admin, "Answer with the letter of a bird.", "birds")
    assert plan(store, [birds]).parent is None
    planned = plan(store, [birds], most_groups=2)
    assert planned.parent == store.generations.get(2)
    assert planned.grouping is not None
    assert planned.grouping.datasets == ((2,), (4, birds.id))


def test_champion_that_was_trained_without_groups_becomes_the_first(store: Store, admin: User) -> None:
    """Turned on later, what was learned so far is one group with the champion's adapter."""
    dogs = learned(store, admin, WORD, "dogs")
    planned = plan(store, [add(store, admin, LETTER, "choices")])
    assert planned.grouping is not None
    assert [found and found.number for found in planned.grouping.adapters] == [1, None]
    assert planned.grouping.datasets[0] == (dogs.id,)
    assert planned.grouping.codebook.groups[0] == (WORD,)
    cats = plan(store, [add(store, admin, WORD, "cats")])
    assert (cats.parent, cats.earlier) == (store.generations.get(1), (dogs,))


@pytest.mark.parametrize("most_groups", [1, 2, 5])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.9])
def test_joining_is_the_same_for_those_who_have_joined(threshold: float, most_groups: int) -> None:
    """A round that is told again, over the datasets that it has kept, comes to the same group and codebook."""
    texts = {1: [WORD], 2: [LETTER], 3: [f"{WORD} Be brief."], 4: [CAPTION], 5: ["Answer with one word."]}
    group, codebook, taught = join(texts, Codebook(), threshold, most_groups)
    assert taught[0] == 1
    kept = {number: texts[number] for number in taught}
    assert join(kept, Codebook(), threshold, most_groups) == (group, codebook, taught)

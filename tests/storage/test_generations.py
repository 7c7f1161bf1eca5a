"""What the registry promises: the alias moves once, with its verdict, or not at all."""

from __future__ import annotations

import json
import sqlite3

import pytest

from storage.errors import (
    AliasMoved,
    LeaseLost,
    NothingToRollBack,
    RoundCancelled,
    UnknownGeneration,
    WrongState,
)
from storage.records import (
    Answer,
    DatasetState,
    Decision,
    Groups,
    Round,
    RoundState,
    User,
    generation_name,
    generation_number,
)
from storage.store import Store
from tests.conftest import questions

STEPS = (RoundState.TRAINING, RoundState.EVALUATING, RoundState.JUDGING)


def judged(store: Store, admin: User, decision: Decision) -> tuple[Round, int]:
    """Bring a new round with a published candidate to its verdict; return it and the candidate's number."""
    store.datasets.add("task", admin.id, questions(5), approved_by=admin.name)
    store.rounds.enqueue(admin.name)
    claimed = store.rounds.claim("test", 30)
    assert claimed is not None
    lease = str(claimed.lease)
    champion = store.generations.champion()
    store.rounds.prepare(claimed.id, lease, champion, "llaca", {})
    candidate = store.generations.publish(
        round_id=claimed.id,
        lease=lease,
        sha256=f"hash{claimed.id}",
        parent=champion,
        rank=8,
        manifest={"a": 1},
    )
    for state in STEPS:
        store.rounds.advance(claimed.id, lease, state)
    store.rounds.set_verdict(claimed.id, lease, {"decision": decision, "reasons": ["because"]})
    return store.rounds.get(claimed.id), candidate.number


def promoted(store: Store, admin: User) -> int:
    """Carry a new round to its promotion; return the new champion."""
    found, candidate = judged(store, admin, Decision.PROMOTE)
    store.rounds.advance(found.id, str(found.lease), RoundState.SWAPPING)
    store.generations.promote(
        round_id=found.id, lease=str(found.lease), candidate=candidate, expected=store.generations.champion()
    )
    return candidate


def test_promotion_is_one_step_for_alias_round_data_and_audit(store: Store, admin: User) -> None:
    """When the alias has moved, the round has ended, its data counts as learned, and the log says so."""
    candidate = promoted(store, admin)
    assert store.generations.champion() == candidate
    assert store.rounds.list()[0].state is RoundState.PROMOTED
    assert store.datasets.get(1).state is DatasetState.LEARNED
    assert store.audit.list(1)[0].action == "alias.move"
    assert store.generations.history()[0].previous == 0


def test_states_of_datasets_follow_a_roll_back(store: Store, admin: User) -> None:
    """What only the generations left behind have learned is set aside and can be queued again; forth, it is learned."""
    for _ in range(3):
        promoted(store, admin)
    store.datasets.withdraw(2, admin.name)

    def states() -> list[DatasetState]:
        return [store.datasets.get(number).state for number in (1, 2, 3)]

    store.generations.roll_back(admin.name, to=1)
    assert states() == [DatasetState.LEARNED, DatasetState.WITHDRAWN, DatasetState.SET_ASIDE]
    store.generations.roll_back(admin.name, to=0)
    assert states() == [DatasetState.SET_ASIDE, DatasetState.WITHDRAWN, DatasetState.SET_ASIDE]
    store.generations.roll_back(admin.name, to=3)
    assert states() == [DatasetState.LEARNED, DatasetState.WITHDRAWN, DatasetState.LEARNED]
    store.generations.roll_back(admin.name, to=1)
    assert store.datasets.approve(3, admin.name).state is DatasetState.QUEUED
    store.generations.roll_back(admin.name, to=3)
    assert states() == [DatasetState.LEARNED, DatasetState.WITHDRAWN, DatasetState.LEARNED]


def test_nothing_is_promoted_without_its_verdict(store: Store, admin: User) -> None:
    """A round that was not judged `promote` cannot move the alias, even in the right state."""
    found, candidate = judged(store, admin, Decision.HOLD)
    lease = str(found.lease)
    store.rounds.advance(found.id, lease, RoundState.SWAPPING)
    with pytest.raises(WrongState, match="verdict hold"):
        store.generations.promote(round_id=found.id, lease=lease, candidate=candidate, expected=0)
    assert store.generations.champion() == 0


def test_a_round_promotes_once(store: Store, admin: User) -> None:
    """A worker that repeats its last step changes nothing."""
    found, candidate = judged(store, admin, Decision.PROMOTE)
    lease = str(found.lease)
    store.rounds.advance(found.id, lease, RoundState.SWAPPING)
    store.generations.promote(round_id=found.id, lease=lease, candidate=candidate, expected=0)
    with pytest.raises(LeaseLost):
        store.generations.promote(round_id=found.id, lease=lease, candidate=candidate, expected=0)
    assert len(store.generations.history()) == 1


def test_the_alias_moves_only_from_where_it_is_expected(store: Store, admin: User) -> None:
    """If somebody rolled back meanwhile, a promotion is refused and leaves no trace."""
    promoted(store, admin)
    found, candidate = judged(store, admin, Decision.PROMOTE)
    lease = str(found.lease)
    store.rounds.advance(found.id, lease, RoundState.SWAPPING)
    store.generations.roll_back("ada")
    with pytest.raises(AliasMoved):
        store.generations.promote(round_id=found.id, lease=lease, candidate=candidate, expected=1)
    assert store.generations.champion() == 0
    assert store.rounds.get(found.id).state is RoundState.SWAPPING


def test_roll_back_goes_to_the_parent_and_then_no_further_than_the_base(store: Store, admin: User) -> None:
    """Each roll-back goes one step up the lineage, and says when there is none."""
    first, second = promoted(store, admin), promoted(store, admin)
    assert store.generations.roll_back("ada", expected=second) == first
    assert store.generations.roll_back("ada") == 0
    with pytest.raises(NothingToRollBack):
        store.generations.roll_back("ada")


def test_roll_back_never_reaches_a_candidate_that_did_not_serve(store: Store, admin: User) -> None:
    """Only generations that were judged and promoted once can serve again."""
    promoted(store, admin)
    found, candidate = judged(store, admin, Decision.REJECT)
    store.rounds.finish(found.id, str(found.lease), RoundState.REJECTED)
    with pytest.raises(UnknownGeneration):
        store.generations.roll_back("ada", to=candidate)


def test_servers_keep_champion_ways_back_and_live_candidate(store: Store, admin: User) -> None:
    """What must be loaded: who serves, where a roll-back goes, who served last, and who is being judged."""
    first, second, third = promoted(store, admin), promoted(store, admin), promoted(store, admin)
    found, candidate = judged(store, admin, Decision.REJECT)
    assert store.generations.serve_set() == {second, third, candidate}
    store.rounds.finish(found.id, str(found.lease), RoundState.REJECTED)
    store.generations.roll_back("ada")
    assert store.generations.serve_set() == {first, second, third}


def test_publishing_again_keeps_the_number(store: Store, admin: User) -> None:
    """A round that is told again after a crash has one candidate, not two."""
    found, candidate = judged(store, admin, Decision.PROMOTE)
    again = store.generations.publish(
        round_id=found.id, lease=str(found.lease), sha256="other", parent=0, rank=8, manifest={}
    )
    assert (again.number, again.sha256) == (candidate, f"hash{found.id}")
    assert len(store.generations.list()) == 1


def test_a_round_has_one_generation_for_each_share(store: Store, admin: User) -> None:
    """Points on the way to what was trained are generations of their own, and told again they keep their numbers."""
    found, trained = judged(store, admin, Decision.REJECT)
    lease = str(found.lease)

    def point(share: float) -> int:
        return store.generations.publish(
            round_id=found.id, lease=lease, sha256=str(share), parent=0, rank=8, manifest={}, share=share
        ).number

    half, quarter = point(0.5), point(0.25)
    assert [point(0.5), point(0.25)] == [half, quarter]
    assert len({trained, half, quarter}) == 3
    for share, number in ((1.0, trained), (0.5, half), (0.25, quarter)):
        of_round = store.generations.of_round(found.id, share)
        assert of_round is not None
        assert (of_round.number, of_round.share) == (number, share)
    assert store.generations.of_round(found.id, 0.75) is None


def test_what_is_put_to_test_is_the_candidate_that_servers_keep(store: Store, admin: User) -> None:
    """A round can go back to an earlier one of its generations, but not to another round's."""
    champion = promoted(store, admin)
    found, trained = judged(store, admin, Decision.REJECT)
    lease = str(found.lease)
    half = store.generations.publish(
        round_id=found.id, lease=lease, sha256="half", parent=champion, rank=8, manifest={}, share=0.5
    ).number
    assert store.generations.serve_set() == {champion, half}
    store.generations.put_to_test(trained, round_id=found.id, lease=lease)
    assert store.generations.serve_set() == {champion, trained}
    with pytest.raises(UnknownGeneration):
        store.generations.put_to_test(champion, round_id=found.id, lease=lease)
    with pytest.raises(LeaseLost):
        store.generations.put_to_test(trained, round_id=found.id, lease="another's")


def test_the_database_itself_refuses_a_promotion_without_verdict(store: Store, admin: User) -> None:
    """Even SQL by hand cannot mark a round promoted that has no verdict."""
    store.datasets.add("task", admin.id, questions(5), approved_by=admin.name)
    found = store.rounds.enqueue("ada")
    with pytest.raises(sqlite3.IntegrityError):
        store.database.run("UPDATE rounds SET state = 'promoted' WHERE id = ?", [found.id])


def test_the_matrix_grows_by_a_row_per_generation(store: Store, admin: User) -> None:
    """Each generation's newest mean score per dataset is in the matrix; what was not asked is empty."""
    found, candidate = judged(store, admin, Decision.PROMOTE)
    rows = store.datasets.rows(1, "holdout")
    answers = [
        Answer(row_id=rows[0].id, dataset_id=1, generation=generation, answer="x", score=score)
        for generation, score in ((0, 0.0), (candidate, 1.0))
    ]
    store.evaluations.add_answers(found.id, str(found.lease), answers)
    store.evaluations.add_answers(found.id, str(found.lease), answers)
    matrix = store.evaluations.matrix()
    assert (matrix.generations, matrix.datasets, matrix.values) == ((0, candidate), (1,), ((0.0,), (1.0,)))
    (flip,) = store.evaluations.flipped(found.id, 0, candidate)
    assert (flip["old_score"], flip["new_score"]) == (0.0, 1.0)


@pytest.mark.parametrize(
    "name", ["assistant", "assistant@", "assistant@-1", "assistant@07", "base@1", "assistant@1 "]
)
def test_only_exact_names_are_generations(name: str) -> None:
    """A name that is not exactly `assistant@N` is no generation."""
    assert generation_number(name) is None
    assert generation_number(generation_name(7)) == 7


def test_a_round_that_was_cancelled_at_the_last_moment_does_not_serve(store: Store, admin: User) -> None:
    """A cancel between verdict and swap is honoured, and the data stays queued."""
    found, candidate = judged(store, admin, Decision.PROMOTE)
    lease = str(found.lease)
    store.rounds.advance(found.id, lease, RoundState.SWAPPING)
    store.rounds.cancel(found.id, "ada")
    with pytest.raises(RoundCancelled):
        store.generations.promote(round_id=found.id, lease=lease, candidate=candidate, expected=0)
    assert store.rounds.finish(found.id, lease, RoundState.FAILED, "away").state is RoundState.CANCELLED
    assert (store.generations.champion(), store.datasets.get(1).state) == (0, DatasetState.QUEUED)


def test_what_is_loaded_are_the_adapters_of_what_can_be_asked(store: Store, admin: User) -> None:
    """With instruction groups an earlier adapter stays loaded as long as a generation that can be asked uses it."""
    numbers = [promoted(store, admin) for _ in range(4)]
    entries = [{"generation": numbers[0], "sha256": "a"}, {"generation": None, "sha256": None}]
    groups = {"adapters": entries, "datasets": [[1], [2, 4]], "floor": 0.25, "origin": 2}
    store.database.run(
        "UPDATE generations SET manifest = ? WHERE number = ?", [json.dumps({"groups": groups}), numbers[3]]
    )
    found = store.generations.get(numbers[3])
    assert found.groups == Groups(
        adapters=(numbers[0], numbers[3]), datasets=((1,), (2, 4)), floor=0.25, origin=2
    )
    assert store.generations.serve_set() == {numbers[2], numbers[3]}
    assert store.generations.load_set() == {numbers[0], numbers[2], numbers[3]}
    assert store.generations.adapters(0) == (0,)
    assert (found.origin, store.generations.get(numbers[2]).origin) == (2, numbers[1])
    store.generations.roll_back("ada", to=0)
    store.generations.roll_back("ada", to=numbers[1])
    assert store.generations.load_set() == {numbers[0], numbers[1]}

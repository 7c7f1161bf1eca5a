"""What the queue promises: every round is claimed once, carried by one worker at a time, and ends once."""

from __future__ import annotations

import contextlib
import multiprocessing
import re
import threading
from pathlib import Path

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)

from storage.errors import (
    LeaseLost,
    NothingToLearn,
    RoundInProgress,
    UnknownRound,
    WrongState,
)
from storage.records import ACTIVE, TRANSITIONS, DatasetState, Round, RoundState, User
from storage.rounds import LEFT, MAX_ATTEMPTS
from storage.settings import StorageSettings
from storage.store import Store
from tests.conftest import questions

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def queued(store: Store, admin: User) -> Round:
    """A round over one dataset that nobody has claimed."""
    store.datasets.add("numbers", admin.id, questions(10), approved_by=admin.name)
    return store.rounds.enqueue(admin.name)


def claim(store: Store, lease_seconds: float = 30) -> Round:
    """Claim the round that must be there."""
    found = store.rounds.claim("test", lease_seconds)
    assert found is not None
    return found


def test_the_documented_diagram_is_the_transition_table() -> None:
    """docs/rounds.md draws exactly the edges that the code allows."""
    drawn = set(re.findall(r"^\s+(\w+) --> (\w+)", (DOCS / "rounds.md").read_text(), flags=re.MULTILINE))
    assert drawn == {(str(a), str(b)) for a, after in TRANSITIONS.items() for b in after}


def test_a_round_takes_every_queued_dataset(store: Store, queued: Round) -> None:
    """A round learns what is queued when it is asked for."""
    assert store.rounds.dataset_ids(queued.id) == [1]


def test_nothing_queued_is_said_and_counts_what_waits_for_approval(store: Store, admin: User) -> None:
    """Asking for a round without queued data says so, and how many datasets an admin could approve."""
    store.datasets.add("numbers", admin.id, questions(5))
    with pytest.raises(NothingToLearn, match="1 wait for an admin"):
        store.rounds.enqueue("ada")


def test_one_unfinished_round_at_a_time(store: Store, queued: Round) -> None:
    """A second round is refused until the first has ended, by name of the first."""
    with pytest.raises(RoundInProgress, match=f"Round {queued.id} is queued"):
        store.rounds.enqueue("ada")


def test_a_claimed_round_is_not_claimed_again(store: Store, queued: Round) -> None:
    """While its lease lasts, nobody else gets the round."""
    assert claim(store).id == queued.id
    assert store.rounds.claim("other", 30) is None


def test_an_expired_lease_hands_the_round_over_and_shuts_the_old_worker_out(
    store: Store, queued: Round
) -> None:
    """A worker that lost its lease cannot write any more, whatever it tries."""
    old = claim(store, lease_seconds=-1)
    new = claim(store)
    assert (new.id, new.attempts, new.state) == (queued.id, 2, RoundState.PREPARING)
    token = str(old.lease)
    for write in (
        lambda: store.rounds.heartbeat(old.id, token, 30),
        lambda: store.rounds.advance(old.id, token, RoundState.TRAINING),
        lambda: store.rounds.record(old.id, token, "note", "late"),
        lambda: store.rounds.record_metrics(old.id, token, 1, 2, {}),
        lambda: store.rounds.prepare(old.id, token, 0, "llaca", {}),
        lambda: store.rounds.set_verdict(old.id, token, {"decision": "promote", "reasons": []}),
        lambda: store.rounds.finish(old.id, token, RoundState.FAILED),
        lambda: store.rounds.release(old.id, token, "late", counts=True),
        lambda: store.evaluations.add_answers(old.id, token, []),
        lambda: store.generations.publish(
            round_id=old.id, lease=token, sha256="0", parent=0, rank=1, manifest={}
        ),
        lambda: store.generations.promote(round_id=old.id, lease=token, candidate=1, expected=0),
    ):
        with pytest.raises(LeaseLost):
            write()
    assert store.rounds.heartbeat(new.id, str(new.lease), 30).state is RoundState.PREPARING


def test_a_poisoned_round_fails_instead_of_being_tried_for_ever(store: Store, queued: Round) -> None:
    """A round whose workers keep dying ends as failed, says so, and sets its data aside."""
    for _ in range(MAX_ATTEMPTS):
        claim(store, lease_seconds=-1)
    assert store.rounds.claim("one more", 30) is None
    ended = store.rounds.get(queued.id)
    assert ended.state is RoundState.FAILED
    assert "died 3 times" in str(ended.error)
    assert store.datasets.get(1).state is DatasetState.SET_ASIDE


def test_a_released_round_is_taken_at_once(store: Store, queued: Round) -> None:
    """A round given back is claimed without waiting for its lease; a stop that was nobody's fault is not counted."""
    held = claim(store)
    store.rounds.release(held.id, str(held.lease), "stopping", counts=False)
    assert claim(store).attempts == 1


def test_only_edges_of_the_table_are_possible(store: Store, queued: Round) -> None:
    """A jump over a state is refused and changes nothing."""
    held = claim(store)
    with pytest.raises(WrongState):
        store.rounds.advance(held.id, str(held.lease), RoundState.SWAPPING)
    assert store.rounds.get(held.id).state is RoundState.PREPARING


def test_cancel_before_work_ends_the_round_and_keeps_the_data_queued(store: Store, queued: Round) -> None:
    """A round nobody works on is cancelled at once, and the next round can take its data."""
    assert store.rounds.cancel(queued.id, "ada").state is RoundState.CANCELLED
    assert store.rounds.enqueue("ada").id == queued.id + 1


def test_cancel_during_work_is_seen_at_the_heartbeat(store: Store, queued: Round) -> None:
    """A running round is asked to stop, not torn from its worker."""
    held = claim(store)
    assert store.rounds.cancel(held.id, "ada").state is RoundState.PREPARING
    assert store.rounds.heartbeat(held.id, str(held.lease), 30).cancel_requested


def test_an_ended_round_cannot_be_cancelled(store: Store, queued: Round) -> None:
    """What has ended stays ended."""
    store.rounds.cancel(queued.id, "ada")
    with pytest.raises(WrongState, match="cancelled"):
        store.rounds.cancel(queued.id, "ada")
    with pytest.raises(UnknownRound):
        store.rounds.cancel(99, "ada")


def test_metrics_and_events_are_read_from_where_one_left_off(store: Store, queued: Round) -> None:
    """A page that polls gets only what is new, and a step measured again after a resume replaces the earlier one."""
    held = claim(store)
    for step, loss in [(0, 2.0), (1, 1.5), (1, 1.4)]:
        store.rounds.record_metrics(held.id, str(held.lease), step, 2, {"loss": loss})
    assert [m.values["loss"] for m in store.rounds.metrics(held.id, after_step=0)] == [1.4]
    last = store.rounds.events(held.id)[-1]
    store.rounds.record(held.id, str(held.lease), "note", "hello", {"a": 1})
    assert [(e.kind, e.data) for e in store.rounds.events(held.id, after=last.id)] == [("note", {"a": 1})]


def _claim_in_process(data_dir: Path, start: threading.Barrier, results: multiprocessing.Queue[int]) -> None:
    with Store(StorageSettings(data_dir=data_dir)) as store:
        start.wait()
        results.put(sum(store.rounds.claim("rival", 30) is not None for _ in range(20)))


def test_of_many_processes_one_gets_the_round(store: Store, queued: Round) -> None:
    """Workers in different processes that claim at the same moment never both get a round."""
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(4), context.Queue()
    rivals = [
        context.Process(target=_claim_in_process, args=(store.data_dir, start, results)) for _ in range(4)
    ]
    for rival in rivals:
        rival.start()
    for rival in rivals:
        rival.join(timeout=60)
    assert sorted(results.get(timeout=10) for _ in rivals) == [0, 0, 0, 1]


class RoundMachine(RuleBasedStateMachine):
    """Workers, admins and crashes in any order; the table and the counts must hold after every step."""

    store: Store

    def __init__(self) -> None:
        super().__init__()
        self.store.database.run("DELETE FROM metrics")
        self.held: Round | None = None
        self.before: dict[int, RoundState] = {r.id: r.state for r in self.store.rounds.list(1000)}

    @rule()
    def ask(self) -> None:
        """An admin asks for a round."""
        with contextlib.suppress(RoundInProgress, NothingToLearn):
            self.store.rounds.enqueue("ada")

    @rule()
    def approve_what_was_set_aside(self) -> None:
        """An admin queues again what earlier rounds set aside."""
        for dataset in self.store.datasets.list(DatasetState.SET_ASIDE):
            self.store.datasets.approve(dataset.id, "ada")

    @rule(seconds=st.sampled_from([-1.0, 30.0]))
    def claim(self, seconds: float) -> None:
        """A worker looks at the queue; a negative lease stands for one that dies at once."""
        self.held = self.store.rounds.claim("machine", seconds) or self.held

    @rule(state=st.sampled_from(list(RoundState)))
    def advance(self, state: RoundState) -> None:
        """The worker moves on, rightly or wrongly."""
        if self.held is None or state.ended:
            return
        with contextlib.suppress(LeaseLost, WrongState):
            self.store.rounds.advance(self.held.id, str(self.held.lease), state)

    @rule(state=st.sampled_from(list(RoundState)))
    def finish(self, state: RoundState) -> None:
        """The worker ends the round, rightly or wrongly."""
        if self.held is None:
            return
        with contextlib.suppress(LeaseLost, WrongState):
            self.store.rounds.finish(self.held.id, str(self.held.lease), state)

    @rule()
    def cancel(self) -> None:
        """An admin cancels."""
        unfinished = self.store.rounds.unfinished()
        if unfinished is not None:
            self.store.rounds.cancel(unfinished.id, "ada")

    @invariant()
    def only_edges_of_the_table(self) -> None:
        """A rescue that finds the round poisoned ends it in the same call, hence the closure over two edges."""
        for found in self.store.rounds.list(1000):
            before = self.before.get(found.id, RoundState.QUEUED)
            assert found.state is before or found.state in TRANSITIONS[before]
            assert found.attempts <= MAX_ATTEMPTS
            assert (found.lease is None) == (found.state not in ACTIVE)
            assert (found.finished_at is not None) == found.state.ended
            assert found.state is not RoundState.PROMOTED
            self.before[found.id] = found.state

    @invariant()
    def one_unfinished_at_most(self) -> None:
        """There is never a second unfinished round."""
        assert sum(not found.state.ended for found in self.store.rounds.list(1000)) <= 1


def test_any_order_of_events_keeps_to_the_table(store: Store, admin: User) -> None:
    """Whatever workers, admins and crashes do, rounds move along the drawn edges only."""
    store.datasets.add("numbers", admin.id, questions(5), approved_by=admin.name)
    RoundMachine.store = store
    run_state_machine_as_test(
        RoundMachine, settings=hypothesis_settings(max_examples=25, stateful_step_count=30, deadline=None)
    )


def test_what_a_round_was_prepared_with_stays(store: Store, queued: Round) -> None:
    """A later attempt works with the champion, policy and settings of the first, whatever they are by then."""
    held = claim(store)
    store.rounds.prepare(held.id, str(held.lease), 0, "llaca", {"epochs": 3})
    later = store.rounds.prepare(held.id, str(held.lease), 7, "ema", {"epochs": 1})
    assert (later.champion, later.policy, later.settings) == (0, "llaca", {"epochs": 3})


def test_a_cancelled_round_whose_worker_dies_is_cancelled_not_failed(store: Store, queued: Round) -> None:
    """The data of a round that somebody cancelled stays queued, even if its worker never noticed."""
    for _ in range(MAX_ATTEMPTS):
        claim(store, lease_seconds=-1)
    store.rounds.cancel(queued.id, "ada")
    assert store.rounds.claim("one more", 30) is None
    assert store.rounds.get(queued.id).state is RoundState.CANCELLED
    assert store.datasets.get(1).state is DatasetState.QUEUED


def test_a_dataset_that_a_round_leaves_stays_queued(store: Store, admin: User, queued: Round) -> None:
    """What a round leaves is not touched by its end and is there for the next one; only the holder may leave it."""
    running = claim(store)
    store.database.insert(
        "round_datasets",
        {
            "round_id": queued.id,
            "dataset_id": store.datasets.add("other", admin.id, questions(5, "other"), approved_by="ada").id,
        },
    )
    with pytest.raises(LeaseLost):
        store.rounds.leave(running.id, "stranger", [2], "other instructions")
    store.rounds.leave(running.id, str(running.lease), [2], "other instructions")
    assert store.rounds.dataset_ids(running.id) == [1]
    assert (store.rounds.events(running.id)[-1].kind, store.rounds.events(running.id)[-1].data) == (
        LEFT,
        {"datasets": [2]},
    )
    store.rounds.finish(running.id, str(running.lease), RoundState.FAILED, "test")
    assert store.datasets.get(1).state is DatasetState.SET_ASIDE
    assert store.datasets.get(2).state is DatasetState.QUEUED
    assert store.rounds.dataset_ids(store.rounds.enqueue("ada").id) == [2]


@pytest.fixture
def leaving(store: Store, admin: User) -> Round:
    """A claimed round that has left the second of its two datasets."""
    for name in ("numbers", "other"):
        store.datasets.add(name, admin.id, questions(5, name), approved_by=admin.name)
    store.rounds.enqueue("eve", "ema", {"epochs": 3})
    claimed = claim(store)
    store.rounds.leave(claimed.id, str(claimed.lease), [2], "other instructions")
    return claimed


def test_what_a_round_has_left_is_asked_for_once(store: Store, leaving: Round) -> None:
    """Whoever looks at the queue next finds a round like the one that ended, whatever its worker still got to do."""
    store.rounds.finish(leaving.id, str(leaving.lease), RoundState.FAILED, "test")
    rest = claim(store)
    assert (rest.requested_by, rest.policy, rest.settings) == ("eve", "ema", {"epochs": 3})
    assert store.rounds.dataset_ids(rest.id) == [2]
    store.rounds.finish(rest.id, str(rest.lease), RoundState.FAILED, "test")
    assert store.rounds.claim("test", 30) is None


def test_what_a_poisoned_round_has_left_is_asked_for(store: Store, leaving: Round) -> None:
    """Workers that die over one group's datasets do not keep the other groups' from being learned."""
    store.rounds.release(leaving.id, str(leaving.lease), "died", counts=True)
    for _ in range(MAX_ATTEMPTS - 1):
        claim(store, lease_seconds=-1)
    rest = claim(store)
    assert store.rounds.get(leaving.id).state is RoundState.FAILED
    assert store.rounds.dataset_ids(rest.id) == [2]


def test_what_somebody_stopped_is_not_asked_for_again(store: Store, leaving: Round) -> None:
    """A cancel of the round, or of the one asked for after it, leaves the datasets queued and no round."""
    store.rounds.finish(leaving.id, str(leaving.lease), RoundState.FAILED, "test")
    rest = claim(store)
    store.rounds.finish(rest.id, str(rest.lease), RoundState.CANCELLED)
    assert store.rounds.claim("test", 30) is None
    store.rounds.enqueue("eve")
    last = claim(store)
    store.rounds.leave(last.id, str(last.lease), [2], "other instructions")
    store.rounds.finish(last.id, str(last.lease), RoundState.CANCELLED)
    assert store.rounds.claim("test", 30) is None
    assert store.datasets.get(2).state is DatasetState.QUEUED


def test_what_was_left_and_withdrawn_is_not_asked_for(store: Store, admin: User, leaving: Round) -> None:
    """Data that is queued for another reason waits until somebody asks for a round."""
    store.rounds.finish(leaving.id, str(leaving.lease), RoundState.FAILED, "test")
    store.datasets.withdraw(2, admin.name)
    store.datasets.add("later", admin.id, questions(5, "later"), approved_by=admin.name)
    assert store.rounds.claim("test", 30) is None


def test_a_heartbeat_after_giving_back_renews_nothing(store: Store, admin: User) -> None:
    """A round that was given back can be claimed at once, whatever its last worker's heartbeat still does."""
    store.datasets.add("task", admin.id, questions(5), approved_by=admin.name)
    store.rounds.enqueue(admin.name)
    claimed = store.rounds.claim("first", 30)
    assert claimed is not None
    store.rounds.release(claimed.id, str(claimed.lease), "stopping", counts=False)
    with pytest.raises(LeaseLost):
        store.rounds.heartbeat(claimed.id, str(claimed.lease), 30)
    assert store.rounds.claim("second", 30) is not None

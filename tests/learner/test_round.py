"""What a round hands to its training, earlier rows only to a policy that looks at them, and how it goes on."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from learner.export import export
from learner.lease import Lease
from learner.round import RoundStory
from learner.settings import LearnerSettings
from learner.train import TrainingJob
from serving.settings import ServingSettings
from storage.errors import LeaseLost, WorkerStopping
from storage.records import User
from storage.store import Store
from tests.conftest import questions
from tests.learner.test_training import FAST, trained
from tests.learner.test_training import job_of as small_job_of
from tests.storage.test_generations import promoted


def job_of(store: Store, admin: User, policy: str) -> TrainingJob:
    """Return the training job of a new round over one more dataset."""
    store.datasets.add("new", admin.id, questions(5, "new"), approved_by=admin.name)
    store.rounds.enqueue(admin.name, policy=policy)
    claimed = store.rounds.claim("test", 30)
    assert claimed is not None
    lease = Lease(store, claimed, lease_seconds=30, heartbeat_seconds=5)
    prepared = store.rounds.prepare(claimed.id, lease.token, store.generations.champion(), policy, {})
    settings = LearnerSettings(policy=policy, group_threshold=0.0)
    story = RoundStory(store, prepared, lease, settings, ServingSettings())
    return story._job(Path("base"), story.plan)


def test_policy_with_a_memory_sees_the_training_rows_of_each_learned_dataset(
    store: Store, admin: User
) -> None:
    """One list per dataset that a champion has learned; none of those withdrawn since, and no holdout row."""
    for _ in range(3):
        promoted(store, admin)
    store.datasets.withdraw(2, admin.name)
    job = job_of(store, admin, "sequential+replay")
    assert [[row.id for row in rows] for rows in job.earlier] == [
        [row.id for row in store.datasets.rows(dataset, "train")] for dataset in (1, 3)
    ]
    assert {row.dataset_id for row in job.rows} == {4}


def test_what_was_rolled_back_is_not_rehearsed(store: Store, admin: User) -> None:
    """After a roll-back the memory is that of the generation which serves again, and the base model's is empty."""
    for _ in range(3):
        promoted(store, admin)
    store.generations.roll_back(admin.name, to=2)
    job = job_of(store, admin, "sequential+replay")
    assert [{row.dataset_id for row in rows} for rows in job.earlier] == [{1}, {2}]
    assert not job.first_task


def test_round_after_a_roll_back_to_the_base_model_is_a_first_one(store: Store, admin: User) -> None:
    """There is nothing to protect, although datasets were learned once."""
    promoted(store, admin)
    store.generations.roll_back(admin.name, to=0)
    job = job_of(store, admin, "sequential+replay")
    assert list(job.earlier) == []
    assert job.first_task


def test_policy_without_a_memory_costs_no_look_at_earlier_rows(store: Store, admin: User) -> None:
    """A round that does not use earlier rows does not read them, however many there are."""
    promoted(store, admin)
    assert list(job_of(store, admin, "llaca").earlier) == []


def test_a_row_is_no_longer_than_the_servers_take(store: Store, admin: User) -> None:
    """The servers' own limit reaches the training."""
    assert job_of(store, admin, "sequential").max_tokens == ServingSettings().max_model_len


class Watched(RoundStory):
    """A story that notes which steps its training makes, and in which something happens after one of them."""

    def __init__(self, *given: Any, happens: Callable[[Lease], None], after: int) -> None:
        super().__init__(*given)
        self.made: list[int] = []
        self._happens, self._after = happens, after

    def _report(self, step: int, steps: int, values: dict[str, Any]) -> None:
        super()._report(step, steps, values)
        self.made.append(step)
        if step == self._after:
            self._happens(self.lease)


@pytest.fixture
def serving(store: Store, admin: User, bases: dict[str, Path], tmp_path: Path) -> ServingSettings:
    """An installation with a round that waits, two datasets that were learned, and a champion that can be trained."""
    for _ in range(2):
        promoted(store, admin)
    adapter = export(trained(small_job_of(bases["llava"], tmp_path / "first"))[0], store.generations.root, {})
    store.database.run("UPDATE generations SET directory = ? WHERE number = 2", [adapter.name])
    store.datasets.add("new", admin.id, questions(20, "new"), approved_by=admin.name)
    store.rounds.enqueue(admin.name)
    return ServingSettings(model=str(bases["llava"]))


def learn(
    store: Store,
    serving: ServingSettings,
    happens: Callable[[Lease], None] = Lease.stop,
    after: int = 0,
) -> list[int]:
    """Claim the round that waits and carry it to its candidate; return the steps made, also when it was stopped."""
    claimed = store.rounds.claim("test", 30)
    assert claimed is not None
    settings = FAST.model_copy(update={"group_threshold": 0.0, "policy": "llaca+replay", "epochs": 4})
    lease = Lease(store, claimed, lease_seconds=30, heartbeat_seconds=0.05)
    story = Watched(store, claimed, lease, settings, serving, happens=happens, after=after)
    try:
        with lease:
            assert story._learn().number == 3
    except WorkerStopping:
        store.rounds.release(claimed.id, lease.token, "stopped", counts=False)
    return story.made


def test_a_round_goes_on_from_its_checkpoint(store: Store, serving: ServingSettings) -> None:
    """Where nothing has changed, no step is made twice."""
    assert learn(store, serving, after=3) == [1, 2, 3]
    assert learn(store, serving)[0] == 4


def test_a_round_goes_on_when_what_it_rehearses_is_withdrawn(
    store: Store, admin: User, serving: ServingSettings
) -> None:
    """A checkpoint of other rows is of no use: the training begins again without the withdrawn ones, and says so."""
    assert learn(store, serving, after=3) == [1, 2, 3]
    store.datasets.withdraw(1, admin.name)
    made = learn(store, serving)
    assert made == list(range(1, made[-1] + 1))
    assert [found.step for found in store.rounds.metrics(3)] == made
    assert [event.kind for event in store.rounds.events(3)].count("restarted") == 1


def test_a_worker_that_was_replaced_saves_nothing(store: Store, serving: ServingSettings) -> None:
    """The workspace is another worker's as soon as the lease is, so an older step must not appear in it."""

    def replaced(lease: Lease) -> None:
        store.database.run("UPDATE rounds SET lease = 'another' WHERE id = 3")
        deadline = time.monotonic() + 60
        with suppress(LeaseLost):
            while time.monotonic() < deadline:
                lease.check()
                time.sleep(0.01)

    with pytest.raises(LeaseLost):
        learn(store, serving, replaced, after=3)
    saved = (store.data_dir / "work" / "round-3" / "checkpoints").iterdir()
    assert [path.name for path in saved] == ["step-00000002"]

"""What a round hands to its training: new rows always, earlier ones only to a policy that looks at them."""

from __future__ import annotations

from pathlib import Path

from learner.lease import Lease
from learner.round import RoundStory
from learner.settings import LearnerSettings
from learner.train import TrainingJob
from serving.settings import ServingSettings
from storage.records import User
from storage.store import Store
from tests.conftest import questions
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

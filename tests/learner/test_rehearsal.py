"""Policies that see old rows again: which ones, how many, and from which weights they start."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from learner.data import Example
from learner.export import export
from learner.policies.joint import Joint
from learner.policies.replay import Replay
from learner.settings import LearnerSettings
from tests.learner import tiny
from tests.learner.tasks import bare_task
from tests.learner.test_training import FAST, job_of, trained


def named(*names: int) -> list[Example]:
    """Return examples that can be told apart by their length."""
    return [Example(inputs={}, labels=torch.zeros(name)) for name in names]


@pytest.mark.parametrize(
    ("share", "found"),
    [(2.0, [1, 2, 3, 4, 5, 6]), (1.0, [1, 2, 4, 5]), (0.1, [1, 4])],
    ids=["all", "as many as new", "one each"],
)
def test_replay_takes_from_each_task_what_the_share_allows(share: float, found: list[int]) -> None:
    """Old rows come from every earlier task alike, and no more of them than the share of the new ones."""
    policy = Replay(LearnerSettings(replay_rows=3, replay_share=share))
    assert policy.memory_rows({}) == 3
    policy.start(
        bare_task([torch.zeros(1)], examples=named(7, 8, 9, 10), earlier=[named(1, 2, 3), named(4, 5, 6)])
    )
    assert [example.length for example in policy.rehearsal()] == found


def test_nothing_is_replayed_in_a_first_round() -> None:
    """Without earlier tasks there are no old rows."""
    policy = Replay(LearnerSettings())
    policy.start(bare_task([torch.zeros(1)], examples=named(1, 2)))
    assert list(policy.rehearsal()) == []


def test_joint_takes_every_old_row_and_starts_from_the_base() -> None:
    """All rows of all earlier tasks, however many, and not the champion's weights."""
    policy = Joint(LearnerSettings())
    policy.start(bare_task([torch.zeros(1)], examples=named(9), earlier=[named(*range(1000)), named(1)]))
    assert len(policy.rehearsal()) == 1001
    assert policy.memory_rows({}) >= 1000
    assert policy.from_base


def test_old_rows_are_trained_among_the_new_ones(bases: dict[str, Path], tmp_path: Path) -> None:
    """A round with replay has the steps of its new and its drawn old rows, and says how many those were."""
    pictures = tiny.Pictures()
    old = [tiny.counting_rows(pictures, 5), tiny.counting_rows(pictures, 2)]
    new = tiny.mixed_rows(pictures)
    settings = FAST.model_copy(update={"policy": "replay", "replay_rows": 3, "epochs": 1, "batch_size": 2})
    job = job_of(bases["llava"], tmp_path, settings, rows=new, earlier=old, image=pictures.read)
    result, metrics = trained(job)
    assert (result.summary["rows"], result.summary["rehearsed"]) == (5, 4)
    assert metrics.steps == 5


def test_joint_round_is_the_plain_round_over_all_rows(bases: dict[str, Path], tmp_path: Path) -> None:
    """Whatever the parent, the result is the adapter that the bare base learns from everything at once."""
    pictures = tiny.Pictures()
    old, new = tiny.counting_rows(pictures, 4), tiny.mixed_rows(pictures)
    plain = FAST.model_copy(update={"policy": "sequential", "epochs": 1})
    image = pictures.read
    first, _ = trained(job_of(bases["llava"], tmp_path / "first", plain, rows=old, image=image))
    parent = export(first, tmp_path / "generations", {})

    joint = FAST.model_copy(update={"policy": "joint", "epochs": 1})
    found, _ = trained(
        job_of(
            bases["llava"],
            tmp_path / "joint",
            joint,
            rows=new,
            earlier=[old],
            parent_adapter=parent,
            image=image,
        )
    )
    everything = [*new, *found.job.earlier[0]]
    wanted, _ = trained(job_of(bases["llava"], tmp_path / "all", plain, rows=everything, image=image))
    assert found.job.parent_adapter is None
    assert all(torch.equal(found.weights[name], wanted.weights[name]) for name in wanted.weights)

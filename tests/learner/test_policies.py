"""What all policies have in common: their names, how they are combined, and what they see of earlier tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from learner.data import Example
from learner.loss import Batch
from learner.memory import sample
from learner.policies.choose import CLASSES, policy_for
from learner.policies.composed import Composed
from learner.policies.policy import Policy
from learner.settings import POLICIES, LearnerSettings
from learner.train import identity_of
from storage.errors import BadSetting, PoliciesClash
from storage.settings import load
from tests.learner import tiny
from tests.learner.tasks import bare_task
from tests.learner.test_training import FAST, job_of, trained

BATCH = Batch(inputs={}, kept=torch.zeros(0), targets=torch.zeros(0), answer_tokens=1)


class Rehearsing(Policy):
    """Sees some rows of each earlier task again, the more the less it remembers, and remembers how many it saw."""

    most = 2

    def memory_rows(self, inherited: Mapping[str, Tensor]) -> int:
        """Return a row less for each thing that is remembered."""
        return self.most - len(inherited)

    def rehearsal(self) -> Sequence[Example]:
        """Return the whole memory."""
        return self.task.memory

    def extra_loss(self, batch: object, logits_BKV: object) -> float:  # noqa: N803 - the interface's name
        """Return a constant."""
        return 0.25

    def state(self) -> dict[str, Tensor]:
        """Return how many rows there were."""
        return {"rows": torch.tensor(len(self.task.memory))}

    def finish(self) -> dict[str, Tensor]:
        """Return the same."""
        return self.state()


def test_every_allowed_name_has_a_class_and_the_page_tells_of_it() -> None:
    """The names that the settings allow, the classes, and the description of the setting are the same."""
    assert sorted(CLASSES) == list(POLICIES)
    description = LearnerSettings.model_fields["policy"].description
    assert description is not None
    assert [name for name in POLICIES if f"`{name}`" not in description] == []


@pytest.mark.parametrize("policy", ["", "lama", "llaca+", "llaca+llaca", "LLACA"])
def test_unknown_policy_is_refused_with_the_allowed_ones(policy: str) -> None:
    """A name that does not exist, or one given twice, is refused before anything starts."""
    with pytest.raises(BadSetting, match=r"LLACA_POLICY: .*one of .*ema, .*sequential.*each once"):
        load(LearnerSettings, {"policy": policy})


@pytest.mark.parametrize("first_task", [False, True])
def test_two_parts_that_replace_the_weights_are_refused(first_task: bool) -> None:
    """Two results cannot both be the round's; the error names them, before a first round and not only after it."""
    with pytest.raises(PoliciesClash, match="ema and llaca cannot be combined: each replaces the weights"):
        policy_for(LearnerSettings(policy="ema+llaca"), first_task)
    with pytest.raises(PoliciesClash, match="llaca and slao cannot be combined: each replaces the weights"):
        policy_for(LearnerSettings(policy="llaca+slao"), first_task)
    with pytest.raises(
        PoliciesClash, match="llaca and slao cannot be combined: llaca remembers single entries"
    ):
        policy_for(LearnerSettings(policy="llaca+slao", llaca_rule="balance"), first_task)


def test_parts_see_the_task_as_if_alone() -> None:
    """Each part gets its own share of the memory, of what was inherited and of a checkpoint; losses and rows add up."""
    one, two = Rehearsing(LearnerSettings()), Rehearsing(LearnerSettings())
    one.most, two.most = 3, 4
    policy = Composed({"one": one, "two": two})
    examples = [Example(inputs={}, labels=torch.zeros(n)) for n in range(6)]
    inherited = {"one.x": torch.zeros(()), "two.x": torch.ones(()), "onerous.x": torch.ones(())}
    assert (policy.memory_rows(inherited), policy.memory_rows({})) == (3, 4)
    policy.start(bare_task([torch.zeros(2)], earlier=[examples[:3], examples[3:]], inherited=inherited))
    assert [e.length for e in one.task.memory] == [0, 1, 3, 4]
    assert [e.length for e in two.task.memory] == [0, 1, 2, 3, 4, 5]
    assert (one.task.inherited, two.task.inherited) == ({"x": torch.zeros(())}, {"x": torch.ones(())})
    assert len(policy.rehearsal()) == 10
    assert policy.extra_loss(BATCH, torch.zeros(())) == 0.5
    assert policy.finish() == {"one.rows": torch.tensor(4), "two.rows": torch.tensor(6)}


def test_sample_is_fixed_by_content() -> None:
    """The same rows in whatever order they come; fewer are the beginning of more; another seed draws others."""
    rows = [tiny.row(i, [tiny.turn("user", f"row {i}"), tiny.turn("assistant", "one")]) for i in range(20)]
    drawn = sample(rows, 6, seed=0)
    assert sample(rows[::-1], 6, seed=0) == drawn
    assert sample(rows, 3, seed=0) == drawn[:3]
    assert sample(rows, 6, seed=1) != drawn
    assert len(sample(rows, 100, seed=0)) == 20


def test_checkpoints_of_another_memory_are_not_mixed(bases: dict[str, Path], tmp_path: Path) -> None:
    """The rows of earlier tasks decide the weights, so they are part of what a checkpoint is for."""
    pictures = tiny.Pictures()
    rows = tiny.counting_rows(pictures, 4)
    jobs = [job_of(bases["llava"], tmp_path, earlier=earlier) for earlier in ([], [rows], [rows[:3]])]
    assert len({identity_of(job) for job in jobs}) == 3


def test_policy_without_memory_does_not_look_at_earlier_rows(bases: dict[str, Path], tmp_path: Path) -> None:
    """A row of an earlier task that could no longer be prepared does no harm to a policy which does not use it."""
    broken = tiny.row(0, [tiny.turn("user", "what?", "no such picture"), tiny.turn("assistant", "one")])
    settings = FAST.model_copy(update={"policy": "sequential", "epochs": 1})
    result, _ = trained(job_of(bases["llava"], tmp_path, settings, earlier=[[broken]]))
    assert result.summary["rehearsed"] == 0

"""Policies in the real loop: two rounds each, the second cut off on the way, ending in one plain adapter."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from learner.export import export
from learner.settings import LearnerSettings
from learner.train import TrainingJob
from storage.errors import TrainingStopped
from tests.learner import tiny
from tests.learner.test_training import assert_same_bits, job_of, trained

REMEMBERING = {"cofima", "ewc", "keeplora", "mas", "olora", "pegp", "slao", "tir"}
FORGETFUL = ["agem", "dgg", "ema", "interpolate", "joint", "llaca", "lwf", "replay"]
COMBINED = ["pegp+agem", "keeplora+dgg", "olora+agem", "ewc+replay", "tir+lwf+llaca"]
POLICIES = [*sorted(REMEMBERING), *FORGETFUL, *COMBINED]


def second_round(base: Path, settings: LearnerSettings, parent: Path, workspace: Path) -> TrainingJob:
    """Return a round on other rows than the first one's, with those as the memory."""
    pictures = tiny.Pictures()
    return job_of(
        base,
        workspace,
        settings,
        parent_adapter=parent,
        rows=tiny.mixed_rows(pictures),
        earlier=[tiny.counting_rows(pictures, 7)],
        image=pictures.read,
    )


@pytest.mark.parametrize("policy", POLICIES)
def test_second_round_ends_in_one_plain_adapter_with_the_same_bits_when_cut_off(
    bases: dict[str, Path], tmp_path: Path, policy: str
) -> None:
    """What the first round remembers reaches the second, which a stop does not change and the server can take."""
    settings = LearnerSettings(
        policy=policy,
        rank=8,
        learning_rate=1e-2,
        epochs=2,
        checkpoint_every_steps=2,
        dropout=0.1,
        dgg_share=0.5,
    )
    first, _ = trained(replace(job_of(bases["llava"], tmp_path / "first", settings), first_task=True))
    parent = export(first, tmp_path / "generations", {})
    whole, metrics = trained(second_round(bases["llava"], settings, parent, tmp_path / "whole"))
    cut = second_round(bases["llava"], settings, parent, tmp_path / "cut")
    with pytest.raises(TrainingStopped):
        trained(cut, stop_after=metrics.steps // 2)
    again, _ = trained(cut)

    assert_same_bits(whole, again)
    assert {n: w.shape for n, w in whole.weights.items()} == {n: w.shape for n, w in first.weights.items()}
    assert any(not w.equal(first.weights[n]) for n, w in whole.weights.items())
    remembered = {name.partition(".")[0] for name in whole.policy_state}
    assert remembered == REMEMBERING & set(policy.split("+"))
    assert whole.policy_state.keys() == again.policy_state.keys()
    assert export(whole, tmp_path / "generations", {}).is_dir()

"""The comparison with TRL: both sides train the same rows in the same way, or the ratio would say nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

import learner.train
from benchmarks.llaca_step import drawn
from learner.data import IGNORED, Example, prepare
from learner.settings import LearnerSettings
from tests.learner import tiny

against_trl = pytest.importorskip(
    "benchmarks.against_trl", reason="needs the extra `benchmarks`", exc_type=ImportError
)


@pytest.fixture
def bench(tmp_path: Path) -> Any:
    """Four rows and a tiny model."""
    rows, pictures = drawn(4)
    return against_trl.Bench(
        base=tiny.build("qwen2_vl", tmp_path / "base"),
        rows=rows,
        pictures=pictures,
        settings=LearnerSettings(
            rank=8, epochs=1, batch_size=4, policy="sequential", image_features_max_mib=0
        ),
        workers=0,
        as_it_comes=False,
    )


def test_both_sides_take_loss_on_the_same_answers_to_the_same_pictures(bench: Any) -> None:
    """TRL takes loss on every token on which the learner does, and on a row's very end, after the same pixels."""
    ours: list[Example] = []
    theirs: list[dict[str, Any]] = []
    compute = against_trl.SFTTrainer.compute_loss

    def prepared(*given: Any) -> list[Example]:
        ours.extend(prepare(*given))
        return list(ours)

    def compute_loss(trainer: Any, model: Any, inputs: dict[str, Any], *rest: Any, **named: Any) -> Any:
        theirs.append(dict(inputs))
        return compute(trainer, model, inputs, *rest, **named)

    with (
        patch.object(learner.train, "prepare", prepared),
        patch.object(against_trl.SFTTrainer, "compute_loss", compute_loss),
    ):
        bench.ours()
        bench.theirs()
    (batch,) = theirs
    answers = [taken(example.labels) for example in ours]
    others = [taken(labels) for labels in batch["labels"]]
    assert len(answers) == len(others) == 4
    for answer in answers:
        assert any(found[: len(answer)] == answer and len(found) <= len(answer) + 2 for found in others)
    pixels = [torch.cat([example.inputs["pixel_values"] for example in ours]), batch["pixel_values"].cpu()]
    seen = [patches.double().flatten().sort().values for patches in pixels]
    torch.testing.assert_close(*seen, atol=1e-2, rtol=0)  # theirs are rounded to bf16


def taken(labels: Tensor) -> list[int]:
    """Return the tokens of a row on which loss is taken."""
    return labels[labels != IGNORED].tolist()


def test_what_is_told_is_what_was_measured(bench: Any) -> None:
    """The ratio printed is that of the two times, and both sides computed attention in the same way."""
    ours, theirs = bench.ours(), bench.theirs()
    assert min(ours.seconds, theirs.seconds) > 0
    assert ours.attention == theirs.attention
    said = against_trl.told(bench, [ours], [theirs])
    assert f"the learner / TRL: {theirs.seconds / ours.seconds:.2f}" in said

"""The comparison with TRL: both sides train the same rows in the same way, or the ratio would say nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.llaca_step import drawn
from learner.settings import LearnerSettings
from tests.learner import tiny

against_trl = pytest.importorskip(
    "benchmarks.against_trl", reason="needs the extra `benchmarks`", exc_type=ImportError
)


def test_both_sides_train_the_same_rows(tmp_path: Path) -> None:
    """Before anything is learned the loss is the same, but for what each counts as the end of an answer."""
    rows, pictures = drawn(4)
    bench = against_trl.Bench(
        base=tiny.build("qwen2_vl", tmp_path / "base"),
        rows=rows,
        pictures=pictures,
        settings=LearnerSettings(rank=8, epochs=1, batch_size=4, policy="sequential"),
        workers=0,
        checkpointing=False,
    )
    ours, theirs = bench.ours(), bench.theirs()
    assert ours.loss == pytest.approx(theirs.loss, rel=0.2)
    assert min(ours.seconds, theirs.seconds) > 0
    said = against_trl.told(bench, [ours], [theirs])
    assert f"the learner / TRL: {theirs.seconds / ours.seconds:.2f}" in said

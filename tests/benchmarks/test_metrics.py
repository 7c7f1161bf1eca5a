"""Metrics of forgetting against values computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.continual.metrics import metrics_of, spread

NAN = math.nan
THREE = np.array([[90.0, NAN, NAN], [60.0, 80.0, NAN], [70.0, 20.0, 100.0]])


def test_metrics_equal_values_computed_by_hand() -> None:
    """Every metric of a 3 x 3 matrix is what its formula gives on paper."""
    found = metrics_of(THREE)
    assert found.mft == pytest.approx((90 + 80 + 100) / 3)
    assert found.mfn == pytest.approx((70 + 20 + 100) / 3)
    assert found.maa == pytest.approx((90 + 70 + 190 / 3) / 3)
    assert found.bwt == pytest.approx(((70 - 90) + (20 - 80)) / 2)
    assert found.forgetting == pytest.approx(((90 - 70) + (80 - 20)) / 2)


def test_forgetting_counts_from_the_best_round_and_bwt_from_the_first() -> None:
    """A task that became better before it was lost has lost more than backward transfer says."""
    found = metrics_of(np.array([[50.0, NAN, NAN], [80.0, 60.0, NAN], [40.0, 60.0, 70.0]]))
    assert found.bwt == pytest.approx((-10 + 0) / 2)
    assert found.forgetting == pytest.approx((40 + 0) / 2)


def test_a_task_that_improves_in_the_last_round_is_forgotten_negatively() -> None:
    """The last round itself is not among those that the best is taken of."""
    assert metrics_of(np.array([[50.0, NAN], [70.0, 60.0]])).forgetting == pytest.approx(-20)


def test_a_last_line_alone_gives_final_accuracy_and_nothing_that_cannot_be_known() -> None:
    """Of a method that learns everything at once neither forgetting nor new-task accuracy is made up."""
    found = metrics_of(np.array([[NAN, NAN], [40.0, 60.0]]))
    assert found.mfn == 50
    assert all(math.isnan(value) for value in (found.mft, found.maa, found.bwt, found.forgetting))


def test_a_single_task_has_nothing_to_forget() -> None:
    """With one task there is an accuracy, and neither transfer nor forgetting."""
    found = metrics_of(np.array([[30.0]]))
    assert (found.mft, found.mfn, found.maa) == (30, 30, 30)
    assert math.isnan(found.bwt)
    assert math.isnan(found.forgetting)


def test_spread_is_the_sample_deviation_and_unknown_for_one_run() -> None:
    """Two runs give mean and n - 1 deviation, one run only a mean, none nothing."""
    assert spread([1.0, 3.0]).mean == 2
    assert spread([1.0, 3.0]).deviation == pytest.approx(math.sqrt(2))
    assert spread([5.0]).mean == 5
    assert math.isnan(spread([5.0]).deviation)
    assert math.isnan(spread([]).mean)

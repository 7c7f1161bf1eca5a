"""What an accuracy matrix says about forgetting, as pure functions.

`A[t, i]` is the accuracy, in percent, on the i-th task after the round that taught the t-th: [T, T], both counted from
0 here and from 1 in the formulas. Only i <= t is looked at. What was not measured is NaN, and so is what cannot be
known without it; a method that learns everything in one last round has the last line alone.

MFT, MFN, MAA and BWT as in CoIN (arXiv 2403.08350), with BWT over the T - 1 tasks that can be forgotten, and forgetting
as in the tables of Continual-NExT (README of ECNU-SII/Continual-NExT).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """Of one run, in points of 100."""

    mft: float
    """Mean fine-tuned accuracy: of each task just after it was taught. The new-task accuracy, or plasticity."""
    mfn: float
    """Mean final accuracy: of all tasks after the last round."""
    maa: float
    """Mean average accuracy: the mean over all rounds of the mean over the tasks taught until then."""
    bwt: float
    """Backward transfer: how much earlier tasks have changed since they were taught. Below 0 if they were forgotten."""
    forgetting: float
    """How much earlier tasks have lost since they were best."""


def metrics_of(A: Matrix) -> Metrics:
    """Return all metrics of a matrix."""
    return Metrics(
        mft=new_task_accuracy(A),
        mfn=final_accuracy(A),
        maa=average_accuracy(A),
        bwt=backward_transfer(A),
        forgetting=forgetting(A),
    )


def new_task_accuracy(A: Matrix) -> float:
    """MFT = 1/T Σ_i A[i, i]."""
    return float(np.diagonal(A).mean())


def final_accuracy(A: Matrix) -> float:
    """MFN = 1/T Σ_i A[T, i]."""
    return float(A[-1].mean())


def average_accuracy(A: Matrix) -> float:
    """MAA = 1/T Σ_t 1/t Σ_{i <= t} A[t, i]."""
    return float(np.mean([A[t, : t + 1].mean() for t in range(len(A))]))


def backward_transfer(A: Matrix) -> float:
    """BWT = 1/(T - 1) Σ_{i < T} (A[T, i] - A[i, i]); NaN for a single task."""
    if len(A) == 1:
        return math.nan
    return float((A[-1, :-1] - np.diagonal(A)[:-1]).mean())


def forgetting(A: Matrix) -> float:
    """1/(T - 1) Σ_{i < T} (max_{i <= j < T} A[j, i] - A[T, i]); NaN for a single task."""
    last = len(A) - 1
    if last == 0:
        return math.nan
    return float(np.mean([A[i:last, i].max() - A[last, i] for i in range(last)]))


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure over several runs."""

    mean: float
    deviation: float
    """Sample standard deviation (n - 1); NaN for a single run."""


def spread(values: Sequence[float]) -> Spread:
    """Return mean and standard deviation over runs; NaN of both for none, and if any of them is not known."""
    mean = float(np.mean(values)) if values else math.nan
    return Spread(mean, float(np.std(values, ddof=1)) if len(values) > 1 else math.nan)

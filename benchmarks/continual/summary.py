"""What finished runs say together: matrices, metrics and costs of each method over its orders and seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.continual.metrics import Matrix, Metrics, Spread, metrics_of, spread
from benchmarks.continual.results import BASE, Cell, Cost, Round

REFERENCE = "sequential"
"""The method that all others are compared with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One finished run."""

    method: str
    order: str
    seed: int
    tasks: list[str]
    accuracy: Matrix
    """[T, T], NaN where it was not measured."""
    last: Round
    costs: list[Cost]

    @property
    def metrics(self) -> Metrics:
        """What its matrix says."""
        return metrics_of(self.accuracy)

    @property
    def final(self) -> dict[str, Cell]:
        """All tasks after the last round."""
        return self.last.cells

    @property
    def form(self) -> float:
        """Share of answers in the taught form after the last round, in percent; NaN if no task has one."""
        found = [cell.format for cell in self.final.values() if cell.format is not None]
        return float(np.mean(found)) if found else math.nan

    @property
    def seconds(self) -> float:
        """Of training, all rounds together."""
        return sum(cost.seconds for cost in self.costs)

    @property
    def peak_bytes(self) -> int:
        """Most memory of any round."""
        return max(cost.peak_bytes for cost in self.costs)

    @property
    def steps(self) -> int:
        """Optimizer steps of all rounds."""
        return sum(cost.steps for cost in self.costs)

    @property
    def rehearsed(self) -> int:
        """Rows of earlier tasks that were trained again, in all rounds together."""
        return sum(cost.rehearsed for cost in self.costs)


def finished(rounds: Sequence[Round]) -> dict[str, list[Run]]:
    """Return the finished runs by method, in the order in which they were first told."""
    runs: dict[str, list[Run]] = {}
    for last in rounds:
        if last.is_last:
            mine = [one for one in rounds if one.run == last.run]
            runs.setdefault(last.method, []).append(_run(last, mine))
    return runs


def base_of(rounds: Sequence[Round]) -> Round | None:
    """Return what the base model could do."""
    return next((one for one in rounds if one.method == BASE), None)


def over(runs: Sequence[Run], figure: Callable[[Run], float]) -> Spread:
    """Return a figure's mean and spread over runs."""
    return spread([figure(run) for run in runs])


@dataclass(frozen=True, slots=True, kw_only=True)
class Against:
    """A method beside the reference, over the orders and seeds that both have run; NaN if there are none."""

    accuracy: float
    """Final accuracy, as a multiple of the reference's."""
    forgetting: float
    """How many times smaller forgetting is; infinite if there is none."""


def against(runs: Sequence[Run], reference: Sequence[Run]) -> Against:
    """Compare the means over the same orders and seeds."""
    theirs = {(run.order, run.seed): run.metrics for run in reference}
    mine = {(run.order, run.seed): run.metrics for run in runs}
    both = mine.keys() & theirs.keys()
    if not both:
        return Against(accuracy=math.nan, forgetting=math.nan)
    accuracy = [float(np.mean([of[key].mfn for key in both])) for of in (mine, theirs)]
    forgotten = [float(np.mean([of[key].forgetting for key in both])) for of in (mine, theirs)]
    return Against(accuracy=_ratio(*accuracy), forgetting=_ratio(*forgotten[::-1]))


def damage(run: Run, base: Round | None) -> float:
    """Return by how many points the general suite has changed since the base; NaN if it was not asked."""
    if base is None or not run.last.general:
        return math.nan
    return float(
        np.mean([cell.accuracy - base.general[name].accuracy for name, cell in run.last.general.items()])
    )


def mean_matrix(runs: Sequence[Run]) -> Matrix:
    """Return the mean of the matrices of runs in one order."""
    mean: Matrix = np.mean([run.accuracy for run in runs], axis=0)
    return mean


def _run(last: Round, mine: Sequence[Round]) -> Run:
    accuracy = np.full((len(last.tasks), len(last.tasks)), np.nan)
    for one in mine:
        for column, task in enumerate(one.tasks[: one.number + 1]):
            accuracy[one.number, column] = one.cells[task].accuracy
    return Run(
        method=last.method,
        order=last.order,
        seed=last.seed,
        tasks=last.tasks,
        accuracy=accuracy,
        last=last,
        costs=[one.cost for one in mine if one.cost is not None],
    )


def _ratio(above: float, below: float) -> float:
    """Return a quotient; infinite over nothing, and not known where neither has anything."""
    if below <= 0:
        return math.inf if above > 0 else math.nan
    return above / below

"""Judges a candidate: a pure function of paired holdout scores. It does no I/O and knows no model.

Champion and candidate answered the same rows on the same machine, so rows are compared in pairs. For rows that are
right or wrong the test is McNemar's, exact; for graded scores a paired bootstrap. p-values are one-sided and
Holm-corrected over the tasks they belong to (Holm 1979), so that many tasks do not make a false alarm likely.

* reject  an earlier task, or a new one, got worse by more than the margin, and chance does not explain it;
* hold    it looks worse by more than the margin, but there are too few rows to tell; or nothing was learned;
* promote no task is worse by more than the margin, and at least one new task is better than chance explains.

A candidate that is rejected may be followed by points on the way back to the champion; each is judged like a candidate,
at a part of the significance, since several tries find something by chance more often than one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from math import comb
from typing import Any

import numpy as np

from storage.records import Decision

RESAMPLES = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedScores:
    """Scores (0 to 1) of champion and candidate on the same holdout rows of one task."""

    dataset_id: int
    name: str
    earlier: bool
    """Whether the champion has learned this task already; otherwise it is what this round teaches."""
    champion: tuple[float, ...]
    candidate: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskResult:
    """What the comparison says about one task; scores and change in points of 100."""

    dataset_id: int
    name: str
    earlier: bool
    items: int
    champion: float
    candidate: float
    gained: int
    lost: int
    p_worse: float
    p_better: float

    @property
    def change(self) -> float:
        """Points won (positive) or lost (negative)."""
        return self.candidate - self.champion


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The decision, its reasons in plain words, and the figures behind them."""

    decision: Decision
    reasons: tuple[str, ...]
    tasks: tuple[TaskResult, ...]
    margin_points: float
    significance: float
    tried: tuple[Trial, ...] = ()
    """Every candidate that was judged before this was decided, in that order, if there were several."""

    def to_json(self) -> dict[str, Any]:
        """Return the verdict as plain JSON types."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """How one of a round's candidates was judged."""

    name: str
    share: float
    """How far it goes from the champion to what was trained; 1 for what was trained itself."""
    verdict: Verdict


def mcnemar(gained: int, lost: int) -> tuple[float, float]:
    """Return exact one-sided p-values (worse, better) for `gained` and `lost` rows (McNemar 1947, exact form).

    Under chance each changed row is as likely gained as lost, so the lost rows are Binomial(gained + lost, 1/2).
    """
    changed = gained + lost
    if changed == 0:
        return 1.0, 1.0

    def tail(count: int) -> float:
        return float(sum(comb(changed, k) for k in range(count, changed + 1)) / 2**changed)

    return tail(lost), tail(gained)


def bootstrap(differences: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """Return one-sided p-values (worse, better) of the mean of paired differences by resampling rows.

    Differences are centred first, so that the resamples show what chance alone would give (Efron & Tibshirani 1993,
    section 16.4). The same differences and seed always give the same values.
    """
    values = np.asarray(differences, dtype=np.float64)
    if not values.any():
        return 1.0, 1.0
    generator = np.random.default_rng(seed)
    observed = values.mean()
    picks = generator.integers(0, len(values), size=(RESAMPLES, len(values)))
    means = (values - observed)[picks].mean(axis=1)
    worse = (1 + np.count_nonzero(means <= observed)) / (1 + RESAMPLES)
    better = (1 + np.count_nonzero(means >= observed)) / (1 + RESAMPLES)
    # Resamples of very few rows hardly vary; no test of n changed rows can be surer than all n signs falling alike.
    least = 0.5 ** int(np.count_nonzero(values))
    return max(float(worse), least), max(float(better), least)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for having looked at all of them (Holm 1979), in the order given."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def judge(tasks: Sequence[PairedScores], *, margin_points: float, significance: float) -> Verdict:
    """Decide about a candidate; the same scores always give the same verdict."""
    compared = [_compare(task) for task in tasks if task.champion]
    empty = [task for task in tasks if not task.champion]
    corrected = _correct([t for t in compared if t.earlier]) + _correct(
        [t for t in compared if not t.earlier]
    )

    worse = [task for task in corrected if task.change < -margin_points]
    surely_worse = [task for task in worse if task.p_worse <= significance]
    learned = [
        task for task in corrected if not task.earlier and task.p_better <= significance and task.change > 0
    ]
    unjudged = [f"{task.name}: no holdout rows, so nothing can be said about it" for task in empty]

    if surely_worse:
        decision, reasons = Decision.REJECT, [_lost(task, margin_points) for task in surely_worse]
    elif worse or empty:
        decision, reasons = Decision.HOLD, [_maybe_lost(task, margin_points) for task in worse] + unjudged
    elif not learned:
        decision = Decision.HOLD
        reasons = [_not_learned(task) for task in corrected if not task.earlier] or [
            "there is no new task to learn"
        ]
    else:
        kept = sum(task.earlier for task in corrected)
        decision = Decision.PROMOTE
        reasons = [_learned(task) for task in learned]
        reasons += [f"none of {kept} earlier tasks lost more than {margin_points:g} points"] if kept else []
    return Verdict(
        decision=decision,
        reasons=tuple(reasons),
        tasks=tuple(corrected),
        margin_points=margin_points,
        significance=significance,
    )


def shares(points: int) -> list[float]:
    """Return so many shares of the way from champion to candidate, evenly apart, the farthest first."""
    return [number / (points + 1) for number in range(points, 0, -1)]


def settle(trials: Sequence[Trial]) -> Verdict:
    """Return a round's verdict from how its candidates were judged: first what was trained, then points of the way.

    It is the last one's if that is promoted, otherwise the first one's; its reasons tell of the others too.
    """
    first, last = trials[0], trials[-1]
    if first is last:
        return first.verdict
    chosen = last if last.verdict.decision is Decision.PROMOTE else first
    goes = [f"{last.name} goes {last.share:.0%} of the way to {first.name}"] if chosen is last else []
    others = [_told(trial) for trial in trials if trial is not chosen]
    return replace(chosen.verdict, reasons=(*goes, *chosen.verdict.reasons, *others), tried=tuple(trials))


def _told(trial: Trial) -> str:
    how = "as trained" if trial.share == 1 else f"{trial.share:.0%} of the way there"
    return f"{trial.name}, {how}: {trial.verdict.decision}, {'; '.join(trial.verdict.reasons)}"


def _compare(task: PairedScores) -> TaskResult:
    pairs = list(zip(task.champion, task.candidate, strict=True))
    gained = sum(new > old for old, new in pairs)
    lost = sum(new < old for old, new in pairs)
    right_or_wrong = {score for pair in pairs for score in pair} <= {0.0, 1.0}
    p_worse, p_better = (
        mcnemar(gained, lost) if right_or_wrong else bootstrap([new - old for old, new in pairs])
    )
    return TaskResult(
        dataset_id=task.dataset_id,
        name=task.name,
        earlier=task.earlier,
        items=len(pairs),
        champion=100 * sum(task.champion) / len(pairs),
        candidate=100 * sum(task.candidate) / len(pairs),
        gained=gained,
        lost=lost,
        p_worse=p_worse,
        p_better=p_better,
    )


def _correct(tasks: list[TaskResult]) -> list[TaskResult]:
    worse = holm([task.p_worse for task in tasks])
    better = holm([task.p_better for task in tasks])
    return [
        TaskResult(**asdict(task) | {"p_worse": p_worse, "p_better": p_better})
        for task, p_worse, p_better in zip(tasks, worse, better, strict=True)
    ]


def _from_to(task: TaskResult) -> str:
    return f"{task.name}: {task.champion:.1f} → {task.candidate:.1f} on {task.items} rows"


def _lost(task: TaskResult, margin: float) -> str:
    return f"{_from_to(task)}, worse by more than {margin:g} points (p = {task.p_worse:.3g})"


def _maybe_lost(task: TaskResult, margin: float) -> str:
    return (
        f"{_from_to(task)}, looks worse by more than {margin:g} points, but so few rows cannot tell"
        f" (p = {task.p_worse:.3g}); give it a larger holdout, or decide yourself"
    )


def _not_learned(task: TaskResult) -> str:
    return f"{_from_to(task)}, no better than chance explains (p = {task.p_better:.3g})"


def _learned(task: TaskResult) -> str:
    return f"{_from_to(task)}, learned (p = {task.p_better:.3g})"

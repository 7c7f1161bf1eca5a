"""The figures of a benchmark as tables in Markdown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from benchmarks.continual.metrics import Spread
from benchmarks.continual.results import Round
from benchmarks.continual.summary import REFERENCE, Run, against, damage, over

MIB = 1024 * 1024
Runs = Mapping[str, Sequence[Run]]
"""Finished runs by method."""


def accuracies(runs: Runs, base: Round | None) -> str:
    """Return the main table: how well each method learns, and how little it forgets."""
    head = [
        "method", "runs", "MFN ↑", "MFT ↑", "MAA ↑", "BWT ↑", "forgetting ↓", "MFN × sequential's", "forgetting ÷",
        "in the taught form ↑", "general suite ±",
    ]  # fmt: skip
    lines = [_zero_shot(base, len(head))] if base else []
    for method, mine in runs.items():
        beside = against(mine, runs.get(REFERENCE, ()))
        lines.append(
            [
                f"`{method}`",
                str(len(mine)),
                figure(over(mine, lambda run: run.metrics.mfn)),
                figure(over(mine, lambda run: run.metrics.mft)),
                figure(over(mine, lambda run: run.metrics.maa)),
                figure(over(mine, lambda run: run.metrics.bwt)),
                figure(over(mine, lambda run: run.metrics.forgetting)),
                number(beside.accuracy, 2),
                number(beside.forgetting, 1),
                figure(over(mine, lambda run: run.form)),
                figure(over(mine, lambda run: damage(run, base))),
            ]
        )
    return table(head, lines)


def by_order(runs: Runs, orders: Sequence[str]) -> str:
    """Return final accuracy and forgetting of each order by itself: what is learned last is forgotten least."""
    head = ["method", *(f"{order}: {what}" for order in orders for what in ("runs", "MFN ↑", "forgetting ↓"))]
    lines = []
    for method, mine in runs.items():
        line = [f"`{method}`"]
        for order in orders:
            those = [run for run in mine if run.order == order]
            line += [
                str(len(those)) if those else "–",
                figure(over(those, lambda run: run.metrics.mfn)),
                figure(over(those, lambda run: run.metrics.forgetting)),
            ]
        lines.append(line)
    return table(head, lines)


def per_task(runs: Runs, base: Round | None) -> str:
    """Return each task's accuracy after the last round, and the share of answers in its form behind it."""
    tasks = sorted({task for mine in runs.values() for run in mine for task in run.tasks})
    lines = []
    if base:
        lines.append(
            ["base model", *(_scored(base.cells[task].accuracy, base.cells[task].format) for task in tasks)]
        )
    for method, mine in runs.items():
        cells = [[run.final[task] for run in mine] for task in tasks]
        scored = [
            _scored(
                float(np.mean([cell.accuracy for cell in column])),
                None if column[0].format is None else float(np.mean([cell.format or 0.0 for cell in column])),
            )
            for column in cells
        ]
        lines.append([f"`{method}`", *scored])
    return table(["method", *tasks], lines)


def costs(runs: Runs) -> str:
    """Return what each method takes, per run."""
    head = [
        "method", "training, s", "steps", "s per step", "rows seen again", "peak memory, MiB", "policy state, MiB",
        "adapters served",
    ]  # fmt: skip
    lines = [
        [
            f"`{method}`",
            figure(over(mine, lambda run: run.seconds), 0),
            figure(over(mine, lambda run: run.steps), 0),
            figure(over(mine, lambda run: run.seconds / run.steps), 2),
            figure(over(mine, lambda run: run.rehearsed), 0),
            figure(over(mine, lambda run: run.peak_bytes / MIB), 0),
            figure(over(mine, lambda run: run.costs[-1].state_bytes / MIB)),
            figure(over(mine, lambda run: run.costs[-1].adapters)),
        ]
        for method, mine in runs.items()
    ]
    return table(head, lines)


def general(runs: Runs, base: Round) -> str:
    """Return the accuracy on each ability of the general suite."""
    lines = [["base model", *(number(cell.accuracy) for cell in base.general.values())]]
    for method, mine in runs.items():
        columns = [[run.last.general[ability].accuracy for run in mine] for ability in base.general]
        lines.append([f"`{method}`", *(number(float(np.mean(column))) for column in columns)])
    return table(["method", *base.general], lines)


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def figure(found: Spread, digits: int = 1) -> str:
    """Return a mean with its standard deviation, or alone for a single run."""
    if math.isnan(found.mean) or math.isnan(found.deviation):
        return number(found.mean, digits)
    return f"{found.mean:.{digits}f} ± {found.deviation:.{digits}f}"


def number(value: float, digits: int = 1) -> str:
    """Return a number, a dash for what is not known, and ∞."""
    if math.isnan(value):
        return "–"
    return "∞" if math.isinf(value) else f"{value:.{digits}f}"


def _zero_shot(base: Round, columns: int) -> list[str]:
    """Return the line of the base model: its mean accuracy on all tasks, and how many answers are in their form."""
    cells = base.cells.values()
    formed = [cell.format for cell in cells if cell.format is not None]
    line = ["base model (zero-shot)", "1", number(float(np.mean([cell.accuracy for cell in cells])))]
    form = number(float(np.mean(formed)) if formed else math.nan)
    return [*line, *["–"] * (columns - 5), form, "–"]


def _scored(accuracy: float, form: float | None) -> str:
    return number(accuracy) if form is None else f"{number(accuracy)} ({number(form, 0)})"

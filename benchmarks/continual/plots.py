"""The pictures of a benchmark: accuracy matrices, stability against plasticity, and one example of each task."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from benchmarks.continual.metrics import Matrix
from benchmarks.continual.summary import Run, mean_matrix, over
from benchmarks.continual.tasks import Pictures, Task, question_of, reference_of

ACROSS = 4
"""Panels beside each other."""
LINE = 40
"""Characters in a line below a panel."""
COLORS = colormaps["tab20"].colors  # type: ignore[attr-defined] # a listed map; the annotation is that of all maps
MARKERS = "osD^v<>pP*Xh"


def matrices(runs: Mapping[str, Sequence[Run]], order: str, path: Path) -> None:
    """Draw the accuracy matrix of each method in one order, as the mean over its seeds."""
    shown = {method: [run for run in mine if run.order == order] for method, mine in runs.items()}
    shown = {method: mine for method, mine in shown.items() if mine}
    whole, panels = _panels(len(shown), 3.3, 3.2)
    for panel, (method, mine) in zip(panels, shown.items(), strict=True):
        _heat(panel, mean_matrix(mine), mine[0].tasks)
        panel.set_title(method.replace(":", "\n", 1), fontsize=9)
    whole.savefig(path, dpi=110)


def stability_against_plasticity(runs: Mapping[str, Sequence[Run]], path: Path) -> None:
    """Draw each method as a point: how well it learns new tasks, and how much of the earlier ones it loses.

    Methods whose matrix is not whole have no point there.
    """
    whole = Figure(figsize=(7.5, 5.5), layout="constrained")
    axes = whole.subplots()
    for index, (method, mine) in enumerate(runs.items()):
        new, lost = over(mine, lambda run: run.metrics.mft), over(mine, lambda run: run.metrics.forgetting)
        if math.isnan(new.mean) or math.isnan(lost.mean):
            continue
        axes.errorbar(
            new.mean,
            lost.mean,
            xerr=None if math.isnan(new.deviation) else new.deviation,
            yerr=None if math.isnan(lost.deviation) else lost.deviation,
            marker=MARKERS[index % len(MARKERS)],
            color=COLORS[index % len(COLORS)],
            markersize=8,
            linestyle="none",
            label=method,
        )
    axes.invert_yaxis()
    axes.set_xlabel("accuracy on new tasks (MFT), % → plastic")
    axes.set_ylabel("forgetting, points → stable")
    axes.grid(alpha=0.3)
    if axes.has_data():
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    whole.savefig(path, dpi=110)


def examples(tasks: Sequence[Task], pictures: Pictures, path: Path) -> None:
    """Show the first row of each task: its first picture, the question and the answer."""
    whole, panels = _panels(len(tasks), 3.0, 2.9)
    for panel, task in zip(panels, tasks, strict=True):
        row = task.train[0]
        for sha256 in row.images[:1]:
            panel.imshow(np.asarray(Image.open(io.BytesIO(pictures.read(sha256))).convert("RGB")))
        panel.set_xticks([])
        panel.set_yticks([])
        panel.set_title(task.name, fontsize=9, fontweight="bold")
        lines = [*question_of(row).splitlines(), f"→ {reference_of(row)}"]
        shown = "\n".join(fill(line, LINE) for line in lines).replace(
            "$", r"\$"
        )  # which would begin a formula
        panel.set_xlabel(shown, fontsize=7)
    whole.savefig(path, dpi=110)


def _heat(panel: Axes, matrix: Matrix, tasks: Sequence[str]) -> None:
    """Draw a matrix with a number in each cell that was measured."""
    panel.imshow(matrix, cmap="viridis", vmin=0, vmax=100)
    for (line, column), value in np.ndenumerate(matrix):
        if not math.isnan(value):
            color = "black" if value > 60 else "white"
            panel.text(column, line, f"{value:.0f}", ha="center", va="center", fontsize=7, color=color)
    panel.set_xticks(range(len(tasks)), tasks, rotation=60, ha="right", fontsize=7)
    panel.set_yticks(range(len(tasks)), [f"after {task}" for task in tasks], fontsize=7)


def _panels(count: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """Return a figure of `count` panels, up to ACROSS beside each other."""
    across = min(count, ACROSS)
    down = -(-count // ACROSS)
    whole = Figure(figsize=(width * across, height * down), layout="constrained")
    grid = whole.subplots(down, across, squeeze=False).flatten()
    for unused in grid[count:]:
        unused.set_axis_off()
    return whole, list(grid[:count])

"""Figures of a round as data for gr.LinePlot, and the accuracy matrix as an HTML heat-map. Pure; knows no store.

Colours tell series apart also for colour-blind readers (Okabe and Ito's palette), every cell of the heat-map carries
its number, and both keep their contrast on light and dark pages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import pandas as pd

from app.ui.markup import empty
from storage.records import AccuracyMatrix, StepMetrics, generation_name

PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#999999")
POINTS_MOST = 300
"""Points per curve; a screen shows no more, and every refresh sends them all."""
RAW, SMOOTH = "each step", "smoothed"
LOSS_COLOURS = {RAW: "#9DB4CC", SMOOTH: PALETTE[0]}
SMOOTHING = 0.9


def loss_curve(metrics: Sequence[StepMetrics]) -> pd.DataFrame:
    """Return columns step, loss, series: every step's loss and its exponential mean (bias-corrected, weight 0.9)."""
    points = [(m.step, float(m.values["loss"])) for m in metrics if m.values.get("loss") is not None]
    smooth = _smoothed([loss for _, loss in points])
    rows = [(step, loss, RAW) for step, loss in points]
    rows += [(step, mean, SMOOTH) for (step, _), mean in zip(points, smooth, strict=True)]
    return _frame(rows, "loss")


def beta_curves(metrics: Sequence[StepMetrics], factor: str) -> pd.DataFrame:
    """Return columns step, β, series: the median share of the old average that a step kept, for one LoRA factor.

    `factor` is `A` or `B`; series are the kinds of layers, shortened to fit a legend (`q` for `q_proj`).
    """
    rows = [
        (m.step, float(summary["median"]), group.rpartition(".")[0].removesuffix("_proj"))
        for m in metrics
        for group, summary in m.values.get("beta", {}).items()
        if group.rpartition(".")[2] == factor
    ]
    return _frame(rows, "β")


def colours(frame: pd.DataFrame) -> dict[str, str]:
    """Return a colour for each series of a frame, the same for the same set of names."""
    names = sorted(set(frame["series"]))
    return {name: PALETTE[index % len(PALETTE)] for index, name in enumerate(names)}


def _frame(rows: Sequence[tuple[int, float, str]], value: str) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=["step", value, "series"])
    steps = sorted(set(frame["step"]))
    stride = -(-len(steps) // POINTS_MOST) or 1
    kept = {*steps[::stride], *steps[-1:]}
    return frame[frame["step"].isin(kept)].reset_index(drop=True)


def _smoothed(values: Sequence[float]) -> list[float]:
    mean, weight, smooth = 0.0, 0.0, []
    for value in values:
        mean = SMOOTHING * mean + (1 - SMOOTHING) * value
        weight = SMOOTHING * weight + (1 - SMOOTHING)
        smooth.append(mean / weight)
    return smooth


def heat_map(matrix: AccuracyMatrix, names: Mapping[int, str], champion: int) -> str:
    """Return the accuracy matrix as a table: a row per generation, a column per dataset, each cell in points."""
    if not matrix.generations:
        return empty("No scores yet", "The first round that is judged fills the first rows.")
    head = "".join(
        f'<th scope="col"><span>{escape(names[dataset])}</span></th>' for dataset in matrix.datasets
    )
    body = "".join(
        f"<tr{' class=serving' if generation == champion else ''}>"
        f'<th scope="row">{generation_name(generation)}{" · serving" if generation == champion else ""}</th>'
        f"{''.join(_cell(value) for value in values)}</tr>"
        for generation, values in zip(matrix.generations, matrix.values, strict=True)
    )
    return (
        '<div class="scroll" tabindex="0"><table class="heat"><caption>Holdout accuracy, in points of 100</caption>'
        f"<thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cell(value: float | None) -> str:
    if value is None:
        return '<td class="none" aria-label="not asked">·</td>'
    lightness, ink = shade(value)
    return f'<td style="background:hsl(205 70% {lightness}%);color:{ink}">{100 * value:.0f}</td>'


def shade(value: float) -> tuple[int, str]:
    """Return the lightness in per cent of a cell's one hue, and an ink that reads on it (contrast 4.5 and up)."""
    lightness = round(96 - 62 * value)
    return lightness, "#ffffff" if lightness <= 41 else "#000000"


def forgetting(matrix: AccuracyMatrix, champion: int) -> dict[int, float]:
    """Return for each dataset how many points the champion lost against the best generation up to it (0 or more)."""
    if champion not in matrix.generations:
        return {}
    row = matrix.generations.index(champion)
    lost: dict[int, float] = {}
    for column, dataset in enumerate(matrix.datasets):
        known = [values[column] or 0.0 for values in matrix.values[: row + 1]]
        if matrix.values[row][column] is not None:
            lost[dataset] = 100 * (max(known) - known[row])
    return lost

"""Figures and the heat-map: the right numbers, in colours that can be told apart and read."""

from __future__ import annotations

import pytest

from app.ui.plots import (
    LOSS_COLOURS,
    PALETTE,
    POINTS_MOST,
    RAW,
    SMOOTH,
    beta_curves,
    colours,
    forgetting,
    heat_map,
    loss_curve,
    shade,
)
from storage.records import AccuracyMatrix, StepMetrics


def metrics(count: int) -> list[StepMetrics]:
    """Return `count` steps whose loss halves and whose β differs per group."""
    beta = {
        "all": {"median": 0.5},
        "q_proj.A": {"median": 0.9},
        "q_proj.B": {"median": 0.8},
        "o_proj.A": {"median": 0.7},
    }
    return [StepMetrics(round_id=1, step=n, values={"loss": 2.0**-n, "beta": beta}) for n in range(count)]


def test_loss_is_shown_raw_and_as_a_bias_corrected_mean() -> None:
    """The smoothed curve starts at the first loss, not at a tenth of it, and stays between the losses."""
    frame = loss_curve(metrics(3))
    raw = frame[frame["series"] == RAW]["loss"].tolist()
    smooth = frame[frame["series"] == SMOOTH]["loss"].tolist()
    assert raw == [1.0, 0.5, 0.25]
    assert smooth[0] == pytest.approx(1.0)
    assert smooth[1] == pytest.approx((0.9 * 0.1 * 1.0 + 0.1 * 0.5) / 0.19)
    assert set(frame["series"]) == set(LOSS_COLOURS)


def test_steps_without_a_loss_leave_no_point() -> None:
    """A step whose loss was not measured is left out; no step at all gives an empty frame with its columns."""
    steps = [
        StepMetrics(round_id=1, step=0, values={"loss": None}),
        StepMetrics(round_id=1, step=1, values={}),
    ]
    frame = loss_curve(steps)
    assert frame.empty
    assert list(frame.columns) == ["step", "loss", "series"]
    assert colours(frame) == {}


@pytest.mark.parametrize(("factor", "expected"), [("A", {"q": 0.9, "o": 0.7}), ("B", {"q": 0.8})])
def test_beta_is_shown_per_kind_of_layer_and_factor(factor: str, expected: dict[str, float]) -> None:
    """A and B factors have figures of their own; the group `all` is in neither."""
    frame = beta_curves(metrics(1), factor)
    assert dict(zip(frame["series"], frame["β"], strict=True)) == expected


def test_long_rounds_are_thinned_but_keep_their_last_step() -> None:
    """However many steps a round has, a curve has at most about 300 points, and the newest is among them."""
    frame = loss_curve(metrics(1000))
    steps = frame[frame["series"] == RAW]["step"].tolist()
    assert len(steps) <= POINTS_MOST + 1
    assert steps[-1] == 999


def test_seven_series_have_seven_colours() -> None:
    """As many kinds of layers as a language model has are told apart by colour."""
    assert len(set(PALETTE)) == 7


def matrix() -> AccuracyMatrix:
    """Return three generations on two tasks; the second task is unknown to the first generation."""
    return AccuracyMatrix(
        generations=(0, 1, 2), datasets=(5, 6), values=((0.1, None), (0.9, 0.25), (0.7, 0.8))
    )


def test_heat_map_shows_every_score_in_points_and_marks_the_champion() -> None:
    """Cells carry their numbers, names are escaped, what was not asked is no zero, and the serving row is marked."""
    html = heat_map(matrix(), {5: "Digits <i>", 6: "Shapes"}, champion=1)
    assert [n for n in ("10", "90", "25", "70", "80") if f">{n}</td>" in html] == [
        "10",
        "90",
        "25",
        "70",
        "80",
    ]
    assert 'aria-label="not asked"' in html
    assert "Digits &lt;i&gt;" in html
    assert html.count("serving") == 2
    assert '<tr class=serving><th scope="row">assistant@1 · serving' in html


def test_no_scores_give_a_sentence_instead_of_an_empty_table() -> None:
    """Before the first judged round the heat-map says that nothing is there yet."""
    assert "No scores yet" in heat_map(AccuracyMatrix(generations=(), datasets=(), values=()), {}, 0)


def test_forgetting_is_the_loss_against_the_best_generation_before() -> None:
    """A task that an earlier generation knew better is forgotten by the difference, a task never better known by 0."""
    assert forgetting(matrix(), 2) == pytest.approx({5: 20.0, 6: 0.0})
    assert forgetting(matrix(), 0) == pytest.approx({5: 0.0})
    assert forgetting(matrix(), 9) == {}


def _luminance(rgb: tuple[float, ...]) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("points", range(0, 101, 5))
def test_every_cell_is_readable(points: int) -> None:
    """The number in a cell has a contrast of at least 4.5 to its ground (WCAG 2 AA), whatever the score."""
    from colorsys import hls_to_rgb

    lightness, ink = shade(points / 100)
    ground = _luminance(hls_to_rgb(205 / 360, lightness / 100, 0.7))
    text = _luminance(tuple(int(ink[i : i + 2], 16) / 255 for i in (1, 3, 5)))
    lighter, darker = max(ground, text), min(ground, text)
    assert (lighter + 0.05) / (darker + 0.05) >= 4.5

"""The averaging rule against an independent reference, its presets, and what it does with numbers that are none."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from learner import llaca
from learner.llaca import RULES, Rule
from learner.policies.averaging import groups_of
from learner.policies.choose import policy_for
from learner.policies.ema import FixedAverage
from learner.policies.llaca import Llaca, rule_of
from learner.settings import LearnerSettings
from tests.learner.tasks import NAMES, bare_task, take_step

SHAPES = ((4, 6), (5, 4), (3, 3))
GROUPS = ("q_proj.A", "q_proj.B", "v_proj.A")
STEPS = 6

PARTS: list[dict[str, Any]] = [
    {"side": side, "scale": scale, "fallback": fallback, "hessian": hessian, "norm": norm}
    for side, (scale, fallback), hessian, norm in itertools.product(
        ("new", "old"), ((2.0, 0.99), (0.01, 0.999), (1.0, 0.9)), ("difference", "quotient"), ("sum", "mean")
    )
]
COMBINATIONS = [Rule(**parts) for parts in PARTS]


def reference(
    rule: Rule, average: np.ndarray, theta: np.ndarray, gradients: list[np.ndarray], points: list[np.ndarray]
) -> tuple[np.ndarray, float]:
    """Take one step for one tensor in float64, written from the equation alone: no library of ours.

    `average` is the one before the step and `theta` the weights after it; `gradients` are this step's and, unless it is
    the first, the one's before, taken at `points`. Returns the new average and β.
    """
    size = theta.size if rule.norm == "mean" else 1
    a = np.abs(theta - average).sum() / size
    b = np.abs(gradients[0]).sum() / size
    x = math.inf
    if len(gradients) == 2:
        h = np.abs(gradients[0] - gradients[1]).sum() / size
        if rule.hessian == "quotient":
            h /= np.abs(points[0] - points[1]).sum() / size
        x = rule.scale * (1 + b) / (a * h)
    beta = rule.fallback if not 0 < x < 1 else (x if rule.side == "old" else 1 - x)
    return beta * average + (1 - beta) * theta, beta


def wide(tensors: list[list[Tensor]], index: int) -> list[np.ndarray]:
    """Return the history of one tensor in float64."""
    return [tensors_then[index].double().numpy() for tensors_then in tensors]


def started(rule: Rule, points: list[list[Tensor]]) -> Llaca:
    """Return the policy at the start of a round."""
    parts = {
        f"llaca_{part}": getattr(rule, part) for part in ("side", "scale", "fallback", "hessian", "norm")
    }
    policy = Llaca(LearnerSettings(**parts))
    policy.start(bare_task(points[0]))
    assert policy.rule == rule
    return policy


def beta_of(rule: Rule, sizes: dict[str, float]) -> tuple[float, bool]:
    """Apply the rule to the norms of a single tensor."""
    beta, outside = llaca.old_weights(
        rule, **{name: torch.tensor([size]).double() for name, size in sizes.items()}
    )
    return float(beta), bool(outside)


def history(scale: float, seed: int) -> tuple[list[list[Tensor]], list[list[Tensor]]]:
    """Return made-up weights and gradients of a few steps; `scale` sizes the gradients and the steps."""
    noise = torch.Generator().manual_seed(seed)
    points = [[torch.randn(shape, generator=noise) for shape in SHAPES]]
    gradients = []
    for _ in range(STEPS):
        gradients.append([torch.randn(shape, generator=noise) * scale for shape in SHAPES])
        points.append([p + torch.randn(p.shape, generator=noise) * scale for p in points[-1]])
    return points, gradients


@pytest.mark.parametrize("rule", COMBINATIONS, ids=str)
def test_every_reading_of_the_rule_equals_a_float64_reference(rule: Rule) -> None:
    """At each step every combination gives the reference's β and average to 1e-6, fallbacks included."""
    fell_back = []
    for scale in (0.01, 0.3, 3.0, 30.0):
        points, gradients = history(scale, seed=1)
        policy = started(rule, points)
        for t in range(STEPS):
            before = [average.double().numpy().copy() for average in policy.average]
            shown = take_step(policy, points[t + 1], gradients[t])["beta"]
            for index, group in enumerate(GROUPS):
                seen = slice(max(0, t - 1), t + 1)
                wanted, beta = reference(
                    rule, before[index], wide(points, index)[t + 1],
                    wide(gradients, index)[seen][::-1], wide(points, index)[seen][::-1],
                )  # fmt: skip
                np.testing.assert_allclose(shown[group]["median"], beta, rtol=0, atol=1e-6)
                largest = np.abs(before[index]).max() + np.abs(wide(points, index)[t + 1]).max()
                np.testing.assert_allclose(policy.average[index].numpy(), wanted, rtol=0, atol=1e-6 * largest)
                assert shown[group]["fallback"] == (beta == rule.fallback)
                fell_back.append(beta == rule.fallback)
    assert any(fell_back)
    assert not all(fell_back)


@pytest.mark.parametrize("together", [1, 30, 10**9])
@pytest.mark.parametrize("rule", [RULES["official"], RULES["paper"]], ids=["official", "paper"])
def test_how_many_tensors_are_gone_through_together_changes_nothing(
    rule: Rule, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One by one, in runs of a few or all at once: β, average, kept displacement and state have the same bits."""
    points, gradients = history(0.3, seed=4)

    def told(entries: int) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
        monkeypatch.setattr(llaca, "CACHED_ENTRIES", entries)
        policy = started(rule, points)
        shown = [take_step(policy, new, g) for new, g in zip(points[1:], gradients, strict=True)]
        return shown, policy.state()

    wanted, found = told(20), told(together)
    assert found[0] == wanted[0]
    assert found[1].keys() == wanted[1].keys()
    assert all(torch.equal(tensor, wanted[1][name]) for name, tensor in found[1].items())


def test_runs_cover_every_tensor_once_and_fit_the_cache() -> None:
    """A tensor larger than the cache is gone through alone; on a device other than the CPU all go together."""
    sizes = [3, 3, 5, 20, 1, llaca.CACHED_ENTRIES + 1, 2, llaca.CACHED_ENTRIES, 1]
    tensors = [torch.zeros(size) for size in sizes]
    runs = [sizes[part] for part in llaca.parts(tensors)]
    assert runs == [sizes[:5], [sizes[5]], [2], [sizes[7]], [1]]
    assert llaca.parts([tensor.to("meta") for tensor in tensors]) == [slice(len(tensors))]


@given(
    distance=st.floats(1e-6, 1e6),
    gradient=st.floats(0, 1e6),
    change=st.floats(1e-6, 1e6),
    step=st.floats(1e-6, 1e6),
)
@settings(max_examples=60)
@pytest.mark.parametrize("name", RULES)
def test_beta_is_always_a_weight(
    name: str, distance: float, gradient: float, change: float, step: float
) -> None:
    """For any sizes β lies between 0 and 1, so the average stays between its old self and the weights."""
    sizes = {"distance": distance, "gradient": gradient, "change": change, "step": step}
    beta, outside = beta_of(RULES[name], sizes)
    assert 0 <= beta <= 1
    assert beta == RULES[name].fallback or not outside


@given(scale=st.floats(1e-3, 1e3), seed=st.integers(0, 2**31))
@settings(max_examples=40)
def test_average_stays_within_the_weights_seen(scale: float, seed: int) -> None:
    """The average is a mean of the weights so far: no entry leaves their range, whatever the gradients are."""
    points, gradients = history(scale, seed)
    policy = started(RULES["official"], points)
    for new, gradient in zip(points[1:], gradients, strict=True):
        take_step(policy, new, gradient)
    for index, average in enumerate(policy.average):
        seen = torch.stack([p[index] for p in points])
        slack = 1e-5 * (1 + seen.abs().max())
        assert (average >= seen.amin(0) - slack).all()
        assert (average <= seen.amax(0) + slack).all()


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("bad", [0.0, math.inf, math.nan])
def test_degenerate_norms_fall_back_and_are_counted(rule: Rule, bad: float) -> None:
    """A distance or change of zero, infinity or NaN gives the fallback, and says so."""
    usable = {"distance": 10.0, "gradient": 1.0, "change": 10.0, "step": 1.0}
    for key in ("distance", "change"):
        sizes = usable | {key: bad}
        beta, outside = beta_of(rule, sizes)
        assert beta == rule.fallback
        assert outside


def test_gradient_that_is_not_a_number_shows_in_the_metrics() -> None:
    """One tensor with a NaN gradient falls back, then and at the next step; the others go on."""
    points, gradients = history(3.0, seed=2)
    gradients[2][1].fill_(math.nan)
    policy = started(RULES["official"], points)
    seen = [
        take_step(policy, new, gradient)["beta"] for new, gradient in zip(points[1:], gradients, strict=True)
    ]
    shares = [beta["q_proj.B"]["fallback"] for beta in seen]
    assert shares[2] == shares[3] == 1
    assert all(torch.isfinite(average).all() for average in policy.average)


def test_large_tensors_keep_the_precision() -> None:
    """The norms of a tensor of a million elements are still right to 1e-6."""
    tensor = torch.randn(1000, 1000, generator=torch.Generator().manual_seed(0))
    assert float(llaca.l1_norms([tensor], "sum")) == pytest.approx(
        np.abs(tensor.double().numpy()).sum(), rel=1e-6
    )
    assert float(llaca.l1_norms([tensor], "mean")) == pytest.approx(
        np.abs(tensor.double().numpy()).mean(), rel=1e-6
    )


def test_presets_are_the_published_combinations() -> None:
    """The names stand for the numbers of the two programs and of the printed equation."""
    found = {
        name: (rule.side, rule.scale, rule.fallback, rule.hessian, rule.norm)
        for name, rule in ((name, rule_of(LearnerSettings(llaca_rule=name))) for name in RULES)
    }
    assert found == {
        "official": ("new", 2.0, 0.99, "difference", "sum"),
        "continual-next": ("new", 0.01, 0.999, "difference", "sum"),
        "paper": ("old", 1.0, 0.99, "quotient", "sum"),
    }


def test_settings_override_parts_of_a_preset() -> None:
    """An explicit part wins over the preset, the others stay."""
    rule = rule_of(LearnerSettings(llaca_rule="paper", llaca_scale=3.0, llaca_norm="mean"))
    assert (rule.side, rule.scale, rule.hessian, rule.norm) == ("old", 3.0, "quotient", "mean")


def test_first_task_is_trained_plainly_unless_asked() -> None:
    """With nothing learned before, LLaCA averages only if the setting says so."""
    plain, average = LearnerSettings(), LearnerSettings(llaca_first_task="average")
    assert not isinstance(policy_for(plain, first_task=True).parts["llaca"], Llaca)
    assert isinstance(policy_for(average, first_task=True).parts["llaca"], Llaca)
    assert isinstance(policy_for(plain, first_task=False).parts["llaca"], Llaca)


def test_fixed_average_and_its_kept_displacement() -> None:
    """A constant β gives the textbook average, and the kept displacement of a straight line is its share."""
    policy = FixedAverage(LearnerSettings(ema_decay=0.75))
    task = bare_task([torch.zeros(2, 2)])
    policy.start(task)
    task.weights[0].data.fill_(1.0)
    first = policy.after_step()
    assert first["kept"] == {"all": pytest.approx(0.25), "q_proj.A": pytest.approx(0.25)}
    policy.after_step()
    policy.finish()
    torch.testing.assert_close(task.weights[0].data, torch.full((2, 2), 1 - 0.75**2))


def test_nothing_moved_has_no_kept_displacement() -> None:
    """Where the weights did not move the share is None, not a division by zero."""
    policy = FixedAverage(LearnerSettings())
    policy.start(bare_task([torch.ones(2, 2)]))
    assert policy.kept() == {"all": None, "q_proj.A": None}


def test_groups_join_layers_and_keep_sides_apart() -> None:
    """A group is a projection and a side, over all layers."""
    assert groups_of(NAMES) == {"all": [0, 1, 2], "q_proj.A": [0], "q_proj.B": [1], "v_proj.A": [2]}

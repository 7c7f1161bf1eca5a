"""Policies that end between the old and the new weights, against float64 references."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from learner.policies.cofima import Cofima, average
from learner.policies.importance import fisher
from learner.policies.interpolate import Interpolate
from learner.policies.policy import Policy, Task
from learner.settings import LearnerSettings
from tests.learner.tasks import bare_task, real_task

SETTINGS = LearnerSettings(rank=8, interpolate_share=0.3, cofima_share=0.25, cofima_fisher_max=0.5)


def moved(task: Task) -> list[np.ndarray]:
    """Move the weights as training would, and return where they were."""
    begin = [weight.detach().double().numpy().copy() for weight in task.weights]
    noise = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in task.weights:
            weight.add_(0.1 * torch.randn(weight.shape, generator=noise))
    return begin


def in_float64(weights: list[Tensor]) -> list[np.ndarray]:
    """Return the weights as they are now."""
    return [weight.detach().double().numpy().copy() for weight in weights]


def test_interpolation_is_a_point_of_the_line() -> None:
    """θ = 0.7 θ_old + 0.3 θ_new for every tensor."""
    task = bare_task([torch.ones(2, 3), torch.ones(4)])
    policy = Interpolate(SETTINGS)
    policy.start(task)
    begin = moved(task)
    new = in_float64([*task.weights])
    policy.finish()
    for found, old, end in zip(in_float64([*task.weights]), begin, new, strict=True):
        np.testing.assert_allclose(found, 0.7 * old + 0.3 * end, rtol=1e-6)


@pytest.mark.parametrize("policy", [Interpolate, Cofima])
def test_first_round_keeps_what_it_learned(bases: dict[str, Path], policy: type[Policy]) -> None:
    """With nothing learned before, the trained weights are the result."""
    task = replace(real_task(bases["llava"], SETTINGS), first=True)
    first = policy(SETTINGS)
    first.start(task)
    moved(task)
    trained = in_float64([*task.weights])
    first.finish()
    assert all(
        np.array_equal(found, end) for found, end in zip(in_float64([*task.weights]), trained, strict=True)
    )


def test_weighted_average_equals_a_float64_reference() -> None:
    """((1-α)F₀θ₀ + αF₁θ₁) / ((1-α)F₀ + αF₁) entry by entry; the plain average where neither matters."""
    noise = np.random.default_rng(0)
    old, new, f_old, f_new = noise.normal(size=(4, 50))
    f_old, f_new = f_old**2, f_new**2
    f_old[:10] = f_new[:10] = 0
    f_old[10:15], f_new[15:20] = 0, 0
    tensors = [torch.tensor(values) for values in (old, new, f_old, f_new)]
    found = average(tensors[0], tensors[1], tensors[2], tensors[3], share=0.25).numpy()
    np.testing.assert_allclose(found[:10], 0.75 * old[:10] + 0.25 * new[:10])
    np.testing.assert_allclose(found[10:15], new[10:15])
    np.testing.assert_allclose(found[15:20], old[15:20])
    wanted = (0.75 * f_old * old + 0.25 * f_new * new)[20:] / (0.75 * f_old + 0.25 * f_new)[20:]
    np.testing.assert_allclose(found[20:], wanted)


def test_cofima_weighs_by_what_the_parents_round_left(bases: dict[str, Path]) -> None:
    """A second round ends at the average by its own importance and the remembered one, which moves by the share."""
    task = real_task(bases["llava"], SETTINGS)
    first = Cofima(SETTINGS)
    first.start(replace(task, first=True, examples=task.examples[:3]))
    kept = first.finish()
    task = replace(task, examples=task.examples[3:], inherited=kept)
    second = Cofima(SETTINGS)
    second.start(task)
    begin = moved(task)
    new = in_float64([*task.weights])
    f_new = [tensor.clamp(max=0.5).double().numpy() for tensor in fisher(task, task.examples)]
    assert any((tensor == 0.5).any() for tensor in f_new)
    left = second.finish()
    for index, found in enumerate(in_float64([*task.weights])):
        f_old = kept[f"fisher.{index}"].double().numpy()
        total = 0.75 * f_old + 0.25 * f_new[index]
        wanted = (0.75 * f_old * begin[index] + 0.25 * f_new[index] * new[index]) / total
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(left[f"fisher.{index}"].numpy(), total, rtol=1e-5)


def test_cofima_without_remembered_importance_is_the_plain_average(bases: dict[str, Path]) -> None:
    """After rounds of another policy it knows nothing of the old weights, and goes the share of the way."""
    task = real_task(bases["llava"], SETTINGS)
    policy = Cofima(SETTINGS)
    policy.start(task)
    begin = moved(task)
    new = in_float64([*task.weights])
    policy.finish()
    for found, old, end in zip(in_float64([*task.weights]), begin, new, strict=True):
        np.testing.assert_allclose(found, 0.75 * old + 0.25 * end, rtol=1e-4, atol=1e-6)

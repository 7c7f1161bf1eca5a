"""Bases of features against the textbook loop, and what a layer's inputs are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from learner.policies.layers import layers_of
from learner.policies.subspace import empty_basis, grow, input_moments, project_out
from learner.settings import LearnerSettings
from tests.learner import tiny
from tests.learner.tasks import real_task

CPU = torch.device("cpu")
SIZE = 12


def features(seed: int, count: int = 30) -> np.ndarray:
    """Return made-up features [SIZE, count] whose directions differ much in energy."""
    random = np.random.default_rng(seed)
    mixed, _ = np.linalg.qr(random.normal(size=(SIZE, SIZE)))
    scales = 0.5 ** np.arange(SIZE)
    drawn: np.ndarray = mixed @ (scales[:, None] * random.normal(size=(SIZE, count)))
    return drawn


def reference(basis: np.ndarray, seen: np.ndarray, energy: float) -> np.ndarray:
    """Grow a basis as gradient projection memory does, from the features themselves, in float64."""
    total = (np.linalg.svd(seen, compute_uv=False) ** 2).sum()
    left, values, _ = np.linalg.svd(seen - basis @ basis.T @ seen)
    reached = (total - (values**2).sum()) / total
    taken = 0
    while reached < energy:
        reached += values[taken] ** 2 / total
        taken += 1
    return np.hstack([basis, left[:, :taken]])


def moment_of(seen: np.ndarray) -> Tensor:
    """Return Σ x xᵀ in fp32."""
    return torch.tensor(seen @ seen.T, dtype=torch.float32)


@pytest.mark.parametrize("energy", [0.3, 0.9, 0.99, 0.9999])
def test_basis_of_three_tasks_equals_a_float64_reference(energy: float) -> None:
    """Task after task the basis spans what the published loop finds in the features, with as many directions."""
    wanted, found = np.zeros((SIZE, 0)), empty_basis(SIZE, CPU)
    sizes = []
    for seed in range(3):
        seen = features(seed)
        wanted, found = reference(wanted, seen, energy), grow(found, moment_of(seen), energy)
        assert found.shape == wanted.shape
        np.testing.assert_allclose((found @ found.T).numpy(), wanted @ wanted.T, atol=2e-3)
        torch.testing.assert_close(found.T @ found, torch.eye(found.shape[1]), atol=1e-5, rtol=0)
        sizes.append(found.shape[1])
    assert sizes[0] < sizes[2] <= SIZE


@pytest.mark.parametrize("energy", [0.5, 0.95])
def test_basis_is_the_smallest_that_holds_the_share(energy: float) -> None:
    """The share is reached, and would not be with one direction less; so there is at least one."""
    seen = features(0)
    basis = grow(empty_basis(SIZE, CPU), moment_of(seen), energy).double().numpy()
    shares = [np.sum((basis[:, :k].T @ seen) ** 2) / np.sum(seen**2) for k in range(basis.shape[1] + 1)]
    assert shares[-1] >= energy > shares[-2]


def test_basis_stays_where_nothing_is_missing() -> None:
    """Features that it holds already, features that are all zero, and a share of nothing add no direction."""
    seen = features(0)
    basis = grow(empty_basis(SIZE, CPU), moment_of(seen), 0.9)
    assert basis.shape[1] > 0
    assert torch.equal(grow(basis, moment_of(seen), 0.9), basis)
    assert torch.equal(grow(basis, torch.zeros(SIZE, SIZE), 0.9), basis)
    assert grow(empty_basis(SIZE, CPU), moment_of(seen), 0.0).shape == (SIZE, 0)


def test_basis_cannot_have_more_directions_than_there_are() -> None:
    """Once it spans everything it stays as it is."""
    basis = empty_basis(SIZE, CPU)
    for seed in range(4):
        basis = grow(basis, moment_of(features(seed)), 1 - 1e-7)
    assert basis.shape == (SIZE, SIZE)


def test_projection_takes_away_what_is_along_the_basis_and_nothing_else() -> None:
    """What is left is orthogonal to the basis; rows that were so before are unchanged."""
    basis = grow(empty_basis(SIZE, CPU), moment_of(features(0)), 0.9)
    rows = torch.randn(5, SIZE, generator=torch.Generator().manual_seed(0))
    left = project_out(rows, basis)
    assert float((left @ basis).abs().max()) < 1e-5
    torch.testing.assert_close(project_out(left, basis), left)
    torch.testing.assert_close(rows - left, rows @ basis @ basis.T)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
def test_moments_are_those_of_the_layers_inputs(base: Path, precision: torch.dtype) -> None:
    """For rows of any length each layer has Σ x xᵀ of what it read, without padding; equal inputs are summed once."""
    pictures = tiny.Pictures()
    rows = [row for row in tiny.mixed_rows(pictures) if not row.images]
    rows += [
        tiny.row(9, [tiny.turn("user", "say one, then two, three"), tiny.turn("assistant", "one two three")])
    ]
    task = real_task(base, LearnerSettings(rank=8), rows, precision=precision)
    layers = layers_of(task.names, task.weights)

    wanted: dict[str, np.ndarray] = {}

    def remember(name: str) -> object:
        def hook(module: nn.Module, inputs: tuple[Tensor]) -> None:
            x = inputs[0].detach().double().flatten(0, 1).numpy()
            wanted[name] = wanted.get(name, 0) + x.T @ x

        return hook

    # A's own inputs, row by row: another place and precision than in the code under test.
    hooks = [
        task.model.get_submodule(f"{layer.name}.lora_A.default").register_forward_pre_hook(
            remember(layer.name)
        )
        for layer in layers
    ]
    for batch in task.batches(task.examples, 1):
        with torch.no_grad():
            task.logits(batch)
    for hook in hooks:
        hook.remove()

    found = input_moments(task, layers, task.examples)
    assert set(found.site) == set(wanted)
    for layer in layers:
        assert found.moment[found.site[layer.name]].dtype == torch.float32
        np.testing.assert_allclose(
            found.moment[found.site[layer.name]].numpy(), wanted[layer.name], rtol=1e-3, atol=1e-4
        )
    first = layers[0].name.removesuffix("q_proj")
    assert [found.site[first + name] for name in ("k_proj", "v_proj")] == [first + "q_proj"] * 2
    assert len(found.moment) == 2 * 4
    assert not any(module._forward_pre_hooks for module in task.model.modules())

"""KeepLoRA against float64 references, and its promise: what is in the basis passes a layer as before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from learner.policies.keeplora import KeepLora, base_weight, reading, weight_gradients
from learner.policies.layers import layers_of
from learner.policies.policy import Task
from learner.policies.subspace import empty_basis, grow
from learner.settings import LearnerSettings
from storage.records import Row
from tests.learner import tiny
from tests.learner.tasks import real_task

SETTINGS = LearnerSettings(rank=8, batch_size=2, keeplora_input_energy=0.9)


def texts(*pairs: tuple[str, str]) -> list[Row]:
    """Return rows without pictures."""
    return [tiny.row(i, [tiny.turn("user", q), tiny.turn("assistant", a)]) for i, (q, a) in enumerate(pairs)]


OLD = texts(("say a number", "four"), ("count", "two"))
NEW = texts(("describe the picture in a few words", "a blue square"), ("and here?", "circle"))


def leading(matrix: np.ndarray, energy: float) -> np.ndarray:
    """Return as few right singular vectors, as columns, as hold this share of a matrix's energy."""
    _, values, right = np.linalg.svd(matrix)
    shares = np.cumsum(values**2) / (values**2).sum()
    columns: np.ndarray = right[: int((shares < energy).sum()) + 1].T
    return columns


def train(policy: KeepLora, task: Task) -> None:
    """Take a few steps with Adam on what still requires a gradient."""
    optimizer = torch.optim.AdamW([w for w in task.weights if w.requires_grad], lr=0.02)
    for _ in range(4):
        for batch in task.batches(task.examples, 2):
            task.loss(batch).backward()  # type: ignore[no-untyped-call]
            policy.after_backward()
            optimizer.step()
            policy.after_step()
            optimizer.zero_grad()


def test_gradients_are_those_of_the_pretrained_weights(bases: dict[str, Path]) -> None:
    """They equal a finite difference of the loss along a random direction, and leave the weights frozen."""
    task = real_task(bases["llava"], SETTINGS, OLD)
    layers = layers_of(task.names, task.weights)
    found = weight_gradients(task, layers, task.examples)
    weights: list[Tensor] = [base_weight(task, layer) for layer in layers]
    assert not any(weight.requires_grad for weight in weights)
    ways = [torch.randn(w.shape, generator=torch.Generator().manual_seed(i)) for i, w in enumerate(weights)]

    def loss_at(distance: float) -> float:
        with torch.no_grad():
            torch._foreach_add_(weights, ways, alpha=distance)
            total = sum(float(task.loss(batch)) for batch in task.batches(task.examples, 2))
            torch._foreach_add_(weights, ways, alpha=-distance)
        return total

    slope = (loss_at(1e-3) - loss_at(-1e-3)) / 2e-3
    assert sum(float((g * w).sum()) for g, w in zip(found, ways, strict=True)) == pytest.approx(
        slope, rel=2e-2
    )


def test_reading_directions_equal_a_float64_reference() -> None:
    """They are the leading singular vectors of the gradient without its part in the basis."""
    noise = torch.Generator().manual_seed(0)
    gradient = torch.randn(9, 12, generator=noise) * 0.6 ** torch.arange(12.0)
    seen = torch.randn(12, 30, generator=noise) * 0.5 ** torch.arange(12.0)[:, None]
    basis = grow(empty_basis(12, seen.device), seen @ seen.T, 0.9)
    outside = gradient.double().numpy() @ (np.eye(12) - basis.double().numpy() @ basis.double().numpy().T)
    _, _, right = np.linalg.svd(outside)
    found = reading(gradient, basis, 4).double().numpy()
    np.testing.assert_allclose(found.T @ found, right[:4].T @ right[:4], atol=1e-5)
    np.testing.assert_allclose(found @ found.T, np.eye(4), atol=1e-5)


def test_nothing_is_read_along_the_basis_even_if_nothing_else_is_left() -> None:
    """Where the basis leaves fewer directions than the rank, the other rows are zero; where it leaves all, none is."""
    gradient = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    found = reading(gradient, torch.eye(6)[:, :5], 3)
    torch.testing.assert_close(found.abs(), torch.eye(6)[[5, 0, 0]] * torch.tensor([[1.0], [0], [0]]))
    assert not reading(gradient, torch.eye(6), 3).any()
    assert float(reading(gradient, torch.eye(6)[:, :0], 3).norm()) == pytest.approx(3**0.5)


def test_first_round_reads_outside_the_pretrained_directions(base: Path) -> None:
    """A is orthonormal, outside the leading directions of each weight in float64, and fixed; B starts at zero."""
    task = real_task(base, SETTINGS, OLD, first=True)
    policy = KeepLora(SETTINGS)
    policy.start(task)
    for layer in policy.layers:
        kept = leading(base_weight(task, layer).double().numpy(), SETTINGS.keeplora_weight_energy)
        a = layer.A.detach().double().numpy()
        np.testing.assert_allclose(a @ kept, 0, atol=1e-5)
        np.testing.assert_allclose(a @ a.T, np.eye(8), atol=1e-5)
        assert not layer.A.requires_grad
        assert layer.B.requires_grad
        assert bool((layer.B == 0).all())


def test_what_is_in_the_basis_passes_as_before(base: Path) -> None:
    """After a second round of training each layer's new part gives nothing for the first round's directions."""
    first = KeepLora(SETTINGS)
    first.start(real_task(base, SETTINGS, OLD, first=True))
    inherited = first.finish()
    task = real_task(base, SETTINGS, NEW, inherited=inherited)
    policy = KeepLora(SETTINGS)
    policy.start(task)
    fixed = [layer.A.detach().clone() for layer in policy.layers]
    train(policy, task)
    for layer, then in zip(policy.layers, fixed, strict=True):
        assert torch.equal(layer.A, then)
        new = (layer.B @ layer.A).detach()
        assert float(new.norm()) > 1e-3
        assert float((new @ inherited[layer.name]).norm()) < 1e-4 * float(new.norm())


def test_bases_grow_by_the_inputs_of_the_task(bases: dict[str, Path]) -> None:
    """Each round keeps the earlier directions, and holds the asked share of its own inputs."""
    task = real_task(bases["llava"], SETTINGS, OLD, first=True)
    policy = KeepLora(SETTINGS)
    policy.start(task)
    begun = {layer.name: basis for layer, basis in zip(policy.layers, policy.bases, strict=True)}
    seen: dict[str, list[Tensor]] = {layer.name: [] for layer in policy.layers}
    hooks = [
        task.model.get_submodule(f"{layer.name}.lora_A.default").register_forward_pre_hook(
            lambda _module, inputs, name=layer.name: seen[name].append(inputs[0].detach()[0])
        )
        for layer in policy.layers
    ]
    kept = policy.finish()
    for hook in hooks:
        hook.remove()
    grown = 0
    for name, basis in kept.items():
        assert torch.equal(basis[:, : begun[name].shape[1]], begun[name])
        inputs = torch.cat(seen[name]).double().numpy()
        share = np.sum((inputs @ basis.double().numpy()) ** 2) / np.sum(inputs**2)
        assert share >= 0.9 - 1e-6
        grown += basis.shape[1] - begun[name].shape[1]
    assert grown > 0


def test_result_is_one_adapter_with_the_earlier_ones_part(bases: dict[str, Path]) -> None:
    """Where the sum of both fits the rank, the one adapter that is left is that sum."""
    task = real_task(bases["llava"], SETTINGS, NEW)
    for layer in layers_of(task.names, task.weights):
        layer.B.data[:, 1:] = 0
    parent = [(layer.B @ layer.A).detach().clone() for layer in layers_of(task.names, task.weights)]
    policy = KeepLora(SETTINGS)
    policy.start(task)
    for layer in policy.layers:
        nn.init.normal_(layer.B, std=0.1)
        layer.B.data[:, 1:] = 0
    wanted = [earlier + layer.B @ layer.A for earlier, layer in zip(parent, policy.layers, strict=True)]
    policy.finish()
    assert list(task.model.peft_config) == ["default"]
    for layer, total in zip(policy.layers, wanted, strict=True):
        torch.testing.assert_close(layer.B @ layer.A, total, atol=1e-5, rtol=1e-4)

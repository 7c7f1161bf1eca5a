"""Points between champion and candidate: on the line of the weights that are used, as near as one adapter can be."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from learner.interpolation import LEAST_SIZE, between

INPUTS, OUTPUTS, RANK = 24, 18, 4
LAYERS = ("base_model.model.layers.0.q_proj", "base_model.model.layers.1.q_proj")
SHARES = (0.25, 0.5, 0.75)


def adapter(seed: int, rank: int = RANK, near: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Return a made-up adapter under the names of PEFT's files; `near` another one if that is given."""
    noise = torch.Generator().manual_seed(seed)
    shapes = {"A": (rank, INPUTS), "B": (OUTPUTS, rank)}
    names = [f"{layer}.lora_{side}.weight" for layer in LAYERS for side in "AB"]
    made = {name: torch.randn(shapes[name[-8]], generator=noise) for name in names}
    return made if near is None else {name: near[name] + 0.5 * tensor for name, tensor in made.items()}


def product(adapter: dict[str, Tensor], layer: str) -> np.ndarray:
    """Return what an adapter adds to a layer, in float64."""
    a, b = (adapter[f"{layer}.lora_{side}.weight"].double() for side in "AB")
    return (b @ a).numpy()


def line(old: dict[str, Tensor], new: dict[str, Tensor], share: float, layer: str) -> np.ndarray:
    """Return the point of the line."""
    return (1 - share) * product(old, layer) + share * product(new, layer)


@pytest.mark.parametrize("share", SHARES)
def test_point_is_the_best_of_its_rank_on_the_line_of_products(share: float) -> None:
    """It equals the truncated SVD of the interpolated product, and is nearer to it than interpolated factors are."""
    old = adapter(1)
    new = adapter(2, near=old)
    point = between(old, new, share)
    squared = 0.0
    for layer in LAYERS:
        wanted = line(old, new, share, layer)
        left, values, right = np.linalg.svd(wanted)
        best = left[:, :RANK] * values[:RANK] @ right[:RANK]
        np.testing.assert_allclose(product(point.weights, layer), best, atol=1e-4)
        factors = {name: torch.lerp(old[name], new[name], share) for name in old}
        assert np.linalg.norm(best - wanted) < 0.9 * np.linalg.norm(product(factors, layer) - wanted)
        squared += float(np.linalg.norm(best - wanted)) ** 2
    way = sum(np.linalg.norm(product(new, layer) - product(old, layer)) ** 2 for layer in LAYERS)
    assert point.apart == pytest.approx(np.sqrt(squared / way), rel=1e-4)


@pytest.mark.parametrize("share", SHARES)
def test_point_does_not_depend_on_how_the_champion_is_factored(share: float) -> None:
    """The same champion written with other factors, whose product is the same, gives the same point."""
    old = adapter(1)
    new = adapter(2, near=old)
    turn = torch.randn(RANK, RANK, generator=torch.Generator().manual_seed(3))
    other = {
        name: turn @ tensor if ".lora_A." in name else tensor @ torch.linalg.inv(turn)
        for name, tensor in old.items()
    }
    for layer in LAYERS:
        found = product(between(other, new, share).weights, layer)
        np.testing.assert_allclose(found, product(between(old, new, share).weights, layer), atol=1e-3)


def test_point_before_the_base_model_is_exact() -> None:
    """Without a champion's adapter the line goes through zero: A is the candidate's and B a part of its own."""
    new = adapter(2)
    point = between({}, new, 0.75)
    assert point.apart == pytest.approx(0.0, abs=1e-7)
    for name, tensor in new.items():
        torch.testing.assert_close(point.weights[name], tensor if ".lora_A." in name else 0.75 * tensor)


@pytest.mark.parametrize("rank", [1, 8, 40])
def test_point_has_the_candidates_shapes_whatever_the_champions_rank(rank: int) -> None:
    """Champion and candidate may differ in rank and scale, and a layer may be narrower than the rank."""
    old, new = adapter(1, rank), adapter(2, 40)
    point = between(old, new, 0.5, champion_scale=3.0)
    assert {name: tensor.shape for name, tensor in point.weights.items()} == {
        name: tensor.shape for name, tensor in new.items()
    }
    for layer in LAYERS:
        wanted = 0.5 * 3.0 * product(old, layer) + 0.5 * product(new, layer)
        np.testing.assert_allclose(product(point.weights, layer), wanted, atol=1e-3)


def test_point_near_the_candidate_has_its_coordinates() -> None:
    """Entries stay what they were: with a champion not far away, A and B are nearly those of the candidate."""
    old = adapter(1)
    new = {name: old[name] + 0.01 * tensor for name, tensor in adapter(2).items()}
    point = between(old, new, 0.75)
    for name, tensor in new.items():
        torch.testing.assert_close(point.weights[name], tensor, atol=0.05, rtol=0)


@pytest.mark.parametrize("share", SHARES)
def test_no_direction_is_left_without_a_gradient_or_cancelled(share: float) -> None:
    """However unlike the ends are, A keeps its size in every direction, and B does not grow to make up for it."""
    old, new = adapter(1), adapter(2)
    for name in new:
        if ".lora_B." in name:
            new[name][:, 1:] *= 1e-3  # directions that the candidate hardly uses
    for layer in LAYERS:
        found = between(old, new, share).weights
        a, b = found[f"{layer}.lora_A.weight"], found[f"{layer}.lora_B.weight"]
        sizes = torch.linalg.svdvals(a)
        assert sizes[-1] > 0.99 * LEAST_SIZE * sizes[0]
        assert a.norm() * b.norm() < 10 * np.linalg.norm(product(found, layer))


def test_layer_that_neither_has_touched_stays_trainable() -> None:
    """Where both products are zero the point's is too, and one factor is not, so that a next round can learn."""
    old, new = adapter(1), adapter(2)
    for ends in (old, new):
        ends[f"{LAYERS[0]}.lora_B.weight"].zero_()
    found = between(old, new, 0.5).weights
    assert bool((found[f"{LAYERS[0]}.lora_B.weight"] == 0).all())
    assert float(torch.linalg.svdvals(found[f"{LAYERS[0]}.lora_A.weight"])[-1]) > 0
    empty = {name: torch.zeros_like(tensor) for name, tensor in new.items()}
    for layer in LAYERS:
        np.testing.assert_allclose(
            product(between(old, empty, 0.5).weights, layer), 0.5 * product(old, layer), atol=1e-4
        )

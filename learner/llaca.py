"""The averaging rule of LLaCA (arXiv 2410.10868) as pure functions of tensors: no state, no files, no model.

While a task is learned, an average θ* follows the weights θ: θ*_t = β_t θ*_{t-1} + (1 - β_t) θ_t, with a β of its own
for each tensor at each optimizer step (eq. 12):

    β_t = (L'(θ_t) + 1) / ((θ_t - θ*_{t-1}) · L''(θ_t)),   L''(θ_t) ≈ (L'(θ_t) - L'(θ_{t-1})) / (θ_t - θ_{t-1})

where each factor is the L1 norm of a whole tensor, and a constant takes the place of β outside (0, 1). The authors'
programs differ from that equation and from each other; `Rule` names each difference, `RULES` the published
combinations.

Everything is computed in fp32 or better: an average kept in bf16 stalls, because steps of 1 % round to nothing.
Shape suffix: _N, one entry per tensor of the adapter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One way to read eq. 12."""

    side: Literal["new", "old"]
    """Whether the ratio weights the new parameters (1 - β) or the old average (β)."""
    scale: float
    """Factor on the ratio."""
    fallback: float
    """β where the ratio is not in (0, 1), whichever side it weights."""
    hessian: Literal["difference", "quotient"]
    """L'' as the difference of two gradients, or that difference divided by the step between their points."""
    norm: Literal["sum", "mean"]
    """L1 norms as sums, or as means over the tensor's elements."""


RULES = {
    # github.com/JingyangQiao/CoIN, CoIN/peft/tuners/lora.py: x = 2(1 + b)/(ac) weights the new parameters
    "official": Rule(side="new", scale=2.0, fallback=0.99, hessian="difference", norm="sum"),
    # github.com/ECNU-SII/Continual-NExT, peft/tuners/lora/model.py: the same with 0.01 and base_weight 0.001
    "continual-next": Rule(side="new", scale=0.01, fallback=0.999, hessian="difference", norm="sum"),
    # eq. 12 as printed
    "paper": Rule(side="old", scale=1.0, fallback=0.99, hessian="quotient", norm="sum"),
}


CACHED_ENTRIES = 2**18
"""Entries that are gone through together on a CPU: a megabyte of weights, of gradients and so on, so that all of it is
still in the cache when it is used again."""


def parts(tensors: Sequence[Tensor]) -> list[slice]:
    """Cut a list of tensors into runs that are gone through one after the other; on a GPU there is one run of all.

    A GPU waits for nothing else than memory, and each further run would cost it a launch of every kernel.
    """
    if tensors[0].device.type != "cpu":
        return [slice(len(tensors))]
    starts, entries = [0], 0
    for index, tensor in enumerate(tensors):
        if entries > 0 and entries + tensor.numel() > CACHED_ENTRIES:
            starts.append(index)
            entries = 0
        entries += tensor.numel()
    return [slice(start, end) for start, end in pairwise([*starts, len(tensors)])]


def l1_norms(tensors: list[Tensor], norm: Literal["sum", "mean"]) -> Tensor:
    """Return the L1 norm of each tensor as float64 [N], on the tensors' device and without waiting for it."""
    # Not _foreach_norm: on a CPU it adds up one by one, and a million elements end 6e-5 off.
    return _sums(torch._foreach_abs(tensors), norm)


def distances(left: list[Tensor], right: list[Tensor], norm: Literal["sum", "mean"]) -> Tensor:
    """Return the L1 distance of each pair of tensors as float64 [N]."""
    differences = list(torch._foreach_sub(left, right))
    torch._foreach_abs_(differences)
    return _sums(differences, norm)


def _sums(tensors: Sequence[Tensor], norm: Literal["sum", "mean"]) -> Tensor:
    sums_N = torch.stack([torch.sum(tensor) for tensor in tensors]).double()
    if norm == "sum":
        return sums_N
    return sums_N / torch.tensor([tensor.numel() for tensor in tensors], device=sums_N.device)


def old_weights(
    rule: Rule, *, distance: Tensor, gradient: Tensor, change: Tensor, step: Tensor
) -> tuple[Tensor, Tensor]:
    """Return β (eq. 12) for each tensor, and where it is the fallback; both [N].

    `distance` is |θ_t - θ*_{t-1}|, `gradient` |g_t|, `change` |g_t - g_{t-1}|, `step` the distance of the points at
    which those two gradients were taken (only a quotient uses it). Zero, infinite and NaN norms give the fallback.
    """
    hessian = change / step if rule.hessian == "quotient" else change
    ratio = rule.scale * (1 + gradient) / (distance * hessian)
    outside = ~((ratio > 0) & (ratio < 1))  # written so that NaN is outside
    beta = ratio if rule.side == "old" else 1 - ratio
    return torch.where(outside, rule.fallback, beta), outside


def move_average(average: list[Tensor], weights: list[Tensor], beta: list[float]) -> None:
    """Update the average in place: θ* ← β θ* + (1 - β) θ."""
    torch._foreach_lerp_(average, weights, [1 - old for old in beta])


def displacements(start: list[Tensor], average: list[Tensor], weights: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return ⟨θ* - θ0, θ - θ0⟩ and |θ - θ0|² of each tensor, [N] each; their ratio is the kept displacement.

    1 means that the average has gone all the way with the weights (nothing is protected), 0 that it has not moved.
    """
    away = torch._foreach_sub(weights, start)
    followed = torch._foreach_sub(average, start)
    dots_N = torch.stack([torch.sum(product) for product in torch._foreach_mul(followed, away)])
    squares_N = torch.stack([torch.sum(square) for square in torch._foreach_mul(away, away)])
    return dots_N.double(), squares_N.double()

"""Points on the straight line between two adapters, found without training: how the gate steps back towards a champion.

The line is that of the weights which the model really uses (arXiv 2109.01903 calls it WiSE-FT):

    W(t) = W + (1 - t) c₀ B₀A₀ + t c₁ B₁A₁,        t = 0 the champion, t = 1 the candidate

Interpolating the factors is something else: with ΔA = A₁ - A₀ and ΔB = B₁ - B₀,

    ((1-t) B₀ + t B₁) ((1-t) A₀ + t A₁) = (1-t) B₀A₀ + t B₁A₁ - t (1-t) ΔB ΔA,

and in a round both differences are as large as the factors themselves. It also depends on how the products happen to be
factored, which changes nothing that the model says. A point of the line has twice the rank of its ends, and the server
takes one rank, so each layer gets the best approximation of that rank. By Eckart and Young no matrix of that rank is
nearer to the line, so the factors' own point is not either.

The factors of that approximation are chosen in the candidate's coordinates: A is the candidate's own A, projected onto
the row space that is kept, and B is what makes the product right. So A keeps the size with which it was trained (evenly
shared singular values would leave both sides of a weak direction nearly zero, where neither has a gradient), and what a
policy remembers of single entries still means those entries.

It knows tensors, and neither models nor rounds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from learner.policies.stacking import product_svd

LEAST_SIZE = 0.1
"""Directions of which the candidate's A has less than this share of its largest are widened to it. With a smaller A the
B would be larger, and products that cancel are lost where a server rounds to bf16."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """An adapter on the line, as far as one of its rank can be."""

    weights: dict[str, Tensor]
    """Under the names of the candidate's file, in fp32."""
    apart: float
    """How far it is from the line, as a share of the distance between champion and candidate (Frobenius norms)."""


def between(
    champion: Mapping[str, Tensor], candidate: Mapping[str, Tensor], share: float, champion_scale: float = 1.0
) -> Point:
    """Return the point at `share` of the way from champion to candidate, of the candidate's rank.

    Both are tensors under the names of PEFT's files; an empty champion is the bare base model. `champion_scale` is
    c₀ / c₁, the champion's alpha / rank over the candidate's.
    """
    weights: dict[str, Tensor] = {}
    apart = way = 0.0
    for name_A in (name for name in candidate if ".lora_A." in name):
        name_B = name_A.replace(".lora_A.", ".lora_B.")
        A_1, B_1 = candidate[name_A].double(), candidate[name_B].double()
        A_0, B_0 = (
            (champion[name_A].double(), champion[name_B].double()) if champion else (A_1[:0], B_1[:, :0])
        )
        B_0 = champion_scale * B_0
        A, B = factors(A_0, B_0, A_1, B_1, share)
        apart += squared_distance((A_0, (1 - share) * B_0), (A_1, share * B_1), (A, -B))
        way += squared_distance((A_0, -B_0), (A_1, B_1))
        weights[name_A], weights[name_B] = A.float(), B.float()
    return Point(weights=weights, apart=math.sqrt(apart / way) if way > 0 else 0.0)


def factors(A_0: Tensor, B_0: Tensor, A_1: Tensor, B_1: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Return A [r, d_in] and B [d_out, r] of one layer's point; A_0 and B_0 may have another rank, or none."""
    if len(A_0) == 0:
        return A_1, share * B_1  # on the line already
    rank = len(A_1)
    joined_A, joined_B = torch.cat([A_0, A_1]), torch.cat([(1 - share) * B_0, share * B_1], dim=1)
    U, S, Vh = product_svd(joined_A, joined_B)
    U, S, Vh = U[:, :rank], S[:rank], Vh[:rank]
    left, sizes, right = torch.linalg.svd(A_1 @ Vh.T, full_matrices=False)
    # An A that is all zeros has no size to go by; then any will do.
    sizes = sizes.clamp(min=LEAST_SIZE * float(sizes[0]) or 1.0)
    return (left * sizes) @ right @ Vh, (U * S) @ right.T @ (left / sizes).T


def squared_distance(*pairs: tuple[Tensor, Tensor]) -> float:
    """Return |Σ B A|² over pairs of A and B, without making a product: tr(BᵀB AAᵀ) of all of them side by side."""
    A, B = torch.cat([A for A, _ in pairs]), torch.cat([B for _, B in pairs], dim=1)
    return max(0.0, float(((B.T @ B) * (A @ A.T)).sum()))

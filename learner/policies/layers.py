"""The adapter as pairs: of each adapted linear layer, A [r, d_in] and B [d_out, r], whose product is added to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptedLayer:
    """The two tensors of one adapted layer."""

    name: str
    """Of the layer in the model."""
    A: nn.Parameter
    B: nn.Parameter


def layers_of(names: Sequence[str], weights: Sequence[nn.Parameter]) -> list[AdaptedLayer]:
    """Pair the tensors of an adapter, in the model's order; names are PEFT's, `….lora_A.default.weight`."""
    sides: dict[str, dict[str, nn.Parameter]] = {}
    for name, weight in zip(names, weights, strict=True):
        layer, _, side = name.partition(".lora_")
        sides.setdefault(layer, {})[side[0]] = weight
    return [AdaptedLayer(name=name, A=pair["A"], B=pair["B"]) for name, pair in sides.items()]

"""Subspaces of features: the directions that the inputs of a layer take, and projection away from them.

As in gradient projection memory, which PEGP (arXiv 2405.13383) and KeepLoRA build on: if a weight W only changes by
ΔW with ΔW x = 0 for the inputs x of earlier tasks, their outputs stay. The basis is one of features. (The authors'
program for PEGP decomposes a matrix over *samples*, which fits its gradients only because it takes as many samples as
there are features.)

A basis is [d, k] with orthonormal columns; k may be 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from learner.data import Example
from learner.policies.layers import AdaptedLayer
from learner.policies.policy import Task

ROUNDING = 1e-9
"""A share of energy that is missed by no more is reached."""


def empty_basis(size: int, device: torch.device) -> Tensor:
    """Return the basis of nothing: [size, 0]."""
    return torch.zeros(size, 0, device=device)


def grow(basis: Tensor, moment: Tensor, energy: float) -> Tensor:
    """Return the basis with as few further directions as let it hold this share, below 1, of the moment's trace.

    `moment` is Σ x xᵀ [d, d]. The new directions are the leading ones of what the basis does not hold yet
    (`update_memory` in JingyangQiao/PEGP; its first task stops one direction short of the share, and may so keep
    none). A basis that holds the share already is returned as it is, and so is any if the moment is zero.
    """
    wide = moment.double()
    held = basis.double()
    outside = wide - held @ (held.T @ wide)
    outside = outside - (outside @ held) @ held.T
    energies, directions = (flipped.flip(-1) for flipped in torch.linalg.eigh(outside))
    total = wide.trace()
    reached = 1 - energies.sum() / total + torch.cumsum(energies, 0) / total
    before = reached - energies / total
    missing = int((before < energy - ROUNDING).sum())
    return torch.cat([basis, directions[:, :missing].to(basis.dtype)], dim=1)


def project_out(rows: Tensor, basis: Tensor) -> Tensor:
    """Return rows [n, d] without their parts along the basis: G - G F Fᵀ."""
    return rows - (rows @ basis) @ basis.T


@dataclass(slots=True)
class InputMoments:
    """Σ x xᵀ over the inputs x of layers, one for all layers that read the same tensor, as q, k and v do."""

    site: dict[str, str] = field(default_factory=dict)
    """Of each layer, the first layer that reads the same input."""
    moment: dict[str, Tensor] = field(default_factory=dict)
    """Of each site: [d_in, d_in]."""
    _last: tuple[str, Tensor | None] = ("", None)

    def see(self, layer: str, inputs: Tensor) -> None:
        """Add the inputs [1, T, d_in] of a layer, unless the layer that ran before it had the very same."""
        if inputs is not self._last[1]:
            self._last = (layer, inputs)
            features = inputs.flatten(0, 1).float()
            # The model may run in mixed precision, which would take this product too, and round it to bf16.
            with torch.autocast(inputs.device.type, enabled=False):
                self.moment[layer] = self.moment.get(layer, 0) + features.T @ features
        self.site[layer] = self._last[0]


@torch.no_grad()
def input_moments(task: Task, layers: Sequence[AdaptedLayer], examples: Sequence[Example]) -> InputMoments:
    """Run the model, as it is, over examples and return the moments of the layers' inputs.

    Takes d_in² numbers per site: 64 MB in fp32 for 4096 features.
    """
    moments = InputMoments()

    def seeing(name: str) -> Callable[[nn.Module, tuple[Tensor]], None]:
        return lambda _module, inputs: moments.see(name, inputs[0])

    hooks = [
        task.model.get_submodule(layer.name).register_forward_pre_hook(seeing(layer.name)) for layer in layers
    ]
    # One row at a time, so that no padding is among the features.
    for batch in task.batches(examples, 1):
        task.logits(batch)
    for hook in hooks:
        hook.remove()
    return moments

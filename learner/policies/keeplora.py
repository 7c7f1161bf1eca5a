"""KeepLoRA (ICLR 2026): learn where neither the pre-trained weights nor earlier tasks have their main directions.

Per layer a basis is kept of the input side: the leading directions of the pre-trained weight, then those of each
task's inputs. A new task's A is the leading part of its gradient outside that basis, and stays fixed; B alone is
trained, from zero. For an input x in the basis A x is 0, so the task cannot change what the layer makes of it.

Task directions are taken from features, as in the paper and the authors' program for CLIP; theirs for LLaVA
(MaolinLuo/KeepLoRA) takes them from the gradient of the trained model.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from learner.data import Example
from learner.memory import spread
from learner.policies.layers import AdaptedLayer
from learner.policies.policy import Task
from learner.policies.stacking import Stacking
from learner.policies.subspace import empty_basis, grow, input_moments


class KeepLora(Stacking):
    """Policy `keeplora`: the first round, too, keeps clear of the pre-trained weights' main directions."""

    def start(self, task: Task) -> None:
        """Choose and fix A from the gradient of the layers' weights on some of the new rows."""
        super().start(task)
        self.examples = spread(task.examples, self.settings.keeplora_rows)
        self.bases = [self._basis(layer) for layer in self.layers]
        gradients = weight_gradients(task, self.layers, self.examples)
        for layer, gradient, basis in zip(self.layers, gradients, self.bases, strict=True):
            nn.init.zeros_(layer.B)
            with torch.no_grad():
                layer.A.copy_(reading(gradient, basis, len(layer.A)))
            layer.A.requires_grad = False

    def _basis(self, layer: AdaptedLayer) -> Tensor:
        """Return the basis that earlier rounds left, or that of the pre-trained weight."""
        if layer.name in self.task.inherited:
            return self.task.inherited[layer.name].to(self.task.device)
        weight = base_weight(self.task, layer).double()
        return grow(
            empty_basis(weight.shape[1], weight.device),
            weight.T @ weight,
            self.settings.keeplora_weight_energy,
        )

    def finish(self) -> dict[str, Tensor]:
        """Return the bases, grown by the directions of this task's inputs."""
        moments = input_moments(self.task, self.layers, self.examples)
        grown = {
            layer.name: grow(
                basis, moments.moment[moments.site[layer.name]], self.settings.keeplora_input_energy
            ).contiguous()
            for layer, basis in zip(self.layers, self.bases, strict=True)
        }
        super().finish()
        return grown


def base_weight(task: Task, layer: AdaptedLayer) -> nn.Parameter:
    """Return the pre-trained weight of a layer: [d_out, d_in]."""
    weight: nn.Parameter = task.model.get_submodule(layer.name).base_layer.weight
    return weight


def weight_gradients(task: Task, layers: Sequence[AdaptedLayer], examples: Sequence[Example]) -> list[Tensor]:
    """Return the gradient of each layer's pre-trained weight, summed over batches of examples, in fp32: [d_out, d_in].

    For its duration all these weights have one, which takes as much memory as two more copies of them.
    """
    weights = [base_weight(task, layer) for layer in layers]
    totals = [torch.zeros_like(weight, dtype=torch.float32) for weight in weights]
    for weight in weights:
        weight.requires_grad = True
    for batch in task.batches(examples, task.settings.batch_size):
        found = torch.autograd.grad(task.loss(batch), weights)
        for total, gradient in zip(totals, found, strict=True):
            total.add_(gradient)
    for weight in weights:
        weight.requires_grad = False
    return totals


def reading(gradient: Tensor, basis: Tensor, rank: int) -> Tensor:
    """Return the leading right singular vectors [rank, d_in] of the gradient [d_out, d_in] outside the basis.

    Where fewer directions than the rank are left outside, the other rows are zero.
    """
    outside = torch.linalg.qr(basis.double(), mode="complete").Q[:, basis.shape[1] :]
    free = gradient.double() @ outside
    _, directions = torch.linalg.eigh(free.T @ free)
    leading = (outside @ directions.flip(-1)[:, :rank]).T
    rows = basis.new_zeros(rank, len(basis))
    rows[: len(leading)] = leading
    return rows

"""SLAO, "Merge before Forget" (arXiv 2512.23017): one adapter into which every task's is merged, A and B unlike.

Task i starts from an orthonormal A that spans what the task before ended with, and from that task's own B. At its end
A replaces the merged A, and B is merged with a weight that shrinks as tasks add up:

    A_merge ← A_i,   B_merge ← B_merge + (B_i - B_merge) / √i
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from learner.policies.layers import layers_of
from learner.policies.policy import Policy, Task
from learner.policies.tensors import copies


class Slao(Policy):
    """Policy `slao`: a first round is plain; a parent of another policy counts as the first task."""

    replaces_weights = True

    @torch.no_grad()
    def start(self, task: Task) -> None:
        """Begin with the earlier task's own B and an orthonormal A."""
        super().start(task)
        self.layers = layers_of(task.names, task.weights)
        self.number = 1
        if task.first:
            return
        self.number = 1 + int(task.inherited.get("tasks", torch.tensor(1)))
        self.merged = copies([layer.B for layer in self.layers])
        for layer in self.layers:
            layer.A.copy_(orthonormal(layer.A))
            layer.B.copy_(task.inherited.get(f"B.{layer.name}", layer.B))

    @torch.no_grad()
    def finish(self) -> dict[str, Tensor]:
        """Merge B into the weights; return it as trained, with the number of tasks."""
        trained = {f"B.{layer.name}": layer.B.detach().clone() for layer in self.layers}
        if self.number > 1:
            for layer, merged in zip(self.layers, self.merged, strict=True):
                layer.B.copy_(merge(merged, layer.B, self.number))
        return trained | {"tasks": torch.tensor(self.number)}


def orthonormal(A: Tensor) -> Tensor:
    """Return Qᵀ of Aᵀ = Q R with the signs that make R's diagonal positive: rows that span what A's do."""
    Q, R = torch.linalg.qr(A.T)
    return torch.where(R.diagonal() < 0, -Q, Q).T


def merge(merged: Tensor, trained: Tensor, number: int) -> Tensor:
    """Return the merged B after task `number`, counted from 1."""
    return merged + (trained - merged) / math.sqrt(number)

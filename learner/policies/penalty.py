"""What EWC, MAS and TIR share: leaving the weights of the last round costs more where they matter for earlier tasks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from learner.data import Example
from learner.memory import spread
from learner.policies.policy import Policy, Task
from learner.policies.tensors import copies, differences, numbered


class Penalty(Policy):
    """Adds λ Σ_k I_k (θ_k - θ'_k)² to the loss, θ' being the weights at the start; subclasses say what I and λ are.

    Importance is summed over tasks. That of each is scaled to add up to 1 (arXiv 2311.16206), or as a subclass says.
    """

    def start(self, task: Task) -> None:
        """Keep the weights with which the round starts; without importance of earlier tasks nothing is held."""
        super().start(task)
        self.begin = copies(task.weights)
        self.inherited = [
            task.inherited[f"importance.{index}"].to(task.device)
            for index in range(len(task.weights))
            if task.inherited
        ]
        self.importance = self.inherited

    def strength(self) -> float:
        """Return λ."""
        raise NotImplementedError

    def measure(self) -> list[Tensor]:
        """Return what each entry matters for the new rows, on the scale of the earlier rounds."""
        raise NotImplementedError

    @torch.no_grad()
    def add_gradient(self) -> None:
        """Add 2λ I_k (θ_k - θ'_k), written out because autograd would go over all weights several times more."""
        if not self.importance:
            return
        moved = differences(self.task.weights, self.begin)
        gradients = [
            # What is frozen has none, and nothing to be held.
            torch.zeros_like(way) if weight.grad is None else weight.grad
            for weight, way in zip(self.task.weights, moved, strict=True)
        ]
        torch._foreach_addcmul_(gradients, self.importance, moved, value=2 * self.strength())

    def finish(self) -> dict[str, Tensor]:
        """Remember what matters for all tasks so far."""
        return numbered("importance", self.with_new(self.measure()))

    def with_new(self, new: list[Tensor]) -> list[Tensor]:
        """Return the importance for all tasks so far."""
        return [old + now for old, now in zip(self.inherited, new, strict=True)] if self.inherited else new

    def rows(self) -> Sequence[Example]:
        """Return the new rows on which importance is measured."""
        return spread(self.task.examples, self.settings.importance_rows)

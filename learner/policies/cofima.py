"""CoFiMA (ECCV 2024, "Weighted Ensemble Models Are Strong Continual Learners"): an average weighted by importance."""

from __future__ import annotations

import torch
from torch import Tensor

from learner.memory import spread
from learner.policies.importance import fisher
from learner.policies.policy import Policy, Task
from learner.policies.tensors import copies, numbered


class Cofima(Policy):
    """Policy `cofima`: each entry goes as far as the new task's Fisher information outweighs that of the old ones."""

    replaces_weights = True

    def start(self, task: Task) -> None:
        """Keep the weights with which the round starts, and how much they matter."""
        super().start(task)
        self.begin = copies(task.weights)
        self.old = [
            task.inherited[f"fisher.{index}"].to(task.device)
            for index in range(len(task.weights))
            if task.inherited
        ]

    def finish(self) -> dict[str, Tensor]:
        """Average the weights; remember the same average of how much they matter."""
        task, settings = self.task, self.settings
        rows = spread(task.examples, settings.importance_rows)
        new = [found.clamp(max=settings.cofima_fisher_max) for found in fisher(task, rows)]
        if task.first:
            return numbered("fisher", new)
        # After rounds of another policy nothing is known of the old weights' importance: all entries count alike.
        old, share = self.old or new, settings.cofima_share
        with torch.no_grad():
            for weight, begin, f_old, f_new in zip(task.weights, self.begin, old, new, strict=True):
                weight.copy_(average(begin, weight, f_old, f_new, share))
        return numbered(
            "fisher", [torch.lerp(f_old, f_new, share) for f_old, f_new in zip(old, new, strict=True)]
        )


def average(old: Tensor, new: Tensor, fisher_old: Tensor, fisher_new: Tensor, share: float) -> Tensor:
    """Return ((1-α) F_old θ_old + α F_new θ_new) / ((1-α) F_old + α F_new), all of one shape.

    Where neither matters it is the plain average (1-α) θ_old + α θ_new.
    """
    weight_old, weight_new = (1 - share) * fisher_old, share * fisher_new
    total = weight_old + weight_new
    return torch.lerp(old, new, torch.where(total > 0, weight_new / total, share))

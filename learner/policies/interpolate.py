"""CoMA (ECCV 2024, "Weighted Ensemble Models Are Strong Continual Learners"): the point between old and new weights."""

from __future__ import annotations

import torch
from torch import Tensor

from learner.policies.policy import Policy, Task
from learner.policies.tensors import copies


class Interpolate(Policy):
    """Policy `interpolate`: θ ← (1 - α) θ_old + α θ_new with α = `interpolate_share`; a first round is left alone."""

    replaces_weights = True

    def start(self, task: Task) -> None:
        """Keep the weights with which the round starts."""
        super().start(task)
        self.begin = [] if task.first else copies(task.weights)

    @torch.no_grad()
    def finish(self) -> dict[str, Tensor]:
        """Go back a part of the way."""
        if self.begin:
            back = 1 - self.settings.interpolate_share
            torch._foreach_lerp_(list(self.task.weights), self.begin, back)
        return {}

"""DGG (arXiv 2511.15164): the way back to the earlier weights stands in for the gradients of earlier tasks.

Rows of earlier tasks are trained among the new ones; at some steps, drawn at random, the direction θ - θ* from the
earlier weights θ* to those of now is added to the gradient, no longer than the gradient itself. As published in the
paper, whose code was not available: the length is taken over all tensors together.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from learner.data import Example
from learner.policies.policy import Policy, Task
from learner.policies.tensors import copies


class Dgg(Policy):
    """Policy `dgg`; a first round, which has no earlier weights worth a way back, is trained plainly."""

    def memory_rows(self, inherited: Mapping[str, Tensor]) -> int:
        """Return what the settings say."""
        return self.settings.dgg_rows

    def start(self, task: Task) -> None:
        """Remember the weights with which the round begins."""
        super().start(task)
        self.begin = copies(task.weights)
        self.steps = 0
        self.guided = False

    def rehearsal(self) -> Sequence[Example]:
        """Return the memory."""
        return self.task.memory

    def after_backward(self) -> None:
        """Add the way back to the gradient, at a step that is drawn for it."""
        draw = random.Random(f"{self.settings.seed}/dgg/{self.steps}")
        self.guided = not self.task.first and draw.random() < self.settings.dgg_share
        self.steps += 1
        if self.guided:
            guide(self.task.weights, self.begin)

    def after_step(self) -> dict[str, Any]:
        """Tell whether the step was guided."""
        return {"dgg_guided": self.guided}

    def state(self) -> dict[str, Tensor]:
        """Return the number of steps; the earlier weights are the parent's and there at every start."""
        return {"steps": torch.tensor(self.steps)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take it from a checkpoint."""
        self.steps = int(state["steps"])


@torch.no_grad()
def guide(weights: Sequence[Tensor], earlier: Sequence[Tensor]) -> None:
    """Add ĝ = θ - θ* to the gradients in place, scaled down to their norm if it is longer.

    Gradient descent then goes towards θ*, as it would on ½ |θ - θ*|². Tensors without a gradient are left out.
    """
    moved = [(w.grad, w - then) for w, then in zip(weights, earlier, strict=True) if w.grad is not None]
    norm = torch.stack([gradient.norm() for gradient, _ in moved]).norm()
    length = torch.stack([way.norm() for _, way in moved]).norm()
    scale = torch.clamp(
        norm / length, max=1.0
    )  # at the first step 0 long, the quotient infinite and the scale 1
    for gradient, way in moved:
        gradient.add_(scale * way)

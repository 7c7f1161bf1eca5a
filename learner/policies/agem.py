"""A-GEM (arXiv 1812.00420): a gradient must not, to first order, raise the loss on rows of earlier tasks.

That is the gradient which the optimizer gets. AdamW scales its entries and adds earlier ones, so that its step may.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from learner import processes
from learner.data import Example
from learner.policies.policy import Policy, Task


class AGem(Policy):
    """Policy `agem`: each step also takes the gradient of a batch drawn from the memory, and yields to it.

    Without a memory, as in a first round, it does nothing.
    """

    def memory_rows(self, inherited: Mapping[str, Tensor]) -> int:
        """Return what the settings say."""
        return self.settings.agem_rows

    def start(self, task: Task) -> None:
        """Count the steps, from which the draws follow."""
        super().start(task)
        self.memory = task.memory
        self.steps = 0
        self.cosine: Tensor | None = None

    def after_backward(self) -> None:
        """Remove from the gradient what goes against that of the memory."""
        if not self.memory:
            return
        trained = [weight for weight in self.task.weights if weight.grad is not None]
        gradients = [weight.grad for weight in trained if weight.grad is not None]
        self.cosine = yield_to(gradients, self._reference(trained))
        self.steps += 1

    def _reference(self, trained: Sequence[Tensor]) -> list[Tensor]:
        """Return the gradient of this step's rows: of their summed loss, since only its direction counts."""
        reference = [torch.zeros_like(weight) for weight in trained]
        for batch in self.task.batches(processes.share(self._drawn()), self.settings.batch_size):
            loss = self.task.loss(batch) * batch.answer_tokens
            torch._foreach_add_(reference, torch.autograd.grad(loss, trained))
        processes.add_up(reference)
        return reference

    def _drawn(self) -> list[Example]:
        """Return this step's rows: they follow from the seed and the step, so that a resumed round draws the same."""
        draw = random.Random(f"{self.settings.seed}/agem/{self.steps}")
        return draw.sample(self.memory, min(self.settings.batch_size, len(self.memory)))

    def after_step(self) -> dict[str, Any]:
        """Tell the cosine of the two gradients; where it was negative, the step was changed."""
        return {} if self.cosine is None else {"agem_cosine": float(self.cosine)}

    def state(self) -> dict[str, Tensor]:
        """Return the number of steps."""
        return {"steps": torch.tensor(self.steps)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take it from a checkpoint."""
        self.steps = int(state["steps"])


def yield_to(gradients: Sequence[Tensor], reference: Sequence[Tensor]) -> Tensor:
    """Change g in place to g - (g·m / |m|²) m if g·m < 0 (eq. 11), over all tensors as one vector; return their cosine.

    It does not wait for the device.
    """
    dot = _dot(gradients, reference)
    square = _dot(reference, reference)
    cosine = dot / torch.sqrt(square * _dot(gradients, gradients))
    against = torch.where(dot < 0, dot / square, torch.zeros_like(dot))
    for gradient, wanted in zip(gradients, reference, strict=True):
        gradient.sub_(against.to(gradient.dtype) * wanted)
    return cosine


def _dot(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    return torch.stack([torch.sum(a * b) for a, b in zip(left, right, strict=True)]).double().sum()

"""LLaCA's two ideal conditions in units of loss: what earlier tasks lose weighs as much as what the new one gains.

docs/llaca.md derives it from the paper's own objective (arXiv 2410.10868). No average is kept: the weights themselves
are trained to the point at which that objective is least.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from learner.data import Example
from learner.loss import answer_loss
from learner.policies.importance import fisher
from learner.policies.penalty import Penalty
from learner.policies.policy import Task, is_measured
from learner.policies.tensors import differences


class Balance(Penalty):
    """Policy `llaca` with the rule `balance`: adds λ/2 Σ_k H_k (θ_k - φ_k)² to the loss.

    φ are the weights at the start, H is the curvature of the sum of all earlier tasks' losses in nats per answer token,
    and λ (`llaca_balance`) says how much a nat lost on any of them weighs against one gained on the new rows.
    """

    def memory_rows(self, inherited: Mapping[str, Tensor]) -> int:
        """Return as many as a task's curvature is measured on, if the earlier ones' is not known yet."""
        return 0 if inherited else self.settings.importance_rows

    def start(self, task: Task) -> None:
        """Measure the curvature of earlier tasks where another policy has taught them.

        How they came to the weights is not known, so what each would lose is measured between the weights as they are
        and the bare base.
        """
        super().start(task)
        self.steps = 0
        if task.earlier and not self.inherited:
            self._encode_new()
            bare = [
                torch.zeros_like(weight) if ".lora_B." in name else weight.detach()
                for name, weight in zip(task.names, task.weights, strict=True)
            ]
            for rows in task.earlier:
                self.inherited = self.with_new(self.curvature(rows, bare))
            self.importance = self.inherited

    def _encode_new(self) -> None:
        """Ask for the image features of the new rows before any others: the first that come are kept for the round."""
        for example in self.task.examples:
            if example.images is not None:
                example.images()

    def strength(self) -> float:
        """Return λ/2."""
        return self.settings.llaca_balance / 2

    def after_step(self) -> dict[str, Any]:
        """Tell now and then what all earlier tasks together have lost, as far as H tells, in nats per answer token."""
        self.steps += 1
        if not self.importance or not is_measured(self.steps):
            return {}
        return {"earlier_loss": float(cost(self.importance, differences(self.task.weights, self.begin)))}

    def state(self) -> dict[str, Tensor]:
        """Return the number of steps."""
        return {"steps": torch.tensor(self.steps)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take it from a checkpoint."""
        self.steps = int(state["steps"])

    def measure(self) -> list[Tensor]:
        """Return the curvature of the new task's loss where the round has ended."""
        return self.curvature(self.rows(), self.begin)

    def curvature(self, rows: Sequence[Example], since: Sequence[Tensor]) -> list[Tensor]:
        """Return the curvature of the loss of these rows at the weights of now, which have come from `since`."""
        gain = mean_loss(self.task, rows, since) - mean_loss(self.task, rows, self.task.weights)
        return in_nats(fisher(self.task, rows), differences(self.task.weights, since), gain)


def cost(curvature: Sequence[Tensor], moved: Sequence[Tensor]) -> Tensor:
    """Return ½ Σ_k H_k d_k² over all tensors: what a loss rises by when its optimum is left by d."""
    return torch.stack([(h * d.square()).sum() for h, d in zip(curvature, moved, strict=True)]).sum() / 2


def in_nats(information: Sequence[Tensor], moved: Sequence[Tensor], gain: float) -> list[Tensor]:
    """Scale Fisher information so that it says of the task's own way d what was measured: ½ Σ_k H_k d_k² = gain.

    So only its shape counts. Its size does not: it shrinks where the model is already sure of its answers, and knows
    nothing of how the entries work together. All zeros where nothing was gained.
    """
    predicted = float(cost([f.double() for f in information], [d.double() for d in moved]))
    scale = max(gain, 0.0) / predicted if predicted > 0 else 0.0
    return [f * scale for f in information]


@torch.no_grad()
def mean_loss(task: Task, examples: Sequence[Example], weights: Sequence[Tensor]) -> float:
    """Return the loss of these weights in nats per answer token of all examples."""
    batches = list(task.batches(examples, task.settings.batch_size))
    total = sum(float(answer_loss(task.logits(batch, weights), batch)) for batch in batches)
    return total / sum(batch.answer_tokens for batch in batches)

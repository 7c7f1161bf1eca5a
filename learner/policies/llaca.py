"""LLaCA (arXiv 2410.10868): an average whose weight is computed at every step; the maths is in `learner/llaca.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from learner import llaca
from learner.policies.averaging import Averaging
from learner.policies.policy import Task
from learner.policies.tensors import copies, numbered, take
from learner.settings import LearnerSettings


class Llaca(Averaging):
    """Policy `llaca`: β of each tensor from its gradients and its distance to the average, at every step.

    The average starts at the weights with which the round starts, as it does in the authors' code, whose warm-up makes
    the first step have no length. There is no earlier gradient then, so the first β is the fallback.
    """

    def start(self, task: Task) -> None:
        """Make room for the previous gradient and, if the rule divides by it, the previous step."""
        super().start(task)
        self.rule = rule_of(self.settings)
        self.previous_gradients = [torch.zeros_like(tensor) for tensor in self.begin]
        self.points = copies(task.weights) if self.rule.hessian == "quotient" else []
        self.last_step = torch.zeros(len(task.weights), dtype=torch.float64, device=task.device)

    def old_weights(self, part: slice) -> tuple[Tensor, Tensor]:
        """Measure the norms of eq. 12 and apply the rule; keep the gradients for the next step."""
        norm, previous = self.rule.norm, self.previous_gradients[part]
        weights: list[Tensor] = list(self.task.weights[part])
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        change_N = llaca.distances(gradients, previous, norm)
        torch._foreach_copy_(previous, gradients)
        beta_N, fallback_N = llaca.old_weights(
            self.rule,
            distance=llaca.distances(weights, self.average[part], norm),
            gradient=llaca.l1_norms(gradients, norm),
            change=change_N if self.steps > 0 else torch.zeros_like(change_N),
            step=self.last_step[part],
        )
        if self.rule.hessian == "quotient":
            # The next gradient is taken at the weights of now, this one was taken at those before the step.
            self.last_step[part] = llaca.distances(weights, self.points[part], norm)
            torch._foreach_copy_(self.points[part], weights)
        return beta_N, fallback_N

    def state(self) -> dict[str, Tensor]:
        """Add the previous gradient, and the point and length of the previous step."""
        return {
            **super().state(),
            **numbered("gradient", self.previous_gradients),
            **numbered("point", self.points),
            "last_step": self.last_step,
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take them back from a checkpoint."""
        super().restore(state)
        take(self.previous_gradients, state, "gradient")
        take(self.points, state, "point")
        self.last_step.copy_(state["last_step"])


def rule_of(settings: LearnerSettings) -> llaca.Rule:
    """Return the named rule with the parts that the settings override."""
    parts = {
        "side": settings.llaca_side,
        "scale": settings.llaca_scale,
        "fallback": settings.llaca_fallback,
        "hessian": settings.llaca_hessian,
        "norm": settings.llaca_norm,
    }
    given: dict[str, Any] = {name: value for name, value in parts.items() if value is not None}
    return replace(llaca.RULES[settings.llaca_rule], **given)

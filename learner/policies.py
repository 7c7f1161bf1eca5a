"""What a round does so that earlier tasks are not forgotten: plain tuning, a fixed average, or LLaCA's.

A policy sees the adapter's tensors and their gradients at a few fixed points of the loop in `train.py`. It knows
nothing of the model around them, of data or of files. Tensors are fp32 and always in the same order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from learner import llaca
from learner.settings import LearnerSettings

KEPT_EVERY_STEPS = 10
"""How often the kept displacement is measured; each time costs about as much as the averaging itself."""


class Policy:
    """Plain sequential tuning, and the points at which other policies step in."""

    def prepare(
        self, names: Sequence[str], weights: Sequence[nn.Parameter], inherited: Mapping[str, Tensor]
    ) -> None:
        """Look at the adapter from which the round starts; `inherited` is what the parent's round left behind."""
        self.names = list(names)
        self.weights: list[Tensor] = list(weights)

    def extra_loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor | float:
        """Return what is added to the loss of a batch, in nats per answer token of the whole step."""
        return 0.0

    def after_backward(self) -> None:
        """Look at, or change in place, the averaged and clipped gradients before the optimizer uses them."""

    def after_step(self) -> dict[str, Any]:
        """Look at the new weights, with the gradients still there; return what the step's metrics should show."""
        return {}

    def finish(self) -> dict[str, Tensor]:
        """Put the round's result into the weights; return what the next round of this policy must remember."""
        return {}

    def state(self) -> dict[str, Tensor]:
        """Return what a checkpoint needs to go on."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` returned; called after `prepare`."""


class Averaging(Policy):
    """Keeps an average beside the weights, which replaces them when the round ends; subclasses choose its β."""

    def prepare(
        self, names: Sequence[str], weights: Sequence[nn.Parameter], inherited: Mapping[str, Tensor]
    ) -> None:
        """Start the average at the weights with which the round starts."""
        super().prepare(names, weights, inherited)
        self.groups = groups_of(names)
        self.start = _copies(self.weights)
        self.average = _copies(self.weights)
        self.steps = 0

    def old_weights(self) -> tuple[Tensor, Tensor]:
        """Return this step's β of each tensor, and where it is a fallback; both [N]."""
        raise NotImplementedError

    @torch.no_grad()
    def after_step(self) -> dict[str, Any]:
        """Move the average, and tell by how much."""
        beta_N, fallback_N = self.old_weights()
        # The only wait for the device in this step: both vectors in one copy.
        beta, fallback = torch.stack([beta_N, fallback_N.double()]).tolist()
        llaca.move_average(self.average, self.weights, beta)
        self.steps += 1
        values: dict[str, Any] = {"beta": summaries(self.groups, beta, fallback)}
        if self.steps == 1 or self.steps % KEPT_EVERY_STEPS == 0:
            values["kept"] = self.kept()
        return values

    @torch.no_grad()
    def kept(self) -> dict[str, float | None]:
        """Return how much of the displacement the average keeps, per group and for `all`; None where nothing moved."""
        dots, squares = torch.stack(llaca.displacements(self.start, self.average, self.weights)).tolist()
        return {
            group: _ratio(sum(dots[i] for i in members), sum(squares[i] for i in members))
            for group, members in self.groups.items()
        }

    @torch.no_grad()
    def finish(self) -> dict[str, Tensor]:
        """Replace the weights by their average."""
        torch._foreach_copy_(self.weights, self.average)
        return {}

    def state(self) -> dict[str, Tensor]:
        """Return the start, the average and the number of steps."""
        return {
            **_named("start", self.start),
            **_named("average", self.average),
            "steps": torch.tensor(self.steps),
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take start, average and steps from a checkpoint."""
        _take(self.start, state, "start")
        _take(self.average, state, "average")
        self.steps = int(state["steps"])


class FixedAverage(Averaging):
    """An exponential moving average with one constant weight: the control for LLaCA."""

    def __init__(self, decay: float) -> None:
        self.decay = decay

    def old_weights(self) -> tuple[Tensor, Tensor]:
        """Return the constant for every tensor."""
        beta_N = torch.full((len(self.weights),), self.decay, dtype=torch.float64)
        return beta_N, torch.zeros_like(beta_N)


class Llaca(Averaging):
    """LLaCA: β of each tensor from its gradients and its distance to the average, at every step.

    The average starts at the weights with which the round starts, as it does in the authors' code, whose warm-up makes
    the first step have no length. There is no earlier gradient then, so the first β is the fallback.
    """

    def __init__(self, rule: llaca.Rule) -> None:
        self.rule = rule

    def prepare(
        self, names: Sequence[str], weights: Sequence[nn.Parameter], inherited: Mapping[str, Tensor]
    ) -> None:
        """Make room for the previous gradient and, if the rule divides by it, the previous step."""
        super().prepare(names, weights, inherited)
        self.previous_gradients = [torch.zeros_like(tensor) for tensor in self.start]
        self.points = _copies(self.weights) if self.rule.hessian == "quotient" else []
        self.last_step = torch.zeros(len(self.weights), dtype=torch.float64, device=self.start[0].device)

    def old_weights(self) -> tuple[Tensor, Tensor]:
        """Measure the norms of eq. 12 and apply the rule."""
        gradients = [weight.grad for weight in self.weights if weight.grad is not None]
        torch._foreach_sub_(self.previous_gradients, gradients)
        change_N = llaca.l1_norms(self.previous_gradients, self.rule.norm)
        torch._foreach_copy_(self.previous_gradients, gradients)
        beta_N, fallback_N = llaca.old_weights(
            self.rule,
            distance=llaca.distances(self.weights, self.average, self.rule.norm),
            gradient=llaca.l1_norms(gradients, self.rule.norm),
            change=change_N if self.steps > 0 else torch.zeros_like(change_N),
            step=self.last_step,
        )
        if self.rule.hessian == "quotient":
            # The next gradient is taken at the weights of now, this one was taken at those before the step.
            self.last_step = llaca.distances(self.weights, self.points, self.rule.norm)
            torch._foreach_copy_(self.points, self.weights)
        return beta_N, fallback_N

    def state(self) -> dict[str, Tensor]:
        """Add the previous gradient, and the point and length of the previous step."""
        return {
            **super().state(),
            **_named("gradient", self.previous_gradients),
            **_named("point", self.points),
            "last_step": self.last_step,
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take them back from a checkpoint."""
        super().restore(state)
        _take(self.previous_gradients, state, "gradient")
        _take(self.points, state, "point")
        self.last_step.copy_(state["last_step"])


def policy_for(settings: LearnerSettings, first_task: bool) -> Policy:
    """Return the policy of a round; LLaCA has nothing to protect in a first one, so it trains plainly there."""
    if settings.policy == "ema":
        return FixedAverage(settings.ema_decay)
    if settings.policy == "sequential" or (first_task and settings.llaca_first_task == "plain"):
        return Policy()
    return Llaca(rule_of(settings))


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


def groups_of(names: Sequence[str]) -> dict[str, list[int]]:
    """Group tensors by what they are, over all layers: `…layers.3.self_attn.q_proj.lora_A…` is in `q_proj.A`."""
    groups: dict[str, list[int]] = {"all": list(range(len(names)))}
    for index, name in enumerate(names):
        module, _, side = name.partition(".lora_")
        groups.setdefault(f"{module.rpartition('.')[2]}.{side[0]}", []).append(index)
    return groups


def summaries(
    groups: Mapping[str, Sequence[int]], beta: Sequence[float], fallback: Sequence[float]
) -> dict[str, dict[str, float]]:
    """Return the median, least and greatest β of each group, and the share of its tensors that fell back."""
    return {
        group: {
            "median": median(beta[i] for i in members),
            "min": min(beta[i] for i in members),
            "max": max(beta[i] for i in members),
            "fallback": sum(fallback[i] for i in members) / len(members),
        }
        for group, members in groups.items()
    }


def _ratio(dot: float, square: float) -> float | None:
    return dot / square if square > 0 else None


def _copies(weights: Sequence[Tensor]) -> list[Tensor]:
    return [weight.detach().clone() for weight in weights]


def _named(prefix: str, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{index}": tensor for index, tensor in enumerate(tensors)}


def _take(tensors: Sequence[Tensor], state: Mapping[str, Tensor], prefix: str) -> None:
    for index, tensor in enumerate(tensors):
        tensor.copy_(state[f"{prefix}.{index}"])

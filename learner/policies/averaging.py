"""An average of the weights, kept beside them while they are trained, which is the round's result.

How fast it follows is a subclass's; here is what they share: moving it, and telling by how much.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor

from learner import llaca
from learner.policies.policy import Policy, Task, is_measured
from learner.policies.tensors import copies, numbered, take


class Averaging(Policy):
    """Keeps an average beside the weights, which replaces them when the round ends; subclasses choose its β."""

    replaces_weights = True

    def start(self, task: Task) -> None:
        """Start the average at the weights with which the round starts."""
        super().start(task)
        self.groups = groups_of(task.names)
        self.begin = copies(task.weights)
        self.average = copies(task.weights)
        self.parts = llaca.parts(self.begin)
        self.steps = 0

    def old_weights(self, part: slice) -> tuple[Tensor, Tensor]:
        """Return this step's β of each of these tensors, and where it is a fallback; both [N]."""
        raise NotImplementedError

    @torch.no_grad()
    def after_step(self) -> dict[str, Any]:
        """Move the average, and tell by how much."""
        weights: list[Tensor] = list(self.task.weights)
        beta: list[float] = []
        fallback: list[float] = []
        for part in self.parts:
            beta_N, fallback_N = self.old_weights(part)
            # The only wait for a GPU in this step, which has one part: both vectors in one copy.
            old, fell_back = torch.stack([beta_N, fallback_N.double()]).tolist()
            llaca.move_average(self.average[part], weights[part], old)
            beta += old
            fallback += fell_back
        self.steps += 1
        values: dict[str, Any] = {"beta": summaries(self.groups, beta, fallback)}
        if is_measured(self.steps):
            values["kept"] = self.kept()
        return values

    @torch.no_grad()
    def kept(self) -> dict[str, float | None]:
        """Return how much of the displacement the average keeps, per group and for `all`; None where nothing moved."""
        weights: list[Tensor] = list(self.task.weights)
        found = [
            torch.stack(llaca.displacements(self.begin[part], self.average[part], weights[part]))
            for part in self.parts
        ]
        dots, squares = torch.cat(found, dim=1).tolist()
        return {
            group: _ratio(sum(dots[i] for i in members), sum(squares[i] for i in members))
            for group, members in self.groups.items()
        }

    @torch.no_grad()
    def finish(self) -> dict[str, Tensor]:
        """Replace the weights by their average."""
        torch._foreach_copy_(list(self.task.weights), self.average)
        return {}

    def state(self) -> dict[str, Tensor]:
        """Return where the round began, the average and the number of steps."""
        return {
            **numbered("begin", self.begin),
            **numbered("average", self.average),
            "steps": torch.tensor(self.steps),
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take them from a checkpoint."""
        take(self.begin, state, "begin")
        take(self.average, state, "average")
        self.steps = int(state["steps"])


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

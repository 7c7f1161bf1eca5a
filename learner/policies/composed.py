"""Several policies in one round: each sees the task as if it were alone, and they step in one after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from learner.data import Example
from learner.loss import Batch
from learner.policies.policy import Policy, Task
from storage.errors import PoliciesClash


class Composed(Policy):
    """The parts of a policy such as `llaca+replay`, by name; what each keeps is stored under its name.

    Raises PoliciesClash if two parts would replace the weights.
    """

    def __init__(self, parts: Mapping[str, Policy]) -> None:
        clashing = [name for name, part in parts.items() if part.replaces_weights]
        if len(clashing) > 1:
            raise PoliciesClash(clashing, "each replaces the weights that the round has trained")
        self.parts = dict(parts)
        self.from_base = any(part.from_base for part in parts.values())
        self.replaces_weights = bool(clashing)

    def memory_rows(self, inherited: Mapping[str, Tensor]) -> int:
        """Return the most that a part wants, given what it remembers itself."""
        return max(part.memory_rows(_of(name, inherited)) for name, part in self.parts.items())

    def start(self, task: Task) -> None:
        """Start the part that replaces the weights first: the others begin with what it leaves to be trained.

        Each gets its own share of the memory and of what was inherited.
        """
        for name, part in sorted(self.parts.items(), key=_order_of_change):
            inherited = _of(name, task.inherited)
            earlier = [rows[: part.memory_rows(inherited)] for rows in task.earlier]
            part.start(replace(task, earlier=earlier, inherited=inherited))

    def rehearsal(self) -> Sequence[Example]:
        """Return the rows of all parts."""
        return [example for part in self.parts.values() for example in part.rehearsal()]

    def extra_loss(self, batch: Batch, logits_BKV: Tensor) -> Tensor | float:
        """Return the sum over the parts."""
        total: Tensor | float = 0.0
        for part in self.parts.values():
            total = total + part.extra_loss(batch, logits_BKV)
        return total

    def add_gradient(self) -> None:
        """Let each part add its own."""
        for part in self.parts.values():
            part.add_gradient()

    def after_backward(self) -> None:
        """Let each part see the gradients as the one before has left them."""
        for part in self.parts.values():
            part.after_backward()

    def after_step(self) -> dict[str, Any]:
        """Return the metrics of all parts."""
        return {key: value for part in self.parts.values() for key, value in part.after_step().items()}

    def finish(self) -> dict[str, Tensor]:
        """Finish the parts that change the weights first: the others remember what was really learned."""
        kept: dict[str, Tensor] = {}
        for name, part in sorted(self.parts.items(), key=_order_of_change):
            kept |= _under(name, part.finish())
        return kept

    def state(self) -> dict[str, Tensor]:
        """Return the state of each part under its name."""
        kept: dict[str, Tensor] = {}
        for name, part in self.parts.items():
            kept |= _under(name, part.state())
        return kept

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Give each part its own state back."""
        for name, part in self.parts.items():
            part.restore(_of(name, state))


def _order_of_change(named: tuple[str, Policy]) -> int:
    """Put what replaces the weights first, then what brings them back into bounds, then what only looks at them."""
    _, part = named
    return 0 if part.replaces_weights else 1 if part.keeps_bounds else 2


def _under(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{name}.{key}": tensor for key, tensor in tensors.items()}


def _of(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        key.removeprefix(f"{name}."): tensor for key, tensor in tensors.items() if key.startswith(f"{name}.")
    }

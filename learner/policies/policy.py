"""What a continual-learning policy sees of a round, and the points at which it steps in.

A policy sees one task, the adapter's tensors and their gradients, at a few fixed points of the loop in
`learner/train.py`. It knows nothing of files, rounds or the database.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from peft.helpers import disable_input_dtype_casting
from torch import Tensor, nn

from learner.data import Example
from learner.loss import Batch, answer_loss, batch_of, kept_logits
from learner.settings import LearnerSettings

MEASURED_EVERY_STEPS = 10
"""How often policies measure, for the metrics alone, what costs about as much as the rest of their work at a step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What a policy may look at and touch: one task about to be learned."""

    model: PeftModel
    """With the adapter `default`, which holds the parent's weights or, without a parent, new ones; in eval mode."""
    names: list[str]
    """Of all tensors of that adapter, in the model's order."""
    weights: list[nn.Parameter]
    """The same tensors, in fp32. They stay the same objects for the whole round."""
    examples: Sequence[Example]
    """The new rows."""
    earlier: Sequence[Sequence[Example]] = ()
    """Rows of each earlier task, at most `Policy.memory_rows(…)` of each; a longer memory begins with a shorter."""
    inherited: Mapping[str, Tensor]
    """What `Policy.finish` returned in the parent's round, on the CPU; empty if that was a round of another policy."""
    first: bool
    """Whether nothing was learned before, so that there is nothing to protect."""
    settings: LearnerSettings
    pad_id: int
    precision: torch.dtype = torch.bfloat16
    """In which the forward pass computes, as in training."""

    @property
    def memory(self) -> list[Example]:
        """The rows of all earlier tasks."""
        return [example for rows in self.earlier for example in rows]

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.weights[0].device

    def batches(self, examples: Sequence[Example], batch_size: int) -> Iterator[Batch]:
        """Yield examples in their order, joined to batches on the model's device."""
        for start in range(0, len(examples), batch_size):
            yield batch_of(examples[start : start + batch_size], self.pad_id).to(self.device)

    def logits(self, batch: Batch, weights: Sequence[Tensor] | None = None) -> Tensor:
        """Return the model's logits at the batch's kept positions [B, K, V], with `weights` if given for its own."""
        stand_in = dict(zip(self.names, weights, strict=True)) if weights is not None else None
        mixed = torch.autocast(
            self.device.type, dtype=self.precision, enabled=self.precision != torch.float32
        )
        with mixed, disable_input_dtype_casting(self.model):
            return kept_logits(self.model, batch.inputs, batch.kept, stand_in)

    def loss(self, batch: Batch) -> Tensor:
        """Return the mean loss of the batch in nats per answer token."""
        return answer_loss(self.logits(batch), batch) / batch.answer_tokens


class Policy:
    """Plain sequential tuning, and the points at which other policies step in.

    In order: `memory_rows`; `start`; then at each step `extra_loss` of each batch, `add_gradient`, `after_backward`,
    the optimizer, `after_step`; and `finish`. A resumed round begins with `memory_rows`, `start` and `restore`.
    """

    from_base: bool = False
    """Whether it starts from the bare base model, not from the parent's adapter."""
    replaces_weights: bool = False
    """Whether it changes the weights at the start or the end of a round; only one part of a combination may."""
    keeps_bounds: bool = False
    """Whether, at the end of a round, it brings weights back that another part has led out of its bounds."""

    def __init__(self, settings: LearnerSettings) -> None:
        self.settings = settings

    def memory_rows(self, inherited: Mapping[str, Tensor]) -> int:
        """Return how many rows of each earlier task it wants to see again, given what its last round remembered."""
        return 0

    def start(self, task: Task) -> None:
        """Look at the task, and change the adapter if need be, before the optimizer is made.

        What no longer requires a gradient afterwards is not trained.
        """
        self.task = task

    def rehearsal(self) -> Sequence[Example]:
        """Return rows to be trained among the new ones."""
        return ()

    def extra_loss(self, batch: Batch, logits_BKV: Tensor) -> Tensor | float:
        """Return what is added to the mean loss of a batch, in nats per answer token.

        The batches of a step are weighted by their share of its answer tokens, so a penalty on the weights would count
        once per step, and be computed for each batch: `add_gradient` is the place for it if its gradient is known.
        `logits_BKV` are the model's at the batch's kept positions, with their gradient.
        """
        return 0.0

    def add_gradient(self) -> None:
        """Add the gradient of a penalty on the weights to a step's, in place, before they are clipped.

        Of several processes only the first one is asked.
        """

    def after_backward(self) -> None:
        """Look at, or change in place, the averaged and clipped gradients before the optimizer uses them."""

    def after_step(self) -> dict[str, Any]:
        """Look at the new weights, with the gradients still there; return what the step's metrics should show."""
        return {}

    def finish(self) -> dict[str, Tensor]:
        """Put the round's result into the weights; return what the next round of this policy must remember.

        The model is in eval mode. After this only the adapter `default` is left on it, and it serves as it is.
        """
        return {}

    def state(self) -> dict[str, Tensor]:
        """Return what a checkpoint needs to go on, besides the weights and the optimizer."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` returned; called after `start`."""


def is_measured(step: int) -> bool:
    """Tell whether that is done after this step, counted from 1: after the first and every tenth."""
    return step == 1 or step % MEASURED_EVERY_STEPS == 0

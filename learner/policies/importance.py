"""How much each entry of the adapter matters for some rows, measured by gradients at the weights as they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from learner.data import Example
from learner.loss import Batch, answer_loss
from learner.policies.policy import Task


def spread(examples: Sequence[Example], most: int) -> Sequence[Example]:
    """Return at most `most` examples, taken at a fixed interval."""
    return examples[:: -(-len(examples) // most)]


def fisher(task: Task, examples: Sequence[Example]) -> list[Tensor]:
    """Return the diagonal of the empirical Fisher matrix, in the shapes of `task.weights`.

    F = Σ_rows (∇ of the row's summed loss)² / answer tokens of all rows: the curvature of the mean loss per answer
    token, as far as rows are independent and their answers are what the model would say. One row at a time, since the
    square of a batch's mean gradient shrinks with the batch.
    """
    return _mean_of_rows(task, examples, answer_loss, torch.square)


def sensitivity(task: Task, examples: Sequence[Example]) -> list[Tensor]:
    """Return how much the logits move with each entry, in the shapes of `task.weights`.

    |∂ Σ logits²| of each row, over answer tokens (Memory Aware Synapses, arXiv 1711.09601, for a language model as in
    arXiv 2311.16206): no labels are needed, only what the model says.
    """
    return _mean_of_rows(task, examples, _squared_logits, torch.abs)


def normalized(importance: Sequence[Tensor]) -> list[Tensor]:
    """Scale all tensors together so that their entries add up to 1."""
    total = sum(float(tensor.sum(dtype=torch.float64)) for tensor in importance)
    return [tensor / total for tensor in importance]


def _squared_logits(logits_BKV: Tensor, batch: Batch) -> Tensor:
    # A batch of one row, so every kept position is an answer's.
    return logits_BKV.float().square().sum()


def _mean_of_rows(
    task: Task,
    examples: Sequence[Example],
    value: Callable[[Tensor, Batch], Tensor],
    size: Callable[[Tensor], Tensor],
) -> list[Tensor]:
    # Stand-ins, because a policy may have frozen some of the weights themselves.
    weights = [weight.detach().requires_grad_() for weight in task.weights]
    total = [torch.zeros_like(weight) for weight in weights]
    tokens = 0
    for batch in task.batches(examples, batch_size=1):
        gradients = torch.autograd.grad(value(task.logits(batch, weights), batch), weights)
        torch._foreach_add_(total, [size(gradient) for gradient in gradients])
        tokens += batch.answer_tokens
    return [tensor / tokens for tensor in total]

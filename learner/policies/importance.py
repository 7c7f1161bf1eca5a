"""How much each entry of the adapter matters for some rows, measured by gradients at the weights as they are.

Shape suffixes: B rows of a batch, T tokens of one, I inputs and O outputs of a linear layer, K kept positions, V
vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from learner.data import IGNORED, Example
from learner.loss import Batch, answer_loss
from learner.policies.policy import Task


def fisher(task: Task, examples: Sequence[Example]) -> list[Tensor]:
    """Return the diagonal of the empirical Fisher matrix, in the shapes of `task.weights`.

    F = Σ_rows (∇ of the row's summed loss)² / answer tokens of all rows: the curvature of the mean loss per answer
    token, as far as rows are independent and their answers are what the model would say. Of each row by itself, since
    the square of a batch's mean gradient shrinks with the batch.
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
    answers_BK = batch.targets != IGNORED
    return logits_BKV[answers_BK].float().square().sum()


def _mean_of_rows(
    task: Task,
    examples: Sequence[Example],
    value: Callable[[Tensor, Batch], Tensor],
    size: Callable[[Tensor], Tensor],
) -> list[Tensor]:
    """Return Σ_rows size(∂ value / ∂ weight) / answer tokens, `value` being a sum over the rows of a batch.

    A row's own gradient follows from what its tokens brought to a layer, x, and what came back for its outputs, δ:
    Σ_t δ_t x_tᵀ. So rows go through the model in batches, and nothing needs a backward pass for each.
    """
    # Stand-ins, because a policy may have frozen some of the weights themselves.
    weights = [weight.detach().requires_grad_() for weight in task.weights]
    layers = [task.model.get_submodule(name.removesuffix(".weight")) for name in task.names]
    total = [torch.zeros_like(weight) for weight in weights]
    tokens = 0
    for batch in task.batches(examples, task.settings.batch_size):
        with _rows_of(len(batch.targets), layers, total, size):
            whole = value(task.logits(batch, weights), batch)
        torch.autograd.grad(whole, weights)
        tokens += batch.answer_tokens
    return [tensor / tokens for tensor in total]


@contextmanager
def _rows_of(
    rows: int, layers: Sequence[nn.Module], total: Sequence[Tensor], size: Callable[[Tensor], Tensor]
) -> Iterator[None]:
    """Let the backward pass of what is computed here add each row's size(gradient) to its layer's total.

    It is done as soon as a layer's slopes are there, so that nothing is kept which training would not keep. A layer may
    be given tokens or pictures in the place of rows, as long as they come row by row.
    """

    def watched(layer: nn.Module, to_OI: Tensor) -> RemovableHandle:
        def look(_layer: nn.Module, inputs: tuple[Tensor], outputs: Tensor) -> None:
            inputs_BTI = inputs[0].detach().reshape(rows, -1, inputs[0].shape[-1])

            def add(slopes: Tensor) -> None:
                slopes_BTO = slopes.reshape(rows, -1, slopes.shape[-1])
                to_OI.add_(size(slopes_BTO.float().mT @ inputs_BTI.float()).sum(dim=0))

            outputs.register_hook(add)  # type: ignore[no-untyped-call]

        return layer.register_forward_hook(look)

    hooks = [watched(layer, to_OI) for layer, to_OI in zip(layers, total, strict=True)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()

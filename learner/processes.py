"""What the processes that train one adapter together have to agree on; a single process agrees with itself for free.

Each holds the whole model and takes its share of the batches of every optimizer step. Gradients are added up once a
step, when all its batches are through: those of an adapter are a few megabytes, so that DistributedDataParallel, which
sends them while the backward pass still runs, would gain nothing. It would also take their mean, where a sum is wanted,
and wait for ever for a process that has fewer batches than the others.

The group is torch.distributed's, as Accelerate sets it up. This file does not know what is trained.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, distributed, nn

Item = TypeVar("Item")


def count() -> int:
    """Return how many processes there are."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """Return the number of this process, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def is_first() -> bool:
    """Tell whether this is the process that decides, reports and writes files."""
    return rank() == 0


def share(items: Sequence[Item]) -> Sequence[Item]:
    """Return this process's items; there are none if there are more processes than items."""
    return items[rank() :: count()]


def add_up(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its sum over all processes, the same bits in each; one dtype, one message."""
    if count() == 1:
        return
    joined = torch.cat([tensor.flatten() for tensor in tensors])
    distributed.all_reduce(joined)
    sums = torch.split(joined, [tensor.numel() for tensor in tensors])
    for tensor, total in zip(tensors, sums, strict=True):
        tensor.copy_(total.view_as(tensor))


def add_up_gradients(weights: Sequence[nn.Parameter], loss: Tensor) -> None:
    """Add up the gradients, and with them the loss, of all processes."""
    if count() == 1:
        return
    for weight in weights:
        if weight.grad is None:  # this process had no batch
            weight.grad = torch.zeros_like(weight)
    add_up([*(weight.grad for weight in weights if weight.grad is not None), loss])


def take_first(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by the first process's."""
    if count() == 1:
        return
    for tensor in tensors:
        distributed.broadcast(tensor.detach(), src=0)


def agreed(decide: Callable[[], bool], device: torch.device) -> bool:
    """Return what the first process decides; the others are not asked."""
    if count() == 1:
        return decide()
    decision = torch.tensor(is_first() and decide(), dtype=torch.uint8, device=device)
    distributed.broadcast(decision, src=0)
    return bool(decision)


def wait() -> None:
    """Wait until every process is here."""
    if count() > 1:
        distributed.barrier()


def draw_apart(seed: int, step: int) -> None:
    """Give each process random numbers of its own for a step, as for dropout.

    Those of the first go on as they are and are in its checkpoints; those of the others follow from the step.
    """
    if not is_first():
        digest = hashlib.sha256(f"{seed}/{step}/{rank()}".encode()).digest()
        torch.manual_seed(int.from_bytes(digest[:8], "big"))

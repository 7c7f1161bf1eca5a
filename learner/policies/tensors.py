"""Lists of tensors as a policy keeps them: copied, named for a checkpoint, and taken back from one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return copies without a gradient."""
    return [tensor.detach().clone() for tensor in tensors]


def numbered(prefix: str, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    """Name the tensors `prefix.0`, `prefix.1` and so on."""
    return {f"{prefix}.{index}": tensor for index, tensor in enumerate(tensors)}


def take(tensors: Sequence[Tensor], state: Mapping[str, Tensor], prefix: str) -> None:
    """Copy the tensors that `numbered` named into these, wherever those are."""
    for index, tensor in enumerate(tensors):
        tensor.copy_(state[f"{prefix}.{index}"])


def differences(left: Sequence[Tensor], right: Sequence[Tensor]) -> list[Tensor]:
    """Return left - right, without a gradient."""
    with torch.no_grad():
        return list(torch._foreach_sub(list(left), list(right)))

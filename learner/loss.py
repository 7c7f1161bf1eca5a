"""The loss of a batch: cross entropy of the answers' tokens, with the output head run only where one is predicted.

It knows batches and a model's forward pass, and neither gradients nor where rows come from.

Shape suffixes: B rows of a batch, T tokens, K tokens kept for the output head, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel, send_to_device
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from learner.data import IGNORED, Example, collate


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Examples joined for the model."""

    inputs: dict[str, Any]
    """What the processor made of them; per-token tensors are [B, T]. Images are pixels, or features."""
    kept: Tensor
    """Positions after which at least one row has a token of an answer: [K]."""
    targets: Tensor
    """The token to be predicted after each kept position, IGNORED where a row has none: [B, K]."""
    answer_tokens: int
    """Tokens on which loss is taken."""

    def to(self, device: torch.device) -> Batch:
        """Return the batch on this device."""
        inputs = send_to_device(self.inputs, device)
        return replace(self, inputs=inputs, kept=self.kept.to(device), targets=self.targets.to(device))


def batch_of(examples: Sequence[Example], pad_id: int) -> Batch:
    """Join examples, on the CPU."""
    inputs, labels_BT = collate(examples, pad_id)
    next_BT = labels_BT[:, 1:]
    kept_K = (next_BT != IGNORED).any(dim=0).nonzero().squeeze(1)
    targets_BK = next_BT[:, kept_K]
    answer_tokens = int((targets_BK != IGNORED).sum())
    return Batch(inputs=inputs, kept=kept_K, targets=targets_BK, answer_tokens=answer_tokens)


def answer_loss(logits_BKV: Tensor, batch: Batch) -> Tensor:
    """Return the summed cross entropy of the batch's answer tokens, from the logits at its kept positions."""
    return cross_entropy(
        logits_BKV.float().flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORED, reduction="sum"
    )


def kept_logits(
    model: nn.Module, inputs: dict[str, Any], kept_K: Tensor, weights: Mapping[str, Tensor] | None = None
) -> Tensor:
    """Return the logits at these positions [B, K, V], by the base's own `logits_to_keep` where it has one.

    `weights` stand in for the parameters of these names, for this call alone.
    """
    base = extract_model_from_parallel(model).get_base_model()
    stand_in = dict(weights or {})
    asked = {**inputs, "use_cache": False}
    if "logits_to_keep" in inspect.signature(base.forward).parameters:
        asked["logits_to_keep"] = kept_K
        kept_BKV: Tensor = functional_call(model, stand_in, kwargs=asked).logits
        return kept_BKV
    logits_BTV: Tensor = functional_call(model, stand_in, kwargs=asked).logits
    return logits_BTV[:, kept_K]

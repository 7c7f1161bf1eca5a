"""O-LoRA (arXiv 2310.14152): each task's adapter reads other directions of a layer's input than the earlier ones.

The loss of a new task is L + λ Σ_i Σ |A_i Aᵀ|, over the A_i of all earlier tasks and the entries of their products
with the new A. The authors keep all adapters side by side; here their sum is compressed to one after each round, and
the A_i alone are remembered, which takes r × d_in numbers per layer and round. Their second penalty, on the norm of
the new adapter, is left out; `weight_decay`, which is off unless set, is a similar pull.
"""

from __future__ import annotations

from itertools import starmap

import torch
from torch import Tensor

from learner.loss import Batch
from learner.policies.policy import Task
from learner.policies.stacking import Stacking


class OLora(Stacking):
    """Policy `olora`: a first round is plain; of a parent that another policy has trained, its A counts as A_1."""

    def start(self, task: Task) -> None:
        """Find the A of earlier tasks: per layer [Σ r, d_in]."""
        super().start(task)
        self.earlier_A = [task.inherited.get(layer.name, layer.A).to(task.device) for layer in self.earlier]

    def extra_loss(self, batch: Batch, logits_BKV: Tensor) -> Tensor | float:
        """Return the penalty for what old and new A have in common."""
        if not self.earlier_A:
            return 0.0
        pairs = zip(self.earlier_A, [layer.A for layer in self.layers], strict=True)
        return self.settings.olora_strength * torch.stack(list(starmap(overlap, pairs))).sum()

    def finish(self) -> dict[str, Tensor]:
        """Return all A so far, this round's as it was trained."""
        trained = [layer.A.detach().clone() for layer in self.layers]
        super().finish()
        if self.earlier_A:
            trained = [torch.cat(pair) for pair in zip(self.earlier_A, trained, strict=True)]
        return {layer.name: A for layer, A in zip(self.layers, trained, strict=True)}


def overlap(earlier: Tensor, new: Tensor) -> Tensor:
    """Return Σ |A_i Aᵀ| over all entries."""
    return (earlier @ new.T).abs().sum()

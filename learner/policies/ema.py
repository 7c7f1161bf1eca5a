"""An exponential moving average with one constant weight: the control for LLaCA."""

from __future__ import annotations

import torch
from torch import Tensor

from learner.policies.averaging import Averaging


class FixedAverage(Averaging):
    """Policy `ema`: θ* ← β θ* + (1 - β) θ with β = `ema_decay`."""

    def old_weights(self, part: slice) -> tuple[Tensor, Tensor]:
        """Return the constant for each of the tensors."""
        beta_N = torch.full((len(self.task.weights[part]),), self.settings.ema_decay, dtype=torch.float64)
        return beta_N, torch.zeros_like(beta_N)

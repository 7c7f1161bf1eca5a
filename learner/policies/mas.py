"""Memory aware synapses (arXiv 1711.09601): what moves the logits most is held."""

from __future__ import annotations

from torch import Tensor

from learner.policies.importance import normalized, sensitivity
from learner.policies.penalty import Penalty


class Mas(Penalty):
    """Policy `mas`: I is the sensitivity of the squared logits, λ is `mas_strength`."""

    def strength(self) -> float:
        """Return λ."""
        return self.settings.mas_strength

    def measure(self) -> list[Tensor]:
        """Return the sensitivity on the new rows."""
        return normalized(sensitivity(self.task, self.rows()))

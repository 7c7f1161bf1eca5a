"""Elastic weight consolidation (arXiv 1612.00796): what carries much Fisher information is held."""

from __future__ import annotations

from torch import Tensor

from learner.policies.importance import fisher, normalized
from learner.policies.penalty import Penalty


class Ewc(Penalty):
    """Policy `ewc`: I is the diagonal Fisher information, λ is `ewc_strength`."""

    def strength(self) -> float:
        """Return λ."""
        return self.settings.ewc_strength

    def measure(self) -> list[Tensor]:
        """Return the Fisher information of the new rows."""
        return normalized(fisher(self.task, self.rows()))

"""PEGP (arXiv 2405.13383): gradients are projected away from what earlier tasks put into each layer.

For an input x of an earlier task, with z = A x, an update changes the layer's output by

    Δ(B A x) = ΔB z + B ΔA x + ΔB ΔA x

so A must only change orthogonally to the old x and B orthogonally to the old z. The authors published the rule for
prompts; this is the same principle on LoRA. Shares of energy are of Σ |x|², as in gradient projection memory; their
program measures squares of that, of which 95 % lie in one or two of 576 directions of the embedded model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from learner.memory import spread
from learner.policies.layers import layers_of
from learner.policies.policy import Policy, Task
from learner.policies.subspace import empty_basis, grow, input_moments, project_out


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A tensor whose rows may only move orthogonally to a basis."""

    weight: nn.Parameter
    begin: Tensor
    """The tensor with which the round began."""
    basis: Tensor


class Pegp(Policy):
    """Policy `pegp`: nothing is held back in a first round, which only remembers its features.

    With an optimizer as Adam a projected gradient does not give a projected step (its scales differ from entry to
    entry), so that the way from the start of the round is projected as well: what the bases span is kept exactly.
    """

    keeps_bounds = True

    def start(self, task: Task) -> None:
        """Find the basis of each tensor, as earlier rounds left them."""
        super().start(task)
        self.layers = layers_of(task.names, task.weights)
        self.bases = {name: basis.to(task.device) for name, basis in task.inherited.items()}
        self.held = self._held() if self.bases else []

    def _held(self) -> list[Held]:
        site = input_moments(self.task, self.layers, self.task.examples[:1]).site
        held = []
        for layer in self.layers:
            sides = {f"input.{site[layer.name]}": layer.A, f"hidden.{layer.name}": layer.B}
            held += [
                Held(weight=weight, begin=weight.detach().clone(), basis=self.bases[name])
                for name, weight in sides.items()
            ]
        return held

    @torch.no_grad()
    def after_backward(self) -> None:
        """Project the gradients: ∇A ← ∇A (I - F_x F_xᵀ), ∇B ← ∇B (I - F_z F_zᵀ)."""
        for held in self.held:
            if held.weight.grad is not None:
                held.weight.grad.copy_(project_out(held.weight.grad, held.basis))

    def after_step(self) -> dict[str, Any]:
        """Project the way that the weights have gone since the round began."""
        self._stay_clear()
        return {}

    @torch.no_grad()
    def _stay_clear(self) -> None:
        for held in self.held:
            held.weight.copy_(held.begin + project_out(held.weight - held.begin, held.basis))

    @torch.no_grad()
    def finish(self) -> dict[str, Tensor]:
        """Return the bases, grown by what this task puts into each layer."""
        self._stay_clear()  # another policy may have put an average in the weights' place
        examples = spread(self.task.examples, self.settings.pegp_rows)
        moments = input_moments(self.task, self.layers, examples)
        for site, moment in moments.moment.items():
            self._grow(f"input.{site}", moment, self.settings.pegp_input_energy)
        for layer in self.layers:
            # The moment of z = A x needs no second pass: it is A R Aᵀ.
            hidden = layer.A @ moments.moment[moments.site[layer.name]] @ layer.A.T
            self._grow(f"hidden.{layer.name}", hidden, self.settings.pegp_hidden_energy)
        return {name: basis.contiguous() for name, basis in self.bases.items()}

    def _grow(self, name: str, moment: Tensor, energy: float) -> None:
        basis = self.bases.get(name)
        if basis is None:
            basis = empty_basis(len(moment), moment.device)
        self.bases[name] = grow(basis, moment, energy)

"""A new adapter beside the earlier one: the earlier is frozen, both are added, and in the end the sum is one again.

The server takes one plain adapter of a fixed rank. The sum of two has twice the rank, so it is compressed to the best
approximation that fits; what that costs is the price of one adapter, not of the method that is stacked.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from peft import PeftModel
from torch import Tensor

from learner.model import ADAPTER
from learner.policies.layers import AdaptedLayer, layers_of
from learner.policies.policy import Policy, Task

EARLIER = "earlier"
"""PEFT's name for the frozen adapter."""


class Stacking(Policy):
    """What policies share that train a new adapter beside the earlier one; a first round has none to stack on."""

    replaces_weights = True

    def start(self, task: Task) -> None:
        """Set the parent's adapter aside, and begin with a new one that changes nothing yet."""
        super().start(task)
        self.layers = layers_of(task.names, task.weights)
        self.earlier = [] if task.first else set_aside(task.model, self.layers)

    @torch.no_grad()
    def finish(self) -> dict[str, Tensor]:
        """Put the sum of both adapters into the weights, and drop the earlier one."""
        if not self.earlier:
            return {}
        for layer, earlier in zip(self.layers, self.earlier, strict=True):
            joined_A, joined_B = torch.cat([earlier.A, layer.A]), torch.cat([earlier.B, layer.B], dim=1)
            A, B = compress(joined_A, joined_B, len(layer.A))
            layer.A.copy_(A)
            layer.B.copy_(B)
        self.task.model.delete_adapter(EARLIER)
        return {}


@torch.no_grad()
def set_aside(model: PeftModel, layers: Sequence[AdaptedLayer]) -> list[AdaptedLayer]:
    """Move the adapter's weights to a frozen second adapter, which is returned, and give the first new ones.

    The model computes the same before and after.
    """
    config = copy.deepcopy(model.peft_config[ADAPTER])
    config.lora_dropout = 0.0  # it is not trained
    model.add_adapter(EARLIER, config)
    model.base_model.set_adapter([ADAPTER, EARLIER])
    earlier = []
    for layer in layers:
        module = model.get_submodule(layer.name)
        kept = AdaptedLayer(name=layer.name, A=module.lora_A[EARLIER].weight, B=module.lora_B[EARLIER].weight)
        kept.A.copy_(layer.A)
        kept.B.copy_(layer.B)
        kept.A.requires_grad = kept.B.requires_grad = False
        module.reset_lora_parameters(ADAPTER, init_lora_weights=True)
        earlier.append(kept)
    return earlier


def compress(A: Tensor, B: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return A [rank, d_in] and B [d_out, rank] whose product is the best approximation of B A of that rank.

    By Eckart and Young; exact, up to rounding in float64, if the product has no more than that rank. Both sides
    get an even share of the singular values.
    """
    U, S, Vh = product_svd(A, B)
    root = S[:rank].sqrt()
    # Layers narrower than the rank have fewer directions than that; the rest stays zero.
    compressed_A, compressed_B = A.new_zeros(rank, A.shape[1]), B.new_zeros(B.shape[0], rank)
    compressed_A[: len(root)] = root[:, None] * Vh[:rank]
    compressed_B[:, : len(root)] = U[:, :rank] * root
    return compressed_A, compressed_B


def product_svd(A: Tensor, B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return U [d_out, k], S [k] and Vh [k, d_in] of B A in float64, where A is [r, d_in] and k the least of r and d.

    From the SVD of the small core of two QR decompositions, so the product is never made.
    """
    Q_B, R_B = torch.linalg.qr(B.double())
    Q_A, R_A = torch.linalg.qr(A.double().T)
    U, S, Vh = torch.linalg.svd(R_B @ R_A.T, full_matrices=False)
    return Q_B @ U, S, Vh @ Q_A.T

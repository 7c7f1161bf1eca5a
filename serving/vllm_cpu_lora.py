"""A vLLM plugin that mends LoRA on machines without GPU; vLLM calls `register` in each of its processes.

Three things are wrong with the plain PyTorch operators of vLLM 0.32 (vllm/lora/punica_wrapper/punica_cpu.py):

* they copy the whole adapter once per token, so that a question with a picture takes seconds;
* a token without adapter (index -1) gets the adapter of the last slot, so that the base model answers as somebody else
  when every slot is in use;
* the output head's operator expects one row per request, and brings the engine down when log-probabilities of a prompt
  are asked for while others chat.

Here rows are grouped by adapter and multiplied once per group, rows without adapter are left alone, and the output head
is left out, as no adapter of this project touches it. On CUDA vLLM has kernels of its own and nothing is changed.

Shape suffixes: N rows (tokens), I inputs, O outputs, R rank, S slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Groups = list[tuple[int, "Tensor | None"]]
"""A slot and the rows that use it; None means all rows."""


def groups_of(slots_N: Tensor) -> Groups:
    """Return the rows of each slot; rows of slot -1 use no adapter and are in no group."""
    present = sorted(set(slots_N.tolist()))
    if len(present) == 1 and present[0] >= 0:
        return [(present[0], None)]
    return [(slot, (slots_N == slot).nonzero().squeeze(1)) for slot in present if slot >= 0]


def add_lora(
    out_NO: Tensor,
    in_NI: Tensor,
    groups: Groups,
    a_S1RI: Sequence[Tensor],
    b_S1OR: Sequence[Tensor],
    scale: float,
    widths: Sequence[int],
) -> None:
    """Add scale · B A x to `out_NO` in place; the several A and B belong to consecutive slices of the output."""
    for slot, rows in groups:
        chosen_NI = in_NI if rows is None else in_NI[rows]
        start = 0
        for a, b, width in zip(a_S1RI, b_S1OR, widths, strict=True):
            delta_NO = ((chosen_NI @ a[slot, 0].T) * scale) @ b[slot, 0, :width].T
            slice_NO = out_NO[:, start : start + width]
            if rows is None:
                slice_NO += delta_NO
            else:
                slice_NO.index_add_(0, rows, delta_NO)
            start += width


def register() -> None:
    """Put these operators in place of vLLM's if this is its CPU build."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    measure = PunicaWrapperCPU.update_metadata

    def update_metadata(self: Any, *args: Any, **kwargs: Any) -> None:
        measure(self, *args, **kwargs)
        # Once per step, not once in each of some hundred layers.
        self.llaca_groups = groups_of(self.token_lora_indices)

    def add_lora_linear(
        self: Any,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: Sequence[Tensor],
        lora_b_stacked: Sequence[Tensor],
        scale: float,
        output_slices: Sequence[int],
        **_kwargs: Any,
    ) -> None:
        rows_out, rows_in = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
        add_lora(rows_out, rows_in, self.llaca_groups, lora_a_stacked, lora_b_stacked, scale, output_slices)

    def add_lora_logits(self: Any, *_args: Any, **_kwargs: Any) -> None:
        """Leave the logits alone: adapters of an output head are refused before they are trained."""

    PunicaWrapperCPU.update_metadata = update_metadata
    PunicaWrapperCPU.add_lora_linear = add_lora_linear
    PunicaWrapperCPU.add_lora_logits = add_lora_logits

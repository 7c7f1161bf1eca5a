"""What the CPU plugin promises: the same sums as LoRA's formula, row by row, and none where there is no adapter."""

from __future__ import annotations

import pytest
import torch

from serving.vllm_cpu_lora import add_lora, groups_of


@pytest.mark.parametrize("slots", [[0, 0, 0], [2, -1, 0, 2, 1], [-1, -1], [3]])
def test_every_row_gets_its_own_adapter(slots: list[int]) -> None:
    """Row n gains scale · B x A of its slot, in every slice of the output; a row of slot -1 gains nothing."""
    torch.manual_seed(0)
    inputs, rank, widths, scale = 6, 4, (5, 3), 2.0
    x = torch.randn(len(slots), inputs, dtype=torch.float64)
    before = torch.randn(len(slots), sum(widths), dtype=torch.float64)
    a = [torch.randn(4, 1, rank, inputs, dtype=torch.float64) for _ in widths]
    b = [torch.randn(4, 1, width, rank, dtype=torch.float64) for width in widths]

    after = before.clone()
    add_lora(after, x, groups_of(torch.tensor(slots)), a, b, scale, widths)

    for row, slot in enumerate(slots):
        gained = [scale * b[i][slot, 0] @ (a[i][slot, 0] @ x[row]) for i in range(len(widths))]
        wanted = before[row] + (torch.cat(gained) if slot >= 0 else 0)
        torch.testing.assert_close(after[row], wanted)

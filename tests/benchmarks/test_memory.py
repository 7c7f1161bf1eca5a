"""Peak memory is that of the block alone, whatever ran before it."""

from __future__ import annotations

import pytest
import torch

from benchmarks.continual.memory import peak_memory

MIB = 2**20

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="with a GPU its memory is measured, not the process's"
)


def test_peak_is_what_the_block_takes() -> None:
    """Two hundred MiB that are freed before the end of the block count, and are two hundred MiB."""
    with peak_memory() as idle:
        pass
    with peak_memory() as busy:
        taken = b"\1" * (200 * MIB)
        del taken
    assert 150 * MIB < busy.bytes - idle.bytes < 260 * MIB


def test_what_was_freed_before_does_not_count() -> None:
    """Small pieces stay in the heap when they are freed; the next block's peak begins without them."""
    with peak_memory() as before:
        pass
    pieces = [bytes([1]) * 50_000 for _ in range(4_000)]
    last = bytes([2]) * 50_000  # above them, so that the heap cannot shrink by itself
    del pieces
    with peak_memory() as after:
        pass
    assert len(last) == 50_000
    assert after.bytes - before.bytes < 60 * MIB

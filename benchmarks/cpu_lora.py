"""Times this project's LoRA operator for CPUs against vLLM's own, side by side in one process.

One call is what a batch costs in one linear layer of the embedded model; a reply makes some hundred such calls per
token. Run it on a quiet machine: `.venv/bin/python benchmarks/cpu_lora.py`.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from vllm.lora.ops.torch_ops import bgmv_expand_slice, bgmv_shrink

from serving.vllm_cpu_lora import add_lora, groups_of

INPUTS, OUTPUTS, SLOTS, SCALE = 576, 1536, 4, 2.0
CASES = (("one token", 1, 1), ("a question with a picture", 64, 1), ("50 replies, two adapters", 50, 2))
RANKS, REPEATS = (16, 64), 30


def seconds(call: Callable[[], None]) -> float:
    """Return how long one call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def compare(tokens: int, adapters: int, rank: int) -> tuple[float, float]:
    """Return the median milliseconds of vLLM's operator and of ours, called in turn."""
    dtype = torch.bfloat16
    x, y = torch.randn(tokens, INPUTS, dtype=dtype), torch.zeros(tokens, OUTPUTS, dtype=dtype)
    a, b = torch.randn(SLOTS, 1, rank, INPUTS, dtype=dtype), torch.randn(SLOTS, 1, OUTPUTS, rank, dtype=dtype)
    slots = torch.arange(tokens) % adapters

    def theirs() -> None:
        buffer = torch.zeros(tokens, rank)
        bgmv_shrink(x, a, buffer, slots, SCALE)
        bgmv_expand_slice(buffer, b, y, slots, 0, OUTPUTS)

    groups = groups_of(slots)

    def ours() -> None:
        add_lora(y, x, groups, [a], [b], SCALE, [OUTPUTS])

    pairs = [(seconds(theirs), seconds(ours)) for _ in range(REPEATS + 3)][3:]
    return (1000 * statistics.median(t for t, _ in pairs), 1000 * statistics.median(o for _, o in pairs))


def main() -> None:
    """Print one line per case."""
    print(f"{'batch':<28} {'rank':>4} {'vLLM ms':>9} {'ours ms':>9} {'ratio':>7}")
    for name, tokens, adapters in CASES:
        for rank in RANKS:
            theirs, ours = compare(tokens, adapters, rank)
            print(f"{name:<28} {rank:>4} {theirs:>9.3f} {ours:>9.3f} {theirs / ours:>6.1f}x")


if __name__ == "__main__":
    main()

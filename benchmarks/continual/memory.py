"""The most memory that a piece of work had at a time."""

from __future__ import annotations

import ctypes
import gc
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

RESET_PEAK = "5"
"""What Linux takes in /proc/self/clear_refs for: forget the peak so far (proc_pid_clear_refs(5))."""


class Peak:
    """Filled in when the work is done."""

    bytes: int = 0


@contextmanager
def peak_memory() -> Iterator[Peak]:
    """Measure the peak of the block: memory allocated on the GPU if there is one, else the process's resident set."""
    gc.collect()
    peak = Peak()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        yield peak
        peak.bytes = torch.cuda.max_memory_allocated()
        return
    _return_freed()
    Path("/proc/self/clear_refs").write_text(RESET_PEAK, encoding="ascii")
    yield peak
    status = Path("/proc/self/status").read_text(encoding="ascii")
    peak.bytes = int(re.findall(r"VmHWM:\s*(\d+) kB", status)[0]) * 1024


def _return_freed() -> None:
    """Give the system back what the heap keeps of earlier work: the peak would else begin with it (malloc_trim(3))."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)

"""The child process that reads a stranger's parquet file and writes its rows as JSON lines.

It runs alone (`python -I parquet_worker.py MEMORY_BYTES CPU_SECONDS < FILE`), imports pyarrow and nothing of
ours, and caps its own memory and processor time first: a page of a few bytes may claim to unpack to gigabytes,
and the decoder is C++. Bytes (images) become `data:` URLs, so that one path reads the rows of every format.
"""

from __future__ import annotations

import base64
import json
import resource
import sys
from typing import Any

import pyarrow as pa
from pyarrow import parquet

ROWS_AT_ONCE = 16


def plain(value: Any) -> Any:
    """Return a cell as JSON types: bytes as a `data:` URL, dates and other rare types as text."""
    if isinstance(value, bytes):
        return "data:;base64," + base64.b64encode(value).decode()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)


def main(memory_bytes: int, cpu_seconds: int) -> None:
    """Copy rows from stdin, which must be a real file, to stdout."""
    pa.set_cpu_count(1)
    pa.set_memory_pool(pa.system_memory_pool())
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    table = parquet.ParquetFile(sys.stdin.buffer)
    for batch in table.iter_batches(batch_size=ROWS_AT_ONCE, use_threads=False):
        for row in batch.to_pylist():
            sys.stdout.write(json.dumps(plain(row)) + "\n")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))

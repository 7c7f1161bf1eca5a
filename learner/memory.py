"""Which rows of an earlier dataset a round may see again: a fixed sample of each, without keeping a copy of any."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from storage.records import Row


def sample(rows: Sequence[Row], count: int, seed: int) -> list[Row]:
    """Return `count` rows, or all if there are fewer, drawn by their hashes and the seed.

    The same rows each time, in whatever order they come; a smaller sample is the beginning of a larger one.
    """

    def drawn(row: Row) -> str:
        return hashlib.sha256(f"{seed}/{row.sha256}".encode()).hexdigest()

    return sorted(rows, key=drawn)[:count]

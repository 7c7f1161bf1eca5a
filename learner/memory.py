"""Which rows stand for many: those of an earlier dataset that a round may see again, and those that it measures on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from learner.data import Example
from storage.records import Row


def sample(rows: Sequence[Row], count: int, seed: int) -> list[Row]:
    """Return `count` rows, or all if there are fewer, drawn by their hashes and the seed.

    The same rows each time, in whatever order they come; a smaller sample is the beginning of a larger one.
    """

    def drawn(row: Row) -> str:
        return hashlib.sha256(f"{seed}/{row.sha256}".encode()).hexdigest()

    return sorted(rows, key=drawn)[:count]


def spread(examples: Sequence[Example], count: int) -> list[Example]:
    """Return at most `count` examples at even distances, so that none of several datasets is left out."""
    taken = min(count, len(examples))
    return [examples[index * len(examples) // taken] for index in range(taken)]

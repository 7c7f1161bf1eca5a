"""The temporary files of one upload: an archive's members by name, and rows that wait to be stored.

Both keep in memory only where things are, so that an upload of gigabytes is read in megabytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import BinaryIO, overload

from storage.records import Conversation


class Pack:
    """Named byte strings, one after the other in one file; names never become paths."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._places: dict[str, tuple[int, int]] = {}

    def add(self, name: str, chunks: Iterable[bytes]) -> None:
        """Append bytes under a name that is not there yet."""
        start = self._file.seek(0, 2)
        for chunk in chunks:
            self._file.write(chunk)
        self._places[name] = (start, self._file.tell() - start)

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def size(self, name: str) -> int:
        """Return how many bytes are kept under `name`."""
        return self._places[name][1]

    def read(self, name: str) -> bytes:
        """Return the bytes kept under `name`."""
        start, size = self._places[name]
        self._file.seek(start)
        return self._file.read(size)


class SpooledRows(Sequence[Conversation]):
    """Conversations in a file, read back one at a time."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._starts: list[int] = []

    def append(self, row: Conversation) -> None:
        """Add one conversation at the end."""
        self._starts.append(self._file.seek(0, 2))
        self._file.write(json.dumps(row).encode() + b"\n")

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> Conversation: ...
    @overload
    def __getitem__(self, index: slice) -> list[Conversation]: ...
    def __getitem__(self, index: int | slice) -> Conversation | list[Conversation]:
        if isinstance(index, slice):
            return [self._at(start) for start in self._starts[index]]
        return self._at(self._starts[index])

    def _at(self, start: int) -> Conversation:
        self._file.seek(start)
        row: Conversation = json.loads(self._file.readline())
        return row

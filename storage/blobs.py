"""Content-addressed files: what is stored is found by the SHA-256 of its bytes and never changes."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

from storage.clock import now
from storage.database import Database
from storage.errors import UnknownBlob

HEX_DIGITS = frozenset("0123456789abcdef")


def publish(temporary: Path, target: Path) -> None:
    """Move a finished file or directory into place so that after a crash it is there whole or not at all."""
    files = [temporary] if temporary.is_file() else [p for p in sorted(temporary.rglob("*")) if p.is_file()]
    directories = [] if temporary.is_file() else [temporary, *(p for p in temporary.rglob("*") if p.is_dir())]
    for path in [*files, *directories]:
        _fsync(path)
    temporary.rename(target)
    _fsync(target.parent)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Blobs:
    """Stored images and other files under `root`, with their media types in the database."""

    def __init__(self, database: Database, root: Path) -> None:
        self._database = database
        self._root = root

    def put(self, data: bytes, media_type: str) -> str:
        """Store bytes and return their SHA-256; storing the same bytes again costs nothing."""
        sha256 = hashlib.sha256(data).hexdigest()
        target = self._place(sha256)
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self._root, delete=False) as temporary:
                temporary.write(data)
            publish(Path(temporary.name), target)
        self._database.run(
            "INSERT INTO blobs (sha256, bytes, media_type, created_at) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
            [sha256, len(data), media_type, now()],
        )
        return sha256

    def path(self, sha256: str) -> Path:
        """Return where the bytes lie; raise UnknownBlob if nothing has this hash."""
        place = self._place(sha256)
        if not place.exists():
            raise UnknownBlob(sha256)
        return place

    def read(self, sha256: str) -> bytes:
        """Return the bytes; raise UnknownBlob if nothing has this hash."""
        return self.path(sha256).read_bytes()

    def media_type(self, sha256: str) -> str:
        """Return the media type given when the bytes were stored; raise UnknownBlob if there are none."""
        found = self._database.row("SELECT media_type FROM blobs WHERE sha256 = ?", [sha256])
        if found is None:
            raise UnknownBlob(sha256)
        return str(found["media_type"])

    def delete_unused(self, candidates: set[str]) -> int:
        """Delete those of `candidates` that no dataset row and no message uses; return how many went."""
        removed = 0
        for sha256 in candidates:
            with self._database.writing():
                # LIKE, because messages keep their parts as JSON; the hash is hex, so it holds no wildcard.
                used = self._database.row(
                    "SELECT 1 FROM row_images WHERE sha256 = :sha256"
                    " UNION ALL SELECT 1 FROM messages WHERE content LIKE :pattern",
                    {"sha256": sha256, "pattern": f"%{sha256}%"},
                )
                if used is None:
                    removed += self._database.run("DELETE FROM blobs WHERE sha256 = ?", [sha256])
                    self._place(sha256).unlink(missing_ok=True)
        return removed

    def _place(self, sha256: str) -> Path:
        # The hash becomes a path, so anything but 64 hex digits is refused here, whoever sent it.
        if len(sha256) != 64 or not HEX_DIGITS.issuperset(sha256):
            raise UnknownBlob(sha256)
        return self._root / sha256[:2] / sha256

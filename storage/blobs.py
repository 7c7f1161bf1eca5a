"""Content-addressed files: what is stored is found by the SHA-256 of its bytes and never changes."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from storage.clock import now
from storage.database import Database
from storage.errors import UnknownBlob

HEX_DIGITS = frozenset("0123456789abcdef")
GRACE_SECONDS = 3600.0
"""What was put less long ago is kept although nothing uses it: the row or message for which it came may be on its way.
"""
BATCH = 1000
"""Blobs deleted in one transaction; others wait for it."""

# A hash typed as text is no use of a picture; in the stored JSON only an image part has this key.
_UNUSED = (
    "NOT EXISTS (SELECT 1 FROM row_images WHERE row_images.sha256 = blobs.sha256) AND blobs.sha256 NOT IN"
    " (SELECT part.atom FROM messages, json_tree(messages.content) AS part"
    """ WHERE messages.content LIKE '%"sha256"%' AND part.key = 'sha256')"""
)


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
        """Store bytes and return their SHA-256; the same bytes are kept once, and count as put just now."""
        return self._put(data, media_type, {})

    @contextmanager
    def together(self) -> Iterator[Callable[[bytes, str], str]]:
        """Give a `put` for many blobs; if the block fails, those go again that nobody else has put before or since."""
        added: dict[str, str] = {}
        try:
            yield lambda data, media_type: self._put(data, media_type, added)
        except BaseException:
            self._delete(
                "(sha256, created_at) IN"
                " (SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(:batch))",
                list(added.items()),
            )
            raise

    def _put(self, data: bytes, media_type: str, added: dict[str, str]) -> str:
        """Store bytes; if they were not there, note in `added` when that was."""
        sha256 = hashlib.sha256(data).hexdigest()
        target = self._place(sha256)
        # The row comes before the file, so that no other process deletes between them. Deleting takes the file away
        # while it holds the write lock: either it is done when the row is written, and the file is missed below, or
        # it comes later and finds a row that is too young.
        with self._database.writing():
            # The time is taken under the lock, so no two times of one blob are the same.
            put_at = now()
            if not self._database.run("UPDATE blobs SET created_at = ? WHERE sha256 = ?", [put_at, sha256]):
                self._database.insert(
                    "blobs",
                    {"sha256": sha256, "bytes": len(data), "media_type": media_type, "created_at": put_at},
                )
                added[sha256] = put_at
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self._root, delete=False) as temporary:
                temporary.write(data)
            publish(Path(temporary.name), target)
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
        """Delete those of `candidates` that no dataset row and no message uses; return how many went.

        What was put less than GRACE_SECONDS ago stays; `sweep` takes it later.
        """
        return self._delete(
            "sha256 IN (SELECT value FROM json_each(:batch)) AND created_at < :before", sorted(candidates)
        )

    def sweep(self) -> int:
        """Delete all that nothing uses, as undone, edited and refused messages leave it; return how many went."""
        # Looked for without the write lock; before anything is deleted it is asked again under it.
        found = self._database.rows(
            f"SELECT sha256 FROM blobs WHERE created_at < ? AND {_UNUSED}", [now(-GRACE_SECONDS)]
        )
        return self.delete_unused({row["sha256"] for row in found})

    def _delete(self, condition: str, candidates: Sequence[str | tuple[str, str]]) -> int:
        removed = 0
        for start in range(0, len(candidates), BATCH):
            batch = json.dumps(candidates[start : start + BATCH])
            with self._database.writing():
                gone = self._database.rows(
                    f"DELETE FROM blobs WHERE {condition} AND {_UNUSED} RETURNING sha256",
                    {"batch": batch, "before": now(-GRACE_SECONDS)},
                )
                # Within the transaction, see `_put`. If it fails after this, rows without files stay behind, which
                # nothing uses: the next `put` of the same bytes brings the file back, or `sweep` takes the row.
                for row in gone:
                    self._place(row["sha256"]).unlink(missing_ok=True)
            removed += len(gone)
        return removed

    def _place(self, sha256: str) -> Path:
        # The hash becomes a path, so anything but 64 hex digits is refused here, whoever sent it.
        if len(sha256) != 64 or not HEX_DIGITS.issuperset(sha256):
            raise UnknownBlob(sha256)
        return self._root / sha256[:2] / sha256

"""An append-only log of who did what, chained by hashes so that a changed or missing line shows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from storage.clock import now
from storage.database import Database
from storage.errors import AuditBroken
from storage.records import AuditEntry

FIRST = "0" * 64


class Audit:
    """The log; its lines are written in the transaction of the change that they describe."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def write(self, actor: str, action: str, object: str, detail: dict[str, Any] | None = None) -> None:  # noqa: A002 - the audit's own word
        """Append one line."""
        line = {
            "at": now(),
            "actor": actor,
            "action": action,
            "object": object,
            "detail": json.dumps(detail or {}),
        }
        with self._database.writing():
            last = self._database.row("SELECT sha256 FROM audit ORDER BY id DESC LIMIT 1")
            previous = str(last["sha256"]) if last else FIRST
            self._database.insert("audit", line | {"sha256": _chain(previous, line)})

    def list(self, limit: int = 100) -> Sequence[AuditEntry]:
        """Return the newest lines first."""
        found = self._database.rows(
            "SELECT id, at, actor, action, object, detail FROM audit ORDER BY id DESC LIMIT ?", [limit]
        )
        return [AuditEntry(**row | {"detail": json.loads(row["detail"])}) for row in found]

    def verify(self) -> int:
        """Check the whole chain; return the number of lines, or raise AuditBroken naming the first bad one."""
        previous, count = FIRST, 0
        for row in self._database.rows("SELECT * FROM audit ORDER BY id"):
            line = {name: row[name] for name in ("at", "actor", "action", "object", "detail")}
            if row["sha256"] != _chain(previous, line):
                raise AuditBroken(int(row["id"]))
            previous, count = row["sha256"], count + 1
        return count


def _chain(previous: str, line: dict[str, str]) -> str:
    return hashlib.sha256((previous + json.dumps(line, sort_keys=True)).encode()).hexdigest()

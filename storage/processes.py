"""What the processes of an installation tell one another about themselves, since they meet only here."""

from __future__ import annotations

import json
from typing import Any

from storage.clock import now
from storage.database import Database


class Processes:
    """The newest announcement of each process, by name."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def announce(self, name: str, facts: dict[str, Any]) -> None:
        """Say that a process has started, and what others may want to show of it."""
        self._database.run(
            "INSERT INTO processes (name, started_at, facts) VALUES (?, ?, ?) ON CONFLICT (name)"
            " DO UPDATE SET started_at = excluded.started_at, facts = excluded.facts",
            [name, now(), json.dumps(facts)],
        )

    def facts(self, name: str) -> dict[str, Any]:
        """Return what a process announced last; nothing if it never started."""
        row = self._database.row("SELECT facts FROM processes WHERE name = ?", [name])
        return dict(json.loads(row["facts"])) if row else {}

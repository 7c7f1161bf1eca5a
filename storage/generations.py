"""Generations, their lineage, and the one alias that says which of them answers people.

The alias moves only by compare-and-set inside a transaction that also ends the round, marks its datasets learned and
writes the audit line: there is no moment at which one of these is true and another is not.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from storage.audit import Audit
from storage.clock import now
from storage.database import Database
from storage.errors import (
    AliasMoved,
    LeaseLost,
    NothingToRollBack,
    RoundCancelled,
    UnknownGeneration,
    WrongState,
)
from storage.records import ACTIVE, ALIAS, AliasChange, Decision, Generation, RoundState

BASE = 0
"""The number of the bare base model: every lineage starts there, and it needs no loading."""


class Generations:
    """Every adapter ever published, and which one serves."""

    def __init__(self, database: Database, audit: Audit, root: Path) -> None:
        self._database = database
        self._audit = audit
        self.root = root

    def get(self, number: int) -> Generation:
        """Return one generation; raise UnknownGeneration if there is none of this number (0 is not an adapter)."""
        row = self._database.row("SELECT * FROM generations WHERE number = ?", [number])
        if row is None:
            raise UnknownGeneration(number)
        return _generation(row, self.root)

    def list(self) -> Sequence[Generation]:
        """Return every generation, newest first."""
        found = self._database.rows("SELECT * FROM generations ORDER BY number DESC")
        return [_generation(row, self.root) for row in found]

    def champion(self) -> int:
        """Return the number of the generation that answers people; 0 is the base model."""
        row = self._database.row("SELECT generation FROM aliases WHERE name = ?", [ALIAS])
        return int(row["generation"]) if row else BASE

    def previous(self) -> int | None:
        """Return the generation a roll-back goes to: the champion's parent; None if the base model serves."""
        champion = self.champion()
        return None if champion == BASE else self.get(champion).parent

    def lineage(self, number: int) -> Sequence[Generation]:
        """Return a generation and all it descends from, the newest first; nothing for the base model."""
        found = []
        while number != BASE:
            found.append(self.get(number))
            number = found[-1].parent
        return found

    def adapters(self, number: int) -> tuple[int, ...]:
        """Return the generations whose adapters a generation answers with; the base model, 0, has only itself."""
        return (BASE,) if number == BASE else self.get(number).adapters

    def load_set(self) -> set[int]:
        """Return the generations whose adapters every server must have loaded: all those of the serve set."""
        return {adapter for number in self.serve_set() for adapter in self.adapters(number)}

    def serve_set(self) -> set[int]:
        """Return the generations that can be asked: champion, both ways back, and a candidate under test."""
        wanted = {self.champion(), self.previous() or BASE}
        last = self._database.row("SELECT previous FROM alias_history ORDER BY id DESC LIMIT 1")
        if last is not None:
            wanted.add(last["previous"])
        active = ", ".join(f"'{state}'" for state in ACTIVE)
        live = self._database.rows(
            f"SELECT candidate FROM rounds WHERE candidate IS NOT NULL AND state IN ({active})"
        )
        return (wanted | {row["candidate"] for row in live}) - {BASE}

    def served(self) -> set[int]:
        """Return every generation that has ever been champion, the base model included."""
        found = self._database.rows("SELECT DISTINCT generation FROM alias_history")
        return {row["generation"] for row in found} | {BASE}

    def history(self) -> Sequence[AliasChange]:
        """Return every move of the alias, newest first."""
        found = self._database.rows(
            "SELECT at, generation, previous, actor, reason, round_id FROM alias_history ORDER BY id DESC"
        )
        return [AliasChange(**row) for row in found]

    def publish(
        self,
        *,
        round_id: int,
        lease: str,
        sha256: str,
        parent: int,
        rank: int,
        manifest: dict[str, Any],
        share: float = 1.0,
    ) -> Generation:
        """Give a finished adapter directory (`root/sha256`) its number and make it the round's candidate.

        `share` says how far it goes from the parent to what the round has trained. Publishing the same share of a round
        again returns the number it already has. Raises LeaseLost.
        """
        with self._database.writing():
            self._holder(round_id, lease)
            known = self.of_round(round_id, share)
            number = (
                known.number
                if known
                else self._database.insert(
                    "generations",
                    {
                        "sha256": sha256,
                        "directory": sha256,
                        "parent": parent,
                        "round_id": round_id,
                        "share": share,
                        "rank": rank,
                        "manifest": json.dumps(manifest),
                        "created_at": now(),
                    },
                )
            )
            self._database.run("UPDATE rounds SET candidate = ? WHERE id = ?", [number, round_id])
        return self.get(number)

    def of_round(self, round_id: int, share: float = 1.0) -> Generation | None:
        """Return what a round has trained or, for a smaller share, a point on the way there; None if there is none."""
        row = self._database.row(
            "SELECT * FROM generations WHERE round_id = ? AND share = ?", [round_id, share]
        )
        return _generation(row, self.root) if row else None

    def put_to_test(self, number: int, *, round_id: int, lease: str) -> None:
        """Make one of a round's generations its candidate: the one that is asked, judged and may be promoted.

        Raises LeaseLost, or UnknownGeneration if the round has no such generation.
        """
        with self._database.writing():
            self._holder(round_id, lease)
            if self.get(number).round_id != round_id:
                raise UnknownGeneration(number)
            self._database.run("UPDATE rounds SET candidate = ? WHERE id = ?", [number, round_id])

    def promote(self, *, round_id: int, lease: str, candidate: int, expected: int) -> None:
        """Make the candidate the champion and end its round as promoted, if `expected` still serves.

        Raises LeaseLost, AliasMoved, RoundCancelled if that was asked for, and WrongState unless the round is swapping
        with the verdict `promote`.
        """
        with self._database.writing():
            holder = self._holder(round_id, lease)
            verdict = json.loads(holder["verdict"] or "{}").get("decision", "absent")
            if holder["state"] != RoundState.SWAPPING or verdict != Decision.PROMOTE:
                raise WrongState(
                    f"Round {round_id} with verdict {verdict}", holder["state"], [RoundState.SWAPPING]
                )
            if holder["cancel_requested"]:
                raise RoundCancelled(round_id)
            self._flip(candidate, expected, actor=f"round {round_id}", reason="promoted", round_id=round_id)
            self._database.run(
                "UPDATE rounds SET state = 'promoted', finished_at = ?, lease = NULL, lease_until = NULL WHERE id = ?",
                [now(), round_id],
            )
            self._database.run(
                "UPDATE datasets SET state = 'learned' WHERE state = 'queued'"
                " AND id IN (SELECT dataset_id FROM round_datasets WHERE round_id = ?)",
                [round_id],
            )
            self._database.insert(
                "events",
                {
                    "round_id": round_id,
                    "at": now(),
                    "level": "info",
                    "kind": "promoted",
                    "message": f"generation {candidate} serves instead of {expected}",
                    "data": "{}",
                },
            )

    def roll_back(self, actor: str, *, to: int | None = None, expected: int | None = None) -> int:
        """Let an earlier generation serve again and return its number: the champion's parent unless `to` is given.

        What it has not learned is set aside, and what it has counts as learned again. `to` must have served before.
        Raises NothingToRollBack, UnknownGeneration, or AliasMoved if `expected` is given and something else serves.
        """
        with self._database.writing():
            champion = self.champion()
            target = self.previous() if to is None else to
            if target is None or target == champion:
                raise NothingToRollBack
            if target not in self.served():
                raise UnknownGeneration(target)
            self._flip(target, champion if expected is None else expected, actor=actor, reason="rolled back")
            self._count_as_learned(target)
        return target

    def _count_as_learned(self, number: int) -> None:
        """Make the states of datasets tell what this generation has learned; withdrawn ones stay."""
        rounds = json.dumps([generation.round_id for generation in self.lineage(number)])
        taught = "(SELECT dataset_id FROM round_datasets WHERE round_id IN (SELECT value FROM json_each(?)))"
        self._database.run(
            f"UPDATE datasets SET state = 'set_aside' WHERE state = 'learned' AND id NOT IN {taught}",
            [rounds],
        )
        # One that was queued again in the meantime would be taught twice.
        self._database.run(
            f"UPDATE datasets SET state = 'learned' WHERE state IN ('set_aside', 'queued') AND id IN {taught}",
            [rounds],
        )

    def _flip(
        self, generation: int, expected: int, *, actor: str, reason: str, round_id: int | None = None
    ) -> None:
        moved = self._database.run(
            "UPDATE aliases SET generation = ? WHERE name = ? AND generation = ?",
            [generation, ALIAS, expected],
        )
        if not moved:
            raise AliasMoved(expected, self.champion())
        self._database.insert(
            "alias_history",
            {
                "at": now(),
                "alias": ALIAS,
                "generation": generation,
                "previous": expected,
                "actor": actor,
                "reason": reason,
                "round_id": round_id,
            },
        )
        self._audit.write(actor, "alias.move", ALIAS, {"from": expected, "to": generation, "reason": reason})

    def _holder(self, round_id: int, lease: str) -> dict[str, Any]:
        row = self._database.row("SELECT * FROM rounds WHERE id = ? AND lease = ?", [round_id, lease])
        if row is None or row["state"] not in ACTIVE:
            raise LeaseLost(round_id)
        return row


def _generation(row: dict[str, Any], root: Path) -> Generation:
    return Generation(**row | {"directory": root / row["directory"], "manifest": json.loads(row["manifest"])})

"""The queue of update rounds, and everything a round tells about itself.

A claim is one `UPDATE … RETURNING`. It gives the worker a lease: a random token with an end. Every later write of
that worker carries the token, so a worker that was paused and replaced cannot write; whoever does not renew its
lease in time is replaced. A round whose workers died MAX_ATTEMPTS times fails instead of being tried for ever.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from typing import Any, Literal

from storage.audit import Audit
from storage.clock import now
from storage.database import Database
from storage.errors import LeaseLost, NothingToLearn, RoundInProgress, UnknownRound, WrongState
from storage.records import ACTIVE, TRANSITIONS, DatasetState, Event, Round, RoundState, StepMetrics

MAX_ATTEMPTS = 3
LEFT = "left"
"""Kind of the event that tells which datasets a round has left for a later one."""
Level = Literal["info", "warning", "error"]

_ACTIVE = ", ".join(f"'{state}'" for state in ACTIVE)
_AFTERWARDS = {
    RoundState.REJECTED: DatasetState.SET_ASIDE,
    RoundState.HELD: DatasetState.SET_ASIDE,
    RoundState.FAILED: DatasetState.SET_ASIDE,
    RoundState.CANCELLED: DatasetState.QUEUED,
}
"""What a round that was not promoted leaves its datasets as; a cancelled one was nobody's fault."""


class Rounds:
    """Update rounds, from being asked for to their end."""

    def __init__(self, database: Database, audit: Audit) -> None:
        self._database = database
        self._audit = audit

    # -- for those who ask ------------------------------------------------------------------------------------

    def enqueue(self, requested_by: str, policy: str = "", settings: dict[str, Any] | None = None) -> Round:
        """Ask for a round over every queued dataset, with the learner's own policy and settings where none are given.

        Raises NothingToLearn, or RoundInProgress if one is unfinished.
        """
        with self._database.writing():
            unfinished = self.unfinished()
            if unfinished is not None:
                raise RoundInProgress(unfinished.id, unfinished.state)
            queued = self._database.rows("SELECT id FROM datasets WHERE state = 'queued'")
            if not queued:
                waiting = self._database.rows("SELECT id FROM datasets WHERE state = 'pending'")
                raise NothingToLearn(len(waiting))
            round_id = self._database.insert(
                "rounds",
                {
                    "state": RoundState.QUEUED,
                    "policy": policy,
                    "settings": json.dumps(settings or {}),
                    "requested_by": requested_by,
                    "created_at": now(),
                },
            )
            for dataset in queued:
                self._database.insert("round_datasets", {"round_id": round_id, "dataset_id": dataset["id"]})
            self._event(round_id, "queued", f"asked for by {requested_by}")
            self._audit.write(requested_by, "round.enqueue", str(round_id), {"policy": policy})
        return self.get(round_id)

    def get(self, round_id: int) -> Round:
        """Return one round; raise UnknownRound if there is none of this id."""
        row = self._database.row("SELECT * FROM rounds WHERE id = ?", [round_id])
        if row is None:
            raise UnknownRound(round_id)
        return _round(row)

    def list(self, limit: int = 50) -> Sequence[Round]:
        """Return rounds, newest first."""
        return [
            _round(row)
            for row in self._database.rows("SELECT * FROM rounds ORDER BY id DESC LIMIT ?", [limit])
        ]

    def unfinished(self) -> Round | None:
        """Return the round that is queued or running, if any; there is never more than one."""
        row = self._database.row(f"SELECT * FROM rounds WHERE state = 'queued' OR state IN ({_ACTIVE})")
        return _round(row) if row else None

    def dataset_ids(self, round_id: int) -> Sequence[int]:
        """Return the datasets this round learns."""
        found = self._database.rows(
            "SELECT dataset_id FROM round_datasets WHERE round_id = ? ORDER BY dataset_id", [round_id]
        )
        return [row["dataset_id"] for row in found]

    def cancel(self, round_id: int, actor: str) -> Round:
        """Stop a round: at once if nobody works on it, else at the worker's next heartbeat. Raises WrongState."""
        with self._database.writing():
            found = self.get(round_id)
            if found.state.ended:
                raise WrongState(f"Round {round_id}", found.state, [RoundState.QUEUED, *ACTIVE])
            if found.state is RoundState.QUEUED:
                self._end(round_id, RoundState.CANCELLED, None, f"cancelled by {actor}")
            else:
                self._database.run("UPDATE rounds SET cancel_requested = 1 WHERE id = ?", [round_id])
                self._event(round_id, "cancel", f"cancel asked for by {actor}", level="warning")
            self._audit.write(actor, "round.cancel", str(round_id))
        return self.get(round_id)

    def events(self, round_id: int, after: int = 0) -> Sequence[Event]:
        """Return what happened in a round, oldest first, from the event after `after` on."""
        found = self._database.rows(
            "SELECT * FROM events WHERE round_id = ? AND id > ? ORDER BY id", [round_id, after]
        )
        return [Event(**row | {"data": json.loads(row["data"])}) for row in found]

    def metrics(self, round_id: int, after_step: int = -1) -> Sequence[StepMetrics]:
        """Return what was measured at each optimizer step after `after_step`."""
        found = self._database.rows(
            "SELECT step, data FROM metrics WHERE round_id = ? AND step > ? ORDER BY step",
            [round_id, after_step],
        )
        return [
            StepMetrics(round_id=round_id, step=row["step"], values=json.loads(row["data"])) for row in found
        ]

    # -- for the worker ---------------------------------------------------------------------------------------

    def claim(self, worker: str, lease_seconds: float) -> Round | None:
        """Take the next round that nobody works on, fresh or left by a dead worker; None if there is none.

        If the last one has ended and left datasets for a later round, that is asked for first.
        """
        with self._database.writing():
            self._fail_poisoned()
            self._ask_for_the_rest()
        row = self._database.row(
            "UPDATE rounds SET state = 'preparing', lease = :lease, lease_until = :until, worker = :worker,"
            " attempts = attempts + 1, started_at = coalesce(started_at, :now)"
            f" WHERE id = (SELECT id FROM rounds WHERE state = 'queued' OR (state IN ({_ACTIVE})"
            " AND lease_until < :now) ORDER BY id LIMIT 1) RETURNING *",
            {"lease": secrets.token_hex(16), "until": now(lease_seconds), "worker": worker, "now": now()},
        )
        if row is None:
            return None
        claimed = _round(row)
        self._event(claimed.id, "claimed", f"attempt {claimed.attempts} by {worker}")
        return claimed

    def heartbeat(self, round_id: int, lease: str, lease_seconds: float) -> Round:
        """Renew the lease and return the round as it is now, so that a cancel is seen. Raises LeaseLost."""
        row = self._database.row(
            f"UPDATE rounds SET lease_until = ? WHERE id = ? AND lease = ? AND state IN ({_ACTIVE}) RETURNING *",
            [now(lease_seconds), round_id, lease],
        )
        if row is None:
            raise LeaseLost(round_id)
        return _round(row)

    def advance(self, round_id: int, lease: str, state: RoundState, message: str = "") -> Round:
        """Move on to the next state. Raises LeaseLost, or WrongState if the step is not in TRANSITIONS."""
        with self._database.writing():
            found = self._held(round_id, lease)
            if state not in TRANSITIONS[found.state]:
                raise WrongState(
                    f"Round {round_id}",
                    found.state,
                    [s for s, after in TRANSITIONS.items() if state in after],
                )
            self._database.run("UPDATE rounds SET state = ? WHERE id = ?", [state, round_id])
            self._event(round_id, state, message)
        return self.get(round_id)

    def prepare(
        self, round_id: int, lease: str, champion: int, policy: str, settings: dict[str, Any]
    ) -> Round:
        """Fix champion, policy and all settings of a round; only the first call counts."""
        with self._database.writing():
            self._held(round_id, lease)
            self._database.run(
                "UPDATE rounds SET champion = ?, policy = ?, settings = ? WHERE id = ? AND champion IS NULL",
                [champion, policy, json.dumps(settings), round_id],
            )
        return self.get(round_id)

    def leave(self, round_id: int, lease: str, dataset_ids: Sequence[int], reason: str) -> None:
        """Take datasets out of a round; they stay queued for a later one."""
        with self._database.writing():
            self._held(round_id, lease)
            for dataset_id in dataset_ids:
                self._database.run(
                    "DELETE FROM round_datasets WHERE round_id = ? AND dataset_id = ?", [round_id, dataset_id]
                )
            self._event(round_id, LEFT, reason, {"datasets": list(dataset_ids)})

    def restart(self, round_id: int, lease: str, reason: str) -> None:
        """Note that training begins again, and forget what was measured of it; there may be fewer steps this time."""
        with self._database.writing():
            self._held(round_id, lease)
            self._database.run("DELETE FROM metrics WHERE round_id = ?", [round_id])
            self._database.run("UPDATE rounds SET step = 0, steps = 0 WHERE id = ?", [round_id])
            self._event(round_id, "restarted", reason, level="warning")

    def set_verdict(self, round_id: int, lease: str, verdict: dict[str, Any]) -> None:
        """Store what the gate decided and on what grounds."""
        with self._database.writing():
            self._held(round_id, lease)
            self._database.run("UPDATE rounds SET verdict = ? WHERE id = ?", [json.dumps(verdict), round_id])
            self._event(round_id, "verdict", f"{verdict['decision']}: {'; '.join(verdict['reasons'])}")

    def record(
        self,
        round_id: int,
        lease: str,
        kind: str,
        message: str,
        data: dict[str, Any] | None = None,
        level: Level = "info",
    ) -> None:
        """Note something that happened, for people to read."""
        with self._database.writing():
            self._held(round_id, lease)
            self._event(round_id, kind, message, data, level)

    def record_metrics(
        self, round_id: int, lease: str, step: int, steps: int, values: dict[str, Any]
    ) -> None:
        """Store what was measured at optimizer step `step` of `steps`; a repeated step replaces the earlier record."""
        with self._database.writing():
            self._held(round_id, lease)
            self._database.run(
                "INSERT INTO metrics (round_id, step, data) VALUES (?, ?, ?)"
                " ON CONFLICT (round_id, step) DO UPDATE SET data = excluded.data",
                [round_id, step, json.dumps(values)],
            )
            self._database.run("UPDATE rounds SET step = ?, steps = ? WHERE id = ?", [step, steps, round_id])

    def finish(self, round_id: int, lease: str, state: RoundState, error: str | None = None) -> Round:
        """End a round as rejected, held, failed or cancelled; only `Generations.promote` ends one as promoted."""
        with self._database.writing():
            found = self._held(round_id, lease)
            if found.cancel_requested:
                # Whatever it ran into on the way, somebody wanted it to stop, and its data to stay queued.
                state = RoundState.CANCELLED
            if state not in TRANSITIONS[found.state] or state not in _AFTERWARDS:
                raise WrongState(f"Round {round_id}", found.state, _AFTERWARDS)
            self._end(round_id, state, error, error or "")
        return self.get(round_id)

    def release(self, round_id: int, lease: str, reason: str, *, counts: bool) -> None:
        """Give the round back, to be claimed again at once; `counts` says whether this was a failed attempt."""
        with self._database.writing():
            self._held(round_id, lease)
            self._database.run(
                # Without its lease, so that a heartbeat which comes after this renews nothing.
                "UPDATE rounds SET lease = NULL, lease_until = ?, attempts = attempts - ? WHERE id = ?",
                [now(-1), 0 if counts else 1, round_id],
            )
            self._event(round_id, "released", reason, level="warning")

    # -- inside -----------------------------------------------------------------------------------------------

    def _held(self, round_id: int, lease: str) -> Round:
        found = self.get(round_id)
        if found.lease != lease or found.state not in ACTIVE:
            raise LeaseLost(round_id)
        return found

    def _fail_poisoned(self) -> None:
        poisoned = self._database.rows(
            f"SELECT id, cancel_requested FROM rounds WHERE state IN ({_ACTIVE})"
            " AND lease_until < ? AND attempts >= ?",
            [now(), MAX_ATTEMPTS],
        )
        for row in poisoned:
            error = f"its worker died {MAX_ATTEMPTS} times; see the learner's log"
            state = RoundState.CANCELLED if row["cancel_requested"] else RoundState.FAILED
            self._end(row["id"], state, error, error)

    def _ask_for_the_rest(self) -> None:
        """Ask for a round like the newest one over what it has left, unless it is unfinished or somebody stopped it.

        Not where rounds end: then each way to end would have to, and a worker that dies just after it would not.
        """
        for last in self.list(1):
            if last.state.ended and last.state is not RoundState.CANCELLED and self._has_left_queued(last.id):
                self.enqueue(last.requested_by, last.policy, last.settings)

    def _has_left_queued(self, round_id: int) -> bool:
        found = self._database.row(
            "SELECT 1 FROM events, json_each(events.data, '$.datasets') AS named"
            " JOIN datasets ON datasets.id = named.value"
            " WHERE round_id = ? AND kind = ? AND state = 'queued'",
            [round_id, LEFT],
        )
        return found is not None

    def _end(self, round_id: int, state: RoundState, error: str | None, message: str) -> None:
        self._database.run(
            "UPDATE rounds SET state = ?, error = ?, finished_at = ?, lease = NULL, lease_until = NULL WHERE id = ?",
            [state, error, now(), round_id],
        )
        self._database.run(
            "UPDATE datasets SET state = ? WHERE state = 'queued'"
            " AND id IN (SELECT dataset_id FROM round_datasets WHERE round_id = ?)",
            [_AFTERWARDS[state], round_id],
        )
        self._event(round_id, state, message, level="error" if state is RoundState.FAILED else "info")

    def _event(
        self,
        round_id: int,
        kind: str,
        message: str,
        data: dict[str, Any] | None = None,
        level: Level = "info",
    ) -> None:
        self._database.insert(
            "events",
            {
                "round_id": round_id,
                "at": now(),
                "level": level,
                "kind": kind,
                "message": message,
                "data": json.dumps(data or {}),
            },
        )


def _round(row: dict[str, Any]) -> Round:
    wanted = {name: row[name] for name in Round.__dataclass_fields__}
    return Round(
        **wanted
        | {
            "state": RoundState(row["state"]),
            "settings": json.loads(row["settings"]),
            "cancel_requested": bool(row["cancel_requested"]),
            "verdict": json.loads(row["verdict"]) if row["verdict"] else None,
        }
    )

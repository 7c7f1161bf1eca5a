"""Holds a claimed round: renews its lease in a thread, and tells the round's story when to stop."""

from __future__ import annotations

import sqlite3
import threading
import time
from types import TracebackType
from typing import Self

from storage.errors import LeaseLost, RoundCancelled, WorkerStopping
from storage.records import Round
from storage.store import Store


class Lease:
    """The right to work on one round; enter it to keep it, call `check` often.

    Losing the lease, a cancel and a worker that is told to stop are noticed within one heartbeat.
    """

    def __init__(
        self, store: Store, claimed: Round, *, lease_seconds: float, heartbeat_seconds: float
    ) -> None:
        self.round_id = claimed.id
        self.token = str(claimed.lease)
        self._store = store
        self._lease_seconds = lease_seconds
        self._heartbeat_seconds = heartbeat_seconds
        self._left = threading.Event()
        self._lost = threading.Event()
        self._cancelled = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._renew, name=f"lease of round {claimed.id}", daemon=True)

    def __enter__(self) -> Self:
        self._beat()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left.set()
        self._thread.join()

    def stop(self) -> None:
        """Ask the story to stop at its next check; safe to call from a signal handler."""
        self._stopping.set()

    def should_stop(self) -> bool:
        """Tell whether to save what there is and stop, and `check` would say why.

        Raises LeaseLost instead: another worker may be at it by now, and what there is would be older than its own.
        """
        if self._lost.is_set():
            raise LeaseLost(self.round_id)
        return self._cancelled.is_set() or self._stopping.is_set()

    def check(self) -> None:
        """Raise LeaseLost, RoundCancelled or WorkerStopping if the story must not go on."""
        if self._lost.is_set():
            raise LeaseLost(self.round_id)
        if self._cancelled.is_set():
            raise RoundCancelled(self.round_id)
        if self._stopping.is_set():
            raise WorkerStopping(self.round_id)

    def _beat(self) -> None:
        found = self._store.rounds.heartbeat(self.round_id, self.token, self._lease_seconds)
        if found.cancel_requested:
            self._cancelled.set()

    def _renew(self) -> None:
        good_until = time.monotonic() + self._lease_seconds
        while not self._left.wait(self._heartbeat_seconds):
            try:
                self._beat()
            except LeaseLost:
                self._lost.set()
                return
            except sqlite3.OperationalError:
                # A full or busy disk may recover; but once the lease has run out another worker may hold the round.
                if time.monotonic() > good_until:
                    self._lost.set()
                    return
            else:
                good_until = time.monotonic() + self._lease_seconds

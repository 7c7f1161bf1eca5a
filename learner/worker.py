"""Claims rounds and runs each in a process of its own, so that whatever training does to memory ends with it."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import structlog

from learner.lease import Lease
from learner.round import RoundStory, be_nice
from learner.settings import LearnerSettings
from serving.settings import ServingSettings
from serving.supervise import die_with_parent
from storage.errors import LeaseLost
from storage.records import Round
from storage.store import Store

log = structlog.get_logger()

TAIL_BYTES = 2000


def run_claimed(store: Store, claimed: Round, settings: LearnerSettings, serving: ServingSettings) -> None:
    """Carry a claimed round to its end in this process; SIGTERM makes it stop at a checkpoint and give it back."""
    lease = Lease(
        store, claimed, lease_seconds=settings.lease_seconds, heartbeat_seconds=settings.heartbeat_seconds
    )
    signal.signal(signal.SIGTERM, lambda _signal, _frame: lease.stop())
    # Ctrl-C reaches the whole group; the worker passes it on as SIGTERM.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    be_nice()
    with lease:
        RoundStory(store, claimed, lease, settings, serving).tell()


class Worker:
    """Looks at the queue whenever it is woken, and works through it one round at a time."""

    def __init__(self, store: Store, settings: LearnerSettings) -> None:
        self._store = store
        self._settings = settings
        self._name = socket.gethostname()
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._child: subprocess.Popen[bytes] | None = None

    def wake(self) -> None:
        """Look at the queue now."""
        self._wake.set()

    def stop(self) -> None:
        """Stop after asking a running round to save and give itself back; safe in a signal handler."""
        self._stopping.set()
        if self._child is not None:
            self._child.terminate()
        self._wake.set()

    def run(self) -> None:
        """Work until `stop` is called."""
        while not self._stopping.is_set():
            claimed = self._store.rounds.claim(self._name, self._settings.lease_seconds)
            if claimed is not None:
                self._run_in_child(claimed)
                continue
            self._wake.wait()
            self._wake.clear()

    def _run_in_child(self, claimed: Round) -> None:
        path = self._store.data_dir / "logs" / f"round-{claimed.id}.log"
        with path.open("ab") as output:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "learner", "round", str(claimed.id), str(claimed.lease)],
                stdout=output,
                stderr=subprocess.STDOUT,
                preexec_fn=die_with_parent,  # noqa: PLW1509 - it only calls prctl, resolved before the fork
            )
            if self._stopping.is_set():
                self._child.terminate()
            code = self._child.wait()
        self._child = None
        if code != 0:
            self._give_back(claimed, code, path)

    def _give_back(self, claimed: Round, code: int, path: Path) -> None:
        log.error("round process died", round=claimed.id, code=code, log=str(path))
        last_line = path.read_bytes()[-TAIL_BYTES:].decode(errors="replace").strip().rpartition("\n")[2]
        reason = f"the process of this round died with code {code}: {last_line}"
        try:
            # A process that was stopped before it could give the round back itself has not failed.
            counts = not self._stopping.is_set()
            self._store.rounds.release(claimed.id, str(claimed.lease), reason, counts=counts)
        except LeaseLost:
            # It had ended the round before it died, or another worker holds it: there is nothing to give back.
            log.info("round was not held any more", round=claimed.id)

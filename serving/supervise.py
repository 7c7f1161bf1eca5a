"""Keeps child programs running: starts, health checks, restarts with back-off, a log file, a clean stop.

Knows nothing of vLLM or of any particular program. A child dies with its supervisor even if that is killed
with -9, and its own children die with it. Programs say with exit status 2 that starting them again cannot
help.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import structlog

from storage.errors import ProgramRefused

log = structlog.get_logger()

PR_SET_PDEATHSIG = 1  # linux/prctl.h
HOPELESS = 2
"""Exit status of a program that cannot run as it is set up (the one argparse and `python -m` of ours use)."""
LOG_BYTES = 20 * 1024 * 1024
TAIL_BYTES = 64 * 1024

_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent() -> None:
    """Ask the kernel for SIGTERM when the parent thread ends; to be given to Popen as `preexec_fn`."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def tail(path: Path, lines: int = 50) -> str:
    """Return the last lines of a log, or an empty string if there is none yet."""
    if not path.exists():
        return ""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL_BYTES))
        return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])


class State(StrEnum):
    """Where a supervised program stands."""

    STARTING = "starting"
    HEALTHY = "healthy"
    WAITING = "waiting"
    """ended on its own; waits for its next start"""
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A program to keep running, and how patient to be with it."""

    name: str
    command: Sequence[str]
    log: Path
    healthy: Callable[[], Awaitable[bool]]
    """Tells whether the program does its work; asked again and again."""
    environment: Mapping[str, str] | None = None
    """The whole environment of the child; None passes on our own."""
    startup_seconds: float = 60.0
    """Longest time from start to healthy."""
    unresponsive_seconds: float = 60.0
    """Longest time without a good health check after that."""
    stop_seconds: float = 15.0
    """Longest time between SIGTERM and SIGKILL."""
    check_seconds: float = 1.0
    """Pause between two health checks."""
    backoff_seconds: float = 1.0
    """First pause before a restart; it doubles up to `backoff_most_seconds`."""
    backoff_most_seconds: float = 30.0
    """Longest pause; a program that was healthy for as long begins with the first pause again."""


class Supervisor:
    """Runs one program until told to stop."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.state = State.STOPPED
        self.starts = 0
        self.pid: int | None = None
        self._healthy = asyncio.Event()

    async def wait_healthy(self) -> None:
        """Return once the program is healthy."""
        await self._healthy.wait()

    async def run(self) -> None:
        """Keep the program running until cancelled, then stop it; raise ProgramRefused at status 2."""
        pause = self.program.backoff_seconds
        while True:
            healthy_for, status = await self._run_once()
            if status == HOPELESS:
                self.state = State.STOPPED
                raise ProgramRefused(self.program.name, tail(self.program.log, 10), self.program.log)
            if healthy_for >= self.program.backoff_most_seconds:
                pause = self.program.backoff_seconds
            log.warning("program ended", program=self.program.name, status=status, restart_in=pause)
            self.state = State.WAITING
            await asyncio.sleep(pause)
            pause = min(2 * pause, self.program.backoff_most_seconds)

    async def _run_once(self) -> tuple[float, int]:
        """Start the program and stay until it has ended; return its healthy seconds and its status."""
        process = self._start()
        healthy_since: float | None = None
        try:
            last_good = time.monotonic()
            while process.poll() is None:
                now = time.monotonic()
                if await self._check():
                    last_good = now
                    healthy_since = healthy_since or now
                elif now - last_good > self._patience(healthy_since):
                    log.warning("program does not respond", program=self.program.name, state=self.state)
                    break
                await asyncio.sleep(self.program.check_seconds)
        finally:
            self._healthy.clear()
            self.state = State.STOPPED
            status = await asyncio.shield(asyncio.to_thread(_end, process, self.program.stop_seconds))
            self.pid = None
        return (0.0 if healthy_since is None else time.monotonic() - healthy_since), status

    def _start(self) -> subprocess.Popen[bytes]:
        self.program.log.parent.mkdir(parents=True, exist_ok=True)
        _rotate(self.program.log)
        with self.program.log.open("ab") as output:
            process = subprocess.Popen(
                self.program.command,
                env=None if self.program.environment is None else dict(self.program.environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # A session of its own: Ctrl-C reaches only the supervisor, and `_end` reaches the child's
                # children.
                start_new_session=True,
                preexec_fn=die_with_parent,  # noqa: PLW1509 - one system call, no Python lock is taken
            )
        self.state, self.pid, self.starts = State.STARTING, process.pid, self.starts + 1
        log.info("program started", program=self.program.name, pid=process.pid, start=self.starts)
        return process

    async def _check(self) -> bool:
        good = await self.program.healthy()
        if good and self.state is not State.HEALTHY:
            self.state = State.HEALTHY
            self._healthy.set()
            log.info("program healthy", program=self.program.name, pid=self.pid)
        return good

    def _patience(self, healthy_since: float | None) -> float:
        return self.program.startup_seconds if healthy_since is None else self.program.unresponsive_seconds


def _rotate(path: Path) -> None:
    if path.exists() and path.stat().st_size > LOG_BYTES:
        path.replace(path.with_name(f"{path.name}.1"))


def _end(process: subprocess.Popen[bytes], patience_seconds: float) -> int:
    """Stop a process, by force if need be, leave nothing of its session behind; return its status."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience_seconds)
    # Whatever is left of the session would hold the port or the GPU's memory against the next start.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    return process.wait()

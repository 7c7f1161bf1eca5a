"""What a supervised program can do, and what the supervisor then does; with real processes of one line each."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from serving import supervise
from serving.supervise import Program, State, Supervisor, tail
from storage.errors import ProgramRefused

SECONDS = 15
STAY = "import time; print('up', flush=True); time.sleep(60)"
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + STAY
PARENT = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {STAY!r}]); " + STAY


def program(tmp_path: Path, code: str, **changes: object) -> Program:
    """Return a Python one-liner as an impatient program that is healthy once it has printed something."""
    log = tmp_path / "program.log"

    async def healthy() -> bool:
        return "up" in tail(log)

    patience: dict[str, object] = {"check_seconds": 0.02, "backoff_seconds": 0.02, "stop_seconds": 5.0}
    wanted = {"name": "program", "command": [sys.executable, "-c", code], "log": log, "healthy": healthy}
    return Program(**wanted | patience | changes)  # type: ignore[arg-type]


@asynccontextmanager
async def running(started: Program) -> AsyncIterator[Supervisor]:
    """Supervise a program until the block ends."""
    supervisor = Supervisor(started)
    task = asyncio.create_task(supervisor.run())
    try:
        yield supervisor
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(true: Callable[[], bool]) -> None:
    """Return once something is true; fail after a while."""
    async with asyncio.timeout(SECONDS):
        while not true():
            await asyncio.sleep(0.02)


async def test_a_program_that_is_killed_is_started_again(tmp_path: Path) -> None:
    """After kill -9 there is a new, healthy process, and its log goes on in the same file."""
    async with running(program(tmp_path, STAY)) as supervisor:
        await supervisor.wait_healthy()
        first = supervisor.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await until(lambda: supervisor.starts == 2 and supervisor.state is State.HEALTHY)
        assert supervisor.pid != first
        await until(lambda: tail(supervisor.program.log) == "up\nup")


def gone(process: psutil.Process) -> bool:
    """Whether a process has ended; in a container without an init nobody takes its remains away."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


async def test_stopping_leaves_nothing_behind(tmp_path: Path) -> None:
    """A clean stop ends the program and whatever it has started itself."""
    async with running(program(tmp_path, PARENT)) as supervisor:
        await supervisor.wait_healthy()
        assert supervisor.pid is not None
        parent = psutil.Process(supervisor.pid)
        await until(lambda: len(parent.children()) == 1)
        family = [parent, *parent.children()]
    assert supervisor.state is State.STOPPED
    await until(lambda: all(gone(member) for member in family))


async def test_children_of_a_killed_program_die_with_it(tmp_path: Path) -> None:
    """What a killed program leaves behind cannot keep the port or the memory from its successor."""
    async with running(program(tmp_path, PARENT)) as supervisor:
        await supervisor.wait_healthy()
        assert supervisor.pid is not None
        parent = psutil.Process(supervisor.pid)
        await until(lambda: len(parent.children()) == 1)
        (orphan,) = parent.children()
        parent.kill()
        await until(lambda: gone(orphan))


async def test_a_program_that_ignores_the_request_to_stop_is_killed(tmp_path: Path) -> None:
    """Stopping takes no longer than the patience given."""
    async with running(program(tmp_path, STUBBORN, stop_seconds=0.2)) as supervisor:
        await supervisor.wait_healthy()
        pid = supervisor.pid
        began = time.monotonic()
    assert time.monotonic() - began < 5
    assert pid is not None
    assert not psutil.pid_exists(pid)


async def test_a_hopeless_program_is_not_started_again(tmp_path: Path) -> None:
    """Exit status 2 is reported with the program's last words."""
    code = "import sys; print('LLACA_PORT: found x'); sys.exit(2)"
    supervisor = Supervisor(program(tmp_path, code))
    with pytest.raises(ProgramRefused, match="LLACA_PORT: found x"):
        await supervisor.run()
    assert supervisor.starts == 1
    assert supervisor.state is State.STOPPED


async def test_restarts_come_at_growing_distances(tmp_path: Path) -> None:
    """A program that dies at once is not started in a tight loop."""
    limits = {"backoff_seconds": 0.3, "backoff_most_seconds": 0.6}
    began = time.monotonic()
    async with running(program(tmp_path, "raise SystemExit(1)", **limits)) as supervisor:
        await until(lambda: supervisor.starts == 3)
        assert time.monotonic() - began >= 0.9
        await until(lambda: supervisor.state is State.WAITING)


async def test_a_program_that_never_gets_healthy_is_replaced(tmp_path: Path) -> None:
    """A start that hangs ends at its limit and is tried again."""
    code = "import time; time.sleep(60)"
    async with running(program(tmp_path, code, startup_seconds=0.1)) as supervisor:
        await until(lambda: supervisor.starts >= 2)


async def test_a_program_that_stops_responding_is_replaced(tmp_path: Path) -> None:
    """A process that lives and does no work counts as dead."""
    good = True

    async def healthy() -> bool:
        return good

    started = program(tmp_path, STAY, healthy=healthy, unresponsive_seconds=0.1)
    async with running(started) as supervisor:
        await supervisor.wait_healthy()
        good = False
        await until(lambda: supervisor.starts >= 2)
        good = True
        await supervisor.wait_healthy()


def test_a_child_dies_with_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    """Even kill -9 of the supervisor leaves no child behind."""
    code = (
        "import subprocess, sys\n"
        "from serving.supervise import die_with_parent\n"
        f"child = subprocess.Popen([sys.executable, '-c', {STAY!r}], preexec_fn=die_with_parent)\n"
        "print(child.pid, flush=True)\n"
        "child.wait()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    child.wait(SECONDS)


def test_the_tail_of_a_log_is_its_last_lines(tmp_path: Path) -> None:
    """The tail is short whatever the size of the log, survives broken bytes, and is empty without a log."""
    log = tmp_path / "log"
    assert tail(log) == ""
    log.write_bytes(b"x" * 200_000 + b"\n\xff\none\ntwo\n")
    assert tail(log, 2) == "one\ntwo"


async def test_a_large_log_is_put_aside_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log of a program that restarts often does not fill the disk."""
    monkeypatch.setattr(supervise, "LOG_BYTES", 10)
    started = program(tmp_path, STAY)
    started.log.write_text("an older log\n")
    async with running(started) as supervisor:
        await supervisor.wait_healthy()
    assert started.log.with_name("program.log.1").read_text() == "an older log\n"

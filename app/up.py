"""`llaca up`: runs serving, the learner and the web page as three processes until told to stop.

Does not know what the three do; each can be started alone (`python -m serving`, `python -m learner`, `python -m app`).
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import httpx
import typer

from app.settings import AppSettings
from serving.settings import ServingSettings
from serving.supervise import Program, Supervisor
from storage.errors import AlreadyRunning, BadSetting, LlacaError, ProgramRefused, UnknownUser
from storage.records import Role, User
from storage.settings import StorageSettings, load, names_of, refuse_unknown
from storage.store import Store

FIRST_ADMIN = "admin"
STOP_SECONDS = 30.0
"""Serving itself waits for vLLM, and the learner for a checkpoint, before they end."""


def run() -> int:
    """Run everything until SIGINT or SIGTERM; return the exit status."""
    status = 0
    try:
        settings, kept = _settings()
        with Store(kept) as store, _only_one(store):
            # First, because a web process that was started in another way may be taking uploads there.
            _check_port(settings)
            store.clear_temporary()
            asyncio.run(_run(store, settings))
    except* LlacaError as errors:
        for error in errors.exceptions:
            typer.echo(f"llaca: {error}", err=True)
        status = 1
    return status


def _settings() -> tuple[AppSettings, StorageSettings]:
    """Read every setting once, so that a bad or misspelt one is one sentence now and not a log of restarts."""
    settings, kept = load(AppSettings), load(StorageSettings)
    load(ServingSettings)
    # The learner's are asked of the learner: the web side does not import it.
    asked = subprocess.run(
        [sys.executable, "-m", "learner.settings"], capture_output=True, text=True, check=False
    )
    if asked.returncode != 0:
        raise ProgramRefused("learner", asked.stderr.strip(), "its settings")
    refuse_unknown(names_of(AppSettings, StorageSettings, ServingSettings) | set(json.loads(asked.stdout)))
    return settings, kept


@contextmanager
def _only_one(store: Store) -> Iterator[None]:
    """Hold the data directory's lock, which the kernel frees with us; raise AlreadyRunning if it is held."""
    with (store.data_dir / "up.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise AlreadyRunning(store.data_dir) from error
        yield


def _check_port(settings: AppSettings) -> None:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            where = f"{settings.host}:{settings.port}"
            raise BadSetting(
                "LLACA_PORT", where, f"an address and port that can be used ({error.strerror})"
            ) from error


async def _run(store: Store, settings: AppSettings) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    supervisors = [Supervisor(program) for program in _programs(store, settings)]
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(supervisor.run()) for supervisor in supervisors]
        tasks.append(group.create_task(_greet(store, settings, supervisors[-1])))
        await stop.wait()
        typer.echo("Stopping.")
        for task in tasks:
            task.cancel()


def _programs(store: Store, settings: AppSettings) -> list[Program]:
    web = f"{settings.local_url()}/login"

    async def web_answers() -> bool:
        async with httpx.AsyncClient(trust_env=False) as client:
            try:
                return (await client.get(web, timeout=10.0)).is_success
            except httpx.HTTPError:
                return False

    return [
        _program(store, "serving", _alive),
        _program(store, "learner", _alive),
        _program(store, "app", web_answers),
    ]


def _program(store: Store, name: str, healthy: Callable[[], Awaitable[bool]]) -> Program:
    return Program(
        name=name,
        command=[sys.executable, "-m", name],
        log=store.data_dir / "logs" / f"{name}.log",
        healthy=healthy,
        stop_seconds=STOP_SECONDS,
    )


async def _alive() -> bool:
    """Serving and the learner look after their own children; being there is all that is asked of them here."""
    return True


async def _greet(store: Store, settings: AppSettings, web: Supervisor) -> None:
    await web.wait_healthy()
    typer.echo(f"\nLLaCA assistant: {settings.url()}")
    if not store.users.has_admin():
        admin = _first_admin(store)
        link = f"{settings.url()}/welcome/{store.users.invite(admin.id)}"
        typer.echo(f"One-time link for {admin.name}, good for 24 hours: {link}")
    typer.echo("A new link for anybody: llaca users link NAME")
    typer.echo(
        f"The model needs about a minute to start. Logs: {store.data_dir / 'logs'}. Ctrl-C stops everything.\n"
    )


def _first_admin(store: Store) -> User:
    try:
        return store.users.by_name(FIRST_ADMIN)
    except UnknownUser:
        return store.users.create(FIRST_ADMIN, Role.ADMIN)

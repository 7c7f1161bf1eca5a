"""`python -m serving`: finds the base model, keeps vLLM running, and keeps it loaded with what should serve.

Stops all of it on SIGTERM or SIGINT. Exit status 2 means that the settings cannot work and a restart will not
help.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import structlog

from serving.base_model import resolve
from serving.client import VLLM
from serving.command import installed_backend, vllm_command, vllm_environment
from serving.reconcile import Reconciler
from serving.settings import ServingSettings
from serving.supervise import HOPELESS, Program, Supervisor
from storage.errors import LlacaError
from storage.settings import StorageSettings, load
from storage.store import Store

log = structlog.get_logger()


def main() -> int:
    """Serve until told to stop; return the exit status."""
    try:
        settings = load(ServingSettings)
        with Store(load(StorageSettings)) as store:
            model = resolve(settings, store.data_dir) if settings.start_vllm else None
            asyncio.run(serve(store, settings, model))
    except LlacaError as error:
        print(error, file=sys.stderr)
        return HOPELESS
    return 0


async def serve(store: Store, settings: ServingSettings, model: Path | None) -> None:
    """Run the reconciler, and vLLM unless `model` is None, until SIGTERM or SIGINT; raise ProgramRefused."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    key = store.secret("vllm")
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(VLLM(url, key)) for url in settings.replicas]
        reconciler = Reconciler(
            store, servers, pause_seconds=settings.reconcile_seconds, drain_seconds=settings.drain_seconds
        )
        work = [asyncio.create_task(reconciler.run())]
        if model is not None:
            own = await stack.enter_async_context(VLLM(settings.own_url, key))
            work.append(asyncio.create_task(Supervisor(vllm_program(store, settings, model, own)).run()))
        await _until_first_ends([*work, asyncio.create_task(stop.wait())])
    log.info("serving stopped")


async def _until_first_ends(tasks: list[asyncio.Task[Any]]) -> None:
    """Wait for one task to end, cancel the others, and raise what it raised."""
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()


def vllm_program(store: Store, settings: ServingSettings, model: Path, server: VLLM) -> Program:
    """Return vLLM as a program to supervise, with its log in `data_dir/logs/vllm.log`."""
    backend = installed_backend()
    cache = store.data_dir / "cache" / "vllm"
    return Program(
        name="vllm",
        command=vllm_command(settings, model, backend),
        environment=vllm_environment(settings, store.secret("vllm"), cache, backend, os.environ),
        log=store.data_dir / "logs" / "vllm.log",
        healthy=server.healthy,
        startup_seconds=settings.startup_seconds,
        unresponsive_seconds=settings.unresponsive_seconds,
    )


if __name__ == "__main__":
    raise SystemExit(main())

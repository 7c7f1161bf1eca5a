"""A real vLLM server for tests: started as the product starts it, on a free port, and gone afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from serving.__main__ import vllm_program
from serving.base_model import resolve
from serving.client import VLLM
from serving.settings import ServingSettings
from serving.supervise import Supervisor, tail
from storage.settings import StorageSettings
from storage.store import Store
from tests.ports import free_ports

START_SECONDS = 600
EXACT = "--dtype float32"
"""In bfloat16 a greedy reply depends on how many others are in its batch: rounding decides between near-equal words.
Tests that compare replies with references need float32, where it does not."""
BASE_ENVIRONMENT = "TEST_BASE_MODEL"
"""Environment variable with the directory of a base model that is assembled already, to save half a minute."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RealVLLM:
    """Where a running server is and what it serves."""

    url: str
    key: str
    base: Path
    log: Path


@contextlib.contextmanager
def start_real_vllm(directory: Path) -> Iterator[RealVLLM]:
    """Serve the embedded model, with everything the server writes below `directory`, until the block ends."""
    base = resolve(ServingSettings(model=os.environ.get(BASE_ENVIRONMENT, "")), directory)
    (port,) = free_ports(1)
    settings = ServingSettings(vllm_port=port, vllm_arguments=EXACT)
    started, stop = threading.Event(), threading.Event()
    with Store(StorageSettings(data_dir=directory)) as store:
        log = store.data_dir / "logs" / "vllm.log"
        thread = threading.Thread(
            target=lambda: asyncio.run(_supervise(store, settings, base, started, stop)), daemon=True
        )
        thread.start()
        try:
            if not started.wait(START_SECONDS):
                raise TimeoutError(f"vLLM did not start in {START_SECONDS} s:\n{tail(log)}")
            yield RealVLLM(url=settings.own_url, key=store.secret("vllm"), base=base, log=log)
        finally:
            stop.set()
            thread.join(60)


async def _supervise(
    store: Store, settings: ServingSettings, base: Path, started: threading.Event, stop: threading.Event
) -> None:
    async with VLLM(settings.own_url, store.secret("vllm")) as server:
        supervisor = Supervisor(vllm_program(store, settings, base, server))
        running = asyncio.create_task(supervisor.run())
        waiting = asyncio.create_task(supervisor.wait_healthy())
        waiting.add_done_callback(lambda _: started.set())
        await asyncio.to_thread(stop.wait)
        running.cancel()
        waiting.cancel()
        await asyncio.gather(running, waiting, return_exceptions=True)

"""Brings a generation up on every server and proves it there: load, then probe.

The flip of the alias is `storage.generations.promote`, one transaction; draining and unloading what is no
longer wanted is the reconciler's. Every step can be repeated: what is loaded is not loaded again, and a probe
changes nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from serving import probes
from serving.client import VLLM
from serving.replica import ensure_loaded
from storage.errors import ServingUnavailable, UnknownModel
from storage.generations import BASE
from storage.records import Generation
from storage.store import Store

RETRY_SECONDS = 1.0


async def bring_up(
    store: Store,
    servers: Sequence[VLLM],
    number: int,
    *,
    patience_seconds: float = 60.0,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Load a generation on every server and probe it on each, with all its adapters; then it may serve.

    A server that is away is waited for, and `check` is called before every try; what it raises ends the wait. Raises
    ServingUnavailable after `patience_seconds`, UnknownGeneration, AdapterChanged, AdapterRefused, or ProbeRefused.
    """
    if number == BASE:
        return
    numbers = await asyncio.to_thread(store.generations.adapters, number)
    adapters = [await asyncio.to_thread(store.generations.get, adapter) for adapter in numbers]
    results = await asyncio.gather(
        *(_prove(server, adapters, patience_seconds, check) for server in servers), return_exceptions=True
    )
    for result in results:
        if result is not None:
            raise result


async def _prove(
    server: VLLM, adapters: Sequence[Generation], patience_seconds: float, check: Callable[[], None]
) -> None:
    give_up = time.monotonic() + patience_seconds
    while True:
        check()
        try:
            for adapter in adapters:
                await ensure_loaded(server, adapter)
                await probes.check(server, adapter.name, adapter.directory)
            return
        except (ServingUnavailable, UnknownModel):
            # A server that restarts between load and probe has forgotten the adapter: start again with the
            # load.
            if time.monotonic() > give_up:
                raise
            await asyncio.sleep(RETRY_SECONDS)

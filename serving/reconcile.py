"""Keeps every server loaded with what should serve, whatever happened: a restart, a promotion, a roll-back.

Compares `load_set` with each server's own list, again and again; holds no state that a restart could lose.
Loads at once, unloads late: only what has been unwanted, and without a running reply, for a while. Does not
probe: what should serve was probed before it was promoted, and a candidate is probed by its round.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import structlog

from serving.client import VLLM
from serving.replica import ensure_loaded, loaded, unload
from storage.errors import AdapterChanged, AdapterRefused, ServingUnavailable
from storage.records import generation_name
from storage.store import Store

log = structlog.get_logger()


class Reconciler:
    """Heals the servers of one installation."""

    def __init__(
        self,
        store: Store,
        servers: Sequence[VLLM],
        *,
        pause_seconds: float = 3.0,
        drain_seconds: float = 30.0,
    ) -> None:
        self._store = store
        self._servers = list(servers)
        self._pause_seconds = pause_seconds
        self._drain_seconds = drain_seconds
        self._unwanted_since: dict[tuple[str, int], float] = {}
        self._complaints: dict[str, str] = {}

    async def run(self) -> None:
        """Compare and heal until cancelled."""
        while True:
            await self.heal()
            await asyncio.sleep(self._pause_seconds)

    async def heal(self) -> None:
        """Compare and heal every server once, side by side, so that one that hangs holds up no other."""
        wanted = await asyncio.to_thread(self._store.generations.load_set)
        await asyncio.gather(*(self._heal(server, wanted) for server in self._servers))

    async def _heal(self, server: VLLM, wanted: set[int]) -> None:
        try:
            present = await loaded(server)
            for number in sorted(wanted):
                await self._load(server, number, present)
            for number in sorted(present - wanted):
                await self._unload_when_idle(server, number)
        except ServingUnavailable as error:
            self._complain(server.url, error)
            return
        self._forget(server.url, present - wanted)

    async def _load(self, server: VLLM, number: int, present: set[int]) -> None:
        generation = await asyncio.to_thread(self._store.generations.get, number)
        try:
            await ensure_loaded(server, generation)
        except (AdapterChanged, AdapterRefused) as error:
            self._complain(f"{server.url} {generation.name}", error)
            return
        if number not in present:
            log.info("loaded", server=server.url, generation=generation.name)
        self._complaints.pop(f"{server.url} {generation.name}", None)

    async def _unload_when_idle(self, server: VLLM, number: int) -> None:
        since = self._unwanted_since.setdefault((server.url, number), time.monotonic())
        # The wait covers requests that were sent just before the alias moved and are not in the metrics yet.
        if time.monotonic() - since < self._drain_seconds:
            return
        if generation_name(number) in await server.running(self._drain_seconds):
            return
        await unload(server, number)
        log.info("unloaded", server=server.url, generation=generation_name(number))

    def _forget(self, url: str, unwanted: set[int]) -> None:
        """Drop what was noted of a server that answers, and of generations wanted again or gone."""
        self._complaints.pop(url, None)
        for key in [key for key in self._unwanted_since if key[0] == url and key[1] not in unwanted]:
            del self._unwanted_since[key]

    def _complain(self, about: str, error: Exception) -> None:
        """Log a problem once, not at every pass."""
        if self._complaints.get(about) != str(error):
            self._complaints[about] = str(error)
            log.warning("cannot heal", about=about, problem=str(error))

"""What one server has loaded, compared with what it should have.

Does not decide what it should have; `storage.generations.load_set` does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

from serving.client import VLLM
from serving.manifest import verify
from storage.errors import AdapterRefused, ServingUnavailable
from storage.records import Generation, generation_name, generation_number


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """The state of one server, for people to look at."""

    url: str
    healthy: bool
    loaded: tuple[int, ...]
    """Numbers of the generations whose adapters it has; the base model, 0, is among them when it is healthy."""
    missing: tuple[int, ...]
    """Numbers it should have and does not."""
    busy: tuple[int, ...]
    """Numbers that are writing replies."""


async def inspect(server: VLLM, wanted: set[int]) -> Replica:
    """Ask a server what it has; one that does not answer is not healthy and misses everything."""
    try:
        numbers = _numbers(await server.models())
        busy = _numbers(await server.running())
    except ServingUnavailable:
        return Replica(url=server.url, healthy=False, loaded=(), missing=tuple(sorted(wanted)), busy=())
    return Replica(
        url=server.url,
        healthy=True,
        loaded=tuple(sorted(numbers)),
        missing=tuple(sorted(wanted - numbers)),
        busy=tuple(sorted(busy)),
    )


async def loaded(server: VLLM) -> set[int]:
    """Return the numbers of the generations a server has loaded, without the base model."""
    return _numbers(await server.adapters())


async def ensure_loaded(server: VLLM, generation: Generation) -> None:
    """Load a generation unless it is loaded; raise AdapterChanged, AdapterRefused or ServingUnavailable.

    A name that was loaded from another directory (of an earlier installation) is unloaded first.
    """
    adapters = await server.adapters()
    directory = generation.directory.resolve()
    if adapters.get(generation.name) == directory:
        return
    await asyncio.to_thread(verify, directory, generation.sha256)
    if generation.name in adapters:
        await server.unload(generation.name)
    try:
        await server.load(generation.name, directory)
    except AdapterRefused:
        # The reconciler and a round may load the same generation at the same time; the second is told that it
        # exists.
        if (await server.adapters()).get(generation.name) != directory:
            raise


async def unload(server: VLLM, number: int) -> None:
    """Forget a generation; replies that it is writing go on to their end."""
    await server.unload(generation_name(number))


def _numbers(names: Iterable[str]) -> set[int]:
    return {number for name in names if (number := generation_number(name)) is not None}

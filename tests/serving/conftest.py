"""Servers to talk to: the fake one, and the real one, which starts once for all tests that want it."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from serving.client import VLLM
from tests.fake_vllm import FakeVLLM
from tests.real_vllm import RealVLLM, start_real_vllm

RED_SQUARE = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAACAAAAAgCAIAAAD8GO2jAAAAK0lEQVR4nO3NQQEAAATAQATRP4pYSvC7BdjldMdn9XoHAAAAAAAAAAAA"
    "hy3gBQFE4naZuwAAAABJRU5ErkJggg=="
)


@pytest.fixture
def fake() -> Iterator[FakeVLLM]:
    """A fake server of this test's own."""
    with FakeVLLM() as started:
        yield started


@pytest.fixture(scope="session")
def real_vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealVLLM]:
    """One real server for the whole session."""
    with start_real_vllm(tmp_path_factory.mktemp("vllm")) as started:
        yield started


@pytest_asyncio.fixture
async def vllm(fake: FakeVLLM) -> AsyncIterator[VLLM]:
    """A client of the fake server."""
    async with VLLM(fake.url, fake.key, timeout_seconds=10) as client:
        yield client

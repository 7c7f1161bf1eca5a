"""One running web process per test module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.app.places import Place, place


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A running installation that the tests of one module share; only the base model serves."""
    with place(tmp_path_factory.mktemp("place") / "data") as running:
        yield running

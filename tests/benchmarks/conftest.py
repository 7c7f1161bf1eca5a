"""What the tests of benchmarks share: the recipe's tiny cache with flags beside it, and a tiny base model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.continual.drawn import FLAGS, STYLE, sources_fetched
from recipes.smol_llava.drawing import Artist
from tests.learner import tiny
from tests.recipes.conftest import cache as cache  # noqa: PLC0414 - a fixture, taken over under its own name


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    # Tensors this small only lose time when threads wait for each other.
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def stocked(cache: Path) -> Path:
    """The cache with the package of the unseen style, which has the flags."""
    package = cache / "npm" / STYLE.package.replace("/", "__") / "package"
    package.mkdir(parents=True)
    icons = {
        f"flag-{country.lower()}": {"body": f'<rect width="16" height="{4 + index % 12}" fill="red"/>'}
        for index, country in enumerate(FLAGS)
    }
    (package / "icons.json").write_text(json.dumps({"icons": icons}), encoding="utf-8")
    return cache


@pytest.fixture(scope="session")
def artist(stocked: Path) -> Artist:
    """One who draws from that cache."""
    return sources_fetched(stocked)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base model."""
    return tiny.build("llava", tmp_path_factory.mktemp("llava"))

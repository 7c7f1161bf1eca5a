"""What the tests of the learner share: the tiny models, built once, on one thread."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.learner import tiny


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    # Tensors this small only lose time when threads wait for each other.
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny base model of each family."""
    return {family: tiny.build(family, tmp_path_factory.mktemp(family)) for family in tiny.FAMILIES}


@pytest.fixture(params=tiny.FAMILIES)
def base(request: pytest.FixtureRequest, bases: dict[str, Path]) -> Path:
    """The tiny base models, one after the other."""
    return bases[request.param]


@pytest.fixture
def pictures() -> tiny.Pictures:
    """Pictures drawn by this test."""
    return tiny.Pictures()

"""One changed bit anywhere in a generation is found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from serving.manifest import MANIFEST, verify, write_manifest
from storage.errors import AdapterChanged
from tests.serving.adapters import write_lora

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A directory with an adapter, without manifest."""
    return write_lora(tmp_path / "adapter", seed=1)


def flip_a_bit(path: Path) -> None:
    """Change the last byte of a file by one bit."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_an_untouched_directory_passes(adapter: Path) -> None:
    """What was published is what is verified, and the same content has the same name."""
    sha256 = write_manifest(adapter, {"rank": 8})
    verify(adapter, sha256)
    (adapter / MANIFEST).unlink()
    assert write_manifest(adapter, {"rank": 8}) == sha256


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda directory: flip_a_bit(directory / WEIGHTS), f"{WEIGHTS} was changed"),
        (lambda directory: flip_a_bit(directory / MANIFEST), f"{MANIFEST} was changed"),
        (lambda directory: (directory / MANIFEST).unlink(), f"{MANIFEST} is missing"),
        (lambda directory: (directory / WEIGHTS).unlink(), "published were"),
        (lambda directory: (directory / "adapter_model.bin").write_bytes(b"pickle"), "adapter_model.bin"),
    ],
)
def test_a_changed_directory_is_refused(adapter: Path, change: Callable[[Path], object], named: str) -> None:
    """A changed, missing or added file is an error that names it."""
    sha256 = write_manifest(adapter, {"rank": 8})
    change(adapter)
    with pytest.raises(AdapterChanged, match=named):
        verify(adapter, sha256)

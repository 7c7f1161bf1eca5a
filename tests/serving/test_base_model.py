"""Finding the base model: embedded, a directory, or a wrong name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from serving import base_model, embedded
from serving.settings import ServingSettings
from storage.errors import BaseModelUnavailable


def checkpoint(directory: Path) -> Path:
    """Write what makes a directory look like a checkpoint."""
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    (directory / "model.safetensors").write_bytes(b"weights")
    return directory


def test_a_cut_short_model_is_not_complete(tmp_path: Path) -> None:
    """A file that lost its end, as a full disk leaves it, is noticed without reading the weights."""
    directory = checkpoint(tmp_path / "model")
    (directory / embedded.CONTENTS).write_text('{"config.json": 2, "model.safetensors": 7}')
    assert embedded.is_complete(directory)
    (directory / "model.safetensors").write_bytes(b"weigh")
    assert not embedded.is_complete(directory)


def test_a_damaged_part_is_refused(tmp_path: Path) -> None:
    """A part whose bytes changed is named with what to do about it, and nothing is assembled from it."""
    part = tmp_path / "part"
    part.write_bytes(b"changed")
    with pytest.raises(BaseModelUnavailable, match=r"damaged .* reinstall it"):
        embedded.verify(part, embedded.GGUF_SHA256, "reinstall it")


def test_shipped_weights_are_the_tested_ones() -> None:
    """Tower, projector and the language model's difference are those that were shipped together, and at most 24 MB."""
    hashes = json.loads((embedded.PARTS / embedded.HASHES).read_text(encoding="utf-8"))
    assert set(hashes) == {embedded.VISION, embedded.LANGUAGE}
    for name, sha256 in hashes.items():
        embedded.verify(embedded.PARTS / name, sha256, "restore it")
    assert sum((embedded.PARTS / name).stat().st_size for name in hashes) <= 24e6


def test_the_language_model_may_lie_elsewhere(tmp_path: Path) -> None:
    """A copy of SmolLM2's file is taken from where a setting names it, and anything else there is refused."""
    copy = tmp_path / "copy.gguf"
    copy.symlink_to(embedded.find_gguf())
    assert embedded.find_gguf(str(copy)) == copy
    embedded.verify(copy, embedded.GGUF_SHA256, "")
    copy.unlink()
    copy.write_bytes(b"another model")
    with pytest.raises(BaseModelUnavailable, match="LLACA_SMOLLM2 must name a copy"):
        embedded.assemble(tmp_path / "out", str(copy))
    with pytest.raises(BaseModelUnavailable, match=r"owner/repository/file\.gguf"):
        embedded.find_gguf(str(tmp_path / "absent.gguf"))


def test_a_local_directory_is_taken_as_it_is(tmp_path: Path) -> None:
    """A path to a checkpoint gives that path, absolute."""
    directory = checkpoint(tmp_path / "mine")
    assert base_model.resolve(ServingSettings(model=str(directory)), tmp_path) == directory


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("/no/such/place", "no such directory"),
        ("./model", "no such directory"),
        ("llava", "Hub id such as"),
        ("a/b/c", "Hub id such as"),
    ],
)
def test_a_wrong_name_is_explained(tmp_path: Path, model: str, said: str) -> None:
    """A name that is neither a directory nor a Hub id is refused with what would be accepted."""
    with pytest.raises(BaseModelUnavailable, match=said):
        base_model.resolve(ServingSettings(model=model), tmp_path)


def test_a_directory_without_safe_weights_is_refused(tmp_path: Path) -> None:
    """A directory of pickled weights only is refused before anything loads it."""
    directory = checkpoint(tmp_path / "pickled")
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    with pytest.raises(BaseModelUnavailable, match="safetensors"):
        base_model.resolve(ServingSettings(model=str(directory)), tmp_path)

"""The manifest of a generation: what it came from and the hash of each of its files.

The directory is named by the hash of the manifest and the manifest names the hash of everything else, so one
changed bit anywhere is found before a server sees it. Does not know what the facts in a manifest mean.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from storage.errors import AdapterChanged

MANIFEST = "manifest.json"


def write_manifest(directory: Path, facts: dict[str, Any]) -> str:
    """Write `facts` and the hash of every file of `directory` into its manifest; return its SHA-256."""
    manifest = facts | {"files": {name: _sha256(directory / name) for name in _names(directory)}}
    text = json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    (directory / MANIFEST).write_text(text, encoding="utf-8")
    return hashlib.sha256(text.encode()).hexdigest()


def verify(directory: Path, sha256: str) -> None:
    """Raise AdapterChanged unless the directory holds exactly what was published under this SHA-256."""
    manifest = directory / MANIFEST
    if not manifest.is_file():
        raise AdapterChanged(directory, f"{MANIFEST} is missing")
    if _sha256(manifest) != sha256:
        raise AdapterChanged(directory, f"{MANIFEST} was changed")
    wanted = json.loads(manifest.read_text(encoding="utf-8"))["files"]
    found = _names(directory)
    if found != sorted(wanted):
        raise AdapterChanged(
            directory, f"holds {', '.join(found)}; published were {', '.join(sorted(wanted))}"
        )
    for name, digest in wanted.items():
        if _sha256(directory / name) != digest:
            raise AdapterChanged(directory, f"{name} was changed")


def _names(directory: Path) -> list[str]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return sorted(path.relative_to(directory).as_posix() for path in files if path != directory / MANIFEST)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""Keeps the state of a running round on disk, so that it can be cut off anywhere and go on with the same numbers.

A checkpoint is a directory `step-00000025` with one safetensors file of named tensors and one of plain facts. It
appears whole or not at all; the ones before it are removed once it is there. It does not know what the tensors mean.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from learner import processes
from storage.blobs import publish
from storage.errors import CheckpointMismatch

TENSORS = "tensors.safetensors"
FACTS = "facts.json"
_PREFIX = "step-"
_WRITING = "writing-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Everything a round needs to go on after `step` optimizer steps."""

    step: int
    tensors: dict[str, Tensor]
    facts: dict[str, Any]


class Checkpoints:
    """The checkpoints of one round under `directory`; `identity` names its data and settings."""

    def __init__(self, directory: Path, identity: str) -> None:
        self.directory = directory
        self.identity = identity

    def save(self, step: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Write a checkpoint and remove the earlier ones; nothing to do if there is one of this step already.

        Of several processes the first one writes, and none goes on before it is there.
        """
        if processes.is_first():
            self._write(step, tensors, facts)
        processes.wait()

    def _write(self, step: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        target = self.directory / f"{_PREFIX}{step:08d}"
        if target.exists():
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=_WRITING, dir=self.directory))
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary / TENSORS)
        text = json.dumps({"step": step, "identity": self.identity, **facts})
        (temporary / FACTS).write_text(text, encoding="utf-8")
        publish(temporary, target)
        for other in self.directory.glob(f"{_PREFIX}*"):
            # A later one is of a worker that took over; this one has not noticed yet.
            if other.name < target.name:
                shutil.rmtree(other)

    def latest(self) -> Checkpoint | None:
        """Return the newest checkpoint, or None; raise CheckpointMismatch if it is another round's.

        What a crash has left half written is removed.
        """
        if processes.is_first():
            for leftover in self.directory.glob(f"{_WRITING}*"):
                shutil.rmtree(leftover)
        found = sorted(self.directory.glob(f"{_PREFIX}*"))
        if not found:
            return None
        facts = json.loads((found[-1] / FACTS).read_text(encoding="utf-8"))
        if facts.pop("identity") != self.identity:
            raise CheckpointMismatch(self.directory)
        # Copies: the file's own memory must not be what the optimizer goes on to change.
        tensors = {name: tensor.clone() for name, tensor in load_file(found[-1] / TENSORS).items()}
        return Checkpoint(step=facts.pop("step"), tensors=tensors, facts=facts)

"""What a round measured, as one line of JSON, and the file of them that a stopped benchmark goes on from."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

FILE = "results.jsonl"
BASE = "base"
"""The method of the one line that says what the bare base model could do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """How one task's held-out rows were answered, in percent."""

    rows: int
    accuracy: float
    format: float | None
    """Answers in the taught form, right or wrong; None where the task has none."""
    samples: list[tuple[str, str]]
    """A few references with what was answered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What learning one task took."""

    steps: int
    rows: int
    """New rows."""
    rehearsed: int
    """Rows of earlier tasks that were trained among them."""
    seconds: float
    """Training, from loading the model to the finished weights."""
    evaluation_seconds: float
    peak_bytes: int
    """Most memory while training: of the GPU if there is one, else of the process."""
    state_bytes: int
    """What the method must keep for its next round; where no server can take what was trained, that as well."""
    adapters: int
    """How many adapters must be served from now on; 0 if no server can take what was trained."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One round of a run, or what the base model could do before any."""

    method: str
    order: str = ""
    seed: int = 0
    tasks: list[str]
    """All of the run, in its order."""
    number: int
    """Of the round, from 0; -1 for the base model."""
    cells: dict[str, Cell]
    """By task, those taught so far; for the base model all."""
    general: dict[str, Cell] = field(default_factory=dict)
    """By ability of the general suite; measured of the base model and after the last round."""
    cost: Cost | None = None
    adapters: list[str] = field(default_factory=list)
    """Directories of what was trained, after this round: of adapters one for each group."""
    groups: list[int] = field(default_factory=list)
    """The group, or expert, of each task taught so far."""
    codebook: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    machine: str = ""
    at: str = ""

    @property
    def is_last(self) -> bool:
        """Whether the run ends with it."""
        return self.number == len(self.tasks) - 1

    @property
    def run(self) -> tuple[str, str, int]:
        """What it belongs to."""
        return self.method, self.order, self.seed


class Results:
    """The file of all rounds in a directory."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / FILE

    def add(self, measured: Round) -> None:
        """Append a line, in the place of a half-written last one."""
        line = json.dumps(asdict(measured), ensure_ascii=False) + "\n"
        with self.path.open("ab+") as file:
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
            file.write(line.encode())

    def rounds(self) -> list[Round]:
        """Return all rounds; of one that was told twice the later one. A half-written last line is left out."""
        if not self.path.exists():
            return []
        found: dict[tuple[tuple[str, str, int], int], Round] = {}
        # Bytes, since a half-written line may end within a character; only line feeds end a line, since JSON may hold
        # what Unicode counts as others.
        *lines, _ = self.path.read_bytes().split(b"\n")
        for line in lines:
            measured = _round(json.loads(line))
            found[measured.run, measured.number] = measured
        return list(found.values())

    def of(self, method: str, order: str, seed: int) -> list[Round]:
        """Return the rounds of one run, the first one first."""
        mine = [measured for measured in self.rounds() if measured.run == (method, order, seed)]
        return sorted(mine, key=lambda measured: measured.number)


def _round(line: dict[str, Any]) -> Round:
    cost = Cost(**line["cost"]) if line["cost"] else None
    return Round(**line | {"cells": _cells(line["cells"]), "general": _cells(line["general"]), "cost": cost})


def _cells(line: dict[str, dict[str, Any]]) -> dict[str, Cell]:
    return {
        name: Cell(**cell | {"samples": [(wanted, said) for wanted, said in cell["samples"]]})
        for name, cell in line.items()
    }

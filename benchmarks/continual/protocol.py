"""What a benchmark compares, and what all methods of one comparison share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from benchmarks.continual.drawn import SOURCES

ORDERS = ("origin", "reverse", "alphabet")
"""Orders of tasks, as in the paper: as they are listed, backwards, by their names."""
METHODS = "sequential,joint,replay,ema:ema_decay=0.99,llaca,llaca+replay,llaca+replay:groups=0.5"
"""The last one is what rounds do by default."""
FILE = "protocol.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """What all runs in one directory have in common, so that they can be compared."""

    base: str
    """Name of the base model's directory."""
    tasks: tuple[str, ...]
    rows: int
    """Most rows that a task teaches."""
    holdout: int
    """Most rows that a task is asked."""
    general: int
    """Questions of each ability of the general suite; 0 leaves it out."""
    learner: dict[str, Any] = field(default_factory=dict)
    """Settings of the learner that all methods share, where they differ from the defaults."""
    data: str = ""
    """A hash of all rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """How much is done, unless the command says otherwise."""

    name: str
    tasks: tuple[str, ...]
    rows: int
    holdout: int
    general: int
    epochs: int
    orders: tuple[str, ...]
    seeds: tuple[int, ...]

    def cuts(self, full: Form) -> list[str]:
        """Say in which ways this form is less than the full one."""
        kinds = {task.partition(".")[0] for task in self.tasks}
        missing = [task for task in full.tasks if task not in kinds]
        said = [f"without the tasks {', '.join(missing)}"] if missing else []
        for name in ("rows", "holdout", "general", "epochs", "orders", "seeds"):
            wanted, found = getattr(full, name), getattr(self, name)
            if wanted != found:
                said.append(f"{name} {_said(found)} instead of {_said(wanted)}")
        return said


FULL = Form(
    name="full", tasks=tuple(source.name for source in SOURCES), rows=400, holdout=100, general=40, epochs=3,
    orders=("origin", "reverse"), seeds=(0, 1, 2),
)  # fmt: skip
QUICK = Form(
    name="quick", tasks=("digits", "count", "relation", "spelling", "chart", "choice"), rows=64, holdout=40, general=8,
    epochs=3, orders=("origin",), seeds=(0,),
)  # fmt: skip
"""For two cores."""
ALIKE = replace(
    QUICK, name="alike", tasks=("digits.1-of-2", "count.1-of-2", "digits.2-of-2", "count.2-of-2"),
    orders=("origin", "reverse"),
)  # fmt: skip
"""Two questions, each taught in two parts that have no answer in common, so that groups leave something to forget."""
FORMS = {form.name: form for form in (FULL, QUICK, ALIKE)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A policy of the learner, or a method of the benchmark's own, with its settings, as the command line names it."""

    label: str
    overrides: dict[str, Any]
    """By name, `policy` among them."""
    groups: float | None = None
    """From which similarity on a task joins a group of tasks; None for a single adapter."""


def method(label: str) -> Method:
    """Read `policy:setting=value:...`; the setting `groups` is the benchmark's own."""
    policy, *given = label.strip().split(":")
    overrides = dict([setting(text) for text in given])
    groups = overrides.pop("groups", None)
    return Method(
        label=label.strip(),
        overrides={"policy": policy, **overrides},
        groups=None if groups is None else float(groups),
    )


def pair(text: str) -> tuple[str, str]:
    """Read `name=value`; raise ValueError for anything else."""
    name, sign, value = text.partition("=")
    if not sign:
        raise ValueError(f"{text!r} is not of the form name=value")
    return name, value


def setting(text: str) -> tuple[str, Any]:
    """Read `name=value` with a number, `null` or a word as the value."""
    name, value = pair(text)
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def ordered(tasks: Sequence[str], order: str) -> list[str]:
    """Return tasks in one of ORDERS."""
    return {"origin": list(tasks), "reverse": list(tasks)[::-1], "alphabet": sorted(tasks)}[order]


def agree(protocol: Protocol, directory: Path) -> None:
    """Note the protocol of a directory; raise ValueError if its results were made under another one."""
    path = directory / FILE
    if path.exists():
        found = read(directory)
        differing = [one.name for one in fields(Protocol) if _of(found, one.name) != _of(protocol, one.name)]
        if differing:
            raise ValueError(
                f"{directory} holds results of another protocol; it differs in "
                + ", ".join(
                    f"{name} ({_of(found, name)} there, {_of(protocol, name)} now)" for name in differing
                )
                + ". Choose another --name for these."
            )
        return
    directory.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(protocol), indent=1), encoding="utf-8")


def read(directory: Path) -> Protocol:
    """Return the protocol of a directory."""
    found = json.loads((directory / FILE).read_text(encoding="utf-8"))
    return replace(Protocol(**found), tasks=tuple(found["tasks"]))


def _of(protocol: Protocol, name: str) -> Any:
    return asdict(protocol)[name]


def _said(value: int | tuple[object, ...]) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)

"""How a method teaches: what a round is given, what it leaves, and who answers with that.

A run (`run.py`) is the same story for all methods; what differs is a `Teacher`. One drives the learner and leaves
adapters as the product serves them (`adapters.py`); the others train what no server can swap (`experts.py`,
`prompts.py`) and live here alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.continual.answers import Answerer
from benchmarks.continual.tasks import Pictures, Task
from serving.groups import Codebook


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """What a run has come to."""

    adapters: tuple[Path, ...] = ()
    """Directories with all that was trained: one, or one for each group; none before the first round."""
    groups: tuple[int, ...] = ()
    """Of each task taught so far: which of several adapters, or experts, has learned it."""
    codebook: Codebook | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """What a round is given."""

    base: Path
    tasks: Sequence[Task]
    """All so far; the last one is to be learned."""
    pictures: Pictures
    learned: Learned
    place: Path
    """Directory of the run; what a round leaves goes into `adapters` below it."""

    @property
    def new(self) -> Task:
        """The task to be learned."""
        return self.tasks[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a round took and takes from now on, beside time and memory."""

    steps: int
    rehearsed: int
    """Rows of earlier tasks that were trained among the new ones."""
    state_bytes: int
    """What must be kept for the next round."""
    served: int
    """Adapters that a server must hold from now on; 0 if no server can take what was trained."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Taught:
    """What a round has come to, still in memory."""

    facts: Facts
    leave: Callable[[], Learned]
    """Writes everything down."""


class Teacher(ABC):
    """A method with its settings and one seed."""

    all_at_once: bool = False
    """Whether it learns all tasks in the last round, so that there is no other to run."""

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What is written down beside each round."""

    @abstractmethod
    def check(self, base: Path) -> None:
        """Raise UnsuitableModel if this base model cannot be taught in this way."""

    def beginning(self) -> Learned:
        """Return what there is before the first round."""
        return Learned()

    @abstractmethod
    def teach(self, lesson: Lesson) -> Taught:
        """Carry out a round."""

    @abstractmethod
    def answerer(self, base: Path, learned: Learned, batch_size: int) -> Answerer:
        """Load the model with all that was learned."""

"""Tasks and lessons for the tests of methods that only the benchmark has: a few rows about a few squares."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.continual.tasks import Pictures, Task, same
from benchmarks.continual.teacher import Learned, Lesson
from learner.settings import LearnerSettings
from storage.records import Row
from tests.learner import tiny

SETTINGS = LearnerSettings(policy="sequential", learning_rate=0.05, epochs=2, batch_size=2)


def drawn(pictures: Pictures, question: str, first: int, count: int, size: int = 32) -> list[Row]:
    """Return rows with this question, each about a picture of its own."""
    squares = tiny.Pictures()
    rows = []
    for index in range(first, first + count):
        sha256 = pictures.add(squares.read(squares.draw(1 + index % 4, index, (size, size))))
        asked = [tiny.turn("user", question, sha256), tiny.turn("assistant", tiny.WORDS[index % 4])]
        rows.append(tiny.row(index, asked))
    return rows


def task(name: str, train: list[Row], holdout: Sequence[Row] = ()) -> Task:
    """Return a task of these rows."""
    return Task(name=name, train=train, holdout=list(holdout), style=None, grade=same)


def lesson(base: Path, tasks: Sequence[Task], pictures: Pictures, learned: Learned, place: Path) -> Lesson:
    """Return a round that teaches the last of the tasks."""
    return Lesson(base=base, tasks=tasks, pictures=pictures, learned=learned, place=place)

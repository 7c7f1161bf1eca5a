"""Measures the way back that the gate offers a rejected candidate: points between a champion and what forgot it.

    .venv/bin/python -m benchmarks.line --base DIR

An adapter learns a task of the continual benchmark, the champion, and goes on to another one, the candidate. Points of
the straight line between both (`learner/interpolation.py`) are asked both tasks; nothing is trained for them. DIR is
the base model; if there is no such directory, the embedded model is assembled in it.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.continual import drawn
from benchmarks.continual.adapters import AdapterAnswerer, AdapterTeacher
from benchmarks.continual.choose import learner_settings
from benchmarks.continual.run import machine
from benchmarks.continual.tasks import Pictures, Task
from benchmarks.continual.teacher import Learned, Lesson
from learner.export import export
from learner.points import point_of
from learner.settings import LearnerSettings
from learner.train import TrainingJob
from serving.embedded import assemble

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Of the way from the champion to the candidate. A rejected candidate's round judges those between the ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What all pairs of tasks share."""

    base: Path
    settings: LearnerSettings
    pictures: Pictures

    def measure(self, first: Task, second: Task, place: Path) -> list[tuple[float, float]]:
        """Return the accuracy at both tasks, in percent, of each point of SHARES."""
        champion = self.taught([first], Learned(), place)
        candidate = self.taught([first, second], champion, place)
        job = TrainingJob(
            base=self.base,
            parent_adapter=champion.adapters[0],
            rows=second.train,
            image=self.pictures.read,
            settings=self.settings,
            first_task=False,
            workspace=place,
        )
        found = []
        for share in SHARES:
            match share:
                case 0.0:
                    adapter = champion.adapters[0]
                case 1.0:
                    adapter = candidate.adapters[0]
                case _:
                    point, _apart = point_of(job, candidate.adapters[0], share)
                    adapter = export(point, place / "points", {"share": share})
                    del point  # and with it a model
            answerer = AdapterAnswerer(self.base, [adapter], None, self.settings.group_floor, batch_size=32)
            old, new = (answerer.ask(task, self.pictures).accuracy for task in (first, second))
            found.append((old, new))
            del answerer
        return found

    def taught(self, tasks: Sequence[Task], learned: Learned, place: Path) -> Learned:
        """Teach the last of the tasks after the others."""
        lesson = Lesson(base=self.base, tasks=tasks, pictures=self.pictures, learned=learned, place=place)
        return AdapterTeacher(self.settings, groups=None).teach(lesson).leave()


def told(first: str, second: str, found: Sequence[tuple[float, float]]) -> str:
    """Return two lines of the table: the earlier task and the new one, at each point."""
    old, new = zip(*found, strict=True)
    lines = ((f"`{first}`, learned before", old), (f"`{second}`, the candidate's", new))
    return "\n".join(
        f"| {name} | {' | '.join(f'{score:.0f}' for score in scores)} |" for name, scores in lines
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", type=Path, required=True, help="directory of the base model")
    parser.add_argument(
        "--pairs", default="digits:count,count:spelling,spelling:chart", help="FIRST:SECOND, joined by commas"
    )
    parser.add_argument("--policy", default="sequential", help="of the learner")
    parser.add_argument("--rows", type=int, default=64, help="that each task teaches")
    parser.add_argument("--holdout", type=int, default=100, help="rows that each task is asked")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rank", type=int, default=LearnerSettings.model_fields["rank"].default)
    parser.add_argument(
        "--cache", type=Path, default=Path("data/recipe/cache"), help="where emoji and typefaces are"
    )
    given = parser.parse_args(arguments)
    if not given.base.exists():
        assemble(given.base)
    pictures = Pictures()
    pairs = [pair.split(":") for pair in given.pairs.split(",")]
    names = [name for pair in pairs for name in pair]
    tasks = drawn.named(names, given.cache, pictures, rows=given.rows, holdout=given.holdout)
    learner = learner_settings({"policy": given.policy, "epochs": given.epochs, "rank": given.rank})
    bench = Bench(base=given.base, settings=learner, pictures=pictures)
    print(
        f"{given.base.name}, policy {given.policy}, {given.rows} rows each; {machine()}, {datetime.now(UTC):%Y-%m-%d}"
    )
    print(f"| accuracy in percent at this share of the way | {' | '.join(map(str, SHARES))} |")
    print("|---" * (1 + len(SHARES)) + "|")
    for first, second in pairs:
        with tempfile.TemporaryDirectory() as place:
            print(told(first, second, bench.measure(tasks[first], tasks[second], Path(place))), flush=True)


if __name__ == "__main__":
    main()

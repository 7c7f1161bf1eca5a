"""One run: a method learns the tasks in one order, round after round, as the product does, and is asked all of them.

A round that was measured is not trained again. One that was cut off is trained anew, so that its time is that of a
whole round.
"""

from __future__ import annotations

import platform
import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path

import torch

from benchmarks.continual.answers import Answerer, device
from benchmarks.continual.choose import teacher_of
from benchmarks.continual.memory import peak_memory
from benchmarks.continual.protocol import Method, Protocol, ordered
from benchmarks.continual.results import BASE, Cost, Results, Round
from benchmarks.continual.tasks import Pictures, Task
from benchmarks.continual.teacher import Learned, Lesson, Teacher
from learner.model import load_base
from serving.groups import Codebook

VERSIONS = ("torch", "transformers", "peft")


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What all runs share."""

    protocol: Protocol
    base: Path
    tasks: dict[str, Task]
    general: Sequence[Task]
    pictures: Pictures
    directory: Path
    """Of results, and of adapters while they are needed."""
    batch_size: int
    """Rows that are asked together."""

    @cached_property
    def results(self) -> Results:
        """What was measured so far."""
        return Results(self.directory)


def measure_base(bench: Bench) -> None:
    """Ask the bare base model everything, once."""
    if bench.results.of(BASE, "", 0):
        return
    answerer = Answerer(*load_base(bench.base, device()), bench.batch_size)
    cells = {name: answerer.ask(task, bench.pictures) for name, task in bench.tasks.items()}
    general = answerer.ask_together(bench.general, bench.pictures)
    names = list(bench.tasks)
    bench.results.add(
        Round(method=BASE, tasks=names, number=-1, cells=cells, general=general, machine=machine(), at=now())
    )


def run(bench: Bench, method: Method, order: str, seed: int) -> None:
    """Carry a run to its end, unless it has come there before."""
    tasks = [bench.tasks[name] for name in ordered(list(bench.tasks), order)]
    place = bench.directory / "runs" / re.sub(r"[^\w.+=-]", "_", f"{method.label}-{order}-{seed}")
    teacher = teacher_of(method, bench.protocol.learner, seed)
    learned, first = resumed(bench.results.of(method.label, order, seed), place, teacher.beginning())
    if first == 0 and teacher.all_at_once:
        # It learns everything in its last round, whatever the rounds before it did.
        first = len(tasks) - 1
        learned = Learned(groups=(0,) * first)
    for number in range(first, len(tasks)):
        lesson = Lesson(
            base=bench.base,
            tasks=tasks[: number + 1],
            pictures=bench.pictures,
            learned=learned,
            place=place,
        )
        learned, measured = one_round(bench, method, order, seed, teacher, lesson)
        bench.results.add(measured)
        print(said(measured), flush=True)
        for left in set((place / "adapters").iterdir()) - set(learned.adapters):
            shutil.rmtree(left)
    shutil.rmtree(place, ignore_errors=True)


def resumed(rounds: Sequence[Round], place: Path, beginning: Learned) -> tuple[Learned, int]:
    """Return what the newest round of a run has left whose adapters are there, and the number of the next one.

    Results travel without adapters: on another machine a run begins again and later goes on from what it told there.
    """
    for newest in reversed(rounds):
        adapters = tuple(place / "adapters" / name for name in newest.adapters)
        if newest.is_last or all(path.is_dir() for path in adapters):
            codebook = None if newest.codebook is None else Codebook.from_json(newest.codebook)
            learned = Learned(adapters=adapters, groups=tuple(newest.groups), codebook=codebook)
            return learned, newest.number + 1
    return beginning, 0


def one_round(
    bench: Bench, method: Method, order: str, seed: int, teacher: Teacher, lesson: Lesson
) -> tuple[Learned, Round]:
    """Teach the last of the tasks after the others, and ask all of them."""
    started = time.perf_counter()
    with peak_memory() as peak:
        taught = teacher.teach(lesson)
    seconds = time.perf_counter() - started
    facts, learned = taught.facts, taught.leave()
    del taught  # the answerer loads what was left, and two models may be one too many

    started = time.perf_counter()
    answerer = teacher.answerer(bench.base, learned, bench.batch_size)
    cells = {task.name: answerer.ask(task, bench.pictures) for task in lesson.tasks}
    is_last = len(lesson.tasks) == len(bench.tasks)
    general = answerer.ask_together(bench.general if is_last else (), bench.pictures)
    cost = Cost(
        steps=facts.steps,
        rows=len(lesson.new.train),
        rehearsed=facts.rehearsed,
        seconds=seconds,
        evaluation_seconds=time.perf_counter() - started,
        peak_bytes=peak.bytes,
        state_bytes=facts.state_bytes,
        adapters=facts.served,
    )
    measured = Round(
        method=method.label,
        order=order,
        seed=seed,
        tasks=ordered(list(bench.tasks), order),
        number=len(lesson.tasks) - 1,
        cells=cells,
        general=general,
        cost=cost,
        adapters=[path.name for path in learned.adapters],
        groups=list(learned.groups),
        codebook=None if learned.codebook is None else learned.codebook.to_json(),
        settings=teacher.settings,
        machine=machine(),
        at=now(),
    )
    return learned, measured


def said(measured: Round) -> str:
    """Return a line for people who wait."""
    scores = "  ".join(f"{name} {cell.accuracy:.0f}" for name, cell in measured.cells.items())
    cost = measured.cost
    took = (
        f"{cost.steps} steps in {cost.seconds:.0f} s, asked in {cost.evaluation_seconds:.0f} s"
        if cost
        else ""
    )
    where = f"{measured.method} · {measured.order} · seed {measured.seed}"
    return f"{where} · {measured.number + 1}/{len(measured.tasks)} · {took} · {scores}"


def machine() -> str:
    """Name what computes, and with which versions."""
    if torch.cuda.is_available():
        device = str(torch.cuda.get_device_name())
    else:
        device = f"{torch.get_num_threads()} threads of {platform.machine()}"
    return f"{device} ({', '.join(f'{package} {version(package)}' for package in VERSIONS)})"


def now() -> str:
    """Return the time in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")

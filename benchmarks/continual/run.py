"""One run: a method learns the tasks in one order, round after round, as the product does, and is asked all of them.

A round that was measured is not trained again; one that was cut off goes on from its checkpoint.
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

from benchmarks.continual.answers import Answerer
from benchmarks.continual.memory import peak_memory
from benchmarks.continual.protocol import Method, Protocol, ordered
from benchmarks.continual.results import BASE, Cost, Results, Round
from benchmarks.continual.tasks import Pictures, Task
from learner.export import export
from learner.train import TrainingJob, train
from serving.groups import Codebook, assign

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """What a run has come to: without groups there is one adapter, or none yet."""

    adapters: tuple[Path, ...] = ()
    groups: tuple[int, ...] = ()
    """Of each task taught so far."""
    codebook: Codebook | None = None


def measure_base(bench: Bench) -> None:
    """Ask the bare base model everything, once."""
    if bench.results.of(BASE, "", 0):
        return
    answerer = Answerer(bench.base, (), None, bench.batch_size)
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
    learned, first = resumed(bench.results.of(method.label, order, seed), place, method)
    if first == 0 and method.starts_from_base(bench.protocol.learner):
        # It learns everything in its last round, whatever the rounds before it did.
        first = len(tasks) - 1
        learned = Learned(groups=(0,) * first)
    for number in range(first, len(tasks)):
        learned, measured = one_round(bench, method, order, seed, tasks[: number + 1], learned, place)
        bench.results.add(measured)
        print(said(measured), flush=True)
        for left in set((place / "adapters").iterdir()) - set(learned.adapters):
            shutil.rmtree(left)
    shutil.rmtree(place, ignore_errors=True)


def resumed(rounds: Sequence[Round], place: Path, method: Method) -> tuple[Learned, int]:
    """Return what earlier rounds of a run have left and the number of the next one; 0 if their adapters are gone."""
    empty = Learned(codebook=None if method.groups is None else Codebook())
    if not rounds:
        return empty, 0
    last = rounds[-1]
    adapters = tuple(place / "adapters" / name for name in last.adapters)
    if not last.is_last and not all(path.is_dir() for path in adapters):
        return empty, 0
    codebook = None if last.codebook is None else Codebook.from_json(last.codebook)
    return Learned(adapters=adapters, groups=tuple(last.groups), codebook=codebook), last.number + 1


def one_round(
    bench: Bench, method: Method, order: str, seed: int, tasks: Sequence[Task], learned: Learned, place: Path
) -> tuple[Learned, Round]:
    """Teach the last of the tasks after the others, and ask all of them."""
    new = tasks[-1]
    settings = method.settings(bench.protocol.learner, seed)
    group, codebook = group_of(new, learned.codebook, method.groups)
    earlier = [task.train for task, its in zip(tasks[:-1], learned.groups, strict=True) if its == group]
    workspace = place / f"round-{len(tasks)}"
    job = TrainingJob(
        base=bench.base,
        parent_adapter=learned.adapters[group] if group < len(learned.adapters) else None,
        rows=new.train,
        earlier=earlier,
        image=bench.pictures.read,
        settings=settings,
        first_task=not earlier,
        workspace=workspace,
        max_rank=settings.rank,
    )
    started = time.perf_counter()
    with peak_memory() as peak:
        trained = train(job, lambda *_: None, lambda: False)
    seconds = time.perf_counter() - started
    summary = trained.summary
    state_bytes = sum(tensor.numel() * tensor.element_size() for tensor in trained.policy_state.values())
    directory = export(trained, place / "adapters", {})
    del trained  # the answerer loads what was exported, and two models may be one too many
    shutil.rmtree(workspace)

    adapters = (*learned.adapters[:group], directory, *learned.adapters[group + 1 :])
    after = Learned(adapters=adapters, groups=(*learned.groups, group), codebook=codebook)
    started = time.perf_counter()
    answerer = Answerer(bench.base, adapters, codebook, bench.batch_size)
    cells = {task.name: answerer.ask(task, bench.pictures) for task in tasks}
    is_last = len(tasks) == len(bench.tasks)
    general = answerer.ask_together(bench.general if is_last else (), bench.pictures)
    cost = Cost(
        steps=summary["steps"],
        rows=summary["rows"],
        rehearsed=summary["rehearsed"],
        seconds=seconds,
        evaluation_seconds=time.perf_counter() - started,
        peak_bytes=peak.bytes,
        state_bytes=state_bytes,
        adapters=len(adapters),
    )
    measured = Round(
        method=method.label,
        order=order,
        seed=seed,
        tasks=ordered(list(bench.tasks), order),
        number=len(tasks) - 1,
        cells=cells,
        general=general,
        cost=cost,
        adapters=[path.name for path in adapters],
        groups=list(after.groups),
        codebook=None if codebook is None else codebook.to_json(),
        settings=settings.model_dump(mode="json"),
        machine=machine(),
        at=now(),
    )
    return after, measured


def group_of(task: Task, codebook: Codebook | None, threshold: float | None) -> tuple[int, Codebook | None]:
    """Return the group that a task joins and the codebook with its instructions; without groups always the first.

    A new group begins with the bare base model: nothing was learned before that it could forget.
    """
    if codebook is None or threshold is None:
        return 0, None
    group = assign(task.instructions, codebook, threshold)
    return group, codebook.extended(group, task.instructions)


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

"""Methods that are policies of the learner: trained by it, exported as a round does it, and answered with as served."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peft import PeftModel

from benchmarks.continual.answers import Answerer, device
from benchmarks.continual.tasks import Pictures, Task, question_of
from benchmarks.continual.teacher import Facts, Learned, Lesson, Taught, Teacher
from learner.export import export
from learner.model import load_base, to_bfloat16
from learner.plan import join
from learner.policies.choose import policy_for
from learner.round import SPARE_SLOTS
from learner.settings import LearnerSettings
from learner.train import POLICY_STATE, TrainingJob, train
from serving.groups import Codebook, route
from serving.settings import ServingSettings
from storage.records import Row

MOST_GROUPS = ServingSettings.model_fields["max_loras"].default - SPARE_SLOTS
"""As a round counts them, with servers as they are by default."""
BARE = -1
"""In place of a group: no adapter, which is what the base model is."""


class AdapterTeacher(Teacher):
    """A policy; with `groups` one adapter for each group of tasks whose instructions are at least so similar."""

    def __init__(self, settings: LearnerSettings, groups: float | None) -> None:
        self.learner = settings
        self.groups = groups
        self.all_at_once = policy_for(settings, first_task=False).from_base

    @property
    def settings(self) -> dict[str, Any]:
        """The learner's."""
        return self.learner.model_dump(mode="json")

    def check(self, base: Path) -> None:
        """Take any model: the learner looks at it when it loads it."""

    def beginning(self) -> Learned:
        """Return nothing, or an empty codebook."""
        return Learned(codebook=None if self.groups is None else Codebook())

    def teach(self, lesson: Lesson) -> Taught:
        """Train an adapter as the product does."""
        learned = lesson.learned
        group, codebook = group_of(lesson.new, learned.codebook, self.groups)
        earlier = [
            task.train for task, its in zip(lesson.tasks[:-1], learned.groups, strict=True) if its == group
        ]
        workspace = lesson.place / f"round-{len(lesson.tasks)}"
        shutil.rmtree(workspace, ignore_errors=True)  # of a round that was cut off, whose time would be lost
        job = TrainingJob(
            base=lesson.base,
            parent_adapter=learned.adapters[group] if group < len(learned.adapters) else None,
            rows=lesson.new.train,
            earlier=earlier,
            image=lesson.pictures.read,
            settings=self.learner,
            first_task=not earlier,
            workspace=workspace,
            max_rank=self.learner.rank,
        )
        trained = train(job, lambda *_: None, lambda: False)

        def leave() -> Learned:
            directory = export(trained, lesson.place / "adapters", {})
            shutil.rmtree(workspace)
            adapters = (*learned.adapters[:group], directory, *learned.adapters[group + 1 :])
            return Learned(adapters=adapters, groups=(*learned.groups, group), codebook=codebook)

        others = [*learned.adapters[:group], *learned.adapters[group + 1 :]]
        facts = Facts(
            steps=trained.summary["steps"],
            rehearsed=trained.summary["rehearsed"],
            state_bytes=sum(tensor.nbytes for tensor in trained.policy_state.values())
            + sum(size_of(adapter / POLICY_STATE) for adapter in others),
            served=max(len(learned.adapters), group + 1),
        )
        return Taught(facts=facts, leave=leave)

    def answerer(self, base: Path, learned: Learned, batch_size: int) -> Answerer:
        """Load what was exported."""
        return AdapterAnswerer(base, learned.adapters, learned.codebook, self.learner.group_floor, batch_size)


class AdapterAnswerer(Answerer):
    """The base model with one adapter, or one for each group of instructions."""

    def __init__(
        self, base: Path, adapters: Sequence[Path], codebook: Codebook | None, floor: float, batch_size: int
    ) -> None:
        bare, processor = load_base(base, device())
        model = PeftModel.from_pretrained(bare, adapters[0], adapter_name="0")
        for group, adapter in enumerate(adapters[1:], start=1):
            model.load_adapter(adapter, adapter_name=str(group))
        to_bfloat16(model)
        super().__init__(model, processor, batch_size)
        self.codebook = codebook
        self.floor = floor

    def choose(self, rows: Sequence[Row], pictures: Pictures) -> list[int]:
        """Route each question by its text, as the server does: what resembles no group goes to the base model."""
        if self.codebook is None:
            return [0] * len(rows)
        found = [route(question_of(row), self.codebook, self.floor) for row in rows]
        return [BARE if group is None else group for group in found]

    def select(self, chosen: int) -> None:
        """Let the adapter of a group answer, or the base model."""
        if chosen == BARE:
            self.model.disable_adapter_layers()
        else:
            self.model.enable_adapter_layers()
            self.model.set_adapter(str(chosen))


def group_of(task: Task, codebook: Codebook | None, threshold: float | None) -> tuple[int, Codebook | None]:
    """Return the group that a task joins and the codebook with its instructions; without groups always the first.

    A new group begins with the bare base model: nothing was learned before that it could forget. There are as many as
    the product's servers hold by default; further tasks join the nearest.
    """
    if codebook is None or threshold is None:
        return 0, None
    group, codebook, _ = join({0: task.instructions}, codebook, threshold, MOST_GROUPS)
    return group, codebook


def size_of(path: Path) -> int:
    """Return the size of a file in bytes; 0 if there is none."""
    return path.stat().st_size if path.exists() else 0

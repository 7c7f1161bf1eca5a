"""Groups of the benchmark answer as those of the product: a question like none of them is the base model's."""

from __future__ import annotations

from pathlib import Path

from benchmarks.continual.adapters import BARE, AdapterTeacher
from benchmarks.continual.answers import Answerer, device
from benchmarks.continual.tasks import Pictures
from learner.model import load_base
from tests.benchmarks.classes import SETTINGS, drawn, lesson, task

COUNT, OTHER = "how many shapes are there?", "describe the red circle in a few words."


def test_a_question_like_no_group_is_answered_by_the_base_model(base: Path, tmp_path: Path) -> None:
    """After a round on one group, its questions go to the adapter and change; others get the bare model's answers."""
    pictures = Pictures()
    teacher = AdapterTeacher(SETTINGS.model_copy(update={"rank": 8}), groups=0.5)
    counting = task("count", drawn(pictures, COUNT, 0, 8))
    taught = teacher.teach(lesson(base, [counting], pictures, teacher.beginning(), tmp_path))
    answerer = teacher.answerer(base, taught.leave(), 4)
    asked, others = drawn(pictures, COUNT, 20, 4), drawn(pictures, OTHER, 30, 4)
    assert answerer.choose([*asked, *others], pictures) == [0] * 4 + [BARE] * 4

    bare = Answerer(*load_base(base, device()), 4)
    assert answerer.answers(others, pictures) == bare.answers(others, pictures)
    assert answerer.answers(asked, pictures) != bare.answers(asked, pictures)
    assert answerer.answers([*others, *asked], pictures) == [
        *bare.answers(others, pictures),
        *answerer.answers(asked, pictures),
    ]

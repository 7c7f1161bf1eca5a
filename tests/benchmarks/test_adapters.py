"""Groups of the benchmark answer as those of the product: a question like none of them is the base model's."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.continual.adapters import BARE, MOST_GROUPS, AdapterTeacher, group_of
from benchmarks.continual.answers import Answerer, device
from benchmarks.continual.choose import teacher_of
from benchmarks.continual.protocol import method
from benchmarks.continual.tasks import Pictures
from learner.model import load_base
from learner.settings import LearnerSettings
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


def test_there_are_no_more_groups_than_servers_hold() -> None:
    """Where every task asks otherwise, those beyond the limit join a group, as in a round."""
    teacher = AdapterTeacher(SETTINGS, groups=1.0)
    codebook = teacher.beginning().codebook
    found = []
    for index in range(MOST_GROUPS + 2):
        other = task(str(index), drawn(Pictures(), f"{chr(97 + index) * 5} {index}?", 0, 1))
        group, codebook = group_of(other, codebook, teacher.groups)
        found.append(group)
    assert found[:MOST_GROUPS] == list(range(MOST_GROUPS))
    assert max(found) == MOST_GROUPS - 1


def test_state_of_every_adapter_is_counted(base: Path, tmp_path: Path) -> None:
    """With a policy that remembers, two groups keep twice what one keeps."""
    pictures = Pictures()
    teacher = AdapterTeacher(SETTINGS.model_copy(update={"rank": 8, "policy": "ewc"}), groups=0.5)
    learned, tasks, kept = teacher.beginning(), [], []
    for place, question in enumerate((COUNT, OTHER)):
        tasks.append(task(question, drawn(pictures, question, 10 * place, 4)))
        taught = teacher.teach(lesson(base, tasks, pictures, learned, tmp_path))
        learned = taught.leave()
        kept.append(taught.facts.state_bytes)
    assert learned.groups == (0, 1)
    assert kept[0] > 0
    assert kept[1] == pytest.approx(2 * kept[0], rel=0.1)


def test_the_environment_has_no_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """A setting of the product on this machine changes no comparison; what the command says does."""
    monkeypatch.setenv("LLACA_RANK", "64")
    monkeypatch.setenv("LLACA_EPOCHS", "7")
    assert (
        teacher_of(method("llaca"), {"epochs": 2}, 0).settings["rank"]
        == LearnerSettings.model_fields["rank"].default
    )
    assert teacher_of(method("llaca"), {"epochs": 2}, 0).settings["epochs"] == 2
    assert (
        teacher_of(method("prompt"), {}, 0).settings["epochs"]
        == LearnerSettings.model_fields["epochs"].default
    )

"""The general suite: what the base model could do before, asked in its own words; an adapter should not damage it."""

from __future__ import annotations

from benchmarks.continual.drawn import Asked, conversation
from benchmarks.continual.tasks import Pictures, Task
from learner.scoring import score
from recipes.smol_llava.drawing import Artist
from recipes.smol_llava.evaluate import ABILITIES, examined
from recipes.smol_llava.questions import Examiner
from storage.records import Row


def suite(artist: Artist, pictures: Pictures, questions: int) -> list[Task]:
    """Return `questions` questions of each ability that the recipe of the base model tests, about unseen pictures."""
    tasks = []
    for ability in ABILITIES:
        asked = [
            Asked(picture=scene.picture, question=question.text, answer=question.answer)
            for scene, question in examined(ability, artist, Examiner(), questions, "general")
        ]
        rows = [
            Row(id=n + 1, dataset_id=0, position=n, split="holdout", sha256=sha256, messages=messages)
            for n, (sha256, messages) in enumerate(conversation(one, pictures) for one in asked)
        ]
        tasks.append(Task(name=ability.name, train=[], holdout=rows, style=None, grade=_right))
    return tasks


def _right(reference: str, answer: str) -> float:
    return float(score(reference, answer) == 1)

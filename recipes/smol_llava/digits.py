"""Measures how fast the model learns something new, as a round of the learner does: handwritten digits."""

from __future__ import annotations

import hashlib
import io
import random
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from learner.settings import LearnerSettings
from learner.train import TrainingJob, train
from recipes.smol_llava.evaluate import right
from recipes.smol_llava.questions import Question
from recipes.smol_llava.scenes import SIDE, Scene
from storage.records import Row, image_part, text_part

QUESTION = "Which digit is written here?"
SETTINGS = LearnerSettings(policy="sequential", rank=16, epochs=5)
"""A round's own, but for the policy, as there is nothing to protect, and epochs, as many as fit in three minutes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """Shares of right answers in percent, before and after, and how long learning took."""

    before: float
    after: float
    seconds: float


def handwritten(count: int, seed: int) -> list[tuple[Image.Image, str]]:
    """Return pictures of scikit-learn's handwritten digits (8 x 8 pixels), enlarged, with their names."""
    from sklearn.datasets import load_digits

    found = load_digits()
    chosen = random.Random(f"digits/{seed}").sample(range(len(found.images)), count)
    return [
        (
            Image.fromarray((255 - found.images[index] * 255 / 16).astype("uint8"))
            .resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            .convert("RGB"),
            str(found.target[index]),
        )
        for index in chosen
    ]


def learn(base: Path, rows: int, questions: int, seed: int) -> Learned:
    """Learn from `rows` digits and ask for `questions` others, before and after."""
    drawn = handwritten(rows + questions, seed)
    blobs: dict[str, bytes] = {}
    taught = [_row(number, picture, answer, blobs) for number, (picture, answer) in enumerate(drawn[:rows])]
    asked = [
        (
            Scene(kind="text", picture=picture, text=answer),
            Question(ability="digits", text=QUESTION, answer=answer),
        )
        for picture, answer in drawn[rows:]
    ]
    with tempfile.TemporaryDirectory() as workspace:
        started = time.monotonic()
        job = TrainingJob(
            base=base,
            parent_adapter=None,
            rows=taught,
            image=blobs.__getitem__,
            settings=SETTINGS,
            first_task=True,
            workspace=Path(workspace),
        )
        trained = train(job, lambda *_: None, lambda: False)
        seconds = time.monotonic() - started
    processor = trained.renderer.processor
    after = right(trained.model, processor, asked)
    with trained.model.disable_adapter():
        before = right(trained.model, processor, asked)
    return Learned(before=before, after=after, seconds=seconds)


def _row(number: int, picture: Image.Image, answer: str, blobs: dict[str, bytes]) -> Row:
    encoded = io.BytesIO()
    picture.save(encoded, "PNG")
    sha256 = hashlib.sha256(encoded.getvalue()).hexdigest()
    blobs[sha256] = encoded.getvalue()
    return Row(
        id=number, dataset_id=1, position=number, split="train", sha256=sha256,
        messages=[
            {"role": "user", "content": [image_part(sha256), text_part(QUESTION)]},
            {"role": "assistant", "content": [text_part(answer)]},
        ],
    )  # fmt: skip

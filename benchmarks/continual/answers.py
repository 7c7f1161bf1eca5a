"""Lets a model answer rows, in batches and greedily, and marks what it says.

It computes as a server does: everything in bf16.
"""

from __future__ import annotations

import io
from collections.abc import Hashable, Sequence
from itertools import islice

import torch
from PIL import Image
from transformers import PreTrainedModel, ProcessorMixin

from benchmarks.continual.results import Cell
from benchmarks.continual.tasks import Pictures, Task, question_of, reference_of
from learner.data import Renderer
from learner.train import ends_of_turn
from storage.records import Row

SAMPLES = 3
"""Answers of each task that are kept to be read."""
ROOM = 8
"""Tokens that an answer may have beyond the longest reference, so that a wrong form shows."""


class Answerer:
    """A model that answers: the bare base, or one with whatever was trained on it.

    Where several things were trained, a method overrides `choose` and `select`.
    """

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin, batch_size: int) -> None:
        self.model = model.eval()
        self.ends = sorted(ends_of_turn(model, processor))
        self.renderer = Renderer(processor, frozenset(self.ends))
        self.batch_size = batch_size

    def choose(self, rows: Sequence[Row], pictures: Pictures) -> list[int]:
        """Return for each row which of several adapters, or experts, is to answer it."""
        return [0] * len(rows)

    def select(self, chosen: int) -> None:
        """Let this one answer."""

    def kind(self, row: Row) -> Hashable:
        """Return what rows of one batch have in common: all show pictures or none, since processors want it so."""
        return bool(row.images)

    def ask(self, task: Task, pictures: Pictures) -> Cell:
        """Ask a task's held-out rows, and count right answers and those in the taught form."""
        return marked(task, self.answers(task.holdout, pictures))

    def ask_together(self, tasks: Sequence[Task], pictures: Pictures) -> dict[str, Cell]:
        """Ask several tasks of few rows each in common batches."""
        answers = iter(self.answers([row for task in tasks for row in task.holdout], pictures))
        return {task.name: marked(task, list(islice(answers, len(task.holdout)))) for task in tasks}

    def answers(self, rows: Sequence[Row], pictures: Pictures) -> list[str]:
        """Answer all rows, each by what was chosen for it."""
        longest = max((len(self._tokens(reference_of(row))) for row in rows), default=0)
        said: dict[int, str] = {}
        chosen = self.choose(rows, pictures) if rows else []
        for one in sorted(set(chosen)):
            self.select(one)
            for indices in self._batches([index for index, its in enumerate(chosen) if its == one], rows):
                batch = [rows[index] for index in indices]
                said |= dict(zip(indices, self._generate(batch, pictures, longest + ROOM), strict=True))
        return [said[index] for index in range(len(rows))]

    def _batches(self, indices: Sequence[int], rows: Sequence[Row]) -> list[list[int]]:
        """Cut indices to batches of rows of one kind, neighbours in length together."""
        kinds = {index: self.kind(rows[index]) for index in indices}
        by_length = sorted(indices, key=lambda index: len(question_of(rows[index])))
        batches: list[list[int]] = []
        for kind in dict.fromkeys(kinds.values()):
            alike = [index for index in by_length if kinds[index] == kind]
            batches += [
                alike[start : start + self.batch_size] for start in range(0, len(alike), self.batch_size)
            ]
        return batches

    @torch.no_grad()
    def _generate(self, rows: Sequence[Row], pictures: Pictures, most_tokens: int) -> list[str]:
        processor = self.renderer.processor
        texts = [self.renderer.prompt(row.messages[:-1], answer_follows=True) for row in rows]
        shown = [
            [Image.open(io.BytesIO(pictures.read(sha256))).convert("RGB") for sha256 in row.images]
            for row in rows
        ]
        processor.tokenizer.padding_side = "left"
        inputs = processor(
            text=texts,
            images=shown if shown[0] else None,
            return_tensors="pt",
            padding=True,
            add_special_tokens=False,
        ).to(self.model.device, dtype=torch.bfloat16)
        made = self.model.generate(
            **inputs,
            max_new_tokens=most_tokens,
            do_sample=False,
            eos_token_id=self.ends,
            pad_token_id=processor.tokenizer.pad_token_id or 0,
        )
        replies = processor.batch_decode(made[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return [reply.strip() for reply in replies]

    def _tokens(self, text: str) -> list[int]:
        tokens: list[int] = self.renderer.processor.tokenizer(text, add_special_tokens=False).input_ids
        return tokens


def marked(task: Task, answers: Sequence[str]) -> Cell:
    """Compare answers with a task's references, and with the form they were taught in."""
    asked = [(reference_of(row), answer) for row, answer in zip(task.holdout, answers, strict=True)]
    formed = [task.style is None or task.style.fullmatch(answer) is not None for answer in answers]
    return Cell(
        rows=len(asked),
        accuracy=100 * sum(task.grade(*pair) for pair in asked) / len(asked),
        format=None if task.style is None else 100 * sum(formed) / len(asked),
        samples=asked[:SAMPLES],
    )


def device() -> torch.device:
    """Return the GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")

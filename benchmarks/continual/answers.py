"""Lets a model with its adapters answer rows, in batches and greedily, and marks what it says.

It loads what a round has exported, and computes as a server does: everything in bf16.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import torch
from peft import PeftModel
from PIL import Image

from benchmarks.continual.results import Cell
from benchmarks.continual.tasks import Pictures, Task, question_of, reference_of
from learner.data import Renderer
from learner.model import load_base
from learner.train import ends_of_turn
from serving.groups import Codebook, route
from storage.records import Row

SAMPLES = 3
"""Answers of each task that are kept to be read."""
ROOM = 8
"""Tokens that an answer may have beyond the longest reference, so that a wrong form shows."""


class Answerer:
    """The base model, bare or with one adapter for each group of instructions."""

    def __init__(
        self, base: Path, adapters: Sequence[Path], codebook: Codebook | None, batch_size: int
    ) -> None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model, processor = load_base(base, device)
        self.ends = sorted(ends_of_turn(model, processor))
        self.renderer = Renderer(processor, frozenset(self.ends))
        self.model = model.eval()
        if adapters:
            self.model = PeftModel.from_pretrained(model, adapters[0], adapter_name="0")
            for group, adapter in enumerate(adapters[1:], start=1):
                self.model.load_adapter(adapter, adapter_name=str(group))
            self.model.to(torch.bfloat16).eval()
        self.codebook = codebook
        self.batch_size = batch_size

    def ask(self, task: Task, pictures: Pictures) -> Cell:
        """Ask a task's held-out rows, and count right answers and those in the taught form."""
        return marked(task, self.answers(task.holdout, pictures))

    def ask_together(self, tasks: Sequence[Task], pictures: Pictures) -> dict[str, Cell]:
        """Ask several tasks of few rows each in common batches."""
        answers = iter(self.answers([row for task in tasks for row in task.holdout], pictures))
        return {task.name: marked(task, list(islice(answers, len(task.holdout)))) for task in tasks}

    def answers(self, rows: Sequence[Row], pictures: Pictures) -> list[str]:
        """Answer all rows, each by the adapter of its group."""
        longest = max((len(self._tokens(reference_of(row))) for row in rows), default=0)
        said: dict[int, str] = {}
        for group, members in self._groups(rows):
            if self.codebook is not None:
                self.model.set_adapter(str(group))
            # Neighbours in length together; those without a picture apart, since processors want all or none.
            order = sorted(
                members, key=lambda index: (bool(rows[index].images), len(question_of(rows[index])))
            )
            for indices in self._batches(order, rows):
                batch = [rows[index] for index in indices]
                said |= dict(zip(indices, self._generate(batch, pictures, longest + ROOM), strict=True))
        return [said[index] for index in range(len(rows))]

    def _groups(self, rows: Sequence[Row]) -> list[tuple[int, list[int]]]:
        """Return which rows each adapter answers."""
        groups: dict[int, list[int]] = {}
        for index, row in enumerate(rows):
            group = 0 if self.codebook is None else route(question_of(row), self.codebook)
            groups.setdefault(group, []).append(index)
        return sorted(groups.items())

    def _batches(self, order: Sequence[int], rows: Sequence[Row]) -> list[list[int]]:
        """Cut indices to batches of rows that all have pictures, or all have none."""
        batches: list[list[int]] = []
        for index in order:
            if (
                not batches
                or len(batches[-1]) == self.batch_size
                or bool(rows[batches[-1][0]].images) != bool(rows[index].images)
            ):
                batches.append([])
            batches[-1].append(index)
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

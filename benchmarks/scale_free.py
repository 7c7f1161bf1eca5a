"""Shows what LLaCA's rules make of the size of things: of the rank, the learning rate and the batch.

    .venv/bin/python -m benchmarks.scale_free --base DIR

Under each setting an adapter learns one task of the continual benchmark and then, three times from that very adapter,
another one: plainly, by the published rule, and by `balance`. All losses are measured in nats per answer token of
held-out rows. What the settings themselves change is in the plain column; a rule that depends on no scale keeps its
shares of it from line to line. DIR is the base model; if there is no such directory, the embedded model is assembled
in it.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.continual import drawn
from benchmarks.continual.choose import learner_settings
from benchmarks.continual.run import machine
from benchmarks.continual.tasks import Pictures, Task
from learner.data import prepare
from learner.export import export
from learner.loss import answer_loss, batch_of, kept_logits
from learner.train import TrainedAdapter, TrainingJob, train
from serving.embedded import assemble
from storage.records import Row

FIRST, SECOND = "digits", "count"
"""Numbers as digits, then numbers as words: the second task undoes the first."""
VARIED: tuple[dict[str, Any], ...] = (
    {}, {"rank": 8, "alpha": 16}, {"rank": 64, "alpha": 128}, {"learning_rate": 2e-4}, {"learning_rate": 1e-3},
    {"batch_size": 2}, {"batch_size": 8},
)  # fmt: skip
BALANCE = {"policy": "llaca", "llaca_rule": "balance"}
RULES: dict[str, dict[str, Any]] = {
    "plain": {"policy": "sequential"},
    "official": {"policy": "llaca", "llaca_rule": "official"},
    "balance": BALANCE,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """Of both tasks' held-out rows, in nats per answer token."""

    first: float
    second: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What all settings share."""

    base: Path
    first: Task
    second: Task
    pictures: Pictures
    shared: Mapping[str, Any]
    """Settings of the learner, unless a line of the table says otherwise."""

    def measure(self, varied: Mapping[str, Any], place: Path) -> tuple[Losses, dict[str, Losses]]:
        """Return the losses after the first task, and after the second one by each rule."""
        # A first round trains plainly by any of the rules; only `balance` wants to remember something of it.
        begun = self.taught(self.first, {**self.shared, **varied, **BALANCE}, None, place / "first")
        before, parent = self.losses(begun), export(begun, place / "adapters", {})
        del begun
        after = {}
        for rule, policy in RULES.items():
            ended = self.taught(self.second, {**self.shared, **varied, **policy}, parent, place / rule)
            after[rule] = self.losses(ended)
            del ended
        return before, after

    def taught(
        self, task: Task, settings: Mapping[str, Any], parent: Path | None, place: Path
    ) -> TrainedAdapter:
        """Train a task as a round does."""
        job = TrainingJob(
            base=self.base,
            parent_adapter=parent,
            rows=task.train,
            image=self.pictures.read,
            settings=learner_settings(dict(settings)),
            first_task=parent is None,
            workspace=place,
        )
        return train(job, lambda *_: None, lambda: False)

    def losses(self, trained: TrainedAdapter) -> Losses:
        """Measure what a round has come to."""
        return Losses(
            first=self._loss(trained, self.first.holdout), second=self._loss(trained, self.second.holdout)
        )

    @torch.no_grad()
    def _loss(self, trained: TrainedAdapter, rows: Sequence[Row], batch_size: int = 16) -> float:
        renderer, device = trained.renderer, trained.model.device
        examples = prepare(rows, renderer, self.pictures.read, trained.job.settings.row_max_tokens)
        total = tokens = 0.0
        for start in range(0, len(examples), batch_size):
            pad_id = renderer.processor.tokenizer.pad_token_id or 0
            batch = batch_of(examples[start : start + batch_size], pad_id).to(device)
            with torch.autocast(device.type, dtype=torch.bfloat16):
                total += float(answer_loss(kept_logits(trained.model, batch.inputs, batch.kept), batch))
            tokens += batch.answer_tokens
        return total / tokens


def told(varied: Mapping[str, Any], before: Losses, after: Mapping[str, Losses]) -> str:
    """Return one line of the table: what plain tuning does, and which shares of it each rule leaves."""
    lost = {rule: losses.first - before.first for rule, losses in after.items()}
    learned = {rule: before.second - losses.second for rule, losses in after.items()}
    shares = [
        f"{lost[rule] / lost['plain']:.2f} | {learned[rule] / learned['plain']:.2f}"
        for rule in RULES
        if rule != "plain"
    ]
    name = ", ".join(f"{setting} {value}" for setting, value in varied.items()) or "as it is"
    return f"| {name} | {lost['plain']:.2f} | {learned['plain']:.2f} | {' | '.join(shares)} |"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", type=Path, required=True, help="directory of the base model")
    parser.add_argument("--rows", type=int, default=64, help="that each task teaches")
    parser.add_argument("--holdout", type=int, default=100, help="rows on which losses are measured")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument(
        "--cache", type=Path, default=Path("data/recipe/cache"), help="where emoji and typefaces are"
    )
    given = parser.parse_args()
    if not given.base.exists():
        assemble(given.base)
    pictures = Pictures()
    tasks = drawn.named((FIRST, SECOND), given.cache, pictures, rows=given.rows, holdout=given.holdout)
    bench = Bench(
        base=given.base,
        first=tasks[FIRST],
        second=tasks[SECOND],
        pictures=pictures,
        shared={"epochs": given.epochs},
    )
    print(f"{given.base.name}, {given.rows} rows of {FIRST}, then of {SECOND}; {machine()}")
    print(f"{datetime.now(UTC):%Y-%m-%d}; nats lost of {FIRST} and learned of {SECOND}")
    heads = (f"{rule}: of it lost | learned" for rule in RULES if rule != "plain")
    print(f"| setting | plain: lost | learned | {' | '.join(heads)} |\n{'|---' * (1 + 2 * len(RULES))}|")
    for varied in VARIED:
        with tempfile.TemporaryDirectory() as place:
            print(told(varied, *bench.measure(varied, Path(place))), flush=True)


if __name__ == "__main__":
    main()

"""Compares how many rows a second this project's learner and TRL's SFTTrainer train, in turn in one process.

    .venv/bin/pip install -e '.[benchmarks]'
    .venv/bin/python -m benchmarks.against_trl --base DIR

DIR is the base model; if there is no such directory, the embedded model is assembled in it. Both get the same drawn
rows, the same base in bf16 with an fp32 LoRA of the same rank on the same layers, the same batch size, epochs, learning
rate and fused AdamW, and take loss on the answers alone. What is timed is a whole training with the base model loaded:
reading rows and pictures, and every step to the last.

What differs is what each does about it. The learner reads a row once, runs the vision tower once per picture and the
output head on the answers alone, buckets rows by length, keeps LLaCA's average after every step, and writes a
checkpoint at the end. TRL reads rows again in each epoch, as it does by default. What it could be told is told:
gradient checkpointing, on by default and slower, is off, on a CPU attention is the plain one that the learner takes for
short rows (`--trl-defaults` leaves the one on and the other as it comes), nothing is saved or sent anywhere, and
`--workers` lets other processes read rows ahead. TRL's answer ends with all that the template writes after it, the
learner's with the token that ends the turn, so their mean losses are over other tokens.

Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import mean, median
from typing import Any
from unittest.mock import patch

import torch
from datasets import Dataset
from PIL import Image
from transformers import PreTrainedModel, ProcessorMixin
from trl import SFTConfig, SFTTrainer

import learner.train
from benchmarks.llaca_step import drawn
from learner.data import Renderer, prepare
from learner.model import adapter_config, load_base
from learner.settings import LearnerSettings
from learner.train import SHORT_ROW, TrainedAdapter, TrainingJob, ends_of_turn
from serving.embedded import assemble
from storage.records import Row, text_of

VERSIONS = ("torch", "transformers", "peft", "trl")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One training."""

    seconds: float
    """Without those that loading the base model took."""
    attention: str
    """Which of transformers' implementations computed it."""
    loss: float
    """Mean over all steps, in nats per answer token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What both train."""

    base: Path
    rows: list[Row]
    pictures: dict[str, bytes]
    settings: LearnerSettings
    workers: int
    """Processes that read rows for TRL, besides its own."""
    as_it_comes: bool
    """Whether TRL is told neither to keep activations for the backward pass nor to compute attention of short rows
    plainly on a CPU."""

    def ours(self) -> Measured:
        """Train as a round does."""
        losses: list[float] = []

        def report(_step: int, _steps: int, values: dict[str, Any]) -> None:
            losses.append(values["loss"])

        with tempfile.TemporaryDirectory() as workspace, loading_timed() as loading:
            job = TrainingJob(
                base=self.base,
                parent_adapter=None,
                rows=self.rows,
                image=self.pictures.__getitem__,
                settings=self.settings,
                first_task=False,
                workspace=Path(workspace),
                max_rank=self.settings.rank,
            )
            trained: list[TrainedAdapter] = []
            seconds = seconds_of(lambda: trained.append(learner.train.train(job, report, lambda: False)))
        attention = attention_of(trained[0].model.get_base_model())
        return Measured(seconds=seconds - sum(loading), attention=attention, loss=mean(losses))

    def theirs(self) -> Measured:
        """Train as a program does that uses TRL."""
        model, processor = load_base(self.base, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        if (
            not self.as_it_comes
            and model.device.type == "cpu"
            and self.longest(model, processor) <= SHORT_ROW
        ):
            model.set_attn_implementation("eager")
        dataset = Dataset.from_list([self.trl_row(row) for row in self.rows])
        found: list[float] = []

        def train() -> None:
            with tempfile.TemporaryDirectory() as directory:
                trainer = SFTTrainer(
                    model=model,
                    args=self.trl_settings(directory),
                    train_dataset=dataset,
                    processing_class=processor,
                    peft_config=adapter_config(model, self.settings),
                )
                found.append(trainer.train().training_loss)

        return Measured(seconds=seconds_of(train), attention=attention_of(model), loss=found[0])

    def longest(self, model: PreTrainedModel, processor: ProcessorMixin) -> int:
        """Return the number of tokens of the longest row."""
        renderer = Renderer(processor, ends_of_turn(model, processor))
        examples = prepare(self.rows, renderer, self.pictures.__getitem__, self.settings.row_max_tokens)
        return max(example.length for example in examples)

    def trl_settings(self, directory: str) -> Any:
        """Return our settings as TRL's."""
        ours = self.settings
        return SFTConfig(
            output_dir=directory,
            num_train_epochs=ours.epochs,
            per_device_train_batch_size=ours.batch_size,
            gradient_accumulation_steps=ours.gradient_accumulation,
            learning_rate=ours.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=ours.warmup_share,
            max_grad_norm=ours.max_grad_norm,
            weight_decay=ours.weight_decay,
            optim="adamw_torch_fused",
            bf16=True,
            use_cpu=not torch.cuda.is_available(),
            gradient_checkpointing=self.as_it_comes,
            completion_only_loss=True,
            max_length=None,
            dataloader_num_workers=self.workers,
            seed=ours.seed,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            logging_strategy="no",
        )

    def trl_row(self, row: Row) -> dict[str, Any]:
        """Return a row in the form in which TRL takes pictures with a question and its answer."""
        asked, answered = row.messages
        return {
            "images": [Image.open(io.BytesIO(self.pictures[sha256])) for sha256 in row.images],
            "prompt": [{"role": "user", "content": text_of(asked)}],
            "completion": [{"role": "assistant", "content": text_of(answered)}],
        }


def attention_of(model: PreTrainedModel) -> str:
    """Return the name of what computes attention in the language model."""
    name: str = model.config.get_text_config()._attn_implementation  # noqa: SLF001 - there is no other way to ask
    return name


def seconds_of(call: Callable[[], object]) -> float:
    """Return how long a call takes, until the device has done it."""
    start = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


@contextmanager
def loading_timed() -> Iterator[list[float]]:
    """Collect the seconds in which a training loads its base model."""
    taken: list[float] = []

    def load(*given: Any) -> Any:
        start = time.perf_counter()
        loaded = load_base(*given)
        taken.append(time.perf_counter() - start)
        return loaded

    with patch.object(learner.train, "load_base", load):
        yield taken


def told(bench: Bench, ours: list[Measured], theirs: list[Measured]) -> str:
    """Return the measurements as lines of text."""
    trained = len(bench.rows) * bench.settings.epochs
    mine, other = ([trained / each.seconds for each in found] for found in (ours, theirs))
    settings = bench.settings
    cuda = torch.cuda.is_available()
    where = torch.cuda.get_device_name() if cuda else f"{torch.get_num_threads()} threads"
    how = f"{settings.epochs} epochs, batches of {settings.batch_size}, rank {settings.rank}"
    checkpointing = "with" if bench.as_it_comes else "without"
    ratios = ", ".join(f"{a / b:.2f}" for a, b in zip(mine, other, strict=True))
    lines = [
        ", ".join([where, *(f"{name} {version(name)}" for name in VERSIONS)]),
        f"{len(bench.rows)} rows, {how}",
        _line(f"the learner, policy {settings.policy}, {ours[0].attention}", mine, ours),
        _line(f"TRL, {checkpointing} gradient checkpointing, {theirs[0].attention}", other, theirs),
        f"the learner / TRL: {median(mine) / median(other):.2f} (medians; of each turn {ratios})",
    ]
    return "\n".join(lines)


def _line(name: str, rates: list[float], found: list[Measured]) -> str:
    each = ", ".join(f"{rate:.2f}" for rate in rates)
    loss = mean(one.loss for one in found)
    return f"{name:<45}{median(rates):8.2f} rows/s (median of {each}), mean loss {loss:.3f}"


def main() -> None:
    """Measure and print."""
    defaults = LearnerSettings()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", type=Path, required=True, help="directory of the base model")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=defaults.epochs)
    parser.add_argument("--rank", type=int, default=defaults.rank)
    parser.add_argument("--batch-size", type=int, default=defaults.batch_size)
    parser.add_argument("--policy", default=defaults.policy, help="of the learner")
    parser.add_argument("--turns", type=int, default=3, help="trainings of each, in turn")
    parser.add_argument("--workers", type=int, default=0, help="processes that read rows for TRL")
    parser.add_argument(
        "--trl-defaults", action="store_true", help="with gradient checkpointing and fused attention"
    )
    given = parser.parse_args()
    if not given.base.exists():
        assemble(given.base)
    rows, pictures = drawn(given.rows)
    settings = LearnerSettings(
        rank=given.rank,
        epochs=given.epochs,
        batch_size=given.batch_size,
        policy=given.policy,
        checkpoint_every_steps=10**9,
    )
    bench = Bench(
        base=given.base,
        rows=rows,
        pictures=pictures,
        settings=settings,
        workers=given.workers,
        as_it_comes=given.trl_defaults,
    )
    ours: list[Measured] = []
    theirs: list[Measured] = []
    ways = [(bench.ours, ours), (bench.theirs, theirs)]
    for turn in range(given.turns):
        # Whoever comes second finds a warm machine, so they take turns at that too.
        for way, found in ways if turn % 2 else ways[::-1]:
            found.append(way())
    print(told(bench, ours, theirs))


if __name__ == "__main__":
    main()

"""Training as a whole, on tiny models of three families: it learns, it is exact, and it can be cut off anywhere."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from learner.checkpoint import Checkpoints
from learner.data import Renderer, collate, prepare
from learner.export import export
from learner.loss import answer_loss, batch_of, kept_logits
from learner.model import attach_adapter, language_linears, load_base, target_pattern
from learner.settings import LearnerSettings
from learner.train import TrainedAdapter, TrainingJob, ends_of_turn, learning_rate, train
from storage.errors import (
    AdapterMismatch,
    CheckpointMismatch,
    RowsTooLong,
    TrainingDiverged,
    TrainingStopped,
    UnservableAdapter,
    UnsuitableModel,
)
from tests.learner import tiny

FAST = LearnerSettings(rank=8, learning_rate=1e-2, epochs=2, checkpoint_every_steps=2, llaca_scale=0.05)
CPU = torch.device("cpu")


def job_of(base: Path, workspace: Path, settings: LearnerSettings = FAST, **changes: Any) -> TrainingJob:
    """Return a small job with rows of every kind."""
    pictures = tiny.Pictures()
    rows = [*tiny.mixed_rows(pictures), *tiny.counting_rows(pictures, 7)]
    given = {
        "base": base,
        "parent_adapter": None,
        "rows": rows,
        "image": pictures.read,
        "settings": settings,
        "first_task": False,
        "workspace": workspace,
    }
    return TrainingJob(**given | changes)


class Metrics:
    """Collects what training reports, and stops it after a given step."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.values: list[dict[str, Any]] = []
        self.steps = 0
        self.stop_after = stop_after

    def report(self, step: int, steps: int, values: dict[str, Any]) -> None:
        """Take the metrics of one step."""
        self.values.append({"step": step, **values})
        self.steps = steps

    def should_stop(self) -> bool:
        """Tell whether enough steps were seen."""
        return (
            self.stop_after is not None and bool(self.values) and self.values[-1]["step"] >= self.stop_after
        )


def trained(job: TrainingJob, stop_after: int | None = None) -> tuple[TrainedAdapter, Metrics]:
    """Train to the end, or until stopped."""
    metrics = Metrics(stop_after)
    return train(job, metrics.report, metrics.should_stop), metrics


def assert_same_bits(left: TrainedAdapter, right: TrainedAdapter) -> None:
    """Check that two adapters are equal to the last bit, and not by being empty."""
    assert left.weights
    assert left.weights.keys() == right.weights.keys()
    assert all(torch.equal(left.weights[name], right.weights[name]) for name in left.weights)


def test_training_lowers_the_loss_and_tells_about_every_step(base: Path, tmp_path: Path) -> None:
    """Each family learns its rows; each step reports what the curves show."""
    settings = FAST.model_copy(update={"epochs": 6})
    _, metrics = trained(job_of(base, tmp_path, settings))
    losses = [values["loss"] for values in metrics.values]
    assert sum(losses[-3:]) < 0.75 * sum(losses[:3])
    assert [values["step"] for values in metrics.values] == list(range(1, metrics.steps + 1))
    for values in metrics.values:
        assert values["learning_rate"] > 0
        assert values["grad_norm"] > 0
        assert values["samples_per_second"] > 0
        assert set(values["beta"]["down_proj.B"]) == {"median", "min", "max", "fallback"}
    assert 0 <= metrics.values[9]["kept"]["all"] <= 1
    json.dumps(metrics.values)


def test_only_the_language_model_gets_an_adapter(base: Path) -> None:
    """Vision tower, projector and output head stay untouched; all linear layers of the language model are adapted."""
    model, _ = load_base(base, CPU)
    linears = language_linears(model)
    assert len(linears) == 2 * 7
    attached = attach_adapter(model, FAST, None, max_rank=64)
    adapted = {
        name.split(".lora_")[0] for name, weight in attached.named_parameters() if weight.requires_grad
    }
    assert adapted == {f"base_model.model.{name}" for name in linears}
    assert all(weight.dtype == torch.float32 for weight in attached.parameters() if weight.requires_grad)
    assert all(weight.dtype == torch.bfloat16 for weight in attached.parameters() if not weight.requires_grad)


def test_target_pattern_is_short_and_exact() -> None:
    """Layers differ only in their number, so one expression stands for all of them and for nothing else."""
    pattern = target_pattern(["model.text.layers.0.q_proj", "model.text.layers.11.q_proj"])
    assert pattern == r"model\.text\.layers\.\d+\.q_proj"


def test_accumulated_gradients_equal_those_of_the_large_batch(base: Path, tmp_path: Path) -> None:
    """Four batches of one row and one of four give the same first step, although rows have answers of other lengths."""
    one = FAST.model_copy(update={"batch_size": 1, "gradient_accumulation": 4})
    four = FAST.model_copy(update={"batch_size": 4, "gradient_accumulation": 1})
    found = [
        trained(job_of(base, tmp_path / name, s))[1].values[0]
        for name, s in {"one": one, "four": four}.items()
    ]
    assert found[0]["loss"] == pytest.approx(found[1]["loss"], rel=2e-3)
    assert found[0]["grad_norm"] == pytest.approx(found[1]["grad_norm"], rel=2e-2)


def test_batch_has_the_gradient_of_its_rows_one_by_one(base: Path) -> None:
    """Without rounding, a padded batch of rows of every kind has exactly the loss and gradient of its rows."""
    model, processor = load_base(base, CPU)
    pictures = tiny.Pictures()
    renderer = Renderer(processor, ends_of_turn(model, processor))
    examples = prepare(tiny.mixed_rows(pictures), renderer, pictures.read, tiny.CONTEXT)
    attached = attach_adapter(model.float(), FAST, None, max_rank=64)

    def measured(groups: list[list[int]]) -> tuple[float, list[torch.Tensor]]:
        attached.zero_grad()
        batches = [batch_of([examples[i] for i in group], pad_id=0) for group in groups]
        losses = [answer_loss(kept_logits(attached, b.inputs, b.kept), b) for b in batches]
        total: torch.Tensor = sum(losses, torch.zeros(()))
        torch.autograd.backward(total)
        return float(total.detach()), [
            weight.grad for weight in attached.parameters() if weight.grad is not None
        ]

    together, alone = measured([[0, 1, 2, 3, 4]]), measured([[0], [1], [2], [3], [4]])
    assert together[0] == pytest.approx(alone[0], rel=1e-5)
    for left, right in zip(together[1], alone[1], strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)


def test_head_on_kept_positions_gives_the_models_own_loss(base: Path) -> None:
    """Running the output head on a few positions changes neither which are trained nor their loss."""
    model, processor = load_base(base, CPU)
    pictures = tiny.Pictures()
    renderer = Renderer(processor, ends_of_turn(model, processor))
    examples = prepare(tiny.mixed_rows(pictures), renderer, pictures.read, tiny.CONTEXT)
    batch, (inputs, labels) = batch_of(examples, pad_id=0), collate(examples, pad_id=0)
    attached = attach_adapter(model.float(), FAST, None, max_rank=64)
    with torch.no_grad():
        own = attached(**inputs, labels=labels).loss
        ours = answer_loss(kept_logits(attached, batch.inputs, batch.kept), batch) / batch.answer_tokens
        assert float(ours) == pytest.approx(float(own), rel=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"policy": "sequential"},
        {"policy": "ema", "dropout": 0.1},
        {"policy": "llaca", "llaca_rule": "paper", "gradient_accumulation": 2},
        {"policy": "llaca"},
    ],
    ids=["sequential", "ema-dropout", "paper-accumulated", "official"],
)
def test_stopped_round_ends_with_the_same_bits(
    bases: dict[str, Path], tmp_path: Path, changes: dict[str, Any]
) -> None:
    """Stopped once at a random step and once more later, a round ends like one that was never stopped."""
    settings = FAST.model_copy(update=changes)
    whole, metrics = trained(job_of(bases["llava"], tmp_path / "whole", settings))
    resumed = job_of(bases["llava"], tmp_path / "resumed", settings)
    first = random.Random(str(changes)).randrange(1, metrics.steps - 1)
    for stop in (first, first + 1):
        with pytest.raises(TrainingStopped, match=f"after step {stop}"):
            trained(resumed, stop_after=stop)
    again, rest = trained(resumed)
    assert [values["step"] for values in rest.values] == list(range(first + 2, metrics.steps + 1))
    assert rest.values[-1]["loss"] == metrics.values[-1]["loss"]
    assert_same_bits(whole, again)


CHILD = """
import sys
import time
from pathlib import Path
import torch
torch.set_num_threads(1)
from tests.learner.test_training import job_of, trained, Metrics
from learner.train import train
def report(step, steps, values):
    print(step, flush=True)
    if step == 3:
        time.sleep(600)
train(job_of(Path(sys.argv[1]), Path(sys.argv[2])), report, lambda: False)
"""


def test_killed_process_is_resumed_with_the_same_bits(bases: dict[str, Path], tmp_path: Path) -> None:
    """A process killed by SIGKILL in the middle of training leaves a workspace that ends with the same weights."""
    whole, _ = trained(job_of(bases["qwen2_vl"], tmp_path / "whole"))
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(bases["qwen2_vl"]), str(tmp_path / "killed")],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"TOKENIZERS_PARALLELISM": "false"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    for line in child.stdout:
        if line.strip() == "3":
            break
    child.send_signal(signal.SIGKILL)
    assert child.wait(timeout=30) == -signal.SIGKILL
    again, rest = trained(job_of(bases["qwen2_vl"], tmp_path / "killed"))
    assert 3 <= rest.values[0]["step"] <= 4
    assert_same_bits(whole, again)


def test_finished_round_is_not_trained_again(bases: dict[str, Path], tmp_path: Path) -> None:
    """After the last step, calling again gives the same adapter without a step."""
    whole, _ = trained(job_of(bases["llava"], tmp_path))
    again, metrics = trained(job_of(bases["llava"], tmp_path))
    assert metrics.values == []
    assert again.summary == whole.summary
    assert_same_bits(whole, again)


def test_checkpoint_of_another_round_is_refused(bases: dict[str, Path], tmp_path: Path) -> None:
    """A workspace with checkpoints of other settings is not mixed into this round."""
    trained(job_of(bases["llava"], tmp_path))
    with pytest.raises(CheckpointMismatch, match="another round"):
        trained(job_of(bases["llava"], tmp_path, FAST.model_copy(update={"seed": 1})))


def test_half_written_checkpoint_is_ignored(bases: dict[str, Path], tmp_path: Path) -> None:
    """What a crash left of a checkpoint that was being written does no harm, and is cleared away."""
    leftover = tmp_path / "checkpoints" / "writing-abc"
    leftover.mkdir(parents=True)
    (leftover / "tensors.safetensors").write_bytes(b"half")
    trained(job_of(bases["llava"], tmp_path))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000006"]


def test_checkpoint_of_a_later_step_stays(tmp_path: Path) -> None:
    """Who writes an older step, for whatever reason, takes nothing from who is further on."""
    checkpoints = Checkpoints(tmp_path, "round")
    for step in (2, 6, 4):
        checkpoints.save(step, {"weight": torch.ones(1)}, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000004", "step-00000006"]
    found = checkpoints.latest()
    assert found is not None
    assert found.step == 6


def test_next_round_continues_the_parents_weights(bases: dict[str, Path], tmp_path: Path) -> None:
    """The candidate starts where the champion ended: its first loss is far below that of a fresh adapter."""
    settings = FAST.model_copy(update={"epochs": 6, "policy": "sequential"})
    job = job_of(bases["llava"], tmp_path / "first", settings)
    first, fresh = trained(job)
    parent = export(first, tmp_path / "generations", {})
    _, continued = trained(job_of(bases["llava"], tmp_path / "second", settings, parent_adapter=parent))
    assert continued.values[0]["loss"] < 0.8 * fresh.values[0]["loss"]


def test_parent_of_another_rank_is_refused(bases: dict[str, Path], tmp_path: Path) -> None:
    """A round cannot go on from an adapter of another shape, and says which of the two to change."""
    first, _ = trained(job_of(bases["llava"], tmp_path / "first"))
    parent = export(first, tmp_path / "generations", {})
    settings = FAST.model_copy(update={"rank": 16})
    with pytest.raises(AdapterMismatch, match="has r 8, but the settings ask for 16"):
        trained(job_of(bases["llava"], tmp_path / "second", settings, parent_adapter=parent))


def test_average_protects_where_sequential_does_not(bases: dict[str, Path], tmp_path: Path) -> None:
    """A slow average ends nearer to the start than plain tuning, which ends where the optimizer does."""
    ends = {}
    for policy, decay in (("sequential", 0.5), ("ema", 0.99), ("ema", 0.01)):
        settings = FAST.model_copy(update={"policy": policy, "ema_decay": decay})
        result, _ = trained(job_of(bases["llava"], tmp_path / f"{policy}{decay}", settings))
        ends[policy, decay] = sum(float(w.norm()) for name, w in result.weights.items() if "lora_B" in name)
    assert ends["ema", 0.99] < 0.2 * ends["sequential", 0.5]
    assert ends["ema", 0.01] == pytest.approx(ends["sequential", 0.5], rel=0.05)


def test_rank_beyond_the_server_is_refused_before_training(bases: dict[str, Path], tmp_path: Path) -> None:
    """An adapter that the server would not take is never trained."""
    settings = FAST.model_copy(update={"rank": 128})
    with pytest.raises(UnservableAdapter, match=r"rank 128 \(allowed: 1, 8, 16, 32, 64\)"):
        trained(job_of(bases["llava"], tmp_path, settings, max_rank=64))


def test_rows_beyond_the_models_context_are_refused(bases: dict[str, Path], tmp_path: Path) -> None:
    """The model's own context limits rows even where the setting allows more."""
    long = tiny.row(0, [tiny.turn("user", "count " * tiny.CONTEXT), tiny.turn("assistant", "one")])
    with pytest.raises(RowsTooLong, match=f"1 of 1 rows have more than {tiny.CONTEXT} tokens"):
        trained(job_of(bases["llava"], tmp_path, rows=[long]))


def test_rows_beyond_the_servers_context_are_refused(bases: dict[str, Path], tmp_path: Path) -> None:
    """What no server could answer is not trained, even where model and setting allow it; only rehearsed, it may be."""
    rows = tiny.counting_rows(pictures := tiny.Pictures(), 3)
    short = tiny.row(9, [tiny.turn("user", "count"), tiny.turn("assistant", "one")])
    job = job_of(bases["llava"], tmp_path, rows=rows, image=pictures.read, max_tokens=15)
    with pytest.raises(RowsTooLong, match="3 of 3 rows have more than 15 tokens"):
        trained(job)
    settings = FAST.model_copy(update={"policy": "replay"})
    trained(replace(job, rows=[short], earlier=[rows], settings=settings))


def test_divergence_is_an_error_that_names_the_step(bases: dict[str, Path], tmp_path: Path) -> None:
    """A loss that is no number ends the round at once."""
    model, processor = load_base(bases["llava"], CPU)
    nn.init.constant_(model.get_output_embeddings().weight, math.nan)
    model.save_pretrained(tmp_path / "broken")
    processor.save_pretrained(tmp_path / "broken")
    with pytest.raises(TrainingDiverged, match="at step 1: the loss is not finite"):
        trained(job_of(tmp_path / "broken", tmp_path / "work"))


def test_directory_without_an_image_text_model_is_refused(tmp_path: Path) -> None:
    """What transformers cannot load as an image-text model is reported with the way to choose another."""
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UnsuitableModel, match="LLACA_MODEL"):
        load_base(tmp_path, CPU)


def test_learning_rate_warms_up_and_comes_down() -> None:
    """The rate rises over the warm-up, peaks at the setting, and falls to nearly nothing; no step is wasted at zero."""
    settings = LearnerSettings(learning_rate=1.0, warmup_share=0.1)
    rates = [learning_rate(step, 100, settings) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0)
    assert rates.index(max(rates)) in (9, 10)
    assert 0 < rates[-1] < 0.001
    assert learning_rate(0, 1, settings) > 0


def test_stop_is_heeded_before_the_first_step(bases: dict[str, Path], tmp_path: Path) -> None:
    """A stop that was asked for while the model was loading costs no step."""
    started = time.monotonic()
    with pytest.raises(TrainingStopped, match="after step 0"):
        train(job_of(bases["llava"], tmp_path), Metrics().report, lambda: True)
    assert time.monotonic() - started < 30

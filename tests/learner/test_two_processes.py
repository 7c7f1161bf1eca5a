"""Two processes that train one adapter together do what one process does alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from learner.checkpoint import Checkpoints
from learner.export import export
from learner.settings import LearnerSettings
from learner.train import TrainedAdapter, TrainingJob, train
from storage.errors import TrainingStopped
from tests.learner import tiny
from tests.learner.test_training import Metrics, job_of
from tests.ports import free_ports

SETTINGS = LearnerSettings(
    rank=8, learning_rate=1e-3, epochs=2, batch_size=2, gradient_accumulation=3, checkpoint_every_steps=2
)
ALIKE: dict[str, dict[str, Any]] = {
    "llaca": {"llaca_scale": 0.05},
    "llaca+sequential": {"llaca_rule": "balance"},  # `llaca` by its other rule
    "ema+replay": {},
    "agem": {"agem_rows": 5},
    "keeplora+lwf": {},
}
"""Policies whose outcome is compared with that of one process, and their settings."""
APART = {"agem": 1e-4}
"""How far entries may be apart if not 1e-5: it cuts a batch in two, and bf16 rounds a batch's gradient once."""
WHOLE, RESUMED = "never stopped", "stopped and resumed"
DRAWING = {"policy": "llaca", "llaca_scale": 0.05, "dropout": 0.3}


def job(base: Path, parent: Path, workspace: Path, **settings: Any) -> TrainingJob:
    """Return a round of 13 rows after the parent's; a step has up to three batches, the last of an epoch only one."""
    pictures = tiny.Pictures()
    rows = [*tiny.mixed_rows(pictures), *tiny.counting_rows(pictures, 8)]
    return job_of(
        base,
        workspace,
        SETTINGS.model_copy(update=settings),
        rows=rows,
        earlier=[tiny.counting_rows(pictures, 5)],
        parent_adapter=parent,
        image=pictures.read,
    )


def unasked(*_: object) -> NoReturn:
    """Stand for what only the first process may call."""
    raise AssertionError


def outcome(given: TrainingJob, rank: int, stop_after: int | None = None) -> tuple[TrainedAdapter, Metrics]:
    """Train as the process of this number."""
    metrics = Metrics(stop_after)
    if rank > 0:
        return train(given, unasked, unasked), metrics
    return train(given, metrics.report, metrics.should_stop), metrics


def tensors_of(result: TrainedAdapter) -> dict[str, Tensor]:
    """Return the weights, and what the next round is to remember."""
    return result.weights | {f"state.{name}": tensor for name, tensor in result.policy_state.items()}


def train_all(base: Path, parent: Path, directory: Path) -> None:
    """Train everything as one of two processes, and write down how it ended."""
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    if rank > 0:
        pytest.MonkeyPatch().setattr(Checkpoints, "_write", unasked)

    def keep(name: str, result: TrainedAdapter, metrics: Metrics) -> None:
        save_file(tensors_of(result), directory / f"{name}-{rank}.safetensors")
        (directory / f"{name}-{rank}.json").write_text(json.dumps(metrics.values))

    for policy, settings in ALIKE.items():
        keep(policy, *outcome(job(base, parent, directory / policy, policy=policy, **settings), rank))
    keep(WHOLE, *outcome(job(base, parent, directory / "whole", **DRAWING), rank))
    cut = job(base, parent, directory / "cut", **DRAWING)
    with pytest.raises(TrainingStopped, match="after step 3"):
        outcome(cut, rank, stop_after=3)
    keep(RESUMED, *outcome(cut, rank))


@pytest.fixture(scope="module")
def base(bases: dict[str, Path]) -> Path:
    """One of the tiny models."""
    return bases["llava"]


@pytest.fixture(scope="module")
def parent(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generation of another policy that has learned to count a little."""
    directory = tmp_path_factory.mktemp("parent")
    pictures = tiny.Pictures()
    plain = SETTINGS.model_copy(update={"policy": "sequential", "learning_rate": 1e-2})
    rows = tiny.counting_rows(pictures, 5)
    first, _ = outcome(job_of(base, directory, plain, rows=rows, image=pictures.read), rank=0)
    return export(first, directory / "generations", {})


@pytest.fixture(scope="module")
def together(base: Path, parent: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory in which two processes have written down how their training ended."""
    directory = tmp_path_factory.mktemp("together")
    shared = {
        "ACCELERATE_USE_CPU": "true",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(*free_ports(1)),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "WORLD_SIZE": "2",
    }
    program = (
        "import sys; from pathlib import Path; from tests.learner.test_two_processes import train_all;"
        "train_all(*map(Path, sys.argv[1:]))"
    )
    said = [directory / f"{rank}.log" for rank in range(2)]
    children = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(base), str(parent), str(directory)],
            cwd=Path(__file__).parents[2],
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=said[rank].open("w"),
        )
        for rank in range(2)
    ]
    deadline = time.monotonic() + 600
    # Where one has failed, the other waits for it for ever.
    while None in (codes := [child.poll() for child in children]) and not any(codes):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    for child in children:
        child.kill()
    assert [child.wait() for child in children] == [0, 0], "\n".join(log.read_text() for log in said)
    return directory


def ended(together: Path, name: str, rank: int) -> dict[str, Tensor]:
    """Return what a process has ended with."""
    return load_file(together / f"{name}-{rank}.safetensors")


def reported(together: Path, name: str, rank: int) -> list[dict[str, Any]]:
    """Return the metrics that a process has reported."""
    values: list[dict[str, Any]] = json.loads((together / f"{name}-{rank}.json").read_text())
    return values


def assert_same_bits(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    """Check that they are equal to the last bit, and not by being empty."""
    assert left
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("policy", ALIKE)
def test_two_processes_end_as_one_does(
    base: Path, parent: Path, together: Path, tmp_path: Path, policy: str
) -> None:
    """Weights, what is remembered, and the loss and gradient of each step are those of a single process."""
    alone, metrics = outcome(job(base, parent, tmp_path, policy=policy, **ALIKE[policy]), rank=0)
    wanted, found = tensors_of(alone), ended(together, policy, 0)
    assert wanted.keys() == found.keys()
    apart = APART.get(policy, 1e-5)
    assert max(float((found[name] - tensor).abs().max()) for name, tensor in wanted.items()) < apart
    for one, two in zip(metrics.values, reported(together, policy, 0), strict=True):
        for number in ("loss", "grad_norm"):
            assert two[number] == pytest.approx(one[number], rel=100 * apart)


@pytest.mark.parametrize("name", [*ALIKE, WHOLE, RESUMED])
def test_both_processes_end_with_the_same_bits(together: Path, name: str) -> None:
    """Weights and what is remembered do not drift apart, and only the first process reports and writes."""
    assert_same_bits(ended(together, name, 0), ended(together, name, 1))
    assert reported(together, name, 0)
    assert reported(together, name, 1) == []


@pytest.mark.parametrize("rank", [0, 1])
def test_stop_of_the_first_process_stops_both_and_changes_nothing(together: Path, rank: int) -> None:
    """Both stop at the same step and go on from the first one's checkpoint to the same bits, dropout included."""
    assert_same_bits(ended(together, WHOLE, rank), ended(together, RESUMED, rank))
    assert [values["step"] for values in reported(together, RESUMED, 0)] == [4, 5, 6]

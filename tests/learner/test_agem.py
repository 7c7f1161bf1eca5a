"""A-GEM against a float64 reference, and its promise: a small step does not raise the loss on the memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from learner.policies.agem import AGem, yield_to
from learner.policies.policy import Task
from learner.settings import LearnerSettings
from tests.learner import tiny
from tests.learner.tasks import bare_task, examples_of, real_task

SETTINGS = LearnerSettings(rank=8, batch_size=2, agem_rows=5)
SHAPES = ((4, 6), (5, 4), (3,))


def vectors(seed: int) -> list[Tensor]:
    """Return made-up gradients of several tensors."""
    noise = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=noise) for shape in SHAPES]


def flat(tensors: list[Tensor]) -> np.ndarray:
    """Return them as one vector in float64."""
    return np.concatenate([tensor.double().numpy().ravel() for tensor in tensors])


def with_memory(base: Path) -> Task:
    """Return a task with a memory whose answers contradict the new ones: the same questions, other words."""
    pictures = tiny.Pictures()
    rows = [
        tiny.row(i, [tiny.turn("user", "say a number"), tiny.turn("assistant", word)])
        for i, word in enumerate(tiny.WORDS)
    ]
    new = [tiny.row(0, [tiny.turn("user", "say a number"), tiny.turn("assistant", "seven")])]
    return real_task(base, SETTINGS, new, earlier=[examples_of(base, rows, pictures)])


def memory_gradient(task: Task, policy: AGem) -> list[Tensor]:
    """Return the gradient of the rows that the policy draws next, by ordinary backward passes."""
    (batch,) = task.batches(policy._drawn(), 2)
    task.loss(batch).backward()  # type: ignore[no-untyped-call]
    return [weight.grad.clone() for weight in task.weights if weight.grad is not None]


@pytest.mark.parametrize("seed", range(6))
def test_gradient_equals_a_float64_reference(seed: int) -> None:
    """Over all tensors as one vector, what goes against the memory is removed and nothing else."""
    found, memory = vectors(seed), vectors(seed + 100)
    g, m = flat(found), flat(memory)
    cosine = yield_to(found, memory)
    wanted = g - (g @ m) / (m @ m) * m if g @ m < 0 else g
    np.testing.assert_allclose(flat(found), wanted, atol=1e-6)
    assert float(cosine) == pytest.approx(g @ m / np.linalg.norm(g) / np.linalg.norm(m), abs=1e-6)


def test_both_cases_occur() -> None:
    """Among the seeds above some gradients conflict and some do not; a gradient straight against is removed whole."""
    dots = [flat(vectors(seed)) @ flat(vectors(seed + 100)) for seed in range(6)]
    assert min(dots) < 0 < max(dots)
    memory = vectors(0)
    against = [-3 * tensor for tensor in memory]
    assert float(yield_to(against, memory)) == pytest.approx(-1)
    assert float(np.abs(flat(against)).max()) < 1e-6


def test_memory_without_a_gradient_changes_nothing() -> None:
    """A memory that is learned to perfection has no say, and brings no NaN."""
    found = vectors(1)
    yield_to(found, [torch.zeros_like(tensor) for tensor in found])
    assert all(torch.equal(left, right) for left, right in zip(found, vectors(1), strict=True))


def test_conflicting_step_no_longer_raises_the_loss_on_the_memory(bases: dict[str, Path]) -> None:
    """Along the new task's own gradient the memory's loss rises; along the changed one, to first order, not."""
    task = with_memory(bases["llava"])
    policy = AGem(SETTINGS)
    policy.start(task)
    memory = memory_gradient(task, policy)
    for weight in task.weights:
        weight.grad = None
    (batch,) = task.batches(task.examples, 1)
    task.loss(batch).backward()  # type: ignore[no-untyped-call]
    plain = [weight.grad.clone() for weight in task.weights if weight.grad is not None]
    assert flat(plain) @ flat(memory) < 0
    policy.after_backward()
    changed = [weight.grad.clone() for weight in task.weights if weight.grad is not None]
    assert abs(flat(changed) @ flat(memory)) < 1e-4 * np.linalg.norm(flat(changed)) * np.linalg.norm(
        flat(memory)
    )
    np.testing.assert_array_less(0, flat(changed) @ flat(plain))
    assert policy.after_step()["agem_cosine"] < 0


def test_gradient_of_the_memory_is_that_of_a_backward_pass(bases: dict[str, Path]) -> None:
    """A gradient straight against the drawn rows' own is removed whole, so the policy measured that very gradient."""
    task = with_memory(bases["llava"])
    policy = AGem(SETTINGS)
    policy.start(task)
    for weight, slope in zip(task.weights, memory_gradient(task, policy), strict=True):
        weight.grad = -slope
    policy.after_backward()
    left = [weight.grad for weight in task.weights if weight.grad is not None]
    assert float(np.abs(flat(left)).max()) < 1e-5


def test_no_memory_means_no_change() -> None:
    """In a first round the gradients stay, and no metric is shown."""
    task = bare_task(vectors(0), settings=SETTINGS, first=True)
    policy = AGem(SETTINGS)
    policy.start(task)
    for weight in task.weights:
        weight.grad = torch.ones_like(weight)
    policy.after_backward()
    assert all(bool((weight.grad == 1).all()) for weight in task.weights if weight.grad is not None)
    assert policy.after_step() == {}


def test_draws_change_from_step_to_step_and_go_on_after_a_restart(bases: dict[str, Path]) -> None:
    """A round that goes on from a checkpoint draws the rows that it would have drawn."""
    task = with_memory(bases["llava"])
    whole, resumed = AGem(SETTINGS), AGem(SETTINGS)
    whole.start(task)
    seen = []
    for _ in range(4):
        seen.append([id(example) for example in whole._drawn()])
        for weight in task.weights:
            weight.grad = torch.ones_like(weight)
        whole.after_backward()
    assert len({tuple(ids) for ids in seen}) > 1
    assert all(len(ids) == SETTINGS.batch_size for ids in seen)
    resumed.start(task)
    resumed.restore(whole.state())
    assert [id(example) for example in resumed._drawn()] == [id(example) for example in whole._drawn()]


def test_memory_is_as_large_as_asked() -> None:
    """The policy asks for its own number of rows."""
    assert AGem(SETTINGS).memory_rows({}) == 5

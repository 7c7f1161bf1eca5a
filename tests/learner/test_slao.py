"""SLAO against a float64 reference over several tasks: an orthonormal start, and a merge that slows down."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from learner.policies.policy import Task
from learner.policies.slao import Slao, merge, orthonormal
from learner.settings import LearnerSettings
from tests.learner.tasks import bare_task

SETTINGS = LearnerSettings(rank=8)
A_SHAPE, B_SHAPE = (3, 7), (5, 3)
LAYER = "base_model.model.layers.0.self_attn.q_proj"


def pair(seed: int) -> list[Tensor]:
    """Return a made-up A and B."""
    noise = torch.Generator().manual_seed(seed)
    return [torch.randn(A_SHAPE, generator=noise), torch.randn(B_SHAPE, generator=noise)]


def task_of(weights: list[Tensor], inherited: dict[str, Tensor], *, first: bool = False) -> Task:
    """Return a task of one layer."""
    names = [f"{LAYER}.lora_{side}.default.weight" for side in "AB"]
    return bare_task(weights, names=names, inherited=inherited, first=first, settings=SETTINGS)


def gram_schmidt(a: np.ndarray) -> np.ndarray:
    """Return rows that span what those of A do, made orthonormal one after the other: QR with a positive diagonal."""
    rows: list[np.ndarray] = []
    for row in a:
        left = row - sum((row @ done) * done for done in rows)
        rows.append(left / np.linalg.norm(left))
    return np.array(rows)


def learn(task: Task, seed: int) -> None:
    """Move the weights as training would."""
    for weight, way in zip(task.weights, pair(seed), strict=True):
        weight.data.add_(0.3 * way)


def test_four_tasks_equal_a_float64_reference() -> None:
    """Start and result of each round are those of the published equations."""
    weights, inherited = pair(0), dict[str, Tensor]()
    a = b = merged = np.zeros(0)
    for i in range(1, 5):
        task = task_of(weights, inherited, first=i == 1)
        policy = Slao(SETTINGS)
        policy.start(task)
        if i == 1:
            a, b = (tensor.double().numpy() for tensor in pair(0))
        else:
            a = gram_schmidt(a)
        for weight, wanted in zip(task.weights, (a, b), strict=True):
            np.testing.assert_allclose(weight.detach().numpy(), wanted, atol=1e-5)
        learn(task, i)
        a, b = (then + 0.3 * way.double().numpy() for then, way in zip((a, b), pair(i), strict=True))
        merged = b if i == 1 else merged + (b - merged) / np.sqrt(i)
        inherited = policy.finish()
        for weight, wanted in zip(task.weights, (a, merged), strict=True):
            np.testing.assert_allclose(weight.detach().numpy(), wanted, atol=1e-5)
        weights = [weight.detach().clone() for weight in task.weights]


def test_start_has_orthonormal_rows_that_span_the_same() -> None:
    """Nothing that the earlier A could read is lost, and no row is scaled or turned round."""
    a = torch.diag(torch.tensor([2.0, -0.5, 3.0])) @ torch.eye(3, 7)
    torch.testing.assert_close(orthonormal(a), torch.sign(a))
    a = pair(3)[0]
    q = orthonormal(a)
    torch.testing.assert_close(q @ q.T, torch.eye(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(a @ q.T @ q, a, atol=1e-5, rtol=0)


def test_first_round_is_plain() -> None:
    """The first task's weights are its result, neither turned nor merged."""
    task = task_of(pair(0), {}, first=True)
    policy = Slao(SETTINGS)
    policy.start(task)
    assert all(torch.equal(weight, then) for weight, then in zip(task.weights, pair(0), strict=True))
    learn(task, 1)
    trained = [weight.detach().clone() for weight in task.weights]
    kept = policy.finish()
    assert all(torch.equal(weight, then) for weight, then in zip(task.weights, trained, strict=True))
    assert int(kept["tasks"]) == 1


def test_parent_of_another_policy_counts_as_the_first_task() -> None:
    """Without a memory of its own the round merges into the parent's B as into that of one task."""
    task = task_of(pair(0), {})
    policy = Slao(SETTINGS)
    policy.start(task)
    nn.init.zeros_(task.weights[1])
    assert int(policy.finish()["tasks"]) == 2
    torch.testing.assert_close(task.weights[1].data, pair(0)[1] * (1 - 1 / 2**0.5))


@pytest.mark.parametrize("number", [1, 2, 9])
def test_merge_takes_less_from_each_further_task(number: int) -> None:
    """The share of the new B is 1/√i."""
    found = merge(torch.zeros(2, 2), torch.ones(2, 2), number)
    torch.testing.assert_close(found, torch.full((2, 2), number**-0.5))


def test_unmerged_b_is_remembered() -> None:
    """The next task starts from what this one has trained, not from the merge."""
    policy = Slao(SETTINGS)
    policy.start(task_of(pair(0), {"tasks": torch.tensor(2), f"B.{LAYER}": pair(1)[1]}))
    assert torch.equal(policy.layers[0].B, pair(1)[1])
    learn(policy.task, 2)
    kept = policy.finish()
    torch.testing.assert_close(kept[f"B.{LAYER}"], pair(1)[1] + 0.3 * pair(2)[1])
    assert not torch.allclose(kept[f"B.{LAYER}"], policy.layers[0].B)
    assert int(kept["tasks"]) == 3

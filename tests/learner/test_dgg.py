"""DGG against a float64 reference: the way back, no longer than the gradient, at a share of the steps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from learner.data import Example
from learner.policies.dgg import Dgg, guide
from learner.policies.policy import Task
from learner.settings import LearnerSettings
from tests.learner.tasks import bare_task

SHAPES = ((4, 6), (5, 4), (3, 3))


def tensors(seed: int, size: float = 1.0) -> list[Tensor]:
    """Return made-up tensors."""
    noise = torch.Generator().manual_seed(seed)
    return [size * torch.randn(shape, generator=noise) for shape in SHAPES]


def flat(several: list[Tensor]) -> np.ndarray:
    """Return them as one vector in float64."""
    return np.concatenate([tensor.detach().double().numpy().ravel() for tensor in several])


def gradients(task: Task) -> list[Tensor]:
    """Return the gradients as they are."""
    return [weight.grad for weight in task.weights if weight.grad is not None]


def started(share: float, **changes: bool) -> Dgg:
    """Return the policy with a task that has moved on from where the round began, and has a gradient."""
    settings = LearnerSettings(dgg_share=share, dgg_rows=7)
    task = bare_task(tensors(0), settings=settings, **changes)
    policy = Dgg(settings)
    policy.start(task)
    for weight, way, slope in zip(task.weights, tensors(1), tensors(2), strict=True):
        weight.data.add_(way)
        weight.grad = slope.clone()
    return policy


@pytest.mark.parametrize("size", [1e-3, 0.5, 1e3])
def test_gradient_equals_a_float64_reference(size: float) -> None:
    """A short way is added as it is, a long one at the length of the gradient, over all tensors as one vector."""
    task = bare_task(tensors(0))
    for weight, slope in zip(task.weights, tensors(1), strict=True):
        weight.grad = slope.clone()
    guide(task.weights, [w.detach() - way for w, way in zip(task.weights, tensors(2, size), strict=True)])
    g, way = flat(tensors(1)), flat(tensors(2, size))
    added = way * min(1, np.linalg.norm(g) / np.linalg.norm(way))
    np.testing.assert_allclose(flat(gradients(task)), g + added, atol=2e-4)
    assert np.linalg.norm(added) <= np.linalg.norm(g) * (1 + 1e-9)


def test_first_step_has_no_way_back() -> None:
    """At the weights with which the round begins the gradient stays as it is, and is a number."""
    task = bare_task(tensors(0))
    for weight, slope in zip(task.weights, tensors(1), strict=True):
        weight.grad = slope.clone()
    guide(task.weights, tensors(0))
    assert np.array_equal(flat(gradients(task)), flat(tensors(1)))


def test_descent_along_the_way_alone_returns_to_the_earlier_weights() -> None:
    """Descent on a loss without slope of its own comes closer to the earlier weights: the sign is right."""
    policy = started(1.0)
    for weight in policy.task.weights:
        weight.grad = torch.full_like(weight, 1e-2)
    before = np.linalg.norm(flat(tensors(1)))
    policy.after_backward()
    for weight in policy.task.weights:
        assert weight.grad is not None
        weight.data.sub_(weight.grad)
    assert np.linalg.norm(flat(list(policy.task.weights)) - flat(tensors(0))) < before


def test_share_decides_how_many_steps_are_guided() -> None:
    """No step, every step, or about the share of them; a metric tells which."""
    for share, least, most in ((0.0, 0, 0), (1.0, 200, 200), (0.1, 8, 35)):
        policy = started(share)
        guided = 0
        for _ in range(200):
            policy.after_backward()
            guided += policy.after_step()["dgg_guided"]
        assert least <= guided <= most


def test_draws_go_on_after_a_restart() -> None:
    """A round that goes on from a checkpoint guides the steps that it would have guided."""

    def draws(policy: Dgg, count: int) -> list[bool]:
        found = []
        for _ in range(count):
            policy.after_backward()
            found.append(policy.guided)
        return found

    wanted = draws(started(0.5), 20)
    first, second = started(0.5), started(0.5)
    begun = draws(first, 9)
    second.restore(first.state())
    assert begun + draws(second, 11) == wanted
    assert 0 < sum(wanted) < 20


def test_first_round_is_plain() -> None:
    """With nothing learned before, no step is guided, and there are no rows to see again."""
    policy = started(1.0, first=True)
    policy.after_backward()
    assert np.array_equal(flat(gradients(policy.task)), flat(tensors(2)))
    assert policy.after_step() == {"dgg_guided": False}
    assert list(policy.rehearsal()) == []


def test_memory_is_trained_among_the_new_rows() -> None:
    """The rows of earlier tasks are all rehearsed, as many of each as the setting says."""
    policy = Dgg(LearnerSettings(dgg_rows=7))
    assert policy.memory_rows({}) == 7
    earlier = [[Example(inputs={}, labels=torch.zeros(2))], [Example(inputs={}, labels=torch.zeros(3))] * 2]
    policy.start(bare_task(tensors(0), earlier=earlier))
    assert [example.length for example in policy.rehearsal()] == [2, 3, 3]

"""Importance and the penalties built on it, and what the model said before, against float64 references."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from learner.data import IGNORED, Example
from learner.loss import Batch, batch_of
from learner.memory import spread
from learner.policies.ewc import Ewc
from learner.policies.importance import _rows_of, fisher, sensitivity
from learner.policies.lwf import Lwf, divergence
from learner.policies.mas import Mas
from learner.policies.penalty import Penalty
from learner.policies.policy import Policy, Task
from learner.policies.tensors import numbered
from learner.policies.tir import Tir, embedding, similarities
from learner.settings import LearnerSettings
from tests.learner import tiny
from tests.learner.tasks import bare_task, real_task

SETTINGS = LearnerSettings(rank=8)
BATCH = Batch(inputs={}, kept=torch.zeros(0), targets=torch.zeros(0), answer_tokens=1)
NO_LOGITS = torch.zeros(1, 0, 3)


@pytest.fixture(scope="module")
def task(bases: dict[str, Path]) -> Task:
    """A task of rows of every kind, on a model whose adapter already does something."""
    return real_task(bases["llava"], SETTINGS)


def in_float64(task: Task, example: Example) -> tuple[Tensor, list[nn.Parameter], Tensor, Tensor]:
    """Return logits before each answer token, the weights they depend on, those places and the tokens."""
    model = copy.deepcopy(task.model).double()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    inputs = {
        name: value.double() if value.is_floating_point() else value for name, value in example.inputs.items()
    }
    (places,) = (example.labels != IGNORED).nonzero(as_tuple=True)
    logits = model(**inputs).logits[0, places - 1]
    return logits, weights, places, example.labels[places]


def expected(task: Task, value: Callable[[Tensor, Tensor], Tensor], power: int) -> list[np.ndarray]:
    """Return Σ_rows |∂ value|^power / answer tokens, row by row in float64 and without our own loss."""
    total = [np.zeros(weight.shape) for weight in task.weights]
    tokens = 0
    for example in task.examples:
        logits, weights, _, answers = in_float64(task, example)
        gradients = torch.autograd.grad(value(logits, answers), weights)
        total = [t + np.abs(g.numpy()) ** power for t, g in zip(total, gradients, strict=True)]
        tokens += len(answers)
    return [size / tokens for size in total]


def nll(logits: Tensor, answers: Tensor) -> Tensor:
    """Return the summed negative log-likelihood, written out."""
    chosen = logits[torch.arange(len(answers)), answers]
    return (torch.logsumexp(logits, dim=1) - chosen).sum()


def squares(logits: Tensor, answers: Tensor) -> Tensor:
    """Return the sum of the squared logits."""
    return (logits**2).sum()


@pytest.mark.parametrize(
    ("measure", "value", "power"),
    [(fisher, nll, 2), (sensitivity, squares, 1)],
    ids=["fisher", "sensitivity"],
)
def test_importance_equals_a_float64_reference(
    task: Task, measure: Callable[..., list[Tensor]], value: Callable[..., Tensor], power: int
) -> None:
    """Fisher information and sensitivity are those of single rows, per answer token, to 1e-3."""
    found = measure(task, task.examples)
    for tensor, wanted in zip(found, expected(task, value, power), strict=True):
        np.testing.assert_allclose(tensor.numpy(), wanted, rtol=1e-3, atol=1e-3 * wanted.max())


@pytest.mark.parametrize("shape", [(3, 5, 4), (15, 4), (6, 5, 2, 4)])
def test_rows_are_told_apart_however_a_layer_is_given_them(shape: tuple[int, ...]) -> None:
    """Experts get tokens without their rows, and layers of vision tiles; squares are those of rows all the same."""
    noise = torch.Generator().manual_seed(0)
    layer = nn.Linear(4, 2, bias=False)
    inputs = torch.randn(shape, generator=noise)
    total = torch.zeros_like(layer.weight)
    with _rows_of(3, [layer], [total], torch.square):
        value = layer(inputs).pow(3).sum()
    torch.autograd.grad(value, layer.weight)
    wanted = torch.zeros_like(total)
    for row in inputs.reshape(3, -1, 4):
        (gradient,) = torch.autograd.grad(layer(row).pow(3).sum(), layer.weight)
        wanted += gradient.square()
    torch.testing.assert_close(total, wanted)
    assert not layer._forward_hooks


def test_importance_is_measured_where_a_weight_is_frozen(task: Task) -> None:
    """A policy that trains half of the adapter does not hide the other half, and stays as it was."""
    whole = fisher(task, task.examples[:2])
    task.weights[0].requires_grad_(False)
    again = fisher(task, task.examples[:2])
    assert not task.weights[0].requires_grad
    task.weights[0].requires_grad_()
    assert all(torch.equal(one, other) for one, other in zip(whole, again, strict=True))


@pytest.mark.parametrize(
    ("rows", "most", "found"), [(10, 4, [0, 2, 5, 7]), (10, 10, list(range(10))), (3, 8, [0, 1, 2])]
)
def test_measured_rows_are_spread_over_all(rows: int, most: int, found: list[int]) -> None:
    """At most so many rows, at even distances, so that none of several datasets is left out."""
    examples = [Example(inputs={}, labels=torch.zeros(length)) for length in range(rows)]
    assert [example.length for example in spread(examples, most)] == found


@pytest.mark.parametrize(("policy", "value", "power"), [(Ewc, nll, 2), (Mas, squares, 1)])
def test_penalty_holds_what_mattered(
    bases: dict[str, Path], policy: type[Penalty], value: Callable[..., Tensor], power: int
) -> None:
    """After a second task the gradient has that of λ Σ (I₁ + I₂)(θ - θ')² added to it, with I of sum 1 each."""
    task = real_task(bases["llava"], SETTINGS.model_copy(update={"ewc_strength": 7.0, "mas_strength": 7.0}))
    first, second = [task.examples[:3], task.examples[3:]]
    kept: dict[str, Tensor] = {}
    wanted = [np.zeros(weight.shape) for weight in task.weights]
    for examples in (first, second):
        part = replace(task, examples=examples, inherited=kept, first=not kept)
        learned = policy(task.settings)
        learned.start(part)
        kept = learned.finish()
        importance = expected(part, value, power)
        whole = sum(size.sum() for size in importance)
        wanted = [total + size / whole for total, size in zip(wanted, importance, strict=True)]

    third = policy(task.settings)
    third.start(replace(task, inherited=kept))
    with torch.no_grad():
        for index, weight in enumerate(task.weights):
            weight.add_(0.01 * (index + 1))
    moved = [0.01 * (index + 1) for index in range(len(wanted))]
    assert third.extra_loss(BATCH, NO_LOGITS) == 0
    for slope, step, size in zip(added_gradient(third), moved, wanted, strict=True):
        np.testing.assert_allclose(slope.numpy(), 14 * step * size, rtol=5e-3, atol=1e-3 * size.max() * step)


def added_gradient(policy: Policy) -> list[Tensor]:
    """Return what a policy adds to gradients of one everywhere, which it leaves there."""
    for weight in policy.task.weights:
        weight.grad = torch.ones_like(weight)
    policy.add_gradient()
    return [weight.grad - 1 for weight in policy.task.weights if weight.grad is not None]


@pytest.mark.parametrize("policy", [Ewc, Mas, Tir, Lwf])
def test_nothing_is_held_in_a_first_round(task: Task, policy: type[Policy]) -> None:
    """With nothing learned before, loss and gradient stay as they are."""
    first = policy(SETTINGS)
    first.start(replace(task, first=True))
    with torch.no_grad():
        task.weights[0].add_(0.1)
    assert first.extra_loss(BATCH, NO_LOGITS) == 0
    assert not any(slope.any() for slope in added_gradient(first))


def test_penalty_of_numbers() -> None:
    """The gradient of λ Σ I (θ - θ')² over tensors, by hand: with λ = 0.5, 2·3, 1·(-1) and 5·2."""
    inherited = numbered("importance", [torch.tensor([2.0, 1.0]), torch.tensor([5.0])])
    task = bare_task([torch.tensor([1.0, 1.0]), torch.tensor([0.0])], inherited=inherited)
    policy = Ewc(SETTINGS.model_copy(update={"ewc_strength": 0.5}))
    policy.start(task)
    with torch.no_grad():
        for weight, way in zip(task.weights, [torch.tensor([3.0, -1.0]), torch.tensor([2.0])], strict=True):
            weight.add_(way)
    assert [slope.tolist() for slope in added_gradient(policy)] == [[6, -1], [10]]


def test_divergence_equals_a_float64_reference() -> None:
    """KL(before ‖ now) in nats per token, from the definition."""
    noise = torch.Generator().manual_seed(0)
    before, now = torch.randn(2, 5, 7, generator=noise).unbind()
    p, q = (np.exp(x.double().numpy()) for x in (before, now))
    p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
    assert float(divergence(before, now)) == pytest.approx((p * np.log(p / q)).sum(1).mean(), rel=1e-6)
    assert float(divergence(before, before)) == pytest.approx(0, abs=1e-7)


def test_teacher_is_the_model_before_the_round(bases: dict[str, Path]) -> None:
    """The divergence is nothing at first, and later that from the logits which the unchanged model gave."""
    task = real_task(bases["llava"], SETTINGS.model_copy(update={"lwf_strength": 3.0}))
    policy = Lwf(task.settings)
    policy.start(task)
    batch = batch_of(list(task.examples[:4]), 0)
    before = task.logits(batch).detach()
    same = policy.extra_loss(batch, before)
    assert isinstance(same, Tensor)
    assert float(same) == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        task.weights[1].add_(0.3)
    now = task.logits(batch)
    loss = policy.extra_loss(batch, now)
    assert isinstance(loss, Tensor)
    answered = batch.targets != IGNORED
    assert float(loss.detach()) == pytest.approx(
        3 * float(divergence(before[answered], now[answered]).detach()), rel=1e-4
    )
    assert any(slope.any() for slope in torch.autograd.grad(loss, task.weights))


def test_teacher_drops_nothing_out(bases: dict[str, Path]) -> None:
    """While the model trains with dropout, its teacher answers as it serves, and the model trains on."""
    task = real_task(bases["llava"], SETTINGS.model_copy(update={"dropout": 0.5}))
    policy = Lwf(task.settings)
    policy.start(task)
    batch = batch_of(list(task.examples[:4]), 0)
    served = task.logits(batch).detach()
    task.model.train()
    assert not torch.allclose(task.logits(batch), served)
    assert float(policy.extra_loss(batch, served)) == pytest.approx(0, abs=1e-6)
    assert task.model.training


def test_similarity_equals_a_reference() -> None:
    """Cosines of pairs, scaled over all pairs, through a sigmoid, multiplied over the modalities; written in numpy."""
    noise = np.random.default_rng(0)
    tasks = noise.normal(size=(4, 3, 5))
    wanted = np.ones(3)
    for modality in range(3):
        unit = tasks[:, modality] / np.linalg.norm(tasks[:, modality], axis=1, keepdims=True)
        cosines = unit @ unit.T
        pairs = np.array([cosines[i, j] for i in range(4) for j in range(i + 1, 4)])
        wanted *= 1 / (1 + np.exp(-(cosines[3, :3] - pairs.mean()) / pairs.std(ddof=1)))
    np.testing.assert_allclose(similarities(torch.tensor(tasks)).numpy(), wanted, rtol=1e-5)


def test_similarity_of_few_and_of_equal_tasks() -> None:
    """Two tasks are compared by their plain cosines, and tasks that are all the same do not divide by zero."""
    one = torch.eye(3)
    assert float(similarities(torch.stack([one, one]))) == pytest.approx(1)
    other = one.roll(1, dims=1)
    assert float(similarities(torch.stack([one, other]))) == 0
    assert similarities(torch.stack([one, one, one])).tolist() == [0.125, 0.125]


def test_embedding_keeps_pictures_questions_and_answers_apart(base: Path) -> None:
    """Another picture moves only the first part, another question the second, another answer the third."""
    pictures = tiny.Pictures()
    one, four = pictures.draw(1, 1), pictures.draw(4, 1)

    def rows(picture: str, question: str, answer: str) -> list[Any]:
        return [tiny.row(0, [tiny.turn("user", question, picture), tiny.turn("assistant", answer)])]

    asked = [
        rows(one, "how many shapes", "one"),
        rows(four, "how many shapes", "one"),
        rows(one, "describe the picture", "one"),
        rows(one, "how many shapes", "four"),
    ]
    found = []
    for task_rows in asked:
        task = real_task(base, SETTINGS, task_rows, pictures=pictures)
        found.append(embedding(task, task.examples))
    changed = [
        [not torch.allclose(part, first) for part, first in zip(other, found[0], strict=True)]
        for other in found
    ]
    assert changed == [[False] * 3, [True, False, False], [False, True, False], [False, False, True]]


def test_tir_holds_by_unlikeness_and_remembers_owners(bases: dict[str, Path]) -> None:
    """An entry belongs to the task for which it mattered most, and is held by how unlike the new one is to that."""
    settings = SETTINGS.model_copy(update={"tir_strength": 1.0})
    pictures = tiny.Pictures()
    counting = tiny.counting_rows(pictures, 3)
    saying = [
        tiny.row(i, [tiny.turn("user", "say a number"), tiny.turn("assistant", "three")]) for i in range(3)
    ]
    task = real_task(bases["llava"], settings, [*counting, *saying], pictures=pictures)
    kept: dict[str, Tensor] = {}
    importances = []
    for examples in (task.examples[:3], task.examples[3:]):
        part = replace(task, examples=examples, inherited=kept, first=not kept)
        policy = Tir(settings)
        policy.start(part)
        kept = policy.finish()
        sizes = expected(part, squares, 1)
        importances.append(sizes[0] / sum(size.sum() for size in sizes))
    one, two = importances
    np.testing.assert_allclose(
        kept["importance.0"].numpy(), np.maximum(one, two), rtol=1e-2, atol=1e-3 * one.max()
    )
    sure = np.abs(one - two) > 0.02 * np.maximum(one, two)
    assert (kept["owner.0"].numpy() == (two > one))[sure].mean() > 0.999

    third = Tir(settings)
    third.start(replace(task, examples=task.examples[:3], inherited=kept))
    unlike = 1 - similarities(third.embeddings_PMH).numpy()
    assert 0 < unlike[0] < unlike[1]
    wanted = kept["importance.0"].numpy() * unlike[kept["owner.0"].numpy()]
    np.testing.assert_allclose(third.importance[0].numpy(), wanted, rtol=1e-6)

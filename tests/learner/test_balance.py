"""The rule `balance`: its scale against what was measured, what it does not depend on, and its two limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from learner.data import Example
from learner.export import export
from learner.policies.balance import Balance, cost, in_nats, mean_loss
from learner.policies.choose import policy_for
from learner.policies.tensors import differences, numbered
from learner.settings import LearnerSettings
from learner.train import backward
from storage.errors import TrainingStopped
from tests.learner import tiny
from tests.learner.tasks import bare_task, real_task
from tests.learner.test_regularization import added_gradient, expected, in_float64, nll
from tests.learner.test_training import FAST, Metrics, assert_same_bits, job_of, trained

SETTINGS = LearnerSettings(policy="llaca", llaca_rule="balance", rank=8)
SHAPES = ((4, 6), (5, 4), (7,))


def made_up(seed: int) -> tuple[list[Tensor], list[Tensor]]:
    """Return Fisher information and a way of some tensors, in float64."""
    noise = torch.Generator().manual_seed(seed)
    draw = [torch.randn(2, *shape, generator=noise, dtype=torch.float64) for shape in SHAPES]
    return [pair[0].square() for pair in draw], [pair[1] for pair in draw]


def moved_by(task_weights: Sequence[Tensor], size: float) -> None:
    """Move every weight a little."""
    noise = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in task_weights:
            weight.add_(size * torch.randn(weight.shape, generator=noise))


def told(metrics: Metrics) -> list[float]:
    """Return what was told of the earlier tasks' loss, at the steps at which it was."""
    return [values["earlier_loss"] for values in metrics.values if "earlier_loss" in values]


def test_curvature_says_of_the_rounds_own_way_what_was_measured(bases: dict[str, Path]) -> None:
    """½ Σ H (θ - φ)² is the loss of φ minus that of θ, both measured in float64, and H has the shape of the Fisher."""
    task = replace(real_task(bases["llava"], SETTINGS), first=True)

    def loss_now() -> float:
        parts = [in_float64(task, example) for example in task.examples]
        total = sum(float(nll(logits, answers).detach()) for logits, _, _, answers in parts)
        return total / sum(len(answers) for *_, answers in parts)

    ends = [weight.detach().clone() for weight in task.weights]
    moved_by(task.weights, 0.3)  # the worse weights are where the round starts
    before = loss_now()
    policy = Balance(SETTINGS)
    policy.start(task)
    begin = [weight.detach().double().numpy().copy() for weight in task.weights]
    with torch.no_grad():
        for weight, end in zip(task.weights, ends, strict=True):
            weight.copy_(end)
    gain = before - loss_now()
    assert gain > 0
    kept = policy.finish()
    found = [kept[f"importance.{index}"].double().numpy() for index in range(len(ends))]
    predicted = 0.5 * sum(
        (h * (e.double().numpy() - b) ** 2).sum() for h, e, b in zip(found, ends, begin, strict=True)
    )
    assert predicted == pytest.approx(gain, rel=1e-4)
    shape = expected(task, nll, 2)
    scale = sum(h.sum() for h in found) / sum(f.sum() for f in shape)
    for h, f in zip(found, shape, strict=True):
        np.testing.assert_allclose(h, scale * f, rtol=2e-3, atol=1e-3 * scale * f.max())


def test_tasks_add_up(bases: dict[str, Path]) -> None:
    """After two rounds the cost of leaving is that of both tasks; the gradient is λ times that of it."""
    task = real_task(bases["llava"], SETTINGS.model_copy(update={"llaca_balance": 3.0}))
    first, second = made_up(0)[0], made_up(1)[0]
    start = [torch.zeros(shape, dtype=torch.float64) for shape in SHAPES]
    old = bare_task(start, inherited=numbered("importance", first))
    policy = Balance(task.settings)
    policy.start(old)
    both = policy.with_new(second)
    for total, one, two in zip(both, first, second, strict=True):
        torch.testing.assert_close(total, one + two)
    moved_by(old.weights, 0.5)
    moved = [weight.detach().double() for weight in old.weights]
    lost = float(cost(first, moved))
    assert lost == pytest.approx(
        0.5 * sum(float((h * d**2).sum()) for h, d in zip(first, moved, strict=True))
    )
    for slope, one, way in zip(added_gradient(policy), first, moved, strict=True):
        torch.testing.assert_close(slope, 3 * one * way)
    assert policy.after_step() == {"earlier_loss": pytest.approx(lost, rel=1e-5)}


@given(scale=st.floats(1e-3, 1e3), seed=st.integers(0, 2**31), gain=st.floats(1e-3, 10))
@settings(max_examples=30)
def test_curvature_scales_with_the_loss(scale: float, seed: int, gain: float) -> None:
    """A loss in other units scales H by as much, so what it is weighed against, and the balance, stay as they are.

    Fisher information alone does not: it scales with the square.
    """
    information, moved = made_up(seed)
    plain = in_nats(information, moved, gain)
    scaled = in_nats([f * scale**2 for f in information], moved, gain * scale)
    for one, other in zip(plain, scaled, strict=True):
        torch.testing.assert_close(other, one * scale, rtol=1e-6, atol=0)


@given(times=st.integers(1, 1000), seed=st.integers(0, 2**31))
@settings(max_examples=30)
def test_batch_size_cancels(times: int, seed: int) -> None:
    """Information measured on means of batches is smaller by their size, and gives the same H."""
    information, moved = made_up(seed)
    for one, other in zip(
        in_nats(information, moved, 1.0), in_nats([f / times for f in information], moved, 1.0), strict=True
    ):
        torch.testing.assert_close(other, one, rtol=1e-6, atol=0)


@pytest.mark.parametrize("again", [1, 3])
def test_cutting_or_repeating_tensors_changes_no_cost(again: int) -> None:
    """Whether a layer is one tensor or two halves, once there or several times: leaving costs the same."""
    information, moved = made_up(2)
    _, way = made_up(3)
    whole = float(cost(in_nats(information, moved, 0.7), way))

    def cut(tensors: list[Tensor]) -> list[Tensor]:
        return [half for tensor in tensors for half in tensor.flatten().tensor_split(2)] * again

    found = float(cost(in_nats(cut(information), cut(moved), 0.7), cut(way)))
    assert found == pytest.approx(whole, rel=1e-6)


@pytest.mark.parametrize(("balance", "least", "greatest"), [(0.0, 1, 1), (0.5, 0.3, 0.95), (1e6, 0, 1e-5)])
def test_loss_is_least_at_the_balance_of_both_curvatures(
    balance: float, least: float, greatest: float
) -> None:
    """If the new loss is ½ H_new (θ - φ - d)², the whole is least at φ + αd with α = H_new / (H_new + λ H_old).

    So α is 1 where earlier tasks weigh nothing, and 0 where they weigh all. In float64, where no entry has a gradient.
    """
    noise = torch.Generator().manual_seed(1)
    h_old, h_new, way = (torch.rand(3, 4, 6, generator=noise, dtype=torch.float64) + 0.2).unbind()
    begin = torch.randn(4, 6, generator=noise, dtype=torch.float64)
    task = bare_task([begin], inherited={"importance.0": h_old})
    policy = Balance(SETTINGS.model_copy(update={"llaca_balance": balance}))
    policy.start(task)
    alpha = h_new / (h_new + balance * h_old)
    assert least <= alpha.min() <= alpha.max() <= greatest
    (weight,) = task.weights
    with torch.no_grad():
        weight.add_(alpha * way)
    own = 0.5 * (h_new * (weight - begin - way).square()).sum()
    (slope,) = torch.autograd.grad(own, weight)
    (held,) = added_gradient(policy)
    torch.testing.assert_close(slope + held, torch.zeros_like(slope), rtol=0, atol=1e-7)


def test_accumulated_batches_have_the_gradient_of_the_large_one(bases: dict[str, Path]) -> None:
    """However the rows of a step are cut into batches, the earlier tasks weigh once, and the gradient is the same."""
    rows = tiny.mixed_rows(pictures := tiny.Pictures())
    task = real_task(bases["llava"], SETTINGS, rows, pictures=pictures)
    inherited = numbered("importance", [torch.rand_like(weight) for weight in task.weights])
    policy = Balance(SETTINGS)
    policy.start(replace(task, inherited=inherited))
    moved_by(task.weights, 0.05)

    def gradients(groups: list[list[Example]]) -> list[Tensor]:
        for weight in task.weights:
            weight.grad = None
        backward(Accelerator(mixed_precision="bf16"), task.model, task.weights, policy, groups, 0)
        return [weight.grad for weight in task.weights if weight.grad is not None]

    whole, *others = [
        gradients([[task.examples[i] for i in group] for group in groups])
        for groups in ([[0, 1, 2, 3, 4]], [[0], [1], [2], [3], [4]], [[3, 1], [0, 4, 2]])
    ]
    for other in others:
        for one, same in zip(whole, other, strict=True):
            torch.testing.assert_close(same, one, rtol=1e-4, atol=1e-5)


def test_mean_loss_is_that_of_all_answer_tokens(bases: dict[str, Path]) -> None:
    """Rows count by their tokens, however they are batched, and the weights in the model stay its own."""
    rows = tiny.mixed_rows(pictures := tiny.Pictures())
    task = real_task(bases["llava"], SETTINGS.model_copy(update={"batch_size": 2}), rows, pictures=pictures)
    parts = [in_float64(task, example) for example in task.examples]
    tokens = sum(len(answers) for *_, answers in parts)
    wanted = sum(float(nll(logits, answers).detach()) for logits, _, _, answers in parts) / tokens
    assert mean_loss(task, task.examples, task.weights) == pytest.approx(wanted, rel=1e-5)
    other = [torch.zeros_like(weight) for weight in task.weights]
    assert mean_loss(task, task.examples, other) != pytest.approx(wanted, rel=1e-3)
    assert mean_loss(task, task.examples, task.weights) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("gain", [0.0, -1.0])
def test_round_that_gained_nothing_holds_nothing(gain: float) -> None:
    """A task whose loss did not fall has nothing to lose."""
    information, moved = made_up(0)
    assert not any(h.any() for h in in_nats(information, moved, gain))
    assert not any(h.any() for h in in_nats(information, [torch.zeros_like(d) for d in moved], 1.0))


def test_first_round_is_plain_and_remembers(bases: dict[str, Path], tmp_path: Path) -> None:
    """With nothing learned before, the weights are those of sequential tuning to the last bit; H is left behind."""
    ends = {}
    for policy in ("sequential", "llaca"):
        chosen = FAST.model_copy(update={"policy": policy, "llaca_rule": "balance"})
        job = replace(job_of(bases["llava"], tmp_path / policy, chosen), first_task=True)
        ends[policy], _ = trained(job)
    assert_same_bits(ends["sequential"], ends["llaca"])
    assert all(name.startswith("llaca.importance.") for name in ends["llaca"].policy_state)
    assert sum(float(h.sum()) for h in ends["llaca"].policy_state.values()) > 0


def test_second_round_is_held_by_the_first(bases: dict[str, Path], tmp_path: Path) -> None:
    """What the first task loses, as far as its own round could tell, is much less where it weighs something."""
    plain = FAST.model_copy(update={"policy": "llaca", "llaca_rule": "balance", "epochs": 4})
    first, _ = trained(replace(job_of(bases["llava"], tmp_path / "first", plain), first_task=True))
    parent = export(first, tmp_path / "generations", {})
    pictures = tiny.Pictures()
    rows = [
        tiny.row(
            i,
            [
                tiny.turn("user", "describe the picture", pictures.draw(1, i)),
                tiny.turn("assistant", "a circle"),
            ],
        )
        for i in range(8)
    ]
    before = list(first.weights.values())
    curvature = [first.policy_state[f"llaca.importance.{index}"] for index in range(len(before))]
    lost = {}
    for balance in (0.0, 1.0, 1e9):
        chosen = plain.model_copy(update={"llaca_balance": balance})
        job = job_of(
            bases["llava"],
            tmp_path / str(balance),
            chosen,
            parent_adapter=parent,
            rows=rows,
            image=pictures.read,
        )
        result, _ = trained(job)
        lost[balance] = float(cost(curvature, differences(list(result.weights.values()), before)))
        assert result.policy_state.keys() == first.policy_state.keys()
    # Not nothing: Adam's first steps have the length of the learning rate, however small the gradient is.
    assert lost[1e9] < 0.1 * lost[0.0]
    assert lost[1.0] < 0.5 * lost[0.0]


def test_what_another_policy_taught_is_measured_on_its_rows(bases: dict[str, Path]) -> None:
    """½ Σ H B² of each earlier task is what it would lose without the adapter, in float64; all of them add up."""
    rows = tiny.mixed_rows(pictures := tiny.Pictures())
    task = real_task(bases["llava"], SETTINGS, rows, pictures=pictures)
    adapter = [weight.detach().double() for weight in task.weights]
    of_b = [".lora_B." in name for name in task.names]

    def losses() -> list[float]:
        return [
            float(nll(logits, answers).detach()) / len(answers)
            for logits, _, _, answers in (in_float64(task, example) for example in task.examples)
        ]

    with_it = losses()
    with torch.no_grad():
        for weight, is_b in zip(task.weights, of_b, strict=True):
            weight.mul_(not is_b)
    gains = [bare - now for bare, now in zip(losses(), with_it, strict=True)]
    with torch.no_grad():
        for weight, value in zip(task.weights, adapter, strict=True):
            weight.copy_(value)
    # Some of these rows are answered better by the bare base, and have nothing to lose.
    assert min(gains) < 0 < max(gains)

    def held(earlier: Sequence[Sequence[Example]]) -> list[Tensor]:
        policy = Balance(SETTINGS)
        policy.start(replace(task, earlier=earlier))
        return list(policy.importance)

    alone = [held([[example]]) for example in task.examples]
    undone = [b * is_b for b, is_b in zip(adapter, of_b, strict=True)]
    for found, gain in zip(alone, gains, strict=True):
        predicted = float(cost([h.double() for h in found], undone))
        assert predicted == pytest.approx(max(gain, 0.0), rel=1e-4, abs=1e-12)
    for whole, *parts in zip(held([[example] for example in task.examples]), *alone, strict=True):
        torch.testing.assert_close(whole, torch.stack(parts).sum(dim=0))


def test_what_was_measured_of_others_is_remembered(bases: dict[str, Path]) -> None:
    """The next round knows of the tasks that another policy has taught as well as of this round's."""
    rows = tiny.mixed_rows(pictures := tiny.Pictures())
    task = real_task(bases["llava"], SETTINGS, rows, pictures=pictures)
    policy = Balance(SETTINGS)
    policy.start(replace(task, earlier=[[example] for example in task.examples]))
    measured = list(policy.importance)
    assert any(h.any() for h in measured)
    moved_by(task.weights, 0.1)
    new, kept = policy.measure(), policy.finish()
    for index, (old, now) in enumerate(zip(measured, new, strict=True)):
        torch.testing.assert_close(kept[f"importance.{index}"], old + now)


def test_round_that_measured_anew_can_be_cut_off(bases: dict[str, Path], tmp_path: Path) -> None:
    """Resumed, it measures again and ends with the same bits, and tells of the loss at the same steps."""
    pictures = tiny.Pictures()
    rows = [tiny.counting_rows(pictures, 5), tiny.mixed_rows(pictures)]
    plain = FAST.model_copy(update={"policy": "sequential"})
    first, _ = trained(job_of(bases["llava"], tmp_path / "first", plain, rows=rows[0], image=pictures.read))
    rule = FAST.model_copy(update={"policy": "llaca", "llaca_rule": "balance", "checkpoint_every_steps": 1})
    given = {
        "rows": rows[1],
        "earlier": rows[:1],
        "image": pictures.read,
        "parent_adapter": export(first, tmp_path / "generations", {}),
    }
    whole, metrics = trained(job_of(bases["llava"], tmp_path / "whole", rule, **given))
    cut = job_of(bases["llava"], tmp_path / "cut", rule, **given)
    with pytest.raises(TrainingStopped):
        trained(cut, stop_after=1)
    again, rest = trained(cut)
    assert_same_bits(whole, again)
    assert all(torch.equal(again.policy_state[name], h) for name, h in whole.policy_state.items())
    assert len(told(metrics)) == 1
    assert told(rest) == []


def test_earlier_rows_are_seen_only_where_nothing_is_remembered(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    """After a round of another policy each earlier dataset gives its rows once; the next round knows what they said."""
    pictures = tiny.Pictures()
    rows = [tiny.counting_rows(pictures, 4), tiny.counting_rows(pictures, 5), tiny.mixed_rows(pictures)]
    rule = FAST.model_copy(update={"policy": "llaca", "llaca_rule": "balance", "importance_rows": 3})
    chosen = [FAST.model_copy(update={"policy": "sequential"}), rule, rule]
    parent, seen, lost = None, [], []
    for number, settings_ in enumerate(chosen):
        job = job_of(
            bases["llava"],
            tmp_path / str(number),
            settings_,
            rows=rows[number],
            earlier=rows[:number],
            image=pictures.read,
            parent_adapter=parent,
        )
        result, metrics = trained(job)
        parent = export(result, tmp_path / "generations", {"number": number})
        seen.append([len(earlier) for earlier in result.job.earlier])
        lost.append(told(metrics))
    assert seen == [[], [3], [0, 0]]
    assert lost[0] == []
    assert lost[1][-1] > 0
    assert lost[2][-1] > 0


def test_rule_is_chosen_by_its_name() -> None:
    """`llaca` with the rule `balance` is this policy, in a first round too, where it has to remember."""
    for first in (True, False):
        assert isinstance(policy_for(SETTINGS, first_task=first).parts["llaca"], Balance)

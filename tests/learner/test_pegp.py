"""PEGP against a float64 reference, and its promise: what earlier tasks put in comes out as before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from learner.policies.choose import policy_for
from learner.policies.importance import fisher, normalized
from learner.policies.layers import layers_of
from learner.policies.pegp import Pegp
from learner.policies.policy import Policy, Task
from learner.settings import LearnerSettings
from storage.records import Row
from tests.learner import tiny
from tests.learner.tasks import real_task

ALL = LearnerSettings(rank=8, pegp_input_energy=1 - 1e-8, pegp_hidden_energy=1 - 1e-8)
SOME = LearnerSettings(rank=8, pegp_input_energy=0.9, pegp_hidden_energy=0.5)


def rows_saying(question: str, answer: str) -> list[Row]:
    """Return one short row: with few tokens, their features leave room beside them."""
    return [tiny.row(0, [tiny.turn("user", question), tiny.turn("assistant", answer)])]


OLD, NEW = rows_saying("count", "two"), rows_saying("say a number", "four one six")


def learned(base: Path, settings: LearnerSettings) -> dict[str, Tensor]:
    """Return what a first round on the old rows leaves behind."""
    policy = Pegp(settings)
    policy.start(real_task(base, settings, OLD, first=True))
    return policy.finish()


def train(policy: Policy, task: Task, steps: int) -> None:
    """Take steps with Adam, whose scales differ from entry to entry."""
    optimizer = torch.optim.AdamW(task.weights, lr=0.02, weight_decay=0.1)
    for _ in range(steps):
        (batch,) = task.batches(task.examples, 8)
        task.loss(batch).backward()  # type: ignore[no-untyped-call]
        policy.after_backward()
        optimizer.step()
        policy.after_step()
        optimizer.zero_grad()


def answers(task: Task, rows: Task) -> Tensor:
    """Return the logits of one task's model on the rows of another."""
    (batch,) = rows.batches(rows.examples, 8)
    with torch.no_grad():
        return task.logits(batch)


def test_old_answers_stay_while_new_ones_are_learned(base: Path) -> None:
    """After a round with Adam the model says on the old row what it said before; plain tuning does not."""
    inherited = learned(base, ALL)
    old = real_task(base, ALL, OLD)
    changes, losses = {}, {}
    for name, policy in {"pegp": Pegp(ALL), "plain": Policy(ALL)}.items():
        task = real_task(base, ALL, NEW, inherited=inherited)
        before, before_new = answers(task, old), answers(task, task)
        policy.start(task)
        train(policy, task, 10)
        changes[name] = float((answers(task, old) - before).abs().max() / before.std())
        losses[name] = float((answers(task, task) - before_new).abs().max() / before_new.std())
    assert changes["pegp"] < 2e-3
    assert changes["plain"] > 100 * changes["pegp"]
    assert losses["pegp"] > 20 * changes["pegp"]


def test_steps_equal_a_float64_reference(bases: dict[str, Path]) -> None:
    """Gradients and the way since the start are projected as the equations say, tensor by tensor and step by step."""
    task = real_task(bases["llava"], SOME, NEW, inherited=learned(bases["llava"], SOME))
    policy = Pegp(SOME)
    policy.start(task)
    layers = layers_of(task.names, task.weights)
    site = {layer.name: layer.name for layer in layers}
    for layer in layers:
        prefix, _, own = layer.name.rpartition(".")
        site[layer.name] = (
            f"{prefix}.{ {'k_proj': 'q_proj', 'v_proj': 'q_proj', 'up_proj': 'gate_proj'}.get(own, own) }"
        )
    bases_of = {id(layer.A): task.inherited[f"input.{site[layer.name]}"] for layer in layers}
    bases_of |= {id(layer.B): task.inherited[f"hidden.{layer.name}"] for layer in layers}
    away = [np.eye(len(f)) - f @ f.T for f in (bases_of[id(w)].double().numpy() for w in task.weights)]
    begin = [weight.detach().double().numpy().copy() for weight in task.weights]
    noise = torch.Generator().manual_seed(0)
    for _ in range(3):
        for weight in task.weights:
            weight.grad = torch.randn(weight.shape, generator=noise)
        gradients = [
            weight.grad.double().numpy().copy() for weight in task.weights if weight.grad is not None
        ]
        policy.after_backward()
        for weight, gradient, outside in zip(task.weights, gradients, away, strict=True):
            assert weight.grad is not None
            np.testing.assert_allclose(weight.grad.numpy(), gradient @ outside, atol=1e-5)
        with torch.no_grad():
            for weight in task.weights:
                weight.add_(torch.randn(weight.shape, generator=noise))
        moved = [weight.detach().double().numpy().copy() for weight in task.weights]
        policy.after_step()
        for weight, then, now, outside in zip(task.weights, begin, moved, away, strict=True):
            np.testing.assert_allclose(weight.detach().numpy(), then + (now - then) @ outside, atol=1e-5)


def test_first_round_is_plain_and_leaves_the_bases_of_both_sides(bases: dict[str, Path]) -> None:
    """With nothing to protect, neither gradients nor weights change; every layer's B and every site's A get a basis."""
    task = real_task(bases["llava"], SOME, OLD, first=True)
    policy = Pegp(SOME)
    policy.start(task)
    for weight in task.weights:
        weight.grad = torch.ones_like(weight)
    before = [weight.detach().clone() for weight in task.weights]
    policy.after_backward()
    policy.after_step()
    assert all(torch.equal(weight, then) for weight, then in zip(task.weights, before, strict=True))
    assert all(bool((weight.grad == 1).all()) for weight in task.weights if weight.grad is not None)
    kept = policy.finish()
    assert sum(name.startswith("input.") for name in kept) == 2 * 4
    assert sum(name.startswith("hidden.") for name in kept) == 2 * 7
    assert all(basis.shape[1] >= 1 for basis in kept.values())


def test_bases_grow_from_round_to_round(bases: dict[str, Path]) -> None:
    """A second round keeps the first one's directions, and adds what is new in its own rows."""
    first = learned(bases["llava"], SOME)
    policy = Pegp(SOME)
    policy.start(real_task(bases["llava"], SOME, NEW, inherited=first))
    second = policy.finish()
    assert second.keys() == first.keys()
    assert all(torch.equal(second[name][:, : basis.shape[1]], basis) for name, basis in first.items())
    assert sum(basis.shape[1] for basis in second.values()) > sum(basis.shape[1] for basis in first.values())


@pytest.mark.parametrize(
    ("side", "energy"), [("input", "pegp_input_energy"), ("hidden", "pegp_hidden_energy")]
)
def test_share_of_zero_leaves_that_side_free(bases: dict[str, Path], side: str, energy: str) -> None:
    """A side whose share is 0 has no directions to keep."""
    settings = SOME.model_copy(update={energy: 0.0})
    kept = learned(bases["llava"], settings)
    assert {basis.shape[1] for name, basis in kept.items() if name.startswith(side)} == {0}
    assert all(basis.shape[1] for name, basis in kept.items() if not name.startswith(side))


@pytest.mark.parametrize("policy", ["pegp+cofima", "ewc+cofima+pegp"])
def test_a_result_that_replaces_the_weights_stays_clear_too(bases: dict[str, Path], policy: str) -> None:
    """Beside a policy that ends with other weights no way leads along the basis, and others measure what is left."""
    settings = SOME.model_copy(update={"policy": policy})
    inherited = {f"pegp.{name}": basis for name, basis in learned(bases["llava"], SOME).items()}
    task = real_task(bases["llava"], settings, NEW, inherited=inherited)
    begin = [weight.detach().clone() for weight in task.weights]
    both = policy_for(settings, first_task=False)
    both.start(task)
    train(both, task, 3)
    kept = both.finish()
    for held in both.parts["pegp"].held:  # type: ignore[attr-defined] # Pegp's
        (index,) = (i for i, weight in enumerate(task.weights) if weight is held.weight)
        along = (held.weight - begin[index]) @ held.basis
        assert float(along.detach().abs().max()) < 1e-5
    assert any(not torch.equal(now, then) for now, then in zip(task.weights, begin, strict=True))
    if "ewc" in policy:
        for index, wanted in enumerate(normalized(fisher(task, task.examples))):
            torch.testing.assert_close(kept[f"ewc.importance.{index}"], wanted)

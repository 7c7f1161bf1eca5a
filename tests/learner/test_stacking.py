"""A new adapter beside the earlier one: nothing changes at the start, and the sum at the end is the best that fits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from learner.loss import Batch
from learner.model import ADAPTER
from learner.policies.choose import policy_for
from learner.policies.dgg import Dgg
from learner.policies.olora import OLora, overlap
from learner.policies.policy import Task
from learner.policies.stacking import Stacking, compress
from learner.settings import LearnerSettings
from tests.learner.tasks import real_task

SETTINGS = LearnerSettings(rank=8, olora_strength=0.25)


def factors(rank: int, outputs: int = 9, inputs: int = 11, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return a made-up A and B of this rank."""
    noise = torch.Generator().manual_seed(seed)
    return torch.randn(rank, inputs, generator=noise), torch.randn(outputs, rank, generator=noise)


def logits(task: Task) -> Tensor:
    """Return what the model says on the task's rows."""
    with torch.no_grad():
        return task.logits(some_batch(task))


def some_batch(task: Task) -> Batch:
    """Return all rows as one batch."""
    (batch,) = task.batches(task.examples, 99)
    return batch


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_compression_is_the_best_of_its_rank(rank: int) -> None:
    """The product equals the truncated SVD of the whole matrix in float64, the nearest one of that rank there is."""
    a, b = factors(6)
    small_a, small_b = compress(a, b, rank)
    assert (small_a.shape, small_b.shape) == ((rank, 11), (9, rank))
    left, values, right = np.linalg.svd(b.double().numpy() @ a.double().numpy())
    wanted = left[:, :rank] * values[:rank] @ right[:rank]
    np.testing.assert_allclose((small_b @ small_a).numpy(), wanted, atol=1e-5)
    error = np.linalg.norm((small_b @ small_a).double().numpy() - (b @ a).double().numpy())
    assert error == pytest.approx(np.sqrt((values[rank:] ** 2).sum()), rel=1e-5)


@pytest.mark.parametrize("rank", [6, 8, 16])
def test_compression_is_exact_where_the_sum_fits(rank: int) -> None:
    """With at least the rank of the sum nothing is lost, also where a layer is narrower than the rank."""
    a, b = factors(6)
    small_a, small_b = compress(a, b, rank)
    assert len(small_a) == rank
    torch.testing.assert_close(small_b @ small_a, b @ a, atol=1e-5, rtol=1e-5)


def test_compression_shares_the_size_between_both_sides() -> None:
    """A and B of one direction are equally long, so that the next round can train either."""
    small_a, small_b = compress(*factors(6), 4)
    torch.testing.assert_close(small_a.norm(dim=1), small_b.norm(dim=0))


def test_start_changes_nothing_and_leaves_a_new_adapter_to_train(base: Path) -> None:
    """The model says the same; its former adapter is frozen beside an active new one whose B is zero."""
    task = real_task(base, SETTINGS.model_copy(update={"dropout": 0.5}))
    before, parent = logits(task), [weight.detach().clone() for weight in task.weights]
    policy = Stacking(SETTINGS)
    policy.start(task)
    torch.testing.assert_close(logits(task), before, atol=1e-5, rtol=1e-5)
    assert all(weight.requires_grad for weight in task.weights)
    assert all(bool((layer.B == 0).all()) and bool((layer.A != 0).any()) for layer in policy.layers)
    kept = [tensor for layer in policy.earlier for tensor in (layer.A, layer.B)]
    assert all(torch.equal(left, right) for left, right in zip(kept, parent, strict=True))
    trainable = {id(weight) for weight in task.model.parameters() if weight.requires_grad}
    assert trainable == {id(weight) for weight in task.weights}
    # In training mode only the new adapter drops inputs, and that one is still zero.
    task.model.train()
    torch.testing.assert_close(logits(task), before, atol=1e-5, rtol=1e-5)


def test_finish_leaves_one_adapter_that_says_the_same_if_it_fits(base: Path) -> None:
    """Two adapters of half the rank each become one of the whole rank without a change in what the model says."""
    task = real_task(base, SETTINGS)
    narrow(task)
    policy = Stacking(SETTINGS)
    policy.start(task)
    for layer in policy.layers:
        nn.init.normal_(layer.B, std=0.1)
    narrow(task)
    before = logits(task)
    assert policy.finish() == {}
    torch.testing.assert_close(logits(task), before, atol=1e-4, rtol=1e-4)
    assert list(task.model.peft_config) == [ADAPTER]
    assert task.model.active_adapters == [ADAPTER]
    named = dict(task.model.named_parameters())
    assert all(named[name] is weight for name, weight in zip(task.names, task.weights, strict=True))
    assert sum("lora_" in name for name in named) == len(task.names)


def narrow(task: Task) -> None:
    """Leave the adapter half of its rank."""
    for name, weight in zip(task.names, task.weights, strict=True):
        if ".lora_A." in name:
            weight.data[4:] = 0


def test_finish_is_the_best_approximation_where_it_does_not_fit(bases: dict[str, Path]) -> None:
    """Layer by layer the one adapter is the truncated SVD of the sum of both."""
    task = real_task(bases["llava"], SETTINGS)
    parent = [weight.detach().double().numpy().copy() for weight in task.weights]
    policy = Stacking(SETTINGS)
    policy.start(task)
    for layer in policy.layers:
        nn.init.normal_(layer.B, std=0.1)
    new = [weight.detach().double().numpy().copy() for weight in task.weights]
    policy.finish()
    for index, layer in enumerate(policy.layers):
        a, b = 2 * index, 2 * index + 1
        total = parent[b] @ parent[a] + new[b] @ new[a]
        left, values, right = np.linalg.svd(total)
        wanted = left[:, :8] * values[:8] @ right[:8]
        np.testing.assert_allclose((layer.B @ layer.A).detach().numpy(), wanted, atol=1e-5)


@pytest.mark.parametrize("kind", [Stacking, OLora])
def test_first_round_is_plain(bases: dict[str, Path], kind: type[Stacking]) -> None:
    """With no earlier adapter there is nothing beside the one that is trained, no penalty, and no compression."""
    task = real_task(bases["llava"], SETTINGS, first=True)
    before = [weight.detach().clone() for weight in task.weights]
    policy = kind(SETTINGS)
    policy.start(task)
    assert list(task.model.peft_config) == [ADAPTER]
    assert policy.extra_loss(some_batch(task), torch.zeros(())) == 0
    policy.finish()
    assert all(torch.equal(weight, then) for weight, then in zip(task.weights, before, strict=True))


def test_start_is_the_same_each_time(bases: dict[str, Path]) -> None:
    """A resumed round, whose checkpoint has only the new adapter, finds the same earlier one."""
    kept = []
    for _ in range(2):
        policy = Stacking(SETTINGS)
        policy.start(real_task(bases["llava"], SETTINGS))
        kept.append([tensor for layer in policy.earlier for tensor in (layer.A, layer.B)])
        assert policy.state() == {}
    assert all(torch.equal(left, right) for left, right in zip(*kept, strict=True))


def test_overlap_equals_a_float64_reference() -> None:
    """The penalty of a layer is the sum of sizes of all products of an old row with a new one; 0 if orthogonal."""
    old, new = factors(4)[0], factors(3, seed=1)[0]
    wanted = sum(abs(left @ right) for left in old.double().numpy() for right in new.double().numpy())
    assert float(overlap(old, new)) == pytest.approx(wanted, rel=1e-6)
    assert float(overlap(torch.eye(4)[:2], torch.eye(4)[2:])) == 0


def test_penalty_counts_all_earlier_tasks_and_moves_only_the_new_one(bases: dict[str, Path]) -> None:
    """O-LoRA's loss is the weighted overlap with each remembered A over all layers, with a gradient into A alone."""
    task = real_task(bases["llava"], SETTINGS)
    names = [name.partition(".lora_")[0] for name in task.names if ".lora_A." in name]
    remembered = {
        name: factors(16, inputs=weight.shape[1], seed=i)[0]
        for i, (name, weight) in enumerate(zip(names, task.weights[::2], strict=True))
    }
    task = real_task(bases["llava"], SETTINGS, inherited=remembered)
    policy = OLora(SETTINGS)
    policy.start(task)
    loss = policy.extra_loss(some_batch(task), torch.zeros(()))
    assert isinstance(loss, Tensor)
    wanted = sum(
        np.abs(remembered[layer.name].double().numpy() @ layer.A.detach().double().numpy().T).sum()
        for layer in policy.layers
    )
    assert float(loss.detach()) == pytest.approx(0.25 * wanted, rel=1e-5)
    torch.autograd.backward(loss)
    assert all(
        (weight.grad is not None) == (".lora_A." in name)
        for name, weight in zip(task.names, task.weights, strict=True)
    )
    assert all(layer.A.grad is None for layer in policy.earlier)


def test_every_a_is_remembered_as_it_was_trained(bases: dict[str, Path]) -> None:
    """After two rounds the memory holds both tasks' own A, not that of the compressed sum."""
    first = OLora(SETTINGS)
    first.start(real_task(bases["llava"], SETTINGS, first=True))
    one = [layer.A.detach().clone() for layer in first.layers]
    kept = first.finish()
    second = OLora(SETTINGS)
    second.start(real_task(bases["llava"], SETTINGS, inherited=kept))
    for layer in second.layers:
        nn.init.normal_(layer.B, std=0.1)
    two = [layer.A.detach().clone() for layer in second.layers]
    kept = second.finish()
    for layer, left, right in zip(second.layers, one, two, strict=True):
        assert torch.equal(kept[layer.name], torch.cat([left, right]))
        assert not torch.allclose(layer.A, right)


def test_parent_of_another_policy_counts_as_one_task(bases: dict[str, Path]) -> None:
    """Without a memory of its own O-LoRA keeps clear of the parent's A."""
    task = real_task(bases["llava"], SETTINGS)
    parent = [weight.detach().clone() for weight in task.weights[::2]]
    policy = OLora(SETTINGS)
    policy.start(task)
    assert all(torch.equal(left, right) for left, right in zip(policy.earlier_A, parent, strict=True))


@pytest.mark.parametrize("policy", ["dgg+olora", "olora+dgg"])
def test_other_parts_begin_with_the_new_adapter(bases: dict[str, Path], policy: str) -> None:
    """In a combination of either order the other part sees the adapter that is to be trained, not the one set aside."""
    settings = SETTINGS.model_copy(update={"policy": policy})
    composed = policy_for(settings, first_task=False)
    composed.start(real_task(bases["llava"], settings))
    part = composed.parts["dgg"]
    assert isinstance(part, Dgg)
    assert all(
        torch.equal(begin, weight) for begin, weight in zip(part.begin, part.task.weights, strict=True)
    )
    assert not any(
        begin.any() for name, begin in zip(part.task.names, part.begin, strict=True) if "lora_B" in name
    )

"""Prompts and prefixes: pictures reach the model behind them, and PEGP projects as float64 references do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoProcessor, LlavaForConditionalGeneration

from benchmarks.continual.prompts import (
    WEIGHT,
    PrefixTeacher,
    Projection,
    PromptSettings,
    PromptTeacher,
    TokenTeacher,
    prefix_shape,
    random_words,
)
from benchmarks.continual.tasks import Pictures
from benchmarks.continual.teacher import Learned
from benchmarks.continual.tuning import kept, tune
from learner.data import Example, Renderer, prepare
from learner.loss import batch_of, kept_logits
from learner.model import load_base, trainable
from learner.policies.policy import Policy, Task
from learner.train import ends_of_turn
from storage.errors import UnsuitableModel
from storage.records import Row
from tests.benchmarks.classes import SETTINGS, drawn, lesson, task
from tests.learner import tiny

TOKENS, SHARE = 5, 0.9
OWN = PromptSettings(tokens=TOKENS, pegp=SHARE)
PLAIN = PromptSettings(tokens=TOKENS)
KINDS = [PromptTeacher, PrefixTeacher]
OLD, NEW = "how many shapes are there?", "describe the red circle in a few words."


def examples_of(model: Any, processor: Any, rows: list[Row], pictures: Pictures) -> list[Example]:
    """Prepare rows."""
    return prepare(rows, Renderer(processor, ends_of_turn(model, processor)), pictures.read, tiny.CONTEXT)


def task_of(base: Path, kind: type[TokenTeacher], rows: list[Row], pictures: Pictures, **given: Any) -> Task:
    """Return a task of virtual tokens before a model in fp32, so that nothing is lost to rounding."""
    torch.manual_seed(0)
    model, processor = load_base(base, torch.device("cpu"))
    model.set_attn_implementation("eager")  # as in training on a CPU
    examples = examples_of(model, processor, rows, pictures)
    attached = kind(SETTINGS, OWN).attach(model.float()).eval()
    names, weights = trainable(attached)
    asked: dict[str, Any] = {
        "inherited": {},
        "first": False,
        "settings": SETTINGS,
        "pad_id": 0,
        "precision": torch.float32,
    }
    return Task(model=attached, names=names, weights=weights, examples=examples, **asked | given)


def logits_of(task: Task) -> Tensor:
    """Return what the model says on its rows, together."""
    (batch,) = task.batches(task.examples, len(task.examples))
    return task.logits(batch)


@pytest.mark.parametrize("kind", KINDS)
def test_virtual_tokens_of_words_are_those_words(base: Path, kind: type[TokenTeacher]) -> None:
    """Before any step the model says what the base says with the same words before the row and its picture."""
    pictures = Pictures()
    rows = drawn(pictures, OLD, 0, 3)
    found = logits_of(task_of(base, kind, rows, pictures))

    torch.manual_seed(0)
    model, processor = load_base(base, torch.device("cpu"))
    examples = examples_of(model, processor, rows, pictures)
    words = random_words(model.float().eval(), TOKENS).expand(3, -1)
    batch = batch_of(examples, 0)
    inputs = batch.inputs | {
        "input_ids": torch.cat([words, batch.inputs["input_ids"]], dim=1),
        "attention_mask": torch.cat([torch.ones_like(words), batch.inputs["attention_mask"]], dim=1),
    }
    wanted = model(**inputs).logits[:, batch.kept + TOKENS]
    torch.testing.assert_close(found, wanted, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_picture_reaches_the_model_behind_virtual_tokens(base: Path, kind: type[TokenTeacher]) -> None:
    """Another picture under the same question gives other answers."""
    pictures = Pictures()
    one, other = drawn(pictures, OLD, 0, 1), drawn(pictures, OLD, 4, 1)
    assert one[0].messages[1] == other[0].messages[1]
    said = [logits_of(task_of(base, kind, rows, pictures)) for rows in (one, other)]
    assert float((said[0] - said[1]).abs().max()) > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_several_lengths_are_answered_as_one_by_one(
    base: Path, tmp_path: Path, kind: type[TokenTeacher]
) -> None:
    """No padding comes between virtual tokens and a row, so that a batch changes no answer."""
    pictures = Pictures()
    rows = [*drawn(pictures, OLD, 0, 3), *drawn(pictures, NEW, 10, 3), *drawn(pictures, "count", 20, 3)]
    teacher = kind(SETTINGS, PLAIN)
    given = lesson(base, [task("old", rows[:4])], pictures, Learned(), tmp_path)
    learned = teacher.teach(given).leave()
    together = teacher.answerer(base, learned, batch_size=9).answers(rows, pictures)
    alone = teacher.answerer(base, learned, batch_size=1).answers(rows, pictures)
    assert together == alone
    assert len(set(together)) > 1


@pytest.mark.parametrize("kind", KINDS)
def test_rounds_train_the_virtual_tokens_alone_and_go_on_from_each_other(
    base: Path, tmp_path: Path, kind: type[TokenTeacher]
) -> None:
    """A second plain round starts where the first has ended and keeps nothing but the tokens, for no server."""
    pictures, teacher = Pictures(), kind(SETTINGS, PLAIN)
    tasks = [task("old", drawn(pictures, OLD, 0, 4)), task("new", drawn(pictures, NEW, 10, 4))]
    first = teacher.teach(lesson(base, tasks[:1], pictures, Learned(), tmp_path)).leave()
    still = kind(SETTINGS.model_copy(update={"learning_rate": 1e-12}), PLAIN)
    on = still.teach(lesson(base, tasks, pictures, first, tmp_path))
    after = kept(on.leave())
    torch.testing.assert_close(after[WEIGHT], kept(first)[WEIGHT], atol=1e-6, rtol=0)
    assert list(after) == [WEIGHT]
    assert (on.facts.served, on.facts.rehearsed) == (0, 0)
    assert on.facts.state_bytes == after[WEIGHT].nbytes


def reference_basis(inputs: np.ndarray, share: float) -> np.ndarray:
    """Return the fewest leading left singular vectors of inputs [d, n] that hold this share of Σ |x|²."""
    left, values, _ = np.linalg.svd(inputs.astype(np.float64), full_matrices=False)
    held = np.cumsum(values**2) / (values**2).sum()
    basis: np.ndarray = left[:, : int((held < share).sum()) + 1]
    return basis


def prompt_inputs(task: Task) -> dict[str, np.ndarray]:
    """Return what goes into the language model, put together by hand: prompt, words, and pictures in their places."""
    base = task.model.get_base_model()
    columns = []
    for example in task.examples:
        ids = example.inputs["input_ids"][0]
        embedded = base.get_input_embeddings()(ids).detach().clone()
        seen = base.get_image_features(example.inputs["pixel_values"], return_dict=True).pooler_output
        embedded[ids == base.config.image_token_id] = torch.cat(list(seen))
        columns.append(torch.cat([task.weights[0], embedded]).detach().double().numpy())
    return {"inputs": np.concatenate(columns).T}


def prefix_inputs(task: Task) -> dict[str, np.ndarray]:
    """Return the queries of each key-value head, turned to their positions by hand."""
    base = task.model.get_base_model()
    text = base.config.text_config
    width, groups = text.head_dim, text.num_attention_heads // text.num_key_value_heads
    seen: dict[str, list[np.ndarray]] = {}
    hooks = []

    def turned(queries: np.ndarray) -> np.ndarray:
        angle = text.rope_parameters["rope_theta"] ** (-np.arange(0, width, 2) / width)
        angle = np.outer(np.arange(len(queries)) + TOKENS, np.tile(angle, 2))[:, None]
        half = np.concatenate([-queries[..., width // 2 :], queries[..., : width // 2]], -1)
        turned: np.ndarray = queries * np.cos(angle) + half * np.sin(angle)
        return turned

    def watch(layer: int) -> Callable[[nn.Module, Any, Tensor], None]:
        def look(_module: nn.Module, _arguments: Any, output: Tensor) -> None:
            queries = turned(output[0].view(output.shape[1], -1, width).detach().double().numpy())
            for head in range(queries.shape[1]):
                seen.setdefault(f"{layer}.{head // groups}", []).append(queries[:, head])

        return look

    for index, layer in enumerate(base.model.language_model.layers):
        hooks.append(layer.self_attn.q_proj.register_forward_hook(watch(index)))
    for batch in task.batches(task.examples, 1):
        task.logits(batch)
    for hook in hooks:
        hook.remove()
    return {name: np.concatenate(found).T for name, found in seen.items()}


CASES = [(PromptTeacher, prompt_inputs), (PrefixTeacher, prefix_inputs)]


@pytest.mark.parametrize(("kind", "inputs"), CASES)
def test_a_first_round_is_plain_and_leaves_the_basis_of_a_float64_reference(
    base: Path, kind: type[TokenTeacher], inputs: Callable[[Task], dict[str, np.ndarray]]
) -> None:
    """With nothing to protect nothing is projected; the bases then hold the share of Σ |x|² asked for."""
    pictures = Pictures()
    old = task_of(base, kind, drawn(pictures, OLD, 0, 2), pictures, first=True)
    (weight,) = old.weights
    policy = kind(SETTINGS, OWN).policy()
    policy.start(old)
    begin = weight.detach().clone()
    weight.grad = torch.ones_like(weight)
    policy.after_backward()
    assert bool((weight.grad == 1).all())
    weight.data += torch.randn(weight.shape) / 3
    moved = weight.detach().clone()
    policy.after_step()
    assert torch.equal(weight, moved)
    weight.data.copy_(begin)
    bases, wanted = policy.finish(), inputs(old)
    assert bases.keys() == wanted.keys()
    for name, basis in bases.items():
        reference = reference_basis(wanted[name], SHARE)
        assert basis.shape == reference.shape
        # The same space, in whatever axes.
        np.testing.assert_allclose(basis.numpy() @ basis.numpy().T, reference @ reference.T, atol=1e-3)


@pytest.mark.parametrize(("kind", "inputs"), CASES)
def test_gradients_and_ways_are_projected_as_a_float64_reference_does(
    base: Path, kind: type[TokenTeacher], inputs: Callable[[Task], dict[str, np.ndarray]]
) -> None:
    """What lies along the old inputs is taken off, and what is left is orthogonal to them; values are not touched."""
    pictures = Pictures()
    old = task_of(base, kind, drawn(pictures, OLD, 0, 2), pictures, first=True)
    first = kind(SETTINGS, OWN).policy()
    first.start(old)
    inherited = first.finish()
    assert all(0 < basis.shape[1] < basis.shape[0] for basis in inherited.values())
    new = task_of(base, kind, drawn(pictures, NEW, 10, 2), pictures, inherited=inherited)
    (weight,) = new.weights
    policy = kind(SETTINGS, OWN).policy()
    assert isinstance(policy, Projection)
    policy.start(new)
    begin = weight.detach().double().numpy().copy()
    noise = torch.Generator().manual_seed(0)
    weight.grad = torch.randn(weight.shape, generator=noise)
    given = weight.grad.double().numpy().copy()
    policy.after_backward()
    weight.data += torch.randn(weight.shape, generator=noise)
    moved = weight.detach().double().numpy() - begin
    policy.after_step()

    def away(rows: np.ndarray) -> np.ndarray:
        found = rows.copy()
        parts = found if kind is PromptTeacher else found.reshape(TOKENS, *prefix_shape(new.model))
        for name, columns in inputs(old).items():
            basis = reference_basis(columns, SHARE)
            where = (slice(None),) if name == "inputs" else (slice(None), int(name[0]), 0, int(name[2:]))
            parts[where] -= parts[where] @ basis @ basis.T
            assert np.abs(parts[where] @ basis).max() < 1e-12
        return found

    np.testing.assert_allclose(weight.grad.numpy(), away(given), atol=2e-3)
    np.testing.assert_allclose(weight.detach().numpy() - begin, away(moved), atol=2e-3)
    if kind is PrefixTeacher:
        values = weight.grad.view(TOKENS, *prefix_shape(new.model))[:, :, 1]
        assert torch.equal(
            values, torch.tensor(given).float().view(TOKENS, *prefix_shape(new.model))[:, :, 1]
        )


@pytest.fixture(scope="module")
def wide(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base with wide heads, two of them for keys: a few old queries leave room beside them."""
    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("wide")
    config = AutoConfig.from_pretrained(base)
    config.text_config.head_dim, config.text_config.num_key_value_heads = 64, 2
    LlavaForConditionalGeneration(config).to(torch.bfloat16).save_pretrained(directory)
    AutoProcessor.from_pretrained(base).save_pretrained(directory)
    return directory


def test_old_answers_stay_when_only_keys_move(wide: Path) -> None:
    """After a round with Adam the keys have moved and old rows get the old answers; values are what is not held."""
    pictures, settings = Pictures(), PromptSettings(tokens=TOKENS, pegp=1 - 1e-8)
    old = [tiny.row(0, [tiny.turn("user", "count"), tiny.turn("assistant", "two")])]
    new = [tiny.row(1, [tiny.turn("user", "say a number"), tiny.turn("assistant", "four one six")])]
    first = PrefixTeacher(SETTINGS, settings).policy()
    first.start(task_of(wide, PrefixTeacher, old, pictures, first=True))
    inherited = first.finish()
    change, way = {}, {}
    for name, own in (("pegp", settings), ("plain", PLAIN)):
        asked = task_of(wide, PrefixTeacher, old, pictures)
        taught = task_of(wide, PrefixTeacher, new, pictures, inherited=inherited)
        before = logits_of(asked).detach()
        policy = PrefixTeacher(SETTINGS, own).policy()
        policy.start(taught)
        begin = taught.weights[0].detach().clone()
        optimizer = torch.optim.AdamW(taught.weights, lr=0.05)
        for _ in range(10):
            (batch,) = taught.batches(taught.examples, 1)
            taught.loss(batch).backward()  # type: ignore[no-untyped-call]
            policy.after_backward()
            optimizer.step()
            policy.after_step()
            optimizer.zero_grad()
        with torch.no_grad():
            shape = (TOKENS, *prefix_shape(taught.model))
            keys = taught.weights[0].view(shape)[:, :, 0]
            way[name] = float((keys - begin.view(shape)[:, :, 0]).norm())
            asked.weights[0].view(shape)[:, :, 0].copy_(keys)
            change[name] = float((logits_of(asked) - before).abs().max() / before.std())
    assert change["pegp"] < 2e-3
    assert change["plain"] > 100 * change["pegp"]
    assert way["pegp"] > way["plain"] / 10


@pytest.mark.parametrize("kind", KINDS)
def test_a_round_with_pegp_keeps_clear_of_what_the_first_one_saw(
    base: Path, tmp_path: Path, kind: type[TokenTeacher]
) -> None:
    """Over whole rounds with the loop as it is, the way of the second is orthogonal to the bases of the first."""
    pictures, teacher = Pictures(), kind(SETTINGS, OWN)
    tasks = [task("old", drawn(pictures, OLD, 0, 4)), task("new", drawn(pictures, NEW, 10, 4))]
    learned = teacher.teach(lesson(base, tasks[:1], pictures, Learned(), tmp_path)).leave()
    before, after = (
        kept(learned),
        kept(teacher.teach(lesson(base, tasks, pictures, learned, tmp_path)).leave()),
    )
    way = after[WEIGHT] - before[WEIGHT]
    assert float(way.norm()) > 0
    policy = teacher.policy()
    assert isinstance(policy, Projection)
    policy.start(task_of(base, kind, tasks[1].train, pictures))
    for name, basis in before.items():
        if name != WEIGHT:
            assert float((policy.part(way, name) @ basis).abs().max()) < 1e-4
            assert torch.equal(after[name][:, : basis.shape[1]], basis)


def test_the_loop_takes_steps_that_lower_the_loss(base: Path) -> None:
    """Training a prompt on a few rows makes their answers likelier."""
    pictures = Pictures()
    own = task_of(base, PromptTeacher, drawn(pictures, OLD, 0, 4), pictures, first=True)
    (batch,) = own.batches(own.examples, 4)
    before = float(own.loss(batch))
    tune(own.model, own.weights, Policy(SETTINGS), own.examples, 0)
    assert float(own.loss(batch)) < before


def test_models_of_other_families_are_refused_before_anything_is_done(tmp_path: Path) -> None:
    """Where positions follow from tokens that a prompt would hide, a sentence says so before the first round."""
    with pytest.raises(UnsuitableModel, match="LLaVA family, this is smolvlm"):
        PromptTeacher(SETTINGS, PLAIN).check(tiny.build("smolvlm", tmp_path))


def test_logits_are_those_of_the_kept_positions(base: Path) -> None:
    """Behind a prompt the positions of answers are counted from the row's beginning, as without one."""
    pictures = Pictures()
    own = task_of(base, PromptTeacher, drawn(pictures, OLD, 0, 2), pictures)
    batch = batch_of(own.examples, 0)
    every = torch.arange(batch.inputs["input_ids"].shape[1])
    found = kept_logits(own.model, batch.inputs, batch.kept)
    torch.testing.assert_close(found, kept_logits(own.model, batch.inputs, every)[:, batch.kept])

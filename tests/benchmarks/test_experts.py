"""EProj: keys and sharing against float64 references, and its promise: each task is answered by its own expert."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.continual.experts import (
    SUMS,
    ExpertSettings,
    ExpertTeacher,
    Eyes,
    Projected,
    expert_for,
    keys,
    nearest,
    put,
    state_of,
)
from benchmarks.continual.tasks import Pictures
from benchmarks.continual.teacher import Learned
from benchmarks.continual.tuning import kept
from learner.data import Renderer, prepare
from learner.loss import batch_of, kept_logits
from learner.model import load_base
from learner.train import ends_of_turn
from storage.errors import UnsuitableModel
from tests.benchmarks.classes import SETTINGS, drawn, lesson, task
from tests.learner import tiny

APART, TOGETHER = ExpertSettings(similarity=1), ExpertSettings(similarity=0)
COUNT, COLOUR = "how many shapes are there?", "describe the red circle in a few words."


def unit(generator: np.random.Generator, *shape: int) -> np.ndarray:
    """Return random vectors of length 1."""
    found = generator.normal(size=shape)
    vectors: np.ndarray = found / np.linalg.norm(found, axis=-1, keepdims=True)
    return vectors


def test_keys_are_where_gradient_steps_on_the_summed_cosine_lead() -> None:
    """The authors' way, steps on Σ (1 - cos) of an expert's rows in float64, ends at the key that is computed."""
    seen = unit(np.random.default_rng(0), 3, 20, 3, 8) + 0.3
    seen /= np.linalg.norm(seen, axis=-1, keepdims=True)
    groups = (0, 1, 0)
    found = keys(torch.tensor(seen).sum(1), groups)
    for expert in (0, 1):
        rows = torch.tensor(seen[[group == expert for group in groups]]).flatten(0, 1)
        for modality in (0, 1):
            key = torch.full((8,), 0.5, dtype=torch.float64).requires_grad_()
            optimizer = torch.optim.SGD([key], lr=0.05)
            for _ in range(2000):
                optimizer.zero_grad()
                loss = (1 - torch.cosine_similarity(rows[:, modality], key[None], dim=-1)).sum()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            reached = key.detach() / key.detach().norm()
            np.testing.assert_allclose(found[expert, modality], reached, atol=1e-6)


def test_the_largest_summed_cosine_answers() -> None:
    """Pictures and questions count alike: the choice is that of a float64 reference over both."""
    generator = np.random.default_rng(1)
    seen, key = unit(generator, 50, 2, 6), unit(generator, 4, 2, 6)
    wanted = [int(np.argmax([(row * one).sum() for one in key])) for row in seen]
    assert nearest(torch.tensor(seen), torch.tensor(key)).tolist() == wanted
    assert len(set(wanted)) == 4


def test_a_task_shares_the_expert_of_the_most_similar_one_from_the_threshold_on() -> None:
    """Similarity is the product of three cosines, as in numpy; just above it a task has an expert of its own."""
    sums = np.abs(np.random.default_rng(2).normal(size=(4, 3, 5)))
    lengths = np.linalg.norm(sums, axis=-1)
    alike = [np.prod((sums[p] * sums[-1]).sum(-1) / lengths[p] / lengths[-1]) for p in range(3)]
    best, groups = int(np.argmax(alike)), (0, 2, 1)
    assert expert_for(torch.tensor(sums), groups, alike[best] - 1e-6) == groups[best]
    assert expert_for(torch.tensor(sums), groups, alike[best] + 1e-6) == 3
    assert expert_for(torch.tensor(sums[:1]), (), 0.0) == 0


@pytest.fixture(scope="module")
def taught(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Learned], Pictures]:
    """What two rounds on two unlike tasks leave, each with an expert of its own."""
    pictures, place = Pictures(), tmp_path_factory.mktemp("eproj")
    tasks = [task("count", drawn(pictures, COUNT, 0, 6)), task("colour", drawn(pictures, COLOUR, 50, 6))]
    learned = [Learned()]
    for number in (1, 2):
        given = lesson(base, tasks[:number], pictures, learned[-1], place)
        learned.append(ExpertTeacher(SETTINGS, APART).teach(given).leave())
    return learned[1:], pictures


def test_each_row_is_answered_by_the_expert_of_its_task(
    base: Path, taught: tuple[list[Learned], Pictures]
) -> None:
    """New pictures with either question go to the expert that was trained with it, whatever their answer is."""
    learned, pictures = taught
    answerer = ExpertTeacher(SETTINGS, APART).answerer(base, learned[-1], batch_size=4)
    rows = [*drawn(pictures, COUNT, 100, 4), *drawn(pictures, COLOUR, 200, 4)]
    other = [
        replace(row, messages=[row.messages[0], tiny.turn("assistant", "a blue square and a red one")])
        for row in rows
    ]
    assert learned[-1].groups == (0, 1)
    assert answerer.choose(rows, pictures) == [0, 0, 0, 0, 1, 1, 1, 1]
    assert answerer.choose(other, pictures) == answerer.choose(rows, pictures)
    assert len(answerer.answers(rows, pictures)) == 8


def test_earlier_experts_stay_and_the_new_one_is_trained(
    base: Path, taught: tuple[list[Learned], Pictures]
) -> None:
    """The second round leaves the first expert's bits alone; both have left the pre-trained projector."""
    first, second = (kept(learned) for learned in taught[0])
    pretrained = load_base(base, torch.device("cpu"))[0].base_model.multi_modal_projector.state_dict()
    assert state_of(first, 1) == {}
    for name, weight in pretrained.items():
        assert torch.equal(first[f"expert.0.{name}"], second[f"expert.0.{name}"])
        assert not torch.equal(second[f"expert.0.{name}"], weight.float())
        assert not torch.equal(second[f"expert.1.{name}"], weight.float())
    assert second[SUMS].shape == (2, 3, tiny.WIDTH)


def test_a_similar_task_trains_the_same_expert_further(
    base: Path, taught: tuple[list[Learned], Pictures], tmp_path: Path
) -> None:
    """With a threshold of 0 a second task adds no expert and changes the one there is."""
    learned, pictures = taught
    tasks = [task("count", drawn(pictures, COUNT, 0, 2)), task("colour", drawn(pictures, COLOUR, 50, 6))]
    taught_on = ExpertTeacher(SETTINGS, TOGETHER).teach(lesson(base, tasks, pictures, learned[0], tmp_path))
    before, after = kept(learned[0]), kept(after_it := taught_on.leave())
    assert after_it.groups == (0, 0)
    assert before.keys() == after.keys()
    assert all(not torch.equal(before[name], after[name]) for name in before if name != SUMS)
    assert taught_on.facts.served == 0
    assert taught_on.facts.state_bytes == sum(tensor.nbytes for tensor in after.values())


def test_the_expert_stands_where_the_projector_stood(base: Path) -> None:
    """Trained from the tower's features, an expert says what the whole model says with it in the projector's place."""
    pictures = Pictures()
    model, processor = load_base(base, torch.device("cpu"))
    model = model.float()
    renderer = Renderer(processor, ends_of_turn(model, processor))
    examples = prepare(drawn(pictures, COUNT, 0, 3), renderer, pictures.read, tiny.CONTEXT)
    torch.manual_seed(1)
    expert = type(model.base_model.multi_modal_projector)(model.config)
    pretrained = model.base_model.multi_modal_projector
    logits = []
    for projector in (pretrained, expert):
        put(model, projector)
        batch = batch_of(examples, 0)
        logits.append(model(**batch.inputs).logits[:, batch.kept])
    eyes = Eyes(model, limit_bytes=2**20)
    batch = batch_of(eyes.opened(examples), 0)
    found = kept_logits(Projected(model, expert), batch.inputs, batch.kept)
    torch.testing.assert_close(found, logits[1])
    assert not torch.allclose(logits[0], logits[1], atol=1e-2)


def test_a_task_without_pictures_is_refused(base: Path, tmp_path: Path) -> None:
    """A projector sees pictures alone, and the error names the task that has none."""
    words = task("words", [tiny.row(0, [tiny.turn("user", "say a number"), tiny.turn("assistant", "four")])])
    with pytest.raises(ValueError, match="words has no pictures"):
        ExpertTeacher(SETTINGS, APART).teach(lesson(base, [words], Pictures(), Learned(), tmp_path))


def test_models_of_other_families_are_refused_before_anything_is_done(tmp_path: Path) -> None:
    """Where the projector is a part of the tower, a sentence says so before the first round."""
    with pytest.raises(UnsuitableModel, match="LLaVA family, this is qwen2_vl"):
        ExpertTeacher(SETTINGS, APART).check(tiny.build("qwen2_vl", tmp_path))


def test_only_what_asks_is_compared(base: Path) -> None:
    """A row without a picture has no picture to compare, and its question alone decides."""
    pictures = Pictures()
    model, processor = load_base(base, torch.device("cpu"))
    renderer = Renderer(processor, ends_of_turn(model, processor))
    row = tiny.row(0, [tiny.turn("user", "say a number"), tiny.turn("assistant", "four")])
    (example,) = prepare([row], renderer, pictures.read, tiny.CONTEXT)
    seen = Eyes(model, limit_bytes=0).embedding(example)
    np.testing.assert_allclose(seen.norm(dim=-1), [0, 1, 1], atol=1e-6)

"""Features of images kept for a round: the same training as with pixels, and the tower runs once per picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from learner import features
from learner.data import Example, Renderer, prepare
from learner.features import ImageEncoder
from learner.loss import answer_loss, batch_of, kept_logits
from learner.model import attach_adapter, load_base
from learner.train import ends_of_turn
from storage.errors import TrainingStopped
from storage.settings import MEBIBYTE
from tests.learner import tiny
from tests.learner.test_training import CPU, FAST, assert_same_bits, job_of, trained

PLENTY = 64 * MEBIBYTE


def loaded(base: Path, *, exact: bool) -> tuple[Any, Any, list[Example]]:
    """Return a model with an adapter that does something, the bare model inside, and rows of every kind."""
    torch.manual_seed(0)
    model, processor = load_base(base, CPU)
    model = model.float() if exact else model
    pictures = tiny.Pictures()
    rows = [*tiny.mixed_rows(pictures), *tiny.counting_rows(pictures, 3)]
    examples = prepare(rows, Renderer(processor, ends_of_turn(model, processor)), pictures.read, tiny.CONTEXT)
    attached = attach_adapter(model, FAST, None, max_rank=64)
    for weight in attached.parameters():
        if weight.requires_grad:
            torch.nn.init.normal_(weight, std=0.1)
    return attached, model, examples


def measured(attached: Any, examples: list[Example], *, exact: bool) -> tuple[float, list[Tensor]]:
    """Return loss and gradients of one batch of all rows, as training takes them."""
    attached.zero_grad()
    batch = batch_of(examples, pad_id=0).to(CPU)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=not exact):
        loss = answer_loss(kept_logits(attached, batch.inputs, batch.kept), batch)
    torch.autograd.backward(loss)
    return float(loss.detach()), [weight.grad for weight in attached.parameters() if weight.grad is not None]


@pytest.mark.parametrize("exact", [True, False], ids=["fp32", "bf16"])
def test_features_give_the_loss_and_gradient_of_pixels(base: Path, exact: bool) -> None:
    """In each family a batch has the same loss and gradients either way, but for the rounding of the tower."""
    attached, model, examples = loaded(base, exact=exact)
    kept = ImageEncoder(model, PLENTY).without_pixels(examples)
    assert sum(example.images is not None for example in kept) == 7
    assert not any(name.startswith("pixel_") for example in kept for name in example.inputs)
    wanted, found = measured(attached, examples, exact=exact), measured(attached, kept, exact=exact)
    assert found[0] == pytest.approx(wanted[0], rel=1e-5 if exact else 1e-2)
    for left, right in zip(found[1], wanted[1], strict=True):
        apart, size = float((left - right).norm()), float(right.norm())
        assert apart <= (1e-4 if exact else 5e-2) * size


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count how often images are encoded."""
    calls: list[int] = []
    real = ImageEncoder._encode

    def encode(self: ImageEncoder, inputs: dict[str, Tensor]) -> Any:
        calls.append(1)
        return real(self, inputs)

    monkeypatch.setattr(ImageEncoder, "_encode", encode)
    return calls


def test_tower_runs_once_for_each_picture_whatever_the_epochs(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three epochs over rows that share pictures encode each set of pictures once, after a look at the first."""
    calls = counted(monkeypatch)
    pictures = tiny.Pictures()
    rows = [*tiny.counting_rows(pictures, 4)] * 2
    settings = FAST.model_copy(update={"epochs": 3})
    trained(job_of(base, tmp_path, settings, rows=rows, image=pictures.read))
    assert len(calls) == 1 + 4


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_memory_is_bounded_and_changes_nothing(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: tiny.Family
) -> None:
    """With no room, or room for a part, the tower runs again each time, and the weights have the same bits."""
    whole, _ = trained(job_of(bases[family], tmp_path / "whole"))
    calls = counted(monkeypatch)
    none = FAST.model_copy(update={"image_features_max_mib": 0})
    assert_same_bits(whole, trained(job_of(bases[family], tmp_path / "none", none))[0])
    every_time = len(calls)
    monkeypatch.setattr("learner.train.MEBIBYTE", 1)
    calls.clear()
    some = FAST.model_copy(update={"image_features_max_mib": 1500})
    assert_same_bits(whole, trained(job_of(bases[family], tmp_path / "some", some))[0])
    assert 1 + 10 < len(calls) < every_time


def test_no_more_is_kept_than_fits(bases: dict[str, Path]) -> None:
    """The first features stay up to the last that fits; what does not fit keeps its pixels instead."""
    _, model, examples = loaded(bases["llava"], exact=False)
    one = 4 * tiny.WIDTH * 2  # four tokens in bf16
    encoder = ImageEncoder(model, 2 * one)
    kept = encoder.without_pixels(examples[5:])
    seen = [example.images() for example in kept if example.images is not None]
    assert [features.nbytes for features in seen] == [one] * 3
    assert encoder.kept_bytes == 2 * one
    assert (len(encoder._features), len(encoder._pixels)) == (2, 1)


def test_round_stopped_with_little_memory_ends_with_the_same_bits(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    """What is in memory when a round is cut off, and in what order it came there, does not matter."""
    whole, _ = trained(job_of(bases["llava"], tmp_path / "whole"))
    cut = job_of(bases["llava"], tmp_path / "cut", FAST.model_copy(update={"image_features_max_mib": 0}))
    with pytest.raises(TrainingStopped):
        trained(cut, stop_after=3)
    assert_same_bits(whole, trained(job_of(bases["llava"], tmp_path / "cut"))[0])


def test_model_that_is_not_understood_keeps_its_pixels(
    bases: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a tower says more than can be handed over, or the model takes nothing, rows stay as they were."""
    _, model, examples = loaded(bases["llava"], exact=False)
    monkeypatch.setattr(features, "_UNDERSTOOD", {"pooler_output"})
    left = ImageEncoder(model, PLENTY).without_pixels(examples)
    assert all(one is other for one, other in zip(left, examples, strict=True))
    monkeypatch.undo()
    # As a model of an older transformers takes its images.
    monkeypatch.setattr(type(model), "forward", type(model).get_image_features)
    left = ImageEncoder(model, PLENTY).without_pixels(examples)
    assert all(one is other for one, other in zip(left, examples, strict=True))

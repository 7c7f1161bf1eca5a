"""Tasks for the tests of policies: of bare tensors, or of a tiny real model with its rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from learner.data import Example, Renderer, prepare
from learner.model import attach_adapter, load_base, trainable
from learner.policies.policy import Policy, Task
from learner.settings import LearnerSettings
from learner.train import ends_of_turn
from storage.records import Row
from tests.learner import tiny

NAMES = tuple(
    f"base_model.model.layers.{layer}.self_attn.{name}.weight"
    for layer, name in enumerate(("q_proj.lora_A.default", "q_proj.lora_B.default", "v_proj.lora_A.default"))
)


def bare_task(tensors: Sequence[Tensor], **changes: Any) -> Task:
    """Return a task of these weights alone; its model and rows are not there."""
    given: dict[str, Any] = {
        "model": nn.Module(),
        "names": list(NAMES[: len(tensors)]),
        "weights": [nn.Parameter(tensor.clone()) for tensor in tensors],
        "examples": [],
        "inherited": {},
        "first": False,
        "settings": LearnerSettings(),
        "pad_id": 0,
    }
    return Task(**given | changes)


def real_task(
    base: Path,
    settings: LearnerSettings,
    rows: Sequence[Row] | None = None,
    *,
    pictures: tiny.Pictures | None = None,
    **changes: Any,
) -> Task:
    """Return a task of a tiny model in fp32, so that nothing is lost to rounding; its adapter already does something.

    Without rows it counts a few shapes; `pictures` holds those of the rows given.
    """
    torch.manual_seed(0)
    pictures = tiny.Pictures() if pictures is None else pictures
    rows = tiny.counting_rows(pictures, 6) if rows is None else rows
    model, processor = load_base(base, torch.device("cpu"))
    renderer = Renderer(processor, ends_of_turn(model, processor))
    attached = attach_adapter(model.float(), settings, None, max_rank=64).eval()
    names, weights = trainable(attached)
    for weight in weights:
        nn.init.normal_(weight, std=0.1)
    given: dict[str, Any] = {
        "model": attached,
        "names": names,
        "weights": weights,
        "examples": prepare(rows, renderer, pictures.read, tiny.CONTEXT),
        "inherited": {},
        "first": False,
        "settings": settings,
        "pad_id": 0,
        "precision": torch.float32,
    }
    return Task(**given | changes)


def examples_of(base: Path, rows: Sequence[Row], pictures: tiny.Pictures) -> list[Example]:
    """Prepare rows for a model of this directory."""
    model, processor = load_base(base, torch.device("cpu"))
    return prepare(rows, Renderer(processor, ends_of_turn(model, processor)), pictures.read, tiny.CONTEXT)


def take_step(policy: Policy, new: Sequence[Tensor], gradient: Sequence[Tensor]) -> dict[str, Any]:
    """Let a policy see the weights after a step and the gradient that led there."""
    for weight, value, slope in zip(policy.task.weights, new, gradient, strict=True):
        weight.data.copy_(value)
        weight.grad = slope.clone()
    return policy.after_step()

"""Makes a point between a round's parent and what it has trained into an adapter that can be exported like any other.

Nothing is trained: the two directories are enough, and a base model on which the probe of the point is measured.
"""

from __future__ import annotations

import json
from pathlib import Path

from accelerate import PartialState
from peft import PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file

from learner.data import Renderer
from learner.export import WEIGHTS
from learner.interpolation import Point, between
from learner.model import ADAPTER, load_base
from learner.train import TrainedAdapter, TrainingJob, ends_of_turn, inherited_state
from serving.manifest import MANIFEST


def point_of(job: TrainingJob, candidate: Path, share: float) -> tuple[TrainedAdapter, float]:
    """Return the point at `share` of the way to what the job has trained, and how far it is from the straight line.

    `candidate` is the directory of what was trained. What its policy remembers is the point's too: it was measured on
    the round's rows, for entries that mean the same in both. The distance is `learner.interpolation.Point.apart`.
    """
    base, processor = load_base(job.base, PartialState().device)
    point = _between(job.parent_adapter, candidate, share)
    model = PeftModel.from_pretrained(base, candidate, adapter_name=ADAPTER).eval()
    set_peft_model_state_dict(model, point.weights, adapter_name=ADAPTER)
    adapter = TrainedAdapter(
        job=job,
        weights=point.weights,
        model=model,
        renderer=Renderer(processor, ends_of_turn(base, processor)),
        policy_state=inherited_state(candidate),
        summary=json.loads((candidate / MANIFEST).read_text(encoding="utf-8"))["training"],
    )
    return adapter, point.apart


def _between(parent: Path | None, candidate: Path, share: float) -> Point:
    trained = load_file(candidate / WEIGHTS)
    if parent is None:
        return between({}, trained, share)
    return between(load_file(parent / WEIGHTS), trained, share, _scale(parent) / _scale(candidate))


def _scale(directory: Path) -> float:
    """Return what the product of an adapter is multiplied by."""
    config = json.loads((directory / "adapter_config.json").read_text(encoding="utf-8"))
    return float(config["lora_alpha"] / config["r"])

"""Packs what training has reached into files for this repository, in bfloat16: what it ships, or a stage cut off."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from recipes.smol_llava.see import PATCHES
from recipes.smol_llava.talk import LORA_ALPHA, LORA_RANK
from recipes.smol_llava.tell import TOWER
from serving.embedded import LANGUAGE, PARTS, VISION

_VISION = "base_model.model.model."


def ship(out: Path, parts: Path = PARTS) -> None:
    """Write tower, projector and the language model's difference from `out`'s checkpoint to `parts`, with hashes."""
    weights: dict[str, Tensor] = torch.load(out / "talk.pt", weights_only=True, map_location="cpu")["model"]
    vision = {
        name.removeprefix(_VISION): small(tensor) for name, tensor in weights.items() if "lora_" not in name
    }
    language = {difference_name(name): small(tensor) for name, tensor in weights.items() if "lora_" in name}
    save_file(vision, parts / VISION, metadata={"format": "pt"})
    save_file(language, parts / LANGUAGE, metadata={"format": "pt", "scale": str(LORA_ALPHA / LORA_RANK)})
    write_config(parts / "config.json")
    hashes = {name: hashlib.sha256((parts / name).read_bytes()).hexdigest() for name in (VISION, LANGUAGE)}
    (parts / "parts.json").write_text(json.dumps(hashes, indent=1) + "\n", encoding="utf-8")


def take_back(out: Path, parts: Path = PARTS) -> None:
    """Write what is shipped in `parts` to `out`, as a checkpoint from which stage 2 begins at its first step.

    Raises FileExistsError if something was trained there.
    """
    refuse_used(out)
    shipped = {f"{_VISION}{name}": one for name, one in load_file(parts / VISION).items()}
    shipped |= {tuned_name(name): one for name, one in load_file(parts / LANGUAGE).items()}
    out.mkdir(parents=True, exist_ok=True)
    weights = {name: one.float() for name, one in shipped.items()}
    torch.save({"step": 0, "model": weights, "optimizers": None}, out / "talk.pt")


def pack(out: Path, stage: str, directory: Path) -> None:
    """Write the weights of a stage's checkpoint in `out` to `directory`, small enough for a repository."""
    weights = torch.load(out / f"{stage}.pt", weights_only=True, map_location="cpu")["model"]
    directory.mkdir(parents=True, exist_ok=True)
    save_file({name: small(one) for name, one in weights.items()}, directory / f"{stage}.safetensors")


def unpack(out: Path, directory: Path) -> None:
    """Write all stages packed in `directory` to `out`, as checkpoints from which training begins at its first step.

    Raises FileExistsError if something was trained there: a later stage would go on from that.
    """
    refuse_used(out)
    out.mkdir(parents=True, exist_ok=True)
    for path in directory.glob("*.safetensors"):
        weights = {name: one.float() for name, one in load_file(path).items()}
        torch.save({"step": 0, "model": weights, "optimizers": None}, out / f"{path.stem}.pt")


def refuse_used(out: Path) -> None:
    """Raise FileExistsError if `out` has a checkpoint of any stage."""
    for stage in ("see", "tell", "talk"):
        if (out / f"{stage}.pt").exists():
            raise FileExistsError(
                f"{out / f'{stage}.pt'} is there already. Name another directory with --work, or remove the file "
                "if what was trained there is not wanted any more."
            )


def small(tensor: Tensor) -> Tensor:
    """Return a tensor as it is shipped."""
    return tensor.detach().to(torch.bfloat16).contiguous()


def difference_name(name: str) -> str:
    """Return `model.layers.0….q_proj.A` for PEFT's `….language_model.layers.0….q_proj.lora_A.default.weight`."""
    module, _, side = name.partition(".lora_")
    return f"model.{module.partition('.language_model.')[2]}.{side[0]}"


def tuned_name(name: str) -> str:
    """Return PEFT's name for what `difference_name` has made of it."""
    module, _, side = name.rpartition(".")
    return f"{_VISION}language_model.{module.removeprefix('model.')}.lora_{side}.default.weight"


def write_config(path: Path) -> None:
    """Put the tower's shape into the model's configuration; everything else in it stays."""
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    vision = config["vision_config"]
    shape: dict[str, Any] = {
        name: getattr(TOWER, name) for name in vision if name not in ("dtype", "model_type")
    }
    config["vision_config"] = vision | shape
    config["image_seq_length"] = PATCHES
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

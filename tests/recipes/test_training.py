"""Both stages train, can be cut off and resumed, and what is shipped is what was trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionModel

from recipes.smol_llava.align import AlignSettings
from recipes.smol_llava.see import TOWER, SeeSettings, normalised, see
from recipes.smol_llava.ship import difference_name, ship, trained_name, unpack
from recipes.smol_llava.talk import TalkSettings, standardise, talk
from serving import embedded

SMALL = SeeSettings(steps=2, batch_size=4, workers=0, save_every=1)


@pytest.fixture(scope="module")
def seen(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where stage 1 was trained for two steps, cut off after the first."""
    out = tmp_path_factory.mktemp("training")
    see(cache, out, SeeSettings(steps=1, batch_size=4, workers=0, save_every=1))
    see(cache, out, SMALL)
    return out


def test_stage_1_goes_on_from_its_checkpoint(cache: Path, seen: Path) -> None:
    """A second run with more steps only does the missing ones, and its tower loads as a CLIP vision model."""
    assert torch.load(seen / "see.pt", weights_only=True)["step"] == 2
    before = (seen / "see.pt").stat().st_mtime_ns
    see(cache, seen, SMALL)
    assert (seen / "see.pt").stat().st_mtime_ns == before
    assert CLIPVisionModel.from_pretrained(seen / "tower").config.hidden_size == TOWER.hidden_size


def test_what_is_shipped_is_what_was_trained(tmp_path: Path) -> None:
    """Weights under PEFT's names arrive in bf16 under the names and with the scale that assembling reads."""
    layer = "base_model.model.model.language_model.layers.0.self_attn.q_proj"
    weights = {
        "base_model.model.model.vision_tower.embeddings.class_embedding": torch.randn(256),
        f"{layer}.lora_A.default.weight": torch.randn(16, 576),
        f"{layer}.lora_B.default.weight": torch.randn(576, 16),
    }
    torch.save({"weights": weights}, tmp_path / "talk.pt")
    shutil.copyfile(embedded.PARTS / "config.json", tmp_path / "config.json")
    ship(tmp_path, tmp_path)
    vision, language = load_file(tmp_path / embedded.VISION), load_file(tmp_path / embedded.LANGUAGE)
    assert set(vision) == {"vision_tower.embeddings.class_embedding"}
    assert set(language) == {"model.layers.0.self_attn.q_proj.A", "model.layers.0.self_attn.q_proj.B"}
    assert torch.equal(
        language["model.layers.0.self_attn.q_proj.A"], weights[f"{layer}.lora_A.default.weight"].bfloat16()
    )
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["vision_config"]["num_hidden_layers"] == TOWER.num_hidden_layers
    assert config["image_seq_length"] == 36
    assert set(json.loads((tmp_path / "parts.json").read_text())) == {embedded.VISION, embedded.LANGUAGE}


def test_assembling_adds_the_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tuned matrix is W + s B A, rounded once; the others stay bit for bit."""
    a, b = torch.randn(4, 8).bfloat16(), torch.randn(6, 4).bfloat16()
    save_file({"model.x.A": a, "model.x.B": b}, tmp_path / embedded.LANGUAGE, metadata={"scale": "2.0"})
    monkeypatch.setattr(embedded, "PARTS", tmp_path)
    plain = {
        name: torch.randn(6, 8).bfloat16()
        for name in ("language_model.model.x.weight", "language_model.model.y.weight")
    }
    tuned = embedded.tuned(dict(plain))
    expected = (plain["language_model.model.x.weight"].double() + 2 * b.double() @ a.double()).bfloat16()
    assert torch.allclose(
        tuned["language_model.model.x.weight"].float(), expected.float(), rtol=1e-2, atol=1e-3
    )
    assert not torch.equal(tuned["language_model.model.x.weight"], plain["language_model.model.x.weight"])
    assert torch.equal(tuned["language_model.model.y.weight"], plain["language_model.model.y.weight"])


def test_names_of_the_difference_are_those_of_the_checkpoint() -> None:
    """PEFT's name of a matrix becomes that of the module in the assembled checkpoint, and back."""
    name = "base_model.model.model.language_model.layers.7.mlp.up_proj.lora_B.default.weight"
    assert difference_name(name) == "model.layers.7.mlp.up_proj.B"
    assert trained_name(difference_name(name)) == name


def test_stage_2_trains_all_three_parts_and_resumes(cache: Path, seen: Path) -> None:
    """Two steps, cut off after the first, move all three parts; what is shipped of them can be trained further."""
    (seen / "chats.json").write_text(json.dumps([["Hello!", "Hi there."]] * 2), encoding="utf-8")
    common: dict[str, Any] = {
        "tokens": 160, "text_every": 2, "text_rows": 1, "chats": 2, "workers": 0, "save_every": 1, "warmup_steps": 1,
        "align": AlignSettings(steps=1, batch_size=4),
    }  # fmt: skip
    talk(cache, seen, TalkSettings(steps=0, **common))
    shutil.copyfile(embedded.PARTS / "config.json", seen / "config.json")
    start = torch.load(seen / "talk.pt", weights_only=True)["weights"]
    for steps in (1, 2):
        talk(cache, seen, TalkSettings(steps=steps, **common))
    state = torch.load(seen / "talk.pt", weights_only=True)
    assert state["step"] == 2
    for part in ("multi_modal_projector", "vision_tower", "lora_B"):
        moved = [
            not torch.equal(start[name], tensor) for name, tensor in state["weights"].items() if part in name
        ]
        assert any(moved), part

    ship(seen, seen)
    unpack(seen / "further", seen)
    (seen / "further" / "chats.json").write_text((seen / "chats.json").read_text(encoding="utf-8"))
    talk(cache, seen / "further", TalkSettings(steps=0, **common))
    again = torch.load(seen / "further" / "talk.pt", weights_only=True)["weights"]
    assert all(
        torch.equal(again[name], tensor.bfloat16().float()) for name, tensor in state["weights"].items()
    )


def test_standardising_changes_the_scale_of_features_and_nothing_else() -> None:
    """Features have zero mean and unit variance afterwards, and are otherwise those of before."""
    torch.manual_seed(0)
    tower = CLIPVisionModel(TOWER)
    pixels = torch.randint(0, 256, (6, 3, 96, 96), dtype=torch.uint8)
    with torch.no_grad():
        before = tower(normalised(pixels)).last_hidden_state[:, 1:].flatten(0, 1)
        standardise(tower, pixels)
        after = tower(normalised(pixels)).last_hidden_state[:, 1:].flatten(0, 1)
    assert torch.allclose(after, (before - before.mean(0)) / before.std(0).mean(), atol=1e-3)

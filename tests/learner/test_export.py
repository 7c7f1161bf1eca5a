"""A generation's directory: what vLLM and PEFT load, hashed so that a changed bit is found, with a true probe."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch.nn.functional import log_softmax
from vllm.lora.peft_helper import PEFTHelper

from learner.data import IGNORED, prepare
from learner.export import export
from learner.model import load_base
from learner.train import TrainedAdapter
from serving.groups import Codebook
from serving.manifest import verify
from serving.probes import PROBE, Probe
from serving.router import CODEBOOK, read_codebook
from storage.errors import AdapterChanged, TrainingDiverged
from tests.learner import tiny
from tests.learner.test_training import FAST, job_of, trained

KEYS = {
    "llava": r"base_model\.model\.model\.language_model\.layers\.[01]\.(self_attn|mlp)\.\w+_proj\.lora_[AB]\.weight",
    "qwen2_vl": r"base_model\.model\.model\.language_model\.layers\.[01]\.(self_attn|mlp)\.\w+_proj\.lora_[AB]\.weight",
    "smolvlm": r"base_model\.model\.model\.text_model\.layers\.[01]\.(self_attn|mlp)\.\w+_proj\.lora_[AB]\.weight",
}


@pytest.fixture(scope="module")
def results(bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, TrainedAdapter]:
    """A trained adapter of each family."""
    settings = FAST.model_copy(update={"policy": "sequential"})
    return {
        family: trained(job_of(bases[family], tmp_path_factory.mktemp("work"), settings))[0]
        for family in tiny.FAMILIES
    }


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_export_holds_what_vllm_and_peft_load(
    family: tiny.Family, results: dict[str, TrainedAdapter], tmp_path: Path
) -> None:
    """The names are those that vLLM maps, its own check passes, and PEFT gets back the same fp32 weights."""
    directory = export(results[family], tmp_path, {})
    tensors = load_file(directory / "adapter_model.safetensors")
    assert len(tensors) == 2 * 7 * 2
    assert all(re.fullmatch(KEYS[family], name) for name in tensors)
    assert all(tensor.dtype == torch.float32 for tensor in tensors.values())
    helper = PEFTHelper.from_local_dir(str(directory), max_position_embeddings=tiny.CONTEXT)
    assert helper._validate_features() == []
    assert helper.vllm_lora_scaling_factor == FAST.alpha / FAST.rank
    base, _ = load_base(results[family].job.base, torch.device("cpu"))
    loaded = PeftModel.from_pretrained(base, directory).state_dict()
    for name, tensor in tensors.items():
        assert torch.equal(loaded[name.replace(".weight", ".default.weight")], tensor)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_probe_tells_what_a_server_would_find(
    family: tiny.Family, results: dict[str, TrainedAdapter], tmp_path: Path
) -> None:
    """The numbers are the log-probabilities of the answer's text, under the exported files and under the base alone."""
    directory = export(results[family], tmp_path, {})
    probe = Probe.model_validate_json((directory / PROBE).read_bytes())
    assert probe.moved
    assert len(probe.prompts) == 4
    result = results[family]
    [example] = prepare(result.job.rows[:1], result.renderer, result.job.image, tiny.CONTEXT)
    places = (example.labels != IGNORED).nonzero().squeeze(1)[:-1]
    base, _ = load_base(result.job.base, torch.device("cpu"))
    loaded = PeftModel.from_pretrained(base, directory).to(torch.bfloat16).eval()
    with torch.no_grad():
        logits = loaded(**example.inputs).logits[0, places - 1].float()
    wanted = log_softmax(logits, -1)[torch.arange(len(places)), example.labels[places]].tolist()
    first = probe.prompts[0]
    assert first.answer == "one"
    assert first.logprobs == pytest.approx(wanted, abs=0.05)
    assert first.logprobs != pytest.approx(first.base_logprobs, abs=0.05)
    assert "data:image/png;base64," in json.dumps(first.messages)


def test_probe_of_several_turns_measures_the_last(results: dict[str, TrainedAdapter], tmp_path: Path) -> None:
    """Of a conversation the last answer is asked, with the earlier turns before it."""
    result = results["qwen2_vl"]
    several = replace(result, job=replace(result.job, rows=[result.job.rows[2]]))
    probe = Probe.model_validate_json((export(several, tmp_path, {}) / PROBE).read_bytes())
    assert [message["role"] for message in probe.prompts[0].messages] == ["user", "assistant", "user"]
    assert probe.prompts[0].answer == "three shapes"
    tokenizer = result.renderer.processor.tokenizer
    assert len(probe.prompts[0].logprobs) == len(tokenizer.encode("three shapes"))


def test_unmoved_adapter_says_so(bases: dict[str, Path], tmp_path: Path) -> None:
    """An adapter that changes nothing is not expected to differ from the base."""
    settings = FAST.model_copy(update={"learning_rate": 1e-9})
    result, _ = trained(job_of(bases["llava"], tmp_path / "work", settings))
    assert not Probe.model_validate_json((export(result, tmp_path / "out", {}) / PROBE).read_bytes()).moved


def test_directory_is_named_by_its_content(results: dict[str, TrainedAdapter], tmp_path: Path) -> None:
    """The same adapter twice is one directory, other facts make another, and a changed bit is found."""
    first = export(results["llava"], tmp_path / "a", {"parent": 0})
    assert export(results["llava"], tmp_path / "a", {"parent": 0}) == first
    assert export(results["llava"], tmp_path / "b", {"parent": 0}).name == first.name
    assert export(results["llava"], tmp_path / "a", {"parent": 1}) != first
    assert len(list((tmp_path / "a").iterdir())) == 2
    verify(first, first.name)
    card = first / "README.md"
    card.write_text(card.read_text() + " ")
    with pytest.raises(AdapterChanged, match=r"README\.md was changed"):
        verify(first, first.name)


def test_manifest_and_card_tell_where_it_came_from(
    results: dict[str, TrainedAdapter], tmp_path: Path
) -> None:
    """The manifest keeps the caller's facts and adds the training's; the card names base, parent and policy."""
    directory = export(results["llava"], tmp_path, {"parent": {"generation": 3}, "round": 5})
    manifest = json.loads((directory / "manifest.json").read_text())
    assert manifest["parent"] == {"generation": 3}
    assert manifest["seed"] == 0
    assert manifest["training"]["rows"] == 12
    assert len(manifest["rows_sha256"]) == 64
    assert set(manifest["files"]) == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "probe.json",
    }
    card = (directory / "README.md").read_text()
    assert "sequential" in card
    assert "the base model" in card
    assert "library_name: peft" in card


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_no_numbers_are_refused(
    results: dict[str, TrainedAdapter], tmp_path: Path, bad: float
) -> None:
    """One NaN or infinity anywhere and nothing is written."""
    result = results["llava"]
    name = next(iter(result.weights))
    broken = result.weights[name].clone()
    broken[0, 0] = bad
    with pytest.raises(TrainingDiverged, match=re.escape(name)):
        export(replace(result, weights=result.weights | {name: broken}), tmp_path, {})
    assert list(tmp_path.iterdir()) == []


def test_policy_state_travels_with_the_adapter(results: dict[str, TrainedAdapter], tmp_path: Path) -> None:
    """What a policy must remember lies in the directory, hashed like the rest, and reaches the next round."""
    result = replace(results["llava"], policy_state={"importance": torch.arange(3.0)})
    directory = export(result, tmp_path, {})
    verify(directory, directory.name)
    kept = load_file(directory / "policy_state.safetensors")
    assert torch.equal(kept["importance"], torch.arange(3.0))


def test_codebook_travels_with_the_adapter(results: dict[str, TrainedAdapter], tmp_path: Path) -> None:
    """The instructions of each group lie in the directory, hashed like the rest; without groups there is no file."""
    codebook = Codebook().extended(0, ["how many?"]).extended(1, ["describe"])
    directory = export(results["llava"], tmp_path, {}, codebook=codebook)
    verify(directory, directory.name)
    assert read_codebook(directory) == codebook
    assert not (export(results["llava"], tmp_path, {}) / CODEBOOK).exists()

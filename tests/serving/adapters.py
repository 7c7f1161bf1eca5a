"""Small LoRA adapters written without torch: good ones, and one whose tensor names match nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from serving.groups import Codebook
from serving.manifest import write_manifest
from serving.probes import Probe, ProbePrompt, distance
from serving.router import CODEBOOK
from storage.records import Generation, Round, User
from storage.store import Store
from tests.conftest import questions
from tests.fake_vllm import logprobs_for

RANK = 8
PREFIX = "base_model.model.model.language_model.layers."
WRONG_PREFIX = "base_model.model.model.layers."
"""What an adapter trained on the text model alone has: vLLM loads it and ignores every tensor."""
QUESTION = [{"role": "user", "content": [{"type": "text", "text": "How many circles are in the picture?"}]}]
ANSWER = "there are three circles"


def write_lora(directory: Path, seed: int, *, base: Path | None = None, prefix: str = PREFIX) -> Path:
    """Write a random LoRA of the attention's output layers, for the model in `base` or for the fake server."""
    text = {"hidden_size": 4, "num_hidden_layers": 1}
    if base is not None:
        text = json.loads((base / "config.json").read_text())["text_config"]
    size, random = text["hidden_size"], np.random.default_rng(seed)
    tensors = {
        f"{prefix}{layer}.self_attn.o_proj.lora_{part}.weight": random.normal(0, 0.1, shape).astype(
            np.float32
        )
        for layer in range(text["num_hidden_layers"])
        for part, shape in (("A", (RANK, size)), ("B", (size, RANK)))
    }
    directory.mkdir(parents=True, exist_ok=True)
    save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 16, "target_modules": ["o_proj"], "bias": "none"}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    return directory


def fake_probe(weights: str) -> Probe:
    """Return the probe that the learner would write for weights that the fake server then uses."""
    learned, base = logprobs_for(weights, QUESTION, ANSWER), logprobs_for("", QUESTION, ANSWER)
    prompt = ProbePrompt(messages=QUESTION, answer=ANSWER, logprobs=learned, base_logprobs=base)
    return Probe(prompts=[prompt], moved=distance(learned, base) > 0)


def claimed_round(store: Store, user: User) -> Round:
    """Return a new round that this test holds the lease of."""
    store.datasets.add("task", user.id, questions(5), approved_by=user.name)
    store.rounds.enqueue(user.name)
    claimed = store.rounds.claim("test", 60)
    assert claimed is not None
    return claimed


def published(
    store: Store, claimed: Round, prepared: Path, parent: int = 0, groups: dict[str, Any] | None = None
) -> Generation:
    """Publish a prepared adapter directory as the candidate of a round, with these groups in its manifest."""
    facts = {"groups": groups} if groups else {}
    sha256 = write_manifest(prepared, {"rank": RANK} | facts)
    prepared.rename(store.generations.root / sha256)
    return store.generations.publish(
        round_id=claimed.id, lease=str(claimed.lease), sha256=sha256, parent=parent, rank=RANK, manifest=facts
    )


def grouped(
    directory: Path, instructions: Sequence[str], adapters: Sequence[int | None], floor: float = 0.0
) -> dict[str, Any]:
    """Write a codebook with one instruction per group, and return what the manifest says: None is the own adapter."""
    directory.mkdir(parents=True, exist_ok=True)
    codebook = Codebook(tuple((text,) for text in instructions))
    (directory / CODEBOOK).write_text(codebook.to_json())
    return {
        "adapters": [{"generation": number, "sha256": None} for number in adapters],
        "datasets": [[] for _ in adapters],
        "floor": floor,
        "origin": 0,
    }

"""Writes a trained adapter as a generation's directory: what vLLM loads, what people read, and what proves both.

    adapter_config.json  adapter_model.safetensors   PEFT's layout, fp32
    README.md                                        model card
    probe.json                                       fixed prompts and the log-probabilities of their answers
    policy_state.safetensors                         what the next round's policy must remember, if anything
    codebook.json                                    the instructions of each group, if there are groups
    manifest.json                                    what it came from, and the SHA-256 of every other file

The directory is named by the hash of its manifest and appears whole or not at all. This file knows neither rounds nor
the database.
"""

from __future__ import annotations

import hashlib
import io
import re
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from string import Template
from typing import Any

import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import log_softmax

from learner.data import IGNORED
from learner.loss import kept_logits
from learner.model import ADAPTER, to_bfloat16
from learner.train import POLICY_STATE, TrainedAdapter
from serving.groups import Codebook
from serving.manifest import write_manifest
from serving.messages import escape_control_tokens, openai_messages
from serving.probes import TOLERANCE, Probe, ProbePrompt, distance
from serving.router import CODEBOOK
from storage.blobs import publish
from storage.errors import TrainingDiverged, UnservableAdapter
from storage.records import Conversation, Row, image_part, text_of, text_part

WEIGHTS = "adapter_model.safetensors"
PROBE_ROWS = 3
"""Prompts of the probe that come from the round's rows; the drawn picture is one more."""
_KEY = re.compile(r"base_model\.model\.[\w.]+\.lora_[AB]\.weight")

_CARD = Template("""\
---
library_name: peft
base_model: $base
tags: [lora, continual-learning, image-text-to-text]
---

# A generation of the LLaCA assistant

A LoRA adapter of rank $rank on the linear layers of the language model of `$base`; vision tower, projector and
output head are the base model's own.

| | |
|---|---|
| continues | $parent$way |
| policy | $policy |
| rows learned in this round | $rows ($steps steps, $epochs epochs) |
| loss of the last step | $loss |

`manifest.json` holds all settings, the hashes of the data and of every file here; `probe.json` fixed prompts by which a
server shows that it really uses these weights.

    vllm serve $base --enable-lora --max-lora-rank $rank --lora-modules assistant=.
""")


def export(
    trained: TrainedAdapter, directory: Path, manifest: dict[str, Any], *, codebook: Codebook | None = None
) -> Path:
    """Write the adapter into `directory` under its content hash and return the path; the same adapter twice is one.

    Raises TrainingDiverged if a weight is not finite.
    """
    check_weights(trained.weights)
    temporary = trained.job.workspace / "export"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)

    save_file(trained.weights, temporary / WEIGHTS, metadata={"format": "pt"})
    config = trained.model.peft_config[ADAPTER]
    config.inference_mode = True
    config.save_pretrained(str(temporary))
    if trained.policy_state:
        save_file(trained.policy_state, temporary / POLICY_STATE)
    if codebook is not None:
        (temporary / CODEBOOK).write_text(codebook.to_json(), encoding="utf-8")
    probe_of(trained).write(temporary)
    (temporary / "README.md").write_text(card_of(trained, manifest), encoding="utf-8")
    name = write_manifest(temporary, manifest | facts_of(trained))

    target = directory / name
    if not target.exists():
        directory.mkdir(parents=True, exist_ok=True)
        publish(temporary, target)
    return target


def check_weights(weights: dict[str, Tensor]) -> None:
    """Raise TrainingDiverged for a weight that is not finite, UnservableAdapter for a name that vLLM would ignore."""
    for name, tensor in weights.items():
        if not _KEY.fullmatch(name):
            raise UnservableAdapter([f"a tensor named {name}"])
        if not bool(torch.isfinite(tensor).all()):
            raise TrainingDiverged(f"the weight {name}")


def facts_of(trained: TrainedAdapter) -> dict[str, Any]:
    """Return what a manifest says of the training itself."""
    rows = hashlib.sha256("\n".join(row.sha256 for row in trained.job.rows).encode()).hexdigest()
    return {
        "seed": trained.job.settings.seed,
        "rank": trained.job.settings.rank,
        "rows_sha256": rows,
        "training": trained.summary,
    }


def card_of(trained: TrainedAdapter, manifest: dict[str, Any]) -> str:
    """Return the model card."""
    settings = trained.job.settings
    return _CARD.substitute(
        base=trained.job.base.name,
        rank=settings.rank,
        parent=trained.job.parent_adapter.name if trained.job.parent_adapter else "the base model",
        way=way_of(manifest),
        policy=settings.policy,
        rows=trained.summary["rows"],
        steps=trained.summary["steps"],
        epochs=settings.epochs,
        loss=f"{trained.summary['last']['loss']:.4f}",
    )


def way_of(manifest: dict[str, Any]) -> str:
    """Say how far an adapter goes that is a point before what was trained; nothing for what was trained itself."""
    origin = manifest.get("interpolation")
    return f", {origin['share']:.0%} of the way to {origin['sha256']}" if origin else ""


def probe_of(trained: TrainedAdapter) -> Probe:
    """Return a few prompts with the log-probabilities of their answers under the adapter and under the bare base.

    Both are computed as a server computes them: everything in bf16, the adapter's weights included.
    """
    to_bfloat16(trained.model)
    prompts = [_prompt(trained, row, images) for row, images in _probe_rows(trained)]
    moved = sum(distance(prompt.logprobs, prompt.base_logprobs) for prompt in prompts) / len(prompts)
    return Probe(prompts=prompts, moved=moved > TOLERANCE)


class _Pictures(dict[str, bytes]):
    """Images of one probe by their SHA-256."""

    def read(self, sha256: str) -> bytes:
        return self[sha256]


def _probe_rows(trained: TrainedAdapter) -> Iterable[tuple[Row, _Pictures]]:
    rows = trained.job.rows
    for index in sorted({len(rows) * part // PROBE_ROWS for part in range(PROBE_ROWS)}):
        row = rows[index]
        yield row, _Pictures({sha256: trained.job.image(sha256) for sha256 in row.images})
    yield _drawn_row()


def _drawn_row() -> tuple[Row, _Pictures]:
    """Return a picture that is the same in every generation, with a question about it."""
    picture = Image.new("RGB", (96, 96), (255, 255, 255))
    draw = ImageDraw.Draw(picture)
    draw.ellipse([12, 30, 44, 62], fill=(220, 40, 40))
    draw.rectangle([54, 34, 82, 62], fill=(50, 80, 220))
    encoded = io.BytesIO()
    picture.save(encoded, "PNG")
    sha256 = hashlib.sha256(encoded.getvalue()).hexdigest()
    messages: Conversation = [
        {"role": "user", "content": [image_part(sha256), text_part("Describe the picture in a few words.")]},
        {"role": "assistant", "content": [text_part("A red circle and a blue square.")]},
    ]
    row = Row(id=0, dataset_id=0, position=0, split="train", sha256=sha256, messages=messages)
    return row, _Pictures({sha256: encoded.getvalue()})


@torch.no_grad()
def _prompt(trained: TrainedAdapter, row: Row, pictures: _Pictures) -> ProbePrompt:
    """Measure one row's last answer, without the token that ends its turn."""
    answer = escape_control_tokens(text_of(row.messages[-1]).strip())
    row = replace(row, messages=[*row.messages[:-1], {"role": "assistant", "content": [text_part(answer)]}])
    images = [Image.open(io.BytesIO(pictures.read(sha256))).convert("RGB") for sha256 in row.images]
    example = trained.renderer.example(row, images)
    answered = (example.labels != IGNORED).nonzero().squeeze(1)
    # The last run of labelled tokens is the last turn; its last token ends it.
    first = answered[-1] - (len(answered) - 1 - _last_gap(answered))
    places = torch.arange(int(first), int(answered[-1]))
    inputs = {name: value.to(trained.model.device) for name, value in example.inputs.items()}

    def logprobs() -> list[float]:
        logits_KV = kept_logits(trained.model, inputs, places.to(trained.model.device) - 1)[0]
        chosen: Tensor = log_softmax(logits_KV.float(), dim=-1).gather(
            1, example.labels[places, None].to(logits_KV.device)
        )
        return [round(float(value), 5) for value in chosen.squeeze(1)]

    with_adapter = logprobs()
    with trained.model.disable_adapter():
        without = logprobs()
    return ProbePrompt(
        messages=openai_messages(row.messages[:-1], pictures),
        answer=answer,
        logprobs=with_adapter,
        base_logprobs=without,
    )


def _last_gap(answered: Tensor) -> int:
    """Return the index of the first label after the last gap between answers."""
    gaps = (answered.diff() > 1).nonzero()
    return int(gaps[-1]) + 1 if len(gaps) else 0

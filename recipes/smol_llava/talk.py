"""Stage 2: the projector, the tower (gently) and a low-rank difference of the language model learn to talk of pictures.

Loss is taken on answers alone. After stage 1 a picture reads like a text, so that little is left to learn but to answer
questions about one, which the language model does by its difference. Every few steps a batch of text without pictures
keeps the language model what it was: its distribution at each word of its own earlier answers is held to that of the
untouched SmolLM2 (KL divergence).

Shape suffixes: B rows, T tokens, K tokens with a loss, V vocabulary.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax
from torch.utils.data import DataLoader
from transformers import (
    AutoTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from learner.model import to_bfloat16
from recipes.smol_llava.chats import answered
from recipes.smol_llava.rows import IGNORED, Conversations, Writer, collate
from recipes.smol_llava.see import PATCHES, normalised, share_at
from recipes.smol_llava.tell import TOWER
from serving.embedded import PARTS, UNWRITTEN_TOKEN, find_gguf, language_tensors, processor

LORA_RANK = 16
LORA_ALPHA = 32
LANGUAGE = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"


@dataclass(frozen=True, slots=True, kw_only=True)
class TalkSettings:
    """How stage 2 is trained."""

    steps: int = 5500
    tokens: int = 512
    """Padded size of a batch."""
    projector_rate: float = 5e-5
    tower_rate: float = 3e-5
    language_rate: float = 6e-4
    warmup_steps: int = 60
    text_every: int = 6
    """Each batch of this number is of text without pictures."""
    text_rows: int = 4
    text_weight: float = 16.0
    """What a nat of text weighs: its gradient is that much smaller than a picture's, measured on shipped weights."""
    chats: int = 1024
    seed: int = 0
    workers: int = 1
    save_every: int = 100
    compiled: bool = True
    """Whether torch compiles the language model's layers first, 40 seconds for a quarter of the time after it."""


def build() -> tuple[PeftModel, LlavaProcessor]:
    """Put a new tower and projector and SmolLM2 with a difference of zero together; only SmolLM2 is bf16."""
    gguf = find_gguf()
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, local_files_only=True)
    unwritten = tokenizer.convert_tokens_to_ids(UNWRITTEN_TOKEN)
    config = LlavaConfig.from_pretrained(PARTS)
    config.vision_config = TOWER
    config.image_seq_length = PATCHES
    model = LlavaForConditionalGeneration(config).float()
    language = {
        name.removeprefix("language_model.model."): tensor
        for name, tensor in language_tensors(gguf, unwritten).items()
    }
    model.model.language_model.load_state_dict(language)
    model.tie_weights()
    model.requires_grad_(requires_grad=False)
    to_bfloat16(model.model.language_model)
    to_bfloat16(model.lm_head)
    model.set_attn_implementation("eager")
    adapted = get_peft_model(
        model, LoraConfig(r=LORA_RANK, lora_alpha=LORA_ALPHA, target_modules=LANGUAGE, bias="none")
    )
    for part in (model.model.multi_modal_projector, model.model.vision_tower):
        part.requires_grad_(requires_grad=True)
    return adapted, processor(tokenizer)


def begin(model: PeftModel, out: Path) -> None:
    """Give the model tower and projector as stage 1b left them."""
    told = torch.load(out / "tell.pt", weights_only=True, map_location="cpu")["model"]
    inner = model.get_base_model().model
    for prefix, part in (("tower.", inner.vision_tower), ("projector.", inner.multi_modal_projector)):
        part.load_state_dict(
            {name.removeprefix(prefix): one for name, one in told.items() if name.startswith(prefix)}
        )


def talk(cache: Path, out: Path, settings: TalkSettings) -> None:
    """Train to the last step, from `out`'s checkpoint on if there is one."""
    torch.manual_seed(settings.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, made = build()
    if not (out / "talk.pt").exists():
        begin(model, out)
    model.to(device)
    if settings.compiled:
        for layer in model.get_base_model().model.language_model.layers:
            layer.compile(dynamic=True)
    writer = Writer(made, PATCHES)
    texts = [
        writer.without(question, answer) for question, answer in answered(writer, out, settings.chats, device)
    ]

    weights = trained(model)
    optimizer = torch.optim.AdamW(
        [
            {"params": weights["projector"], "rate": settings.projector_rate},
            {"params": weights["tower"], "rate": settings.tower_rate},
            {"params": weights["language"], "rate": settings.language_rate},
        ],
        lr=0.0, weight_decay=0.0, betas=(0.9, 0.98),
    )  # fmt: skip
    done = resume(out / "talk.pt", model, optimizer)
    batches = conversations(cache, writer, settings, done)
    started, averages = time.monotonic(), {"picture": math.nan, "text": math.nan}
    for step in range(done, settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = group["rate"] * share_at(step, settings.steps, settings.warmup_steps)
        about = "text" if step % settings.text_every == settings.text_every - 1 else "picture"
        if about == "text":
            chosen = random.Random(f"texts/{settings.seed}/{step}").sample(texts, settings.text_rows)
            loss = settings.text_weight * text_loss(model, moved(collate(chosen), device))
        else:
            loss = picture_loss(model, moved(next(batches), device))
        torch.autograd.backward(loss)
        # Each part on its own: the tower's gradients are ten times as large as the language model's.
        for part in weights.values():
            nn.utils.clip_grad_norm_(part, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        value = loss.item() / (settings.text_weight if about == "text" else 1)
        averages[about] = value if math.isnan(averages[about]) else 0.95 * averages[about] + 0.05 * value
        if (step + 1) % 20 == 0:
            speed = (step + 1 - done) / (time.monotonic() - started)
            losses = " ".join(f"{name} {average:.3f}" for name, average in averages.items())
            print(f"talk {step + 1}/{settings.steps} {losses} {speed:.2f} steps/s", flush=True)
        if (step + 1) % settings.save_every == 0 or step + 1 == settings.steps:
            save(out / "talk.pt", step + 1, model, optimizer)


def conversations(
    cache: Path, writer: Writer, settings: TalkSettings, step: int
) -> Iterator[dict[str, Tensor]]:
    """Return endless batches about pictures, others than before this step."""
    dataset = Conversations(cache, writer, settings.tokens, f"talk/{settings.seed}/{step}")
    return iter(
        DataLoader(
            dataset, None, num_workers=settings.workers, prefetch_factor=8 if settings.workers else None
        )
    )


def picture_loss(model: PeftModel, batch: dict[str, Tensor]) -> Tensor:
    """Return the mean nats per answer token."""
    logits_KV, labels_K = answer_logits(model, batch)
    return cross_entropy(logits_KV, labels_K)


def text_loss(model: PeftModel, batch: dict[str, Tensor]) -> Tensor:
    """Return the KL divergence, in nats per answer token, from the untouched language model."""
    with torch.no_grad(), model.disable_adapter():
        wanted_KV, _ = answer_logits(model, batch)
    logits_KV, _ = answer_logits(model, batch)
    return kl_div(
        log_softmax(logits_KV, -1), log_softmax(wanted_KV, -1), reduction="batchmean", log_target=True
    )


def answer_logits(model: PeftModel, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return fp32 logits [K, V] where an answer's token is predicted, and those tokens [K]."""
    inner = model.get_base_model()
    pictures = {"pixel_values": normalised(batch["pixels"])} if "pixels" in batch else {}
    with torch.autocast(batch["ids"].device.type, dtype=torch.bfloat16):
        states_BTD = inner.model(
            input_ids=batch["ids"], attention_mask=batch["mask"], use_cache=False, **pictures
        ).last_hidden_state
        told_BT = batch["labels"][:, 1:] != IGNORED
        logits_KV = inner.lm_head(states_BTD[:, :-1][told_BT])
    return logits_KV.float(), batch["labels"][:, 1:][told_BT]


def trained(model: PeftModel) -> dict[str, list[nn.Parameter]]:
    """Return what stage 2 trains, by part."""
    inner = model.get_base_model().model
    return {
        "projector": list(inner.multi_modal_projector.parameters()),
        "tower": list(inner.vision_tower.parameters()),
        "language": [weight for name, weight in model.named_parameters() if "lora_" in name],
    }


def save(path: Path, step: int, model: PeftModel, optimizer: torch.optim.Optimizer) -> None:
    """Write a checkpoint of what is trained, whole or not at all."""
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    state = {"step": step, "model": weights, "optimizers": [optimizer.state_dict()]}
    torch.save(state, path.with_suffix(".writing"))
    path.with_suffix(".writing").replace(path)


def resume(path: Path, model: PeftModel, optimizer: torch.optim.Optimizer) -> int:
    """Go on from a checkpoint, if there is one; return how many steps are done."""
    if not path.exists():
        return 0
    state: dict[str, Any] = torch.load(path, weights_only=True, map_location=model.device)
    model.load_state_dict(state["model"], strict=False)
    if state["optimizers"] is not None:  # what was packed and unpacked comes without
        optimizer.load_state_dict(state["optimizers"][0])
    step: int = state["step"]
    return step


def moved(batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Return a batch on the device."""
    return {name: tensor.to(device) for name, tensor in batch.items()}

"""Stage 2: the projector, the tower (gently) and a low-rank difference of the language model learn to talk of pictures.

Loss is taken on answers alone. At first most pictures are only described, because a description has many words that
follow from the picture alone, the answer to a question one or two; then most are asked about. Every few steps a batch
of text without pictures keeps the language model what it was: its distribution at each word of its own earlier answers
is held to that of the untouched SmolLM2 (KL divergence).

Shape suffixes: B rows, T tokens, K tokens with a loss, V vocabulary.
"""

from __future__ import annotations

import itertools
import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax
from torch.utils.data import DataLoader
from transformers import (
    AutoTokenizer,
    CLIPVisionModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from recipes.smol_llava.align import AlignSettings, align, rescale, words_of
from recipes.smol_llava.chats import answered
from recipes.smol_llava.rows import IGNORED, Conversations, Writer, collate
from recipes.smol_llava.see import normalised
from serving.embedded import PARTS, UNWRITTEN_TOKEN, find_gguf, language_tensors, processor

LORA_RANK = 16
LORA_ALPHA = 32
LANGUAGE = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"


@dataclass(frozen=True, slots=True, kw_only=True)
class TalkSettings:
    """How stage 2 is trained."""

    steps: int = 1000
    tokens: int = 512
    """Padded size of a batch."""
    projector_rate: float = 2e-4
    tower_rate: float = 5e-5
    language_rate: float = 6e-4
    warmup_steps: int = 60
    told_steps: float = 0.4
    """Share of the steps in which pictures are above all described."""
    told: tuple[float, float] = (0.8, 0.2)
    """Share of pictures that are only described, in these steps and after them."""
    text_every: int = 8
    """Each batch of this number is of text without pictures."""
    text_rows: int = 8
    chats: int = 384
    seed: int = 0
    workers: int = 1
    save_every: int = 100
    align: AlignSettings = field(default_factory=AlignSettings)


def build(tower: CLIPVisionModel) -> tuple[PeftModel, LlavaProcessor]:
    """Put tower, a new projector and SmolLM2 with a low-rank difference of zero together; only SmolLM2 is bf16."""
    gguf = find_gguf()
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, local_files_only=True)
    unwritten = tokenizer.convert_tokens_to_ids(UNWRITTEN_TOKEN)
    config = LlavaConfig.from_pretrained(PARTS)
    config.vision_config = tower.config
    config.image_seq_length = patches_of(tower)
    model = LlavaForConditionalGeneration(config).float()
    language = {
        name.removeprefix("language_model.model."): tensor
        for name, tensor in language_tensors(gguf, unwritten).items()
    }
    model.model.language_model.load_state_dict(language)
    model.model.vision_tower.load_state_dict(tower.state_dict())
    model.tie_weights()
    model.requires_grad_(requires_grad=False)
    model.model.language_model.to(torch.bfloat16)
    model.lm_head.to(torch.bfloat16)
    model.set_attn_implementation("eager")
    adapted = get_peft_model(
        model, LoraConfig(r=LORA_RANK, lora_alpha=LORA_ALPHA, target_modules=LANGUAGE, bias="none")
    )
    for part in (model.model.multi_modal_projector, model.model.vision_tower):
        part.requires_grad_(requires_grad=True)
    return adapted, processor(tokenizer)


def patches_of(tower: CLIPVisionModel) -> int:
    """Return how many image tokens a picture becomes."""
    side: int = tower.config.image_size // tower.config.patch_size
    return side * side


def talk(cache: Path, out: Path, settings: TalkSettings) -> None:
    """Train to the last step, from `out`'s checkpoint on if there is one."""
    torch.manual_seed(settings.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tower = CLIPVisionModel.from_pretrained(out / "tower", dtype=torch.float32)
    model, made = build(tower)
    model.to(device)
    writer = Writer(made, patches_of(tower))
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
    if not (out / "talk.pt").exists():
        begin(model, made, cache, out, next(batches)["pixels"].to(device), settings)
        save(out / "talk.pt", 0, model, optimizer)
    every = list(itertools.chain.from_iterable(weights.values()))
    started, averages = time.monotonic(), {"picture": math.nan, "text": math.nan}
    for step in range(done, settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = group["rate"] * share_at(step, settings)
        about = "text" if step % settings.text_every == settings.text_every - 1 else "picture"
        if step == switch(settings):
            batches = conversations(cache, writer, settings, step)
        if about == "text":
            chosen = random.Random(f"texts/{settings.seed}/{step}").sample(texts, settings.text_rows)
            loss = text_loss(model, moved(collate(chosen), device))
        else:
            loss = picture_loss(model, moved(next(batches), device))
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(every, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        value = loss.item()
        averages[about] = value if math.isnan(averages[about]) else 0.95 * averages[about] + 0.05 * value
        if (step + 1) % 20 == 0:
            speed = (step + 1 - done) / (time.monotonic() - started)
            losses = " ".join(f"{name} {average:.3f}" for name, average in averages.items())
            print(f"talk {step + 1}/{settings.steps} {losses} {speed:.2f} steps/s", flush=True)
        if (step + 1) % settings.save_every == 0 or step + 1 == settings.steps:
            save(out / "talk.pt", step + 1, model, optimizer)


def switch(settings: TalkSettings) -> int:
    """Return the step from which on most pictures are asked about."""
    return round(settings.told_steps * settings.steps)


def conversations(
    cache: Path, writer: Writer, settings: TalkSettings, step: int
) -> Iterator[dict[str, Tensor]]:
    """Return endless batches about pictures, as they are talked of from this step on."""
    told = settings.told[step >= switch(settings)]
    dataset = Conversations(cache, writer, settings.tokens, told, f"talk/{settings.seed}/{step}")
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


def begin(
    model: PeftModel, made: LlavaProcessor, cache: Path, out: Path, pixels: Tensor, settings: TalkSettings
) -> None:
    """Give the projector its first weights: stage 1b."""
    inner = model.get_base_model().model
    tower, projector, embedding = (
        inner.vision_tower,
        inner.multi_modal_projector,
        inner.language_model.embed_tokens.weight,
    )
    standardise(tower, pixels)
    words = words_of(cache, made.tokenizer, out)
    align(tower, projector, embedding, words, cache, replace(settings.align, workers=settings.workers))
    rescale(tower, projector, embedding, pixels)


@torch.no_grad()
def standardise(tower: CLIPVisionModel, pixels: Tensor) -> None:
    """Shift and scale what the tower puts out to zero mean and unit variance, without changing what it sees.

    Captioning leaves features with a large constant part, on which every step of a projector's weights would act at
    once: it then learns one loud word for all pictures, and never to see. The mean goes into the last bias. Blocks
    normalise their inputs, so scaling all they add scales the sum and nothing else.
    """
    features = tower(normalised(pixels)).last_hidden_state[:, 1:].flatten(0, 1)
    scale = 1 / features.std(0).mean()
    layers = tower.encoder.layers
    layers[-1].mlp.fc2.bias -= features.mean(0)
    for layer in layers:
        for linear in (layer.self_attn.out_proj, layer.mlp.fc2):
            linear.weight *= scale
            linear.bias *= scale
    # The embeddings are normalised before the first block, by a layer whose output is what the blocks add to.
    tower.pre_layrnorm.weight *= scale
    tower.pre_layrnorm.bias *= scale


def trained(model: PeftModel) -> dict[str, list[nn.Parameter]]:
    """Return what stage 2 trains, by part."""
    inner = model.get_base_model().model
    return {
        "projector": list(inner.multi_modal_projector.parameters()),
        "tower": list(inner.vision_tower.parameters()),
        "language": [weight for name, weight in model.named_parameters() if "lora_" in name],
    }


def share_at(step: int, settings: TalkSettings) -> float:
    """Return the share of the highest rate at a step counted from 0: a linear rise, then half a cosine down to 1 %."""
    rise = min(1.0, (step + 1) / settings.warmup_steps)
    return rise * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / settings.steps)))


def save(path: Path, step: int, model: PeftModel, optimizer: torch.optim.Optimizer) -> None:
    """Write a checkpoint, whole or not at all."""
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    torch.save(
        {"step": step, "weights": weights, "optimizer": optimizer.state_dict()}, path.with_suffix(".writing")
    )
    path.with_suffix(".writing").replace(path)


def resume(path: Path, model: PeftModel, optimizer: torch.optim.Optimizer) -> int:
    """Go on from a checkpoint, if there is one; return how many steps are done."""
    if not path.exists():
        return 0
    state: dict[str, Any] = torch.load(path, weights_only=True, map_location=model.device)
    model.load_state_dict(state["weights"], strict=False)
    if state["optimizer"] is not None:  # packed parts come without
        optimizer.load_state_dict(state["optimizer"])
    step: int = state["step"]
    return step


def moved(batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Return a batch on the device."""
    return {name: tensor.to(device) for name, tensor in batch.items()}

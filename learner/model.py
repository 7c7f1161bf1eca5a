"""Loads the base model and puts an adapter on it that vLLM can serve. It knows no data and no training.

The base is frozen and stays in bf16; the adapter is fp32, on the linear layers of the language model only: vLLM drops
the tensors of a vision tower's adapter without a word, and refuses those of an output head.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel, ProcessorMixin

from learner.settings import RANKS, LearnerSettings
from storage.errors import AdapterMismatch, UnservableAdapter, UnsuitableModel

ADAPTER = "default"
"""PEFT's name for the one adapter of a model."""


def load_base(base: Path, device: torch.device) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Load an image-text model, frozen and in bf16, with its processor; raise UnsuitableModel if it is none."""
    try:
        model = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.bfloat16)
        processor = AutoProcessor.from_pretrained(base)
    except (OSError, ValueError) as error:
        raise UnsuitableModel(
            base, f"transformers cannot load it as an image-text model ({error})"
        ) from error
    if not isinstance(processor, ProcessorMixin) or processor.chat_template is None:
        raise UnsuitableModel(base, "its processor has no chat template")
    model.requires_grad_(requires_grad=False)
    return model.to(device), processor


def to_bfloat16(model: nn.Module) -> None:
    """Round all weights, but no buffer: rotary frequencies are one, and servers keep them in fp32, as training does.

    `Module.to(torch.bfloat16)` rounds them, too: SmolLM2's angles are off by 0.14 at a distance of 100 tokens then.
    """
    for weight in model.parameters():
        weight.data = weight.data.to(torch.bfloat16)


def attach_adapter(
    model: PreTrainedModel, settings: LearnerSettings, parent: Path | None, max_rank: int
) -> PeftModel:
    """Put an adapter on the model: the parent's weights to go on from, or new ones that change nothing yet.

    Raises UnservableAdapter if vLLM would not take the result, AdapterMismatch if the parent's is of another shape.
    """
    config = adapter_config(model, settings)
    check_servable(config, max_rank)
    if parent is None:
        return get_peft_model(model, config)
    check_continues(parent, config)
    return PeftModel.from_pretrained(model, parent, adapter_name=ADAPTER, is_trainable=True, config=config)


def adapter_config(model: PreTrainedModel, settings: LearnerSettings) -> LoraConfig:
    """Describe plain LoRA on the language model's linear layers."""
    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=target_pattern(language_linears(model)),
        bias="none",
        base_model_name_or_path=model.config.name_or_path,
    )


def language_linears(model: PreTrainedModel) -> list[str]:
    """Return the names of the linear layers inside the language model."""
    owner, language = language_model(model)
    linears = [
        f"{owner}.{name}" for name, module in language.named_modules() if isinstance(module, nn.Linear)
    ]
    if language is model or not linears:
        raise UnsuitableModel(
            Path(model.config.name_or_path), "no language model with linear layers was found in it"
        )
    return linears


def language_model(model: PreTrainedModel) -> tuple[str, nn.Module]:
    """Return name and module of the language model, found as what owns the token embedding.

    The output head lies outside of it, and so do vision tower and projector, whatever a family calls them.
    """
    names = {module: name for name, module in model.named_modules()}
    embedding = names[model.get_input_embeddings()]
    owner = embedding.rpartition(".")[0]
    while not isinstance(model.get_submodule(owner), PreTrainedModel):
        owner = owner.rpartition(".")[0]
    return owner, model.get_submodule(owner)


def target_pattern(linears: list[str]) -> str:
    """Return a regular expression that matches exactly these modules, short enough to be read in a config."""
    numbered = sorted({re.sub(r"\\\.\d+\\\.", r"\.\\d+\.", re.escape(name)) for name in linears})
    return "|".join(numbered)


def check_servable(config: LoraConfig, max_rank: int) -> None:
    """Raise UnservableAdapter, naming everything that vLLM 0.32 refuses (vllm/lora/peft_helper.py)."""
    problems = []
    if config.r not in RANKS or config.r > max_rank:
        allowed = ", ".join(str(rank) for rank in RANKS if rank <= max_rank)
        problems.append(f"rank {config.r} (allowed: {allowed})")
    if config.use_dora:
        problems.append("DoRA")
    if config.bias != "none" or config.lora_bias:
        problems.append("bias")
    if config.modules_to_save:
        problems.append(f"fully trained modules ({', '.join(config.modules_to_save)})")
    if isinstance(config.init_lora_weights, str) and config.init_lora_weights != "gaussian":
        problems.append(f"initialization {config.init_lora_weights!r}, which changes the base")
    if problems:
        raise UnservableAdapter(problems)


def check_continues(parent: Path, config: LoraConfig) -> None:
    """Raise AdapterMismatch if the parent's adapter is not of the shape that this round would train."""
    found: dict[str, Any] = json.loads((parent / "adapter_config.json").read_text(encoding="utf-8"))
    wanted = {"r": config.r, "lora_alpha": config.lora_alpha, "target_modules": config.target_modules}
    for name, value in wanted.items():
        if found[name] != value:
            raise AdapterMismatch(name, found[name], value)


def trainable(model: nn.Module) -> tuple[list[str], list[nn.Parameter]]:
    """Return names and parameters of the adapter, in the model's order."""
    named = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    return [name for name, _ in named], [weight for _, weight in named]

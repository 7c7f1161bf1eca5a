"""What the methods of the benchmark's own share: a model with its rows, the loop that trains, and the file it leaves.

The loop is the learner's (`learner/train.py`) without checkpoints and without several processes; all its parts are
the learner's own. It knows tensors that require a gradient, and not what they are part of.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel

from benchmarks.continual.answers import device
from benchmarks.continual.teacher import Learned, Lesson
from learner.data import Example, Renderer, prepare, steps_of
from learner.model import load_base
from learner.policies.policy import Policy
from learner.settings import LearnerSettings
from learner.train import SHORT_ROW, backward, check_finite, context_of, ends_of_turn, learning_rate
from storage.errors import UnsuitableModel

FILE = "tensors.safetensors"


def check_llava(base: Path) -> None:
    """Raise UnsuitableModel unless the model is of the LLaVA family.

    There the projector is a module of its own, and a picture's place is found in embeddings as well as in tokens.
    """
    family = AutoConfig.from_pretrained(base).model_type
    if family != "llava":
        raise UnsuitableModel(
            base, f"methods without adapters take models of the LLaVA family, this is {family}"
        )


def opened(lesson: Lesson, settings: LearnerSettings) -> tuple[PreTrainedModel, list[Example], int]:
    """Load the base, frozen, and prepare the new task's rows; return both and the token that pads."""
    set_seed(settings.seed)
    model, processor = load_base(lesson.base, device())
    renderer = Renderer(processor, ends_of_turn(model, processor))
    most_tokens = min(settings.row_max_tokens, context_of(model))
    examples = prepare(lesson.new.train, renderer, lesson.pictures.read, most_tokens)
    if model.device.type == "cpu":
        longest = max(example.length for example in examples)
        model.set_attn_implementation("eager" if longest <= SHORT_ROW else "sdpa")
    return model, examples, processor.tokenizer.pad_token_id or 0


def tune(
    model: nn.Module,
    weights: Sequence[nn.Parameter],
    policy: Policy,
    examples: Sequence[Example],
    pad_id: int,
) -> int:
    """Train the weights on the examples and return the number of steps; leaves the model in eval mode.

    Raises TrainingDiverged at the first number that is not finite.
    """
    settings = policy.settings
    accelerator = Accelerator(mixed_precision="bf16")
    steps = steps_of(
        [example.length for example in examples],
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        accumulation=settings.gradient_accumulation,
        seed=settings.seed,
    )
    optimizer = torch.optim.AdamW(weights, lr=0.0, weight_decay=settings.weight_decay, fused=True)
    running = accelerator.prepare_model(model, evaluation_mode=True)
    running.train()
    for step, indices in enumerate(steps):
        batches = [[examples[index] for index in batch] for batch in indices]
        loss = backward(accelerator, running, weights, policy, batches, pad_id)
        norm = accelerator.clip_grad_norm_(weights, settings.max_grad_norm)
        check_finite(step + 1, loss=float(loss), gradient=float(norm))
        policy.after_backward()
        optimizer.param_groups[0]["lr"] = learning_rate(step, len(steps), settings)
        optimizer.step()
        policy.after_step()
        optimizer.zero_grad()
    accelerator.unwrap_model(running, keep_fp32_wrapper=False).eval()
    return len(steps)


def keep(tensors: Mapping[str, Tensor], place: Path) -> Path:
    """Write tensors into a directory named by their hash, and return it."""
    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    digest = hashlib.sha256()
    for name, tensor in sorted(kept.items()):
        digest.update(f"{name} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.numpy().tobytes())
    directory = place / "adapters" / digest.hexdigest()[:16]
    directory.mkdir(parents=True, exist_ok=True)
    save_file(kept, directory / FILE)
    return directory


def kept(learned: Learned) -> dict[str, Tensor]:
    """Return the tensors of the last round, on the CPU; none before the first."""
    return load_file(learned.adapters[0] / FILE) if learned.adapters else {}


def size(tensors: Mapping[str, Tensor]) -> int:
    """Return the bytes of tensors."""
    return sum(tensor.nbytes for tensor in tensors.values())

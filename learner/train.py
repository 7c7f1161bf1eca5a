"""Trains one adapter: one explicit loop, from the first row to the last step.

It goes on from the newest checkpoint in the job's workspace, so that a round which was cut off ends with the weights of
an uninterrupted one (the same bits on a CPU). What a round does against forgetting is its policy's, in `policies`.
It does not know rounds, generations or the database: rows come in, metrics and an adapter go out.

Several processes (`accelerate launch`, torchrun) may train one adapter together: each calls `train` with the same job
and takes some of the batches of each step, and the weights are those of one process that takes them all.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from peft import PeftModel, get_peft_model_state_dict
from peft.helpers import disable_input_dtype_casting
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel, ProcessorMixin

from learner import processes
from learner.checkpoint import Checkpoints
from learner.data import Example, ReadImage, Renderer, prepare, steps_of
from learner.features import ImageEncoder
from learner.loss import answer_loss, batch_of, kept_logits
from learner.memory import sample
from learner.model import attach_adapter, load_base, trainable
from learner.policies.choose import policy_for
from learner.policies.policy import Policy, Task
from learner.settings import LearnerSettings
from storage.errors import TrainingDiverged, TrainingStopped
from storage.records import Row
from storage.settings import MEBIBYTE

POLICY_STATE = "policy_state.safetensors"
"""File in a generation's directory with what the next round of its policy must remember, if anything."""
SHORT_ROW = 256
"""Up to this many tokens plain attention beats the fused one on a CPU, whose backward pass is slow: 3.2 against 9.7 ms
per layer for 4 rows of 64 tokens. Beyond it the square of the length costs too much memory."""

LEAVES_WEIGHTS_ALONE = {
    "checkpoint_every_steps", "cron", "evaluation_concurrency", "evaluation_max_rows", "gate_interpolations",
    "gate_margin_points", "gate_significance", "group_floor", "group_threshold", "heartbeat_seconds",
    "image_features_max_mib", "lease_seconds", "minimum_rows", "serving_patience_s",
}  # fmt: skip
"""Settings that may change while a round is interrupted; with any other its checkpoint is of no use.

Those of groups decide about weights only through parent and rows, which a checkpoint knows."""

Report = Callable[[int, int, dict[str, Any]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingJob:
    """What one round trains."""

    base: Path
    """Directory of the base model."""
    parent_adapter: Path | None
    """Directory of the generation to go on from; None for the bare base model."""
    rows: list[Row]
    image: ReadImage
    """Returns the encoded image of a SHA-256."""
    settings: LearnerSettings
    first_task: bool
    """Whether nothing was learned before, so that there is nothing to protect."""
    workspace: Path
    """Directory of this round's checkpoints; all processes see it."""
    earlier: Sequence[Sequence[Row]] = ()
    """Training rows of each dataset learned before; the policy says how many of them it sees again."""
    max_rank: int = 64
    """Largest rank the server takes."""
    max_tokens: int = sys.maxsize
    """Longest row the server takes, in tokens; one that is only rehearsed may be longer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedAdapter:
    """What a round ended with."""

    job: TrainingJob
    weights: dict[str, Tensor]
    """The adapter in fp32, under the names of PEFT's files."""
    model: PeftModel
    renderer: Renderer
    policy_state: dict[str, Tensor]
    summary: dict[str, Any]
    """Facts for the manifest, the same each time the job is done again."""


def train(job: TrainingJob, report: Report, should_stop: Callable[[], bool]) -> TrainedAdapter:
    """Train the job's adapter to the end; `report(step, steps, values)` is called after every optimizer step.

    Raises TrainingStopped, after a checkpoint, when `should_stop()` says so; TrainingDiverged at the first number that
    is not finite; and before the first step UnsuitableModel, UnservableAdapter, AdapterMismatch, UnusableRow,
    RowsTooLong, CheckpointMismatch or PoliciesClash.

    Of several processes the first one alone reports and is asked whether to stop; all end with the same weights.
    """
    settings = job.settings
    policy = policy_for(settings, job.first_task)
    job, inherited = as_wanted(job, policy)
    set_seed(settings.seed)
    accelerator = Accelerator(mixed_precision="bf16")
    # Before the model is loaded, which is in vain if the checkpoint is another round's.
    checkpoints = Checkpoints(job.workspace / "checkpoints", identity_of(job))
    found = checkpoints.latest()

    base, processor = load_base(job.base, accelerator.device)
    renderer = Renderer(processor, ends_of_turn(base, processor))
    task = task_of(job, inherited, base, renderer, accelerator.device)
    policy.start(task)
    trained = [*task.examples, *policy.rehearsal()]
    lengths = [example.length for example in trained]
    steps = steps_of(
        lengths,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        accumulation=settings.gradient_accumulation,
        seed=settings.seed,
    )
    weights = task.weights
    # What a policy has computed at the start may differ in the last bits from GPU to GPU.
    processes.take_first(weights)
    changing = [weight for weight in weights if weight.requires_grad]
    optimizer = torch.optim.AdamW(changing, lr=0.0, weight_decay=settings.weight_decay, fused=True)
    optimizer = accelerator.prepare(optimizer)
    # "Evaluation" adds mixed precision alone: gradients are added up by `processes`, which says why.
    model = accelerator.prepare_model(task.model, evaluation_mode=True)

    done, values = 0, dict[str, Any]()
    if found is not None:
        done, values = found.step, found.facts["values"]
        restore(found.tensors, weights, optimizer, policy)

    model.train()
    with disable_input_dtype_casting(model):  # autocast does it; PEFT would copy every input to fp32 first
        for step in range(done, len(steps)):
            if processes.agreed(should_stop, accelerator.device):
                checkpoints.save(step, snapshot(weights, optimizer, policy), {"values": values})
                raise TrainingStopped(step)
            started = time.perf_counter()
            processes.draw_apart(settings.seed, step)
            batches = [[trained[index] for index in batch] for batch in steps[step]]
            loss_sum = backward(accelerator, model, changing, policy, batches, task.pad_id)
            norm = accelerator.clip_grad_norm_(changing, settings.max_grad_norm)
            mean_loss, gradient_norm = torch.stack([loss_sum, norm.to(loss_sum)]).tolist()
            check_finite(step + 1, loss=mean_loss, gradient=gradient_norm)
            policy.after_backward()

            rate = learning_rate(step, len(steps), settings)
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            values = policy.after_step()
            optimizer.zero_grad()

            values |= {
                "loss": mean_loss,
                "learning_rate": rate,
                "grad_norm": gradient_norm,
                "samples_per_second": sum(len(batch) for batch in steps[step])
                / (time.perf_counter() - started),
            }
            if processes.is_first():
                report(step + 1, len(steps), values)
            if (step + 1) % settings.checkpoint_every_steps == 0 or step + 1 == len(steps):
                checkpoints.save(step + 1, snapshot(weights, optimizer, policy), {"values": values})

    model = accelerator.unwrap_model(model, keep_fp32_wrapper=False).eval()
    policy_state = policy.finish()
    return TrainedAdapter(
        job=job,
        weights={
            name: tensor.detach().cpu().clone() for name, tensor in get_peft_model_state_dict(model).items()
        },
        model=model,
        renderer=renderer,
        policy_state=policy_state,
        summary={
            "steps": len(steps),
            "rows": len(task.examples),
            "rehearsed": len(trained) - len(task.examples),
            "tokens": sum(lengths),
            "last": last_facts(values),
        },
    )


def as_wanted(job: TrainingJob, policy: Policy) -> tuple[TrainingJob, dict[str, Tensor]]:
    """Return the job as the policy wants it, and what the parent's round has left for it.

    It says from which parent it starts, and how many earlier rows it sees.
    """
    parent = None if policy.from_base else job.parent_adapter
    inherited = inherited_state(parent)
    memory_rows = policy.memory_rows(inherited)
    earlier = [sample(rows, memory_rows, job.settings.seed) for rows in job.earlier]
    return replace(job, parent_adapter=parent, earlier=earlier), inherited


def task_of(
    job: TrainingJob,
    inherited: Mapping[str, Tensor],
    base: PreTrainedModel,
    renderer: Renderer,
    device: torch.device,
) -> Task:
    """Prepare the rows and put the adapter on the base."""
    most_tokens = min(job.settings.row_max_tokens, context_of(base))
    examples = prepare(job.rows, renderer, job.image, min(most_tokens, job.max_tokens))
    earlier = [prepare(rows, renderer, job.image, most_tokens) for rows in job.earlier]
    if device.type == "cpu":
        longest = max(example.length for rows in (examples, *earlier) for example in rows)
        base.set_attn_implementation("eager" if longest <= SHORT_ROW else "sdpa")
    model = attach_adapter(base, job.settings, job.parent_adapter, job.max_rank).eval()
    names, weights = trainable(model)
    encoder = ImageEncoder(base, job.settings.image_features_max_mib * MEBIBYTE)
    return Task(
        model=model,
        names=names,
        weights=weights,
        examples=encoder.without_pixels(examples),
        earlier=[encoder.without_pixels(rows) for rows in earlier],
        inherited=inherited,
        first=job.first_task,
        settings=job.settings,
        pad_id=renderer.processor.tokenizer.pad_token_id or 0,
    )


def backward(
    accelerator: Accelerator,
    model: nn.Module,
    weights: Sequence[nn.Parameter],
    policy: Policy,
    batches: Sequence[Sequence[Example]],
    pad_id: int,
) -> Tensor:
    """Add up the gradients of one optimizer step; return its batches' mean loss per answer token, on the device.

    Of several processes each takes some of the batches, and all end with the whole sums.
    """
    answer_tokens = sum(example.answer_tokens for batch in batches for example in batch)
    total = torch.zeros((), device=accelerator.device)
    for examples in processes.share(batches):
        batch = batch_of(examples, pad_id).to(accelerator.device)
        logits_BKV = kept_logits(model, batch.inputs, batch.kept)
        # Divided by the tokens of the whole step: accumulated batches then weigh as in one large batch.
        loss = answer_loss(logits_BKV, batch) / answer_tokens
        share = batch.answer_tokens / answer_tokens
        accelerator.backward(loss + share * policy.extra_loss(batch, logits_BKV))
        total += loss.detach()
    if processes.is_first():  # so that it counts once, and all end with the same bits
        policy.add_gradient()
    processes.add_up_gradients(weights, total)
    return total


def learning_rate(step: int, steps: int, settings: LearnerSettings) -> float:
    """Return the rate of a step counted from 0: a linear rise over the warm-up, then half a cosine down to zero."""
    warmup = math.ceil(settings.warmup_share * steps)
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def ends_of_turn(model: PreTrainedModel, processor: ProcessorMixin) -> frozenset[int]:
    """Return the tokens at which generation stops."""
    configured = model.generation_config.eos_token_id if model.generation_config else None
    several = configured if isinstance(configured, list) else [configured]
    return frozenset(token for token in [*several, processor.tokenizer.eos_token_id] if token is not None)


def context_of(model: PreTrainedModel) -> int:
    """Return how many tokens the language model was made for."""
    context: int = model.config.get_text_config().max_position_embeddings
    return context


def last_facts(values: dict[str, Any]) -> dict[str, Any]:
    """Return of the last step's metrics what does not depend on the machine's speed."""
    return {name: value for name, value in values.items() if name in ("loss", "grad_norm", "beta")}


def check_finite(step: int, **numbers: float) -> None:
    """Raise TrainingDiverged if one of them is NaN or infinite."""
    for name, number in numbers.items():
        if not math.isfinite(number):
            raise TrainingDiverged(f"the {name}", step)


def inherited_state(parent: Path | None) -> dict[str, Tensor]:
    """Return what the parent's round left for the next one of its policy."""
    if parent is None or not (parent / POLICY_STATE).exists():
        return {}
    return load_file(parent / POLICY_STATE)


def identity_of(job: TrainingJob) -> str:
    """Return a hash of everything that decides the weights, so that a checkpoint is not used for another job."""
    decides = {
        "base": str(job.base),
        "parent": str(job.parent_adapter),
        "rows": [row.sha256 for row in job.rows],
        "earlier": [[row.sha256 for row in rows] for rows in job.earlier],
        "settings": job.settings.model_dump(mode="json", exclude=LEAVES_WEIGHTS_ALONE),
        "first_task": job.first_task,
    }
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


def snapshot(
    weights: Sequence[nn.Parameter], optimizer: torch.optim.Optimizer, policy: Policy
) -> dict[str, Tensor]:
    """Return everything that the next step depends on, as named tensors."""
    tensors = {f"weight.{index}": weight.detach() for index, weight in enumerate(weights)}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
    tensors |= {f"policy.{name}": value for name, value in policy.state().items()}
    tensors["random.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    return tensors


def restore(
    tensors: dict[str, Tensor],
    weights: Sequence[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    policy: Policy,
) -> None:
    """Put everything back as `snapshot` found it."""
    parts: dict[str, dict[str, Tensor]] = {"weight": {}, "optimizer": {}, "policy": {}, "random": {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        parts[part][rest] = tensor
    with torch.no_grad():
        for index, weight in enumerate(weights):
            weight.copy_(parts["weight"][str(index)])
    states: dict[int, dict[str, Tensor]] = {}
    for name, tensor in parts["optimizer"].items():
        index_text, _, field = name.partition(".")
        states.setdefault(int(index_text), {})[field] = tensor
    optimizer.load_state_dict(optimizer.state_dict() | {"state": states})
    policy.restore(parts["policy"])
    torch.set_rng_state(parts["random"]["cpu"])
    if "cuda" in parts["random"]:
        torch.cuda.set_rng_state(parts["random"]["cuda"])

"""Settings of the learner: how a round trains, how it is judged, and when the learner looks for work.

A round may carry its own values for any of them; they are checked when the learner takes it up, before it trains.
"""

from __future__ import annotations

import json
import math
import re
import sys
from datetime import tzinfo
from typing import Literal

from apscheduler.triggers.cron import CronTrigger
from pydantic import Field, ValidationInfo, field_validator

from storage.errors import BadSetting
from storage.settings import Settings, load, names_of

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The LoRA ranks for which vLLM has kernels (`MaxLoRARanks` in vllm/config/lora.py, 0.32)."""

POLICIES = (
    "agem", "cofima", "dgg", "ema", "ewc", "interpolate", "joint", "keeplora", "llaca", "lwf", "mas", "olora", "pegp",
    "replay", "sequential", "slao", "tir",
)  # fmt: skip
"""What a round can do against forgetting; `learner/policies/choose.py` has the class of each."""

WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
"""As a crontab counts them; 7 is Sunday again."""
_DAY = f"[0-7]|{'|'.join(WEEKDAYS)}"
_DAYS = re.compile(rf"(?:\*|(?P<first>{_DAY})(?:-(?P<last>{_DAY}))?)(?:/(?P<step>[1-7]))?", re.IGNORECASE)


class LearnerSettings(Settings):
    """How the model is taught."""

    policy: str = "llaca+replay"
    """How a round protects what was learned before; several joined by `+` work together. docs/policies.md says what
    each does: `agem`, `cofima`, `dgg`, `ema`, `ewc`, `interpolate`, `joint`, `keeplora`, `llaca`, `lwf`, `mas`,
    `olora`, `pegp`, `replay`, `sequential`, `slao`, `tir`."""
    rank: int = 16
    """Rank of the adapter: 1, 8, 16, 32, 64, 128, 256, 320 or 512. Fixed by the first
    generation; it must not exceed what vLLM was started with."""
    alpha: int = Field(default=32, ge=1)
    """Scale of the adapter: its product is multiplied by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the adapter's inputs that is dropped while training."""
    learning_rate: float = Field(default=5e-4, gt=0, le=1)
    """Highest learning rate of AdamW, reached after the warm-up; a cosine brings it down to zero."""
    warmup_share: float = Field(default=0.03, ge=0, lt=1)
    """Share of the steps during which the learning rate rises from zero."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay of AdamW."""
    epochs: int = Field(default=3, ge=1)
    """How often a round sees each of its rows."""
    batch_size: int = Field(default=4, ge=1)
    """Rows that go through the model together."""
    gradient_accumulation: int = Field(default=1, ge=1)
    """Batches that make up one optimizer step. Several processes share them out, so at least one for each."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """The gradient of a step is scaled down to this norm if it is longer."""
    row_max_tokens: int = Field(default=2048, ge=16)
    """Longest row in tokens, those of its images included; longer rows end the round with an error."""
    image_features_max_mib: int = Field(default=4096, ge=0)
    """Memory, in MiB, for what the frozen vision tower makes of the images of a round's rows: computed once, used in
    every epoch. What does not fit is computed again each time, with the same result. 0 keeps nothing."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of the adapter's first weights, of the order of the rows and of dropout."""
    checkpoint_every_steps: int = Field(default=25, ge=1)
    """A round that is interrupted goes on from the last multiple of this many steps."""
    ema_decay: float = Field(default=0.99, gt=0, lt=1)
    """Policy `ema`: weight of the old average at each step."""
    llaca_rule: Literal["official", "continual-next", "paper", "balance"] = "official"
    """Policy `llaca`: which form of the rule. `official` is the authors' code for the paper, `continual-next` their
    later code, `paper` the printed equation; learner/llaca.py lists them, and the next five settings override parts of
    them. `balance` is our own, in units of loss; docs/llaca.md derives it."""
    llaca_side: Literal["new", "old"] | None = None
    """Whether the ratio of the rule weights the new parameters or the old average."""
    llaca_scale: float | None = Field(default=None, gt=0)
    """Factor on the ratio of the rule."""
    llaca_fallback: float | None = Field(default=None, gt=0, lt=1)
    """Weight of the old average where the ratio is not between 0 and 1."""
    llaca_hessian: Literal["difference", "quotient"] | None = None
    """What stands for the Hessian: the plain difference of two gradients, or that divided by the step between them."""
    llaca_norm: Literal["sum", "mean"] | None = None
    """Whether L1 norms are sums, which grow with the tensor, or means over its elements."""
    llaca_first_task: Literal["plain", "average"] = "plain"
    """Whether the first round, with nothing to protect yet, trains plainly or averages as well."""
    llaca_balance: float = Field(default=1.0, ge=0)
    """Rule `balance`: how much a nat lost on an earlier task weighs against a nat gained on the new one."""
    importance_rows: int = Field(default=128, ge=1)
    """Policies that measure how much each weight matters: most new rows they look at, at the end of a round, and for
    `llaca` with `balance` after a round of another policy also most rows of each earlier dataset."""
    replay_rows: int = Field(default=64, ge=1)
    """Policy `replay`: most rows of each earlier dataset that are trained again among the new ones."""
    replay_share: float = Field(default=1.0, gt=0)
    """Policy `replay`: most old rows altogether, as a multiple of the new ones, so that rounds do not grow for ever;
    beyond it each earlier dataset gives fewer, but at least one."""
    interpolate_share: float = Field(default=0.5, ge=0, le=1)
    """Policy `interpolate`: how far a round goes from the old weights to those it has trained."""
    cofima_share: float = Field(default=0.5, gt=0, lt=1)
    """Policy `cofima`: weight of the new task's importance against that of the earlier ones."""
    cofima_fisher_max: float = Field(default=1e-4, gt=0)
    """Policy `cofima`: importance beyond this counts no more."""
    ewc_strength: float = Field(default=1e4, ge=0)
    """Policy `ewc`: weight of the penalty. The importance of each round adds up to 1 over the adapter, so it is a large
    number."""
    mas_strength: float = Field(default=1e4, ge=0)
    """Policy `mas`: the same."""
    tir_strength: float = Field(default=1e4, ge=0)
    """Policy `tir`: the same."""
    tir_importance: Literal["ewc", "mas"] = "mas"
    """Policy `tir`: what importance is: Fisher information, or sensitivity of the logits."""
    lwf_strength: float = Field(default=1.0, ge=0)
    """Policy `lwf`: weight of the divergence from what the model said before the round."""
    agem_rows: int = Field(default=64, ge=1)
    """Policy `agem`: how many rows of each earlier dataset its memory has."""
    dgg_rows: int = Field(default=64, ge=1)
    """Policy `dgg`: how many rows of each earlier dataset are trained among the new ones."""
    dgg_share: float = Field(default=0.1, ge=0, le=1)
    """Policy `dgg`: share of the steps that are also pulled back towards the weights with which the round began."""
    keeplora_rows: int = Field(default=128, ge=1)
    """Policy `keeplora`: how many of the new rows it looks at, before training for their gradient and afterwards for
    the inputs of the layers."""
    keeplora_weight_energy: float = Field(default=0.6, ge=0, lt=1)
    """Policy `keeplora`: share of the energy of each pre-trained weight from whose directions it keeps clear."""
    keeplora_input_energy: float = Field(default=0.99, ge=0, lt=1)
    """Policy `keeplora`: share of the energy of a task's inputs from whose directions later tasks keep clear."""
    olora_strength: float = Field(default=0.5, ge=0)
    """Policy `olora`: weight of the overlap between the new adapter's directions and the earlier ones'."""
    pegp_rows: int = Field(default=128, ge=1)
    """Policy `pegp`: how many of the new rows show, after training, what a task puts into each layer."""
    pegp_input_energy: float = Field(default=0.95, ge=0, lt=1)
    """Policy `pegp`: share of the energy of a layer's inputs that later rounds leave as it is; 0 leaves A free."""
    pegp_hidden_energy: float = Field(default=0.5, ge=0, lt=1)
    """Policy `pegp`: the same for the rank numbers between A and B, which a high share soon fills; 0 leaves B free."""
    group_threshold: float = Field(default=0.5, ge=0, le=1)
    """How much the instructions of a dataset must resemble those of a group (0 to 1) to be learned by its adapter; a
    dataset that resembles none opens a group with a new adapter, as long as LLACA_MAX_LORAS has room for it. 0 opens
    no further group: without any, one adapter learns everything. docs/llaca.md says what the default is measured on."""
    group_floor: float = Field(default=0.3, ge=0, le=1)
    """With groups: how much a single request must resemble one (0 to 1) to be answered by its adapter; otherwise the
    base model answers. 0 always takes the nearest. Each generation keeps its own, with which the gate has judged it."""
    gate_margin_points: float = Field(default=2.0, ge=0, le=100)
    """How many points (of 100) a task may lose before the candidate is rejected."""
    gate_significance: float = Field(default=0.05, gt=0, lt=1)
    """Largest chance of a false alarm at which a loss, or a gain, counts as real."""
    gate_interpolations: int = Field(default=3, ge=0, le=9)
    """If the candidate is rejected: how many points between it and the champion are judged in its place, the farthest
    first, without training; 3 are those at 3/4, 1/2 and 1/4 of the way. 0 tries none. docs/rounds.md says more."""
    evaluation_max_rows: int = Field(default=200, ge=1)
    """Most holdout rows of one dataset that a round asks; the same ones each time."""
    evaluation_concurrency: int = Field(default=8, ge=1)
    """Questions that are open at the server at the same time while a round is evaluated."""
    serving_patience_s: float = Field(default=300.0, gt=0)
    """How long a round waits for a server that is away, for example restarting, before it fails. In seconds."""
    minimum_rows: int = Field(default=1, ge=1)
    """The schedule asks for a round only if at least this many training rows wait."""
    cron: str = ""
    """When the schedule looks for waiting datasets: five crontab fields in local time, or empty for never.
    Weekdays are 0 to 7, both of which are Sunday, or `sun` to `sat`."""
    lease_seconds: float = Field(default=30.0, gt=0)
    """A worker that has not been heard of for this long loses its round to the next one."""
    heartbeat_seconds: float = Field(default=5.0, gt=0)
    """How often a worker tells that it is alive; at most half of LLACA_LEASE_SECONDS."""

    @field_validator("policy")
    @classmethod
    def _known(cls, policy: str) -> str:
        parts = policy.split("+")
        if not set(parts) <= set(POLICIES) or len(set(parts)) < len(parts):
            raise ValueError(f"one of {', '.join(POLICIES)}, or several of them joined by +, each once")
        return policy

    @field_validator("rank")
    @classmethod
    def _rank_vllm_accepts(cls, rank: int) -> int:
        if rank not in RANKS:
            raise ValueError(f"one of {', '.join(map(str, RANKS))}")
        return rank

    @field_validator("cron")
    @classmethod
    def _crontab(cls, cron: str) -> str:
        if cron:
            trigger_of(cron)
        return cron

    @field_validator("heartbeat_seconds")
    @classmethod
    def _twice_in_a_lease(cls, seconds: float, info: ValidationInfo) -> float:
        if seconds > info.data.get("lease_seconds", math.inf) / 2:
            raise ValueError("at most half of LLACA_LEASE_SECONDS")
        return seconds


def trigger_of(crontab: str, timezone: tzinfo | None = None) -> CronTrigger:
    """Return when five crontab fields fire, in local time if no other is given; raise ValueError if they are none."""
    fields = crontab.split()
    # APScheduler counts weekdays from Monday and lets steps and ranges end there, so it is given the name of each day.
    fields[4:5] = [",".join(map(_weekdays, field.split(","))) for field in fields[4:5]]
    return CronTrigger.from_crontab(" ".join(fields), timezone)


def _weekdays(part: str) -> str:
    match = _DAYS.fullmatch(part)
    if match is None:
        raise ValueError(f"weekdays 0 to 7 or sun to sat, such as 1-5 or sat,sun; found {part!r}")
    first, last, step = match["first"], match["last"], int(match["step"] or 1)
    start = _number(first) if first else 0
    end = _number(last) if last else start if first and not match["step"] else len(WEEKDAYS) - 1
    if end < start:
        end += len(WEEKDAYS)
    return ",".join(WEEKDAYS[day % len(WEEKDAYS)] for day in range(start, end + 1, step))


def _number(day: str) -> int:
    return int(day) if day.isdigit() else WEEKDAYS.index(day.lower())


def main() -> int:
    """Print which variables the learner reads, or what is wrong with one; for processes that must not import it."""
    try:
        load(LearnerSettings)
    except BadSetting as error:
        print(error, file=sys.stderr)
        return 2
    print(json.dumps(sorted(names_of(LearnerSettings))))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

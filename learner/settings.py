"""Settings of the learner: how a round trains, how it is judged, and when the learner looks for work.

A round may carry its own values for any of them; they are checked when the learner takes it up, before it trains.
"""

from __future__ import annotations

import json
import math
import sys
from typing import Literal

from apscheduler.triggers.cron import CronTrigger
from pydantic import Field, ValidationInfo, field_validator

from storage.errors import BadSetting
from storage.settings import Settings, load, names_of

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The LoRA ranks for which vLLM has kernels (`MaxLoRARanks` in vllm/config/lora.py, 0.32)."""


class LearnerSettings(Settings):
    """How the model is taught."""

    policy: Literal["llaca", "ema", "sequential"] = "llaca"
    """How a round protects what was learned before: `llaca` averages with a weight recomputed at every step, `ema`
    with a fixed one, `sequential` not at all."""
    rank: Literal[1, 8, 16, 32, 64, 128, 256, 320, 512] = 16
    """Rank of the adapter. Fixed by the first generation; it must not exceed what vLLM was started with."""
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
    """Batches that make up one optimizer step."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """The gradient of a step is scaled down to this norm if it is longer."""
    row_max_tokens: int = Field(default=2048, ge=16)
    """Longest row in tokens, those of its images included; longer rows end the round with an error."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of the adapter's first weights, of the order of the rows and of dropout."""
    checkpoint_every_steps: int = Field(default=25, ge=1)
    """A round that is interrupted goes on from the last multiple of this many steps."""
    ema_decay: float = Field(default=0.99, gt=0, lt=1)
    """Policy `ema`: weight of the old average at each step."""
    llaca_rule: Literal["official", "continual-next", "paper"] = "official"
    """Policy `llaca`: which published form of the rule. `official` is the authors' code for the paper, `continual-next`
    their later code, `paper` the printed equation; learner/llaca.py lists them. The next five override parts of it."""
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
    gate_margin_points: float = Field(default=2.0, ge=0, le=100)
    """How many points (of 100) a task may lose before the candidate is rejected."""
    gate_significance: float = Field(default=0.05, gt=0, lt=1)
    """Largest chance of a false alarm at which a loss, or a gain, counts as real."""
    evaluation_max_rows: int = Field(default=200, ge=1)
    """Most holdout rows of one dataset that a round asks; the same ones each time."""
    evaluation_concurrency: int = Field(default=8, ge=1)
    """Questions that are open at the server at the same time while a round is evaluated."""
    serving_patience_s: float = Field(default=300.0, gt=0)
    """How long a round waits for a server that is away, for example restarting, before it fails. In seconds."""
    minimum_rows: int = Field(default=1, ge=1)
    """The schedule asks for a round only if at least this many training rows wait."""
    cron: str = ""
    """When the schedule looks for waiting datasets: five crontab fields in local time, or empty for never."""
    lease_seconds: float = Field(default=30.0, gt=0)
    """A worker that has not been heard of for this long loses its round to the next one."""
    heartbeat_seconds: float = Field(default=5.0, gt=0)
    """How often a worker tells that it is alive; at most half of LLACA_LEASE_SECONDS."""

    @field_validator("cron")
    @classmethod
    def _crontab(cls, cron: str) -> str:
        if cron:
            CronTrigger.from_crontab(cron)
        return cron

    @field_validator("heartbeat_seconds")
    @classmethod
    def _twice_in_a_lease(cls, seconds: float, info: ValidationInfo) -> float:
        if seconds > info.data.get("lease_seconds", math.inf) / 2:
            raise ValueError("at most half of LLACA_LEASE_SECONDS")
        return seconds


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

"""The proof that a loaded adapter is live: a server must find fixed answers as probable as the learner did.

vLLM loads an adapter whose tensor names do not match with HTTP 200 and then answers like the base model; only
asking shows it. A probe is a file beside the adapter, written by the learner, with a few prompts, an answer
to each and the log-probability of each of its tokens. Does not know how an adapter gets loaded or what
follows from a refusal.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from serving.client import VLLM
from storage.errors import ProbeRefused
from storage.records import generation_name

PROBE = "probe.json"
TOLERANCE = 0.05
"""Largest mean distance between server and learner; bfloat16 against float32 gave 0.015 at rank 8."""
MOVED_SHARE = 0.5
"""Least share of the learner's own distance between base and adapter that the server must show."""


class ProbePrompt(BaseModel):
    """A question, a fixed answer, and the log-probability of each of its tokens with and without adapter."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    messages: list[dict[str, Any]]
    """Chat messages with images as data URLs, as `serving.messages.openai_messages` makes them."""
    answer: str = Field(min_length=1)
    logprobs: list[float] = Field(min_length=1)
    """Natural logarithms under the adapter, one per token of the answer, without the end-of-turn token."""
    base_logprobs: list[float]
    """The same under the bare base model."""

    @model_validator(mode="after")
    def _same_tokens(self) -> Self:
        if len(self.logprobs) != len(self.base_logprobs):
            raise ValueError("logprobs and base_logprobs must have one number per token of the answer")
        return self


class Probe(BaseModel):
    """The content of `probe.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    prompts: list[ProbePrompt] = Field(min_length=1)
    moved: bool
    """Whether the adapter changes these answers by more than noise, so that a server must show it too."""

    def write(self, directory: Path) -> None:
        """Write the probe into an adapter directory."""
        (directory / PROBE).write_text(self.model_dump_json(indent=1), encoding="utf-8")


def distance(found: Sequence[float], expected: Sequence[float]) -> float:
    """Return the mean of |found - expected| / (1 + |expected|) over tokens.

    Rounding grows with the size of a log-probability; dividing by it lets likely and unlikely tokens count
    alike.
    """
    return sum(abs(f - e) / (1 + abs(e)) for f, e in zip(found, expected, strict=True)) / len(expected)


async def check(server: VLLM, name: str, directory: Path) -> None:
    """Raise ProbeRefused unless `name` on this server behaves as the probe in `directory` says."""
    try:
        probe = Probe.model_validate_json((directory / PROBE).read_bytes())
    except (FileNotFoundError, ValidationError) as error:
        raise ProbeRefused(name, server.url, f"{PROBE} cannot be used: {error}") from error
    served = [await _answer_logprobs(server, name, prompt) for prompt in probe.prompts]
    base = [await _answer_logprobs(server, generation_name(0), prompt) for prompt in probe.prompts]
    reason = judge(probe, served, base)
    if reason:
        raise ProbeRefused(name, server.url, reason)


def judge(probe: Probe, served: Sequence[Sequence[float]], base: Sequence[Sequence[float]]) -> str:
    """Say why what a server measured contradicts the probe, or return an empty string."""
    learned = [prompt.logprobs for prompt in probe.prompts]
    learned_base = [prompt.base_logprobs for prompt in probe.prompts]
    if probe.moved:
        shown, expected = _mean_distance(served, base), _mean_distance(learned, learned_base)
        if shown < MOVED_SHARE * expected:
            return (
                f"it answers like the base model (distance {shown:.4f}, the learner saw {expected:.4f});"
                " its tensors probably do not match the server's names"
            )
    gap = _mean_distance(served, learned)
    if gap > TOLERANCE:
        return f"its answers differ from the learner's by {gap:.4f}; allowed is {TOLERANCE}"
    return ""


def _mean_distance(found: Sequence[Sequence[float]], expected: Sequence[Sequence[float]]) -> float:
    return sum(distance(f, e) for f, e in zip(found, expected, strict=True)) / len(expected)


async def _answer_logprobs(server: VLLM, model: str, prompt: ProbePrompt) -> list[float]:
    conversation = [*prompt.messages, {"role": "assistant", "content": prompt.answer}]
    tokens = await server.prompt_logprobs(model, conversation)
    return [token.logprob for token in tokens[-len(prompt.logprobs) :]]

"""When a probe passes: near the learner, away from the base, and not by luck of rounding."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving import probes
from serving.client import VLLM
from serving.probes import PROBE, Probe, ProbePrompt, distance, judge
from storage.errors import ProbeRefused
from tests.serving.adapters import QUESTION, write_lora

LEARNED = [-0.1, -2.0, -8.0]
BASE = [-3.0, -5.0, -12.0]


def probe(*, moved: bool = True, learned: list[float] = LEARNED) -> Probe:
    """Return a probe of one prompt."""
    prompt = ProbePrompt(messages=QUESTION, answer="x", logprobs=learned, base_logprobs=BASE)
    return Probe(prompts=[prompt], moved=moved)


@pytest.mark.parametrize(
    ("served", "base", "reason"),
    [
        (LEARNED, BASE, ""),
        ([-0.105, -2.03, -8.2], [-3.02, -5.1, -12.3], ""),
        (BASE, BASE, "answers like the base model"),
        ([-1.0, -3.0, -9.0], BASE, "differ from the learner's"),
        ([-0.1, -2.0, -1.0], BASE, "differ from the learner's"),
    ],
)
def test_only_the_adapter_that_was_measured_passes(
    served: list[float], base: list[float], reason: str
) -> None:
    """Rounding is forgiven; the base model's own answers and anything else are not."""
    found = judge(probe(), [served], [base])
    assert reason in found
    assert bool(found) == bool(reason)


def test_an_adapter_that_moved_nothing_may_equal_the_base() -> None:
    """A round that changed next to nothing is not mistaken for an adapter that is ignored."""
    assert judge(probe(moved=False, learned=BASE), [BASE], [BASE]) == ""


def test_a_small_effect_that_is_missing_is_seen() -> None:
    """An ignored adapter is refused even if its effect is smaller than the tolerance for rounding."""
    nearly = [value * 0.99 for value in BASE]
    assert distance(nearly, BASE) < probes.TOLERANCE
    assert "answers like the base model" in judge(probe(learned=nearly), [BASE], [BASE])


def test_distance_weighs_likely_and_unlikely_tokens_alike() -> None:
    """The same relative error counts the same for an unlikely token, and none is none."""
    assert distance([-9.9], [-9.0]) == pytest.approx(0.09)
    assert distance(LEARNED, LEARNED) == 0


@pytest.mark.parametrize("content", [None, "{}", '{"version": 2, "prompts": [], "moved": true}'])
async def test_without_a_usable_probe_nothing_passes(vllm: VLLM, tmp_path: Path, content: str | None) -> None:
    """A missing or unreadable probe file is a refusal, not a pass."""
    directory = write_lora(tmp_path / "adapter", seed=1)
    if content is not None:
        (directory / PROBE).write_text(content)
    with pytest.raises(ProbeRefused, match="cannot be used"):
        await probes.check(vllm, "assistant@1", directory)

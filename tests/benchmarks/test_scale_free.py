"""What LLaCA's rules make of rank, learning rate and batch size: measured from one beginning, told as shares."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.continual.tasks import Pictures
from benchmarks.scale_free import RULES, Bench, Losses, told
from tests.benchmarks.classes import drawn, task


@pytest.fixture(scope="module")
def bench(base: Path) -> Bench:
    """Two tasks about squares."""
    pictures = Pictures()
    first = task(
        "first", drawn(pictures, "how many shapes?", 0, 6), drawn(pictures, "how many shapes?", 6, 4)
    )
    second = task("second", drawn(pictures, "a red circle?", 11, 6), drawn(pictures, "a red circle?", 17, 4))
    shared = {"epochs": 1, "learning_rate": 0.05, "batch_size": 2}
    return Bench(base=base, first=first, second=second, pictures=pictures, shared=shared)


def test_every_rule_goes_on_from_the_same_first_round(bench: Bench, tmp_path: Path) -> None:
    """With a penalty of no weight `balance` ends where plain tuning does, to the last digit, and both have learned."""
    before, after = bench.measure({"rank": 8, "llaca_balance": 0.0}, tmp_path)
    assert list(after) == list(RULES)
    assert after["plain"] == after["balance"] != after["official"]
    assert before.second > after["plain"].second


def test_a_line_tells_shares_of_what_plain_tuning_does() -> None:
    """Half of what plain tuning loses is 0.50, all of what it learns 1.00; the setting is named."""
    before = Losses(first=1.0, second=3.0)
    after = {
        "plain": Losses(first=3.0, second=1.0),
        "official": Losses(first=2.0, second=1.0),
        "balance": Losses(first=1.0, second=2.0),
    }
    line = told({"rank": 64}, before, after)
    assert line == "| rank 64 | 2.00 | 2.00 | 0.50 | 1.00 | 0.00 | 0.50 |"

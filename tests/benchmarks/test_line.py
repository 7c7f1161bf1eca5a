"""The way back from a candidate: both ends are the two generations themselves, and the table says what was measured."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from benchmarks.continual.adapters import AdapterAnswerer
from benchmarks.continual.tasks import Pictures
from benchmarks.continual.teacher import Learned
from benchmarks.line import SHARES, Bench, main, told
from storage.records import Row
from tests.benchmarks.classes import SETTINGS, drawn, task


def alike(pictures: Pictures, question: str, word: int, numbers: Iterable[int]) -> list[Row]:
    """Return rows that all have the same answer, which even a tiny model learns."""
    return [row for number in numbers for row in drawn(pictures, question, 4 * number + word, 1)]


def test_the_ends_of_the_line_are_champion_and_candidate(base: Path, tmp_path: Path) -> None:
    """Accuracy at 0 and 1 is that of the adapters of the two rounds, each asked by itself."""
    pictures = Pictures()
    first, second = (
        task(question, *(alike(pictures, question, word, parts) for parts in (range(6), range(6, 10))))
        for word, question in enumerate(("how many shapes?", "a red circle?"))
    )
    settings = SETTINGS.model_copy(update={"rank": 8, "epochs": 6})
    bench = Bench(base=base, settings=settings, pictures=pictures)
    found = bench.measure(first, second, tmp_path / "line")
    champion = bench.taught([first], Learned(), tmp_path / "apart")
    candidate = bench.taught([first, second], champion, tmp_path / "apart")
    assert len(found) == len(SHARES)
    assert found[0] == (100.0, 0.0)
    assert found[-1][1] == 100.0
    for measured, learned in ((found[0], champion), (found[-1], candidate)):
        answerer = AdapterAnswerer(base, learned.adapters, None, 0.0, batch_size=4)
        assert measured == tuple(answerer.ask(one, pictures).accuracy for one in (first, second))


def test_the_command_prints_two_lines_for_each_pair(
    base: Path, stocked: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of two tasks, in both orders, with an accuracy for each share."""
    pairs = (
        "--pairs",
        "count:chart,chart:count",
        "--rows",
        "4",
        "--holdout",
        "2",
        "--epochs",
        "1",
        "--rank",
        "8",
    )
    main(["--base", str(base), "--cache", str(stocked), *pairs])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| `")]
    assert [line.split(",")[0] for line in lines] == ["| `count`", "| `chart`", "| `chart`", "| `count`"]
    assert all(line.count("|") == 2 + len(SHARES) for line in lines)


def test_a_line_names_what_was_learned_before() -> None:
    """The earlier task comes first, and its scores are the first of each pair."""
    said = told("a", "b", [(100.0, 0.0), (51.5, 98.0)])
    assert said == "| `a`, learned before | 100 | 52 |\n| `b`, the candidate's | 0 | 98 |"

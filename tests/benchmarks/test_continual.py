"""The whole benchmark on a tiny model: it measures, goes on where it was stopped, and reports."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.continual.__main__ import main
from benchmarks.continual.protocol import method
from benchmarks.continual.report import report
from benchmarks.continual.results import BASE, Cell, Cost, Results, Round
from benchmarks.continual.run import resumed
from benchmarks.continual.summary import finished
from benchmarks.continual.tables import by_order
from benchmarks.continual.teacher import Learned

TASKS = "count,chart"
ONE_ADAPTER = "sequential,ema:ema_decay=0.5"


def benchmark(base: Path, cache: Path, work: Path, *more: str, methods: str = ONE_ADAPTER) -> int:
    """Run the benchmark on two tasks of six rows."""
    return main(
        [
            *("--base", str(base), "--cache", str(cache), "--work", str(work), "--name", "tiny"),
            *("--tasks", TASKS, "--methods", methods, "--orders", "origin", "--seeds", "0"),
            *("--rows", "6", "--holdout", "4", "--general", "1", "--epochs", "1", "--set", "rank=8"),
            *more,
        ]
    )


@pytest.fixture(scope="module")
def done(base: Path, stocked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a benchmark that has come to its end: with one adapter, with one per task, and all at once."""
    work = tmp_path_factory.mktemp("work")
    assert benchmark(base, stocked, work, methods=f"{ONE_ADAPTER},sequential:groups=1,joint") == 0
    return work


def test_every_round_of_every_method_is_measured(done: Path) -> None:
    """A line for the base model and one for each round (of joint the last), with all tasks so far, costs, settings."""
    rounds = Results(done / "tiny").rounds()
    found = [(one.method, one.number, list(one.cells)) for one in rounds]
    assert found[0] == (BASE, -1, ["count", "chart"])
    for name in ("sequential", "ema:ema_decay=0.5", "sequential:groups=1"):
        assert (name, 0, ["count"]) in found
        assert (name, 1, ["count", "chart"]) in found
    assert ("joint", 1, ["count", "chart"]) in found
    assert len(found) == 8
    learned = [one for one in rounds if one.cost is not None]
    assert [one.cost.rehearsed for one in learned if one.method == "joint" and one.cost] == [6]
    costs = [one.cost for one in learned if one.cost is not None]
    assert all(cost.steps == (cost.rows + cost.rehearsed + 3) // 4 for cost in costs)
    assert all(cost.seconds > 0 and cost.peak_bytes > 2**20 for cost in costs)
    assert [bool(one.general) for one in rounds] == [True, *(one.number == 1 for one in rounds[1:])]
    assert {one.settings["policy"] for one in learned} == {"sequential", "ema", "joint"}
    assert {one.settings["ema_decay"] for one in learned if one.method.startswith("ema")} == {0.5}


def test_groups_give_each_task_its_own_adapter_and_one_method_has_one(done: Path) -> None:
    """With instructions that differ, as many adapters are served as there are groups, else a single one."""
    rounds = Results(done / "tiny").rounds()
    served = {(one.method, one.number): one.cost.adapters for one in rounds if one.cost}
    assert served["sequential", 1] == 1
    assert (served["sequential:groups=1", 0], served["sequential:groups=1", 1]) == (1, 2)


def test_nothing_but_results_is_left_of_a_finished_run(done: Path) -> None:
    """Adapters and checkpoints are removed when nobody needs them any more."""
    assert list((done / "tiny" / "runs").iterdir()) == []


def test_what_is_done_is_not_done_again(done: Path, base: Path, stocked: Path) -> None:
    """Started again with the same arguments, the benchmark adds no line."""
    before = (done / "tiny" / "results.jsonl").read_text(encoding="utf-8")
    assert benchmark(base, stocked, done) == 0
    assert (done / "tiny" / "results.jsonl").read_text(encoding="utf-8") == before


def test_another_protocol_is_refused_in_the_same_directory(
    done: Path, base: Path, stocked: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Results that cannot be compared are not mixed, and it is said in what they differ."""
    assert benchmark(base, stocked, done, "--holdout", "3") == 2
    assert "holdout (4 there, 3 now)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--methods", "forget"), "LLACA_POLICY"),
        (("--methods", "ema:ema_dekay=0.9"), "ema_dekay"),
        (("--methods", "ema:0.9"), "name=value"),
        (("--methods", "eproj:similarity=2"), "eproj:similarity=2: similarity: Input should be less"),
        (("--methods", "prompt:pegp=1"), "pegp"),
        (("--methods", "prefix:toknes=4"), "toknes"),
        (("--methods", "prompt:groups=1"), "prompt:groups=1: `groups` is for methods with adapters"),
        (("--orders", "random"), "no order 'random'"),
        (("--tasks", "count,chess"), "no task 'chess'"),
    ],
)
def test_a_mistake_is_told_before_anything_is_done(
    base: Path,
    stocked: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    said: str,
) -> None:
    """A misspelt method, setting, order or task ends the command with its name, not an hour later."""
    assert benchmark(base, stocked, tmp_path, *arguments) == 2
    assert said in capsys.readouterr().out
    assert not (tmp_path / "tiny" / "results.jsonl").exists()


class Stopped(Exception):
    """Stands for a plug that was pulled."""


def test_a_stopped_run_goes_on_after_its_last_round(
    done: Path, base: Path, stocked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a stop between two rounds the first is not taught again, and the end is that of a run without a stop."""

    def stop(self: Results, measured: Round) -> None:
        add(self, measured)
        if measured.number == 0:
            raise Stopped

    add = Results.add
    monkeypatch.setattr(Results, "add", stop)
    with pytest.raises(Stopped):
        benchmark(base, stocked, tmp_path, methods="sequential")
    monkeypatch.undo()
    results = Results(tmp_path / "tiny")
    first = results.of("sequential", "origin", 0)
    assert [one.number for one in first] == [0]
    assert benchmark(base, stocked, tmp_path, methods="sequential") == 0
    whole = Results(done / "tiny").of("sequential", "origin", 0)
    ended = results.of("sequential", "origin", 0)
    assert ended[0] == first[0]
    # Directories are named by the hash of what is in them.
    assert [one.adapters for one in ended] == [one.adapters for one in whole]


def test_the_report_shows_every_method_and_fills_the_page(done: Path, tmp_path: Path) -> None:
    """Tables, pictures and the marked place of the page in docs come from the results alone; raw lines go along."""
    page = tmp_path / "continual.md"
    page.write_text("# Title\n\n<!-- tiny -->\nold\n<!-- end of tiny -->\n\nThe end.\n", encoding="utf-8")
    written = report(done / "tiny", tmp_path).read_text(encoding="utf-8")
    for name in ("sequential", "ema:ema_decay=0.5", "sequential:groups=1"):
        assert written.count(f"| `{name}` |") == 5
    for picture in ("plane", "origin", "examples"):
        assert (tmp_path / "continual" / f"tiny-{picture}.png").read_bytes().startswith(b"\x89PNG")
        assert f"(tiny-{picture}.png)" in written
    assert Results(tmp_path / "continual" / "tiny").rounds() == Results(done / "tiny").rounds()
    filled = page.read_text(encoding="utf-8")
    assert "old" not in filled
    assert filled.startswith("# Title")
    assert filled.endswith("The end.\n")
    assert "| `sequential` | 1 |" in filled
    # What a report has copied is enough for the next one.
    assert report(tmp_path / "continual" / "tiny", tmp_path).read_text(encoding="utf-8") == written
    assert "(continual/tiny.md)" in filled


def cell(accuracy: float) -> Cell:
    """Return a cell of this accuracy."""
    return Cell(rows=10, accuracy=accuracy, format=100.0, samples=[("red", "blue")])


def rounds_of(name: str, seed: int, final: float, order: str = "origin") -> list[Round]:
    """Return a run of two tasks that ends with this accuracy on the first."""
    cost = Cost(
        steps=10,
        rows=40,
        rehearsed=0,
        seconds=5.0,
        evaluation_seconds=1.0,
        peak_bytes=2**30,
        state_bytes=0,
        adapters=1,
    )
    cells = [{"a": cell(80.0)}, {"a": cell(final), "b": cell(60.0)}]
    return [
        Round(
            method=name, order=order, seed=seed, tasks=["a", "b"], number=number, cells=cells[number], cost=cost,
            settings={"seed": seed}, machine="a machine", at="2026-01-01T00:00:00+00:00",
        )
        for number in range(2)
    ]  # fmt: skip


def test_the_report_compares_with_sequential_over_the_same_seeds(tmp_path: Path) -> None:
    """Ratios to sequential tuning leave out seeds that it has not run, and joint training has no forgetting."""
    directory = tmp_path / "own"
    directory.mkdir()
    (directory / "protocol.json").write_text(
        json.dumps({"base": "b", "tasks": ["a", "b"], "rows": 40, "holdout": 10, "general": 0}),
        encoding="utf-8",
    )
    (directory / "examples.png").write_bytes(b"")
    results = Results(directory)
    for one in [*rounds_of("sequential", 0, 20), *rounds_of("good", 0, 65), *rounds_of("good", 1, 0)]:
        results.add(one)
    results.add(rounds_of("joint", 0, 75)[1])
    lines = report(directory, tmp_path / "docs").read_text(encoding="utf-8").splitlines()
    first = {
        name: next(line.split(" | ") for line in lines if line.startswith(f"| `{name}` |"))
        for name in ("good", "joint")
    }
    # Final accuracy 62.5 against 40, forgetting 15 against 60, of seed 0 alone.
    assert first["good"][7:9] == ["1.56", "4.0"]
    assert first["good"][2] == "46.2 ± 23.0"
    assert first["joint"][2:7] == ["67.5", "–", "–", "–", "–"]


def test_orders_are_told_apart() -> None:
    """An order's figures are those of its own runs; a dash stands where a method has not run it."""
    runs = finished(
        [*rounds_of("good", 0, 65), *rounds_of("good", 1, 0), *rounds_of("other", 0, 20, order="reverse")]
    )
    lines = [line.strip("| ").split(" | ") for line in by_order(runs, ["origin", "reverse"]).splitlines()]
    assert lines[0] == [
        "method", "origin: runs", "origin: MFN ↑", "origin: forgetting ↓", "reverse: runs", "reverse: MFN ↑",
        "reverse: forgetting ↓",
    ]  # fmt: skip
    assert lines[2] == ["`good`", "2", "46.2 ± 23.0", "47.5 ± 46.0", "–", "–", "–"]
    assert lines[3] == ["`other`", "–", "–", "–", "1", "40.0", "60.0"]


def test_a_half_written_line_is_left_out(tmp_path: Path) -> None:
    """A crash while a line was written costs that round and no other."""
    results = Results(tmp_path)
    results.add(rounds_of("good", 0, 65)[0])
    with results.path.open("a", encoding="utf-8") as file:
        file.write('{"method": "go')
    assert [one.number for one in results.rounds()] == [0]


def test_a_round_after_a_half_written_line_is_kept(tmp_path: Path) -> None:
    """What a crash has left, cut in the middle of a character perhaps, is replaced by the next round."""
    results = Results(tmp_path)
    first, second = rounds_of("good", 0, 65)
    results.add(first)
    with results.path.open("ab") as file:
        file.write('{"method": "gö'.encode()[:-1])
    assert results.rounds() == [first]
    results.add(second)
    assert results.rounds() == [first, second]


def test_an_answer_may_hold_any_separator(tmp_path: Path) -> None:
    """Characters that Unicode counts as ends of lines are text like any other."""
    said = "one\u2028two\u2029three\u0085four\r\nfive\x0bsix\x0cseven\x1ceight"
    results = Results(tmp_path)
    first, second = rounds_of("good", 0, 65)
    strange = replace(first, cells={"a": replace(cell(80.0), samples=[("red", said)])})
    results.add(strange)
    results.add(second)
    assert results.rounds() == [strange, second]


@pytest.mark.parametrize(("there", "number"), [((), 0), (("0",), 1), (("0", "1"), 2)])
def test_a_run_goes_on_after_the_newest_round_whose_adapters_are_there(
    tmp_path: Path, there: tuple[str, ...], number: int
) -> None:
    """Of a run that came without its adapters, rounds that were told anew are not told once more after each stop."""
    for name in there:
        (tmp_path / "adapters" / name).mkdir(parents=True)
    rounds = [
        replace(rounds_of("good", 0, 65)[0], tasks=list("abcd"), number=one, adapters=[str(one)], groups=[0])
        for one in range(3)
    ]
    left = Learned(adapters=(tmp_path / "adapters" / there[-1],), groups=(0,)) if there else Learned()
    assert resumed(rounds, tmp_path, Learned()) == (left, number)


def test_a_finished_run_needs_no_adapters(tmp_path: Path) -> None:
    """A run whose last round is measured has nothing to go on with."""
    rounds = [replace(one, adapters=["gone"]) for one in rounds_of("good", 0, 65)]
    assert resumed(rounds, tmp_path, Learned())[1] == 2


def test_a_method_is_read_from_its_label() -> None:
    """Policy, settings and groups are told apart."""
    found = method("llaca+replay:replay_rows=32:groups=0.5")
    assert found.overrides == {"policy": "llaca+replay", "replay_rows": 32}
    assert found.groups == 0.5
    assert method("sequential").groups is None

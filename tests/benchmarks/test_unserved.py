"""Methods that no server can swap go through the benchmark as all others: rounds, costs, resumption and report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.continual.choose import PROJECTOR_RATE, TOKEN_RATE, teacher_of
from benchmarks.continual.protocol import method
from benchmarks.continual.report import NOT_SERVED, report
from benchmarks.continual.results import Results, Round
from tests.benchmarks.test_continual import Stopped, benchmark

METHODS = ("eproj:similarity=1", "prompt:tokens=4:pegp=0.9", "prefix:tokens=4", "prefix:tokens=4:pegp=0.9")


@pytest.fixture(scope="module")
def done(base: Path, stocked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a benchmark of them all."""
    work = tmp_path_factory.mktemp("work")
    assert benchmark(base, stocked, work, methods=",".join(METHODS)) == 0
    return work / "tiny"


@pytest.mark.parametrize("name", METHODS)
def test_every_round_is_measured_and_serves_no_adapter(done: Path, name: str) -> None:
    """Both rounds have all tasks so far, the last one the general suite, and costs that count no adapter."""
    first, last = Results(done).of(name, "origin", 0)
    assert (list(first.cells), list(last.cells)) == (["count"], ["count", "chart"])
    assert (bool(first.general), bool(last.general)) == (False, True)
    for one in (first, last):
        assert one.cost is not None
        assert (one.cost.adapters, one.cost.rehearsed, one.cost.rows) == (0, 0, 6)
        assert one.cost.steps == 2
        assert min(one.cost.state_bytes, one.cost.peak_bytes, one.cost.seconds) > 0
        assert one.settings["policy"] == name.partition(":")[0]
    assert last.groups == ([0, 1] if name.startswith("eproj") else [0, 0])
    assert not list((done / "runs").iterdir())


def test_what_is_written_down_says_all_settings(done: Path) -> None:
    """A method's own settings stand beside the learner's, with a learning rate that fits what it trains."""
    of = {name: Results(done).of(name, "origin", 0)[0].settings for name in METHODS}
    assert of["eproj:similarity=1"]["similarity"] == 1
    assert of["eproj:similarity=1"]["learning_rate"] == PROJECTOR_RATE
    assert of["prefix:tokens=4"]["pegp"] is None
    assert of["prefix:tokens=4:pegp=0.9"] | {"pegp": None} == of["prefix:tokens=4"]
    assert of["prefix:tokens=4"]["learning_rate"] == TOKEN_RATE


def test_shared_settings_hold_for_them_and_their_own_go_first() -> None:
    """`--set` comes before a method's default, and the label before both."""
    shared = {"epochs": 7, "learning_rate": 0.5}
    assert teacher_of(method("prompt"), shared, 1).settings["learning_rate"] == 0.5
    found = teacher_of(method("prompt:learning_rate=0.25"), shared, 1).settings
    assert (found["learning_rate"], found["epochs"], found["seed"]) == (0.25, 7, 1)


def test_pegp_begins_as_the_plain_method_and_ends_elsewhere(done: Path) -> None:
    """The first round is the plain one's, as its answers show; what is kept differs by the bases."""
    plain, held = (Results(done).of(name, "origin", 0) for name in METHODS[2:])
    assert plain[0].cells == held[0].cells
    assert plain[0].cost is not None
    assert held[0].cost is not None
    assert held[0].cost.state_bytes > plain[0].cost.state_bytes


def test_a_stopped_run_goes_on_after_its_last_round(
    done: Path, base: Path, stocked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a stop between two rounds the first is not taught again, and the end has the same bits."""

    def stop(self: Results, measured: Round) -> None:
        add(self, measured)
        if measured.number == 0:
            raise Stopped

    add = Results.add
    for name in METHODS:
        monkeypatch.setattr(Results, "add", stop)
        with pytest.raises(Stopped):
            benchmark(base, stocked, tmp_path, methods=name)
        monkeypatch.undo()
        assert benchmark(base, stocked, tmp_path, methods=name) == 0
        ended, whole = (Results(place).of(name, "origin", 0) for place in (tmp_path / "tiny", done))
        # Directories are named by the hash of what is in them.
        assert [one.adapters for one in ended] == [one.adapters for one in whole]
        assert [one.cells for one in ended] == [one.cells for one in whole]


def test_the_report_says_that_nothing_is_served(done: Path, tmp_path: Path) -> None:
    """Each method has its lines in all tables, and a sentence explains a number of 0 adapters."""
    written = report(done, tmp_path).read_text(encoding="utf-8")
    assert all(written.count(f"| `{name}` |") == 5 for name in METHODS)
    assert NOT_SERVED in written


def test_another_family_is_refused_before_anything_is_done(
    base: Path, stocked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command ends with the reason, not an hour later."""
    other = tmp_path / "other"
    other.mkdir()
    for file in base.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    config = json.loads((other / "config.json").read_text(encoding="utf-8"))
    (other / "config.json").write_text(json.dumps(config | {"model_type": "llava_next"}), encoding="utf-8")
    assert benchmark(other, stocked, tmp_path, methods="prompt") == 2
    assert "LLaVA family, this is llava_next" in capsys.readouterr().out
    assert not (tmp_path / "tiny" / "results.jsonl").exists()

"""The doctor: what is wrong with a machine is said with what was found, what is needed and what to do."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from app import doctor, machine
from app.doctor import Check
from app.machine import TorchReport
from serving.settings import ServingSettings

GIB = doctor.GIBIBYTE
FITTING = TorchReport(torch="2.13.0+cpu", torchvision="0.28.0", transformers="5.19.0")


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        (doctor.python((3, 12, 1)), doctor.python((3, 10, 9))),
        (doctor.sqlite((3, 40, 1)), doctor.sqlite((3, 36, 0))),
        (doctor.processor("x86_64", frozenset({"avx2"})), doctor.processor("x86_64", frozenset({"sse2"}))),
        (doctor.memory(16 * GIB), doctor.memory(4 * GIB)),
        (doctor.disk(Path("/data"), 50 * GIB), doctor.disk(Path("/data"), 2 * GIB)),
        (doctor.packages(FITTING), doctor.packages(TorchReport(error="ImportError: no torch"))),
        (doctor.packages(FITTING), doctor.packages(TorchReport(torch="2.15.0", transformers="5.19.0"))),
        (doctor.vllm("0.32.0", "cpu", []), doctor.vllm("", "", [])),
        (doctor.vllm("0.32.0", "gpu", ["H200"]), doctor.vllm("0.32.0", "gpu", [])),
        (doctor.vllm("0.32.0", "cpu", ["H200"]), doctor.vllm("0.33.0", "cpu", ["H200"])),
        (doctor.gpu([], FITTING, "cpu"), doctor.gpu(["H200"], FITTING, "gpu")),
        (doctor.numa(found=True), doctor.numa(found=False)),
        (doctor.local(Path("/data"), "ext4"), doctor.local(Path("/data"), "nfs4")),
        (doctor.model("", "0.1.2"), doctor.model("embedded", "")),
        (doctor.model("llava-hf/llava-1.5-7b-hf", ""), doctor.model("/no/such/model", "0.1.2")),
    ],
)
def test_right_passes_and_wrong_is_explained(right: Check, wrong: Check) -> None:
    """Every judge accepts what works; of what does not it says what was found, what is needed and what to do."""
    assert right.ok
    assert str(right).startswith("ok ")
    assert not wrong.ok
    assert wrong.found
    assert wrong.needed
    assert wrong.fix
    for part in (wrong.found, wrong.needed, wrong.fix):
        assert part in str(wrong)


def test_a_bad_setting_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A setting that cannot be used is named together with its value."""
    monkeypatch.setenv("LLACA_VLLM_PORT", "many")
    check = doctor.settings_of(ServingSettings)
    assert not check.ok
    assert "LLACA_VLLM_PORT" in check.found
    assert "'many'" in check.found


def test_a_misspelt_setting_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable with our prefix that nothing reads is reported, and those of the learner count as known."""
    monkeypatch.setenv("LLACA_LEARNING_RATE", "0.0001")
    assert doctor.spelling().ok
    monkeypatch.setenv("LLACA_LERNING_RATE", "0.0001")
    check = doctor.spelling()
    assert not check.ok
    assert "LLACA_LERNING_RATE" in check.found


def test_a_port_in_use_is_wrong_unless_it_is_ours() -> None:
    """A port that another program listens on is reported; while the assistant runs, that program is the assistant."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        number = other.getsockname()[1]
        assert not doctor.port("LLACA_PORT", "127.0.0.1", number, running=False).ok
        assert doctor.port("LLACA_PORT", "127.0.0.1", number, running=True).ok
    assert doctor.port("LLACA_PORT", "127.0.0.1", number, running=False).ok


def test_a_directory_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    """A data directory that is still to be made is fine; one below /proc, where nothing can be made, is not."""
    assert doctor.writable(tmp_path / "new" / "data").ok
    assert not doctor.writable(Path("/proc/self/data")).ok


def test_the_file_system_is_that_of_the_nearest_mount() -> None:
    """The type of a file system is read from the mount that holds the path, not from the root's."""
    assert machine.filesystem(Path("/proc/self")) == "proc"


def test_the_command_fails_when_something_is_wrong(tmp_path: Path) -> None:
    """`llaca doctor --json` prints one JSON list of checks and exits with 1 if one of them is wrong."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        environment = {"LLACA_DATA_DIR": str(tmp_path), "LLACA_PORT": str(other.getsockname()[1])}
        command = [sys.executable, "-c", "from app.cli import main; main()", "doctor", "--json"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    wrong = [check["name"] for check in json.loads(done.stdout) if not check["ok"]]
    assert "LLACA_PORT" in wrong

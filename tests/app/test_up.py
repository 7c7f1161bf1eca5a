"""What `llaca up` promises: one command brings everything, prints the way in, heals, and stops cleanly."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from typer.testing import CliRunner

from app.cli import cli
from storage.settings import StorageSettings
from storage.store import Store
from tests.app.places import until
from tests.fake_vllm import FakeVLLM
from tests.ports import free_ports


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of an installation whose vLLM is the fake, started by somebody else."""
    with Store(StorageSettings(data_dir=tmp_path / "data")) as store:
        key = store.secret("vllm")
    with FakeVLLM(key=key) as fake:
        yield os.environ | {
            "LLACA_DATA_DIR": str(tmp_path / "data"),
            "LLACA_PORT": str(*free_ports(1)),
            "LLACA_START_VLLM": "false",
            "LLACA_REPLICAS": json.dumps([fake.url]),
        }


def test_up_from_first_start_to_stop(environment: dict[str, str], tmp_path: Path) -> None:
    """The printed link lets the first admin in; a killed web process comes back; SIGTERM leaves nothing behind."""
    output = tmp_path / "output"
    with output.open("w") as file:
        command = subprocess.Popen(
            [sys.executable, "-m", "app.cli", "up"], env=environment, stdout=file, stderr=subprocess.STDOUT
        )
    try:
        until(lambda: "Ctrl-C" in output.read_text(), seconds=120)
        link = re.search(r"http://127\.0\.0\.1:\d+/welcome/\S+", output.read_text())
        assert link is not None
        password = {"password": "a good long password", "again": "a good long password"}
        with httpx.Client(base_url=f"http://127.0.0.1:{environment['LLACA_PORT']}", timeout=60) as client:
            assert client.post(link[0], data=password).headers["location"] == "/"
            assert client.get("/health").json()["status"] == "ok"
            assert client.get("/v1/rounds").status_code == 200

        children = {child.cmdline()[-1]: child for child in psutil.Process(command.pid).children()}
        assert set(children) == {"serving", "learner", "app"}
        children["app"].kill()
        until(lambda: len(psutil.Process(command.pid).children()) == 3 and answers(environment), seconds=120)

        everybody = psutil.Process(command.pid).children(recursive=True)
        command.send_signal(signal.SIGTERM)
        assert command.wait(timeout=60) == 0
        gone, alive = psutil.wait_procs(everybody, timeout=5)
        assert alive == []
        assert len(gone) >= 3
    finally:
        command.kill()
        command.wait()


def answers(environment: dict[str, str]) -> bool:
    """Whether the web process serves its sign-in page."""
    try:
        return httpx.get(f"http://127.0.0.1:{environment['LLACA_PORT']}/login").is_success
    except httpx.HTTPError:
        return False


def test_a_second_up_on_the_same_data_is_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two supervisors on one data directory would start everything twice; the second says so and exits 1."""
    monkeypatch.setenv("LLACA_DATA_DIR", str(store.data_dir))
    with (store.data_dir / "up.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = CliRunner().invoke(cli, ["up"])
    assert done.exit_code == 1
    assert "runs already" in done.stderr


def test_a_port_in_use_is_said_before_anything_starts(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A taken port is one sentence that names the setting, not a log of restarts."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setenv("LLACA_DATA_DIR", str(store.data_dir))
        monkeypatch.setenv("LLACA_PORT", str(taken.getsockname()[1]))
        done = CliRunner().invoke(cli, ["up"])
    assert done.exit_code == 1
    assert "LLACA_PORT" in done.stderr
    assert "in use" in done.stderr


def test_a_port_in_use_leaves_temporary_files_alone(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever holds the port may be in the middle of an upload, so nothing of it is cleared away."""
    arriving = store.temporary() / "upload"
    arriving.write_bytes(b"half of a file")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setenv("LLACA_DATA_DIR", str(store.data_dir))
        monkeypatch.setenv("LLACA_PORT", str(taken.getsockname()[1]))
        assert CliRunner().invoke(cli, ["up"]).exit_code == 1
    assert arriving.read_bytes() == b"half of a file"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("LLACA_PROT", "8000", "did you mean LLACA_PORT"),
        ("LLACA_PORT", "many", "LLACA_PORT: found 'many'"),
        ("LLACA_EPOCHS", "0", "LLACA_EPOCHS: found '0'"),
        ("LLACA_MAX_LORA_RANK", "17", "LLACA_MAX_LORA_RANK: found '17'"),
        ("LLACA_HOLDOUT_SHARE", "1", "LLACA_HOLDOUT_SHARE: found '1'"),
    ],
)
def test_a_bad_setting_of_any_process_stops_the_start(
    store: Store, monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    """A setting that is misspelt or cannot be used is one sentence before anything starts, whoever reads it."""
    monkeypatch.setenv("LLACA_DATA_DIR", str(store.data_dir))
    monkeypatch.setenv(name, value)
    done = CliRunner().invoke(cli, ["up"])
    assert done.exit_code == 1
    assert said in done.stderr

"""A whole installation, started as a person would start it, with nothing faked: for the tests that need all of it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import httpx
import psutil

from storage.records import Role
from storage.settings import StorageSettings
from storage.store import Store
from tests.ports import free_ports

T = TypeVar("T")

UP_SECONDS = 480
PASSWORD = "a password for tests"


def eventually(look: Callable[[], T | None], *, seconds: float, what: str) -> T:
    """Look until something is there; fail after `seconds`, naming what was waited for."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if (found := look()) is not None:
            return found
        time.sleep(0.1)
    raise TimeoutError(f"{what}: not within {seconds} s")


class Installation:
    """`llaca up` in a data directory of its own; `client` speaks to it as an admin."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.store = Store(StorageSettings(data_dir=data_dir))
        self.port, self.vllm_port = free_ports(2)
        self.url = f"http://127.0.0.1:{self.port}"
        admin = self.store.users.create("ada", Role.ADMIN, PASSWORD)
        self.key = self.store.users.create_key(admin.id, "tests")
        self.client = httpx.Client(
            base_url=self.url, headers={"Authorization": f"Bearer {self.key}"}, timeout=120
        )
        self._up: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start everything and wait until it answers."""
        environment = os.environ | {
            "LLACA_DATA_DIR": str(self.data_dir),
            "LLACA_PORT": str(self.port),
            "LLACA_VLLM_PORT": str(self.vllm_port),
            # Short, so that the tests see a dead learner replaced without waiting half a minute.
            "LLACA_LEASE_SECONDS": "6",
            "LLACA_HEARTBEAT_SECONDS": "1",
            "LLACA_CHECKPOINT_EVERY_STEPS": "10",
            # So that every chat, whatever it is about, is answered by the weights that are swapped.
            "LLACA_GROUP_FLOOR": "0",
            # In bf16 the greedy words of a reply depend on how many replies share a batch.
            "LLACA_VLLM_ARGUMENTS": "--dtype float32",
            "LLACA_CHATS_PER_MINUTE": "100000",
            "LLACA_CHATS_PER_USER": "100",
            "LLACA_CHAT_WAIT_SECONDS": "300",
            "LLACA_UPLOADS_PER_MINUTE": "100",
        }
        with (self.data_dir / "up.log").open("wb") as output:
            self._up = subprocess.Popen(
                [sys.executable, "-m", "app.cli", "up"],
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self.wait_until_healthy()

    def stop(self) -> int:
        """Stop everything politely; return the exit status."""
        if self._up is None:
            return 0
        self._up.send_signal(signal.SIGTERM)
        code = self._up.wait(timeout=60)
        self.client.close()
        self.store.close()
        return code

    def wait_until_healthy(self, seconds: float = UP_SECONDS) -> None:
        """Wait until the web answers that all of it is well."""

        def healthy() -> bool | None:
            with contextlib.suppress(httpx.HTTPError):
                if self.client.get("/health").status_code == httpx.codes.OK:
                    return True
            if self._up is not None and self._up.poll() is not None:
                raise RuntimeError(f"llaca up ended: {self.logs()}")
            return None

        try:
            eventually(healthy, seconds=seconds, what="everything healthy")
        except TimeoutError as error:
            raise TimeoutError(f"{error}\n{self.logs()}") from error

    def process(self, *words: str) -> psutil.Process:
        """Return the running process of this installation whose command line has all of `words`."""

        def look() -> psutil.Process | None:
            if self._up is None:
                return None
            for child in psutil.Process(self._up.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    if set(words) <= set(child.cmdline()):
                        return child
            return None

        return eventually(look, seconds=30, what=f"a process {' '.join(words)}")

    def logs(self) -> str:
        """Return the ends of all logs, for a failing test to show."""
        paths = [self.data_dir / "up.log", *sorted((self.data_dir / "logs").glob("*.log"))]
        return "\n".join(f"--- {p.name}\n{p.read_text(errors='replace')[-2500:]}" for p in paths)

    def upload(self, name: str, jsonl: bytes) -> None:
        """Teach a dataset as the admin, so that it is queued at once."""
        answer = self.client.post(
            "/v1/files", files={"file": (f"{name}.jsonl", jsonl)}, data={"purpose": "fine-tune"}
        )
        assert answer.status_code == httpx.codes.OK, answer.text

    def start_round(self, **settings: object) -> int:
        """Ask for a round; return its number."""
        answer = self.client.post("/v1/rounds", json={"settings": settings})
        assert answer.status_code == httpx.codes.OK, answer.text
        return int(answer.json()["id"])

    def wait_for_round(self, round_id: int, *states: str, seconds: float = 600) -> dict[str, object]:
        """Wait until a round is in one of `states`; fail at once if it ended in another."""

        def look() -> dict[str, object] | None:
            found = self.client.get(f"/v1/rounds/{round_id}").raise_for_status().json()
            if found["state"] in states:
                return dict(found)
            if found["finished_at"]:
                raise AssertionError(f"round {round_id} ended as {found['state']}: {found}\n{self.logs()}")
            return None

        return eventually(look, seconds=seconds, what=f"round {round_id} {' or '.join(states)}")


@contextlib.contextmanager
def running(data_dir: Path) -> Iterator[Installation]:
    """Run an installation for the time of a `with` block."""
    installation = Installation(data_dir)
    installation.start()
    try:
        yield installation
    finally:
        installation.stop()

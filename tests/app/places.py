"""A whole web process on a free port, over a real store and the fake vLLM, for tests of the app."""

from __future__ import annotations

import base64
import io
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import uvicorn
from PIL import Image
from safetensors.numpy import save_file

from app.__main__ import server_options
from app.auth import COOKIE
from app.chat import Upstream
from app.main import build
from app.settings import AppSettings
from serving.client import VLLM
from serving.settings import ServingSettings
from storage.records import Decision, Role, RoundState, User, generation_name
from storage.settings import StorageSettings
from storage.store import Store
from tests.conftest import questions
from tests.fake_vllm import MATCHING_PREFIX, FakeVLLM

PASSWORD = "correct horse battery"
BROWSER = {"Accept": "text/html"}


@dataclass(frozen=True, kw_only=True)
class Place:
    """A running installation with one user and one API key per role."""

    url: str
    store: Store
    fake: FakeVLLM
    users: dict[Role, User]
    keys: dict[Role, str]

    def client(self, role: Role | None = Role.ADMIN, **options: Any) -> httpx.Client:
        """Return an HTTP client that carries the role's API key; None carries nothing."""
        headers = {} if role is None else {"Authorization": f"Bearer {self.keys[role]}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=10.0, **options)

    def browser(self, role: Role | None = None) -> httpx.Client:
        """Return a client that behaves like our own page in a browser, signed in if `role` is given."""
        same_origin = {"Origin": self.url, "Sec-Fetch-Site": "same-origin"}
        cookies = {} if role is None else {COOKIE: self.store.users.open_session(self.users[role].id)}
        return httpx.Client(base_url=self.url, headers=BROWSER | same_origin, cookies=cookies, timeout=10.0)


@contextmanager
def place(
    directory: Path, settings: AppSettings | None = None, fake: FakeVLLM | None = None
) -> Iterator[Place]:
    """Run a web process and a fake vLLM in threads until the block ends."""
    chosen = settings or AppSettings(chats_per_minute=10_000, uploads_per_minute=1000, logins_per_minute=1000)
    with Store(StorageSettings(data_dir=directory)) as store, fake or FakeVLLM() as running:
        users = {role: store.users.create(f"{role}-user", role) for role in Role}
        keys = {role: store.users.create_key(user.id, "test") for role, user in users.items()}
        upstream = Upstream([VLLM(running.url, running.key)], chosen, ServingSettings())
        with serving(build(store, upstream, chosen)) as url:
            yield Place(url=url, store=store, fake=running, users=users, keys=keys)


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """Serve an ASGI application on a free loopback port and yield its address."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    quick = {"log_level": "warning", "timeout_graceful_shutdown": 1}
    server = uvicorn.Server(uvicorn.Config(app, **(server_options(AppSettings()) | quick)))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    until(lambda: server.started)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=10)


def until(condition: Any, seconds: float = 10.0) -> None:
    """Wait until a condition holds; fail after a deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the awaited condition did not come true"
        time.sleep(0.005)


def promote(store: Store, admin: User, fake: FakeVLLM, directory: Path) -> str:
    """Carry a round to a promoted generation, load it in the fake server and return its name."""
    store.datasets.add("task", admin.id, questions(5), approved_by=admin.name)
    store.rounds.enqueue(admin.name)
    claimed = store.rounds.claim("test", 30)
    assert claimed is not None
    lease, champion = str(claimed.lease), store.generations.champion()
    store.rounds.prepare(claimed.id, lease, champion, "llaca", {})
    number = store.generations.publish(
        round_id=claimed.id, lease=lease, sha256=f"hash{claimed.id}", parent=champion, rank=8, manifest={}
    ).number
    for state in (RoundState.TRAINING, RoundState.EVALUATING, RoundState.JUDGING):
        store.rounds.advance(claimed.id, lease, state)
    store.rounds.set_verdict(claimed.id, lease, {"decision": Decision.PROMOTE, "reasons": ["better"]})
    store.rounds.advance(claimed.id, lease, RoundState.SWAPPING)
    load(fake, generation_name(number), directory / f"adapter{number}", number)
    store.generations.promote(round_id=claimed.id, lease=lease, candidate=number, expected=champion)
    return generation_name(number)


def load(fake: FakeVLLM, name: str, directory: Path, content: int) -> None:
    """Load an adapter whose bytes depend on `content` into the fake server."""
    directory.mkdir()
    save_file(
        {f"{MATCHING_PREFIX}a": np.full(2, content, np.float32)}, directory / "adapter_model.safetensors"
    )
    body = {"lora_name": name, "lora_path": str(directory)}
    headers = {"Authorization": f"Bearer {fake.key}"}
    httpx.post(f"{fake.url}/v1/load_lora_adapter", json=body, headers=headers, timeout=60).raise_for_status()


def png(side: int = 32, color: tuple[int, int, int] = (200, 30, 30)) -> bytes:
    """Return a small picture."""
    data = io.BytesIO()
    Image.new("RGB", (side, side), color).save(data, "PNG")
    return data.getvalue()


def data_url(data: bytes, media_type: str = "image/png") -> str:
    """Return bytes as a data URL."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def jsonl(count: int = 10, subject: str = "number") -> bytes:
    """Return a small dataset file in OpenAI's chat format."""
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"{subject} {n}?"},
                {"role": "assistant", "content": f"{n}!"},
            ]
        }
        for n in range(count)
    ]
    return "\n".join(json.dumps(row) for row in rows).encode()

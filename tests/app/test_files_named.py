"""What a signed-in person can reach by naming files in the events of the page: what was uploaded, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from gradio import processing_utils

from app.ui.sealed_blocks import check_files
from storage.errors import BadField
from storage.records import Role
from tests.app.places import Place, png


def named(path: str) -> dict[str, Any]:
    """Return a file as the page describes one."""
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


def sent(client: httpx.Client, handler: str, data: list[Any]) -> dict[str, Any]:
    """Send an event of the page, as anybody can who is signed in; return what came of it."""
    events = client.get("/config").json()["dependencies"]
    (index,) = [event["id"] for event in events if event["api_name"] == handler]
    join = {
        "data": data,
        "fn_index": index,
        "session_hash": f"{handler}-test",
        "event_data": None,
        "trigger_id": None,
    }
    assert client.post("/gradio_api/queue/join", json=join).status_code == httpx.codes.OK
    with client.stream("GET", "/gradio_api/queue/data", params={"session_hash": f"{handler}-test"}) as answer:
        for line in answer.iter_lines():
            said = json.loads(line.removeprefix("data: ")) if line else {}
            if said.get("msg") == "process_completed":
                return dict(said)
    raise AssertionError("the event was not answered")


@pytest.mark.parametrize("role", [Role.CHAT, Role.ADMIN])
@pytest.mark.parametrize(
    ("handler", "data"),
    [
        ("invite", lambda file: ["eve", file]),
        ("send", lambda file: [{"text": "read this", "files": [file]}, None]),
        ("submit", lambda file: [file, "a task"]),
        ("look_again", lambda file: [{"value": file}, ""]),
    ],
)
def test_a_file_of_the_server_is_not_given_out(here: Place, role: Role, handler: str, data: Any) -> None:
    """An event that names one of the server's own files is refused, and no copy can be downloaded."""
    secret = here.store.data_dir / "private.json"
    secret.write_text("[1, 2, 3]")
    with here.browser(role) as client:
        said = sent(client, handler, data(named(str(secret))))
    assert said["success"] is False
    assert "uploaded" in said["output"]["error"]
    copies = [path for path in here.store.temporary().rglob("*") if path.is_file()]
    assert not [path for path in copies if path.read_bytes() == secret.read_bytes()]
    assert secret.exists()


@pytest.mark.parametrize("handler", ["invite", "send"])
def test_an_address_is_not_fetched(here: Place, handler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An event that names an address where a file should be makes the server fetch nothing."""
    fetched = []

    async def get(url: str) -> httpx.Response:
        fetched.append(url)
        return httpx.Response(200, content=png())

    monkeypatch.setattr(processing_utils, "async_ssrf_protected_get", get)
    file = named("https://example.org/picture.png")
    data = ["eve", file] if handler == "invite" else [{"text": "", "files": [file]}, None]
    with here.browser(Role.CHAT) as client:
        assert sent(client, handler, data)["success"] is False
    assert fetched == []


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../secret", "x\0y", "http://a/b", "a" * 5000, "/dev/zero", ""]
)
def test_only_paths_below_the_uploads_are_files(path: str, tmp_path: Path) -> None:
    """Wherever it stands, what is no path below the uploads is refused, even one that leads out of them by dots."""
    inside = named(str(tmp_path / "hash" / "cat.png"))
    check_files([1, None, "path", {"files": [inside]}, {"path": 5}], tmp_path)
    for crooked in (path, f"{tmp_path}/../{path}"):
        with pytest.raises(BadField, match="uploaded"):
            check_files([{"files": [inside, {"deep": named(crooked)}]}], tmp_path)

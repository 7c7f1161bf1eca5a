"""Teaching over HTTP: files become datasets, an admin approves and starts rounds, everybody sees only their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from storage.records import Role
from tests.app.places import Place, jsonl, place, promote


def upload(client: Any, content: bytes, filename: str = "task.jsonl", **form: str) -> Any:
    """Upload a file as OpenAI's SDK does."""
    return client.post("/v1/files", files={"file": (filename, content)}, data={"purpose": "fine-tune"} | form)


def test_a_contributors_file_waits_for_an_admin(here: Place) -> None:
    """Upload, look, approve: the dataset goes from pending to queued, and its file says so."""
    with here.client(Role.CONTRIBUTOR) as contributor, here.client(Role.ADMIN) as admin:
        file = upload(contributor, jsonl(subject="colour"), name="colours").json()
        assert (file["status"], file["dataset_state"], file["report"]["accepted"]) == (
            "processed",
            "pending",
            10,
        )
        assert admin.post("/v1/rounds").json()["error"]["code"] == "nothing_to_learn"
        dataset = admin.post(f"/v1/datasets/{file['dataset']}/approve").json()
        assert (dataset["state"], dataset["name"], dataset["approved_by"]) == (
            "queued",
            "colours",
            "admin-user",
        )
        assert contributor.get(f"/v1/files/{file['id']}").json()["dataset_state"] == "queued"
        twice = admin.post(f"/v1/datasets/{file['dataset']}/approve")
        assert (twice.status_code, twice.json()["error"]["code"]) == (409, "wrong_state")


def test_the_same_file_twice_is_one(here: Place) -> None:
    """Uploading the same bytes again returns the first upload."""
    with here.client(Role.CONTRIBUTOR) as client:
        assert (
            upload(client, jsonl(subject="same")).json()["id"]
            == upload(client, jsonl(subject="same")).json()["id"]
        )


@pytest.mark.parametrize("content", [b"", b"\x00\x01nonsense", b'{"messages": []}'])
def test_a_file_that_cannot_be_used_is_400_with_its_report(here: Place, content: bytes) -> None:
    """The answer is an error in OpenAI's shape with the report beside it; the same report is found later."""
    with here.client(Role.CONTRIBUTOR) as client:
        answer = upload(client, content, "bad.jsonl")
        body = answer.json()
        assert (answer.status_code, body["error"]["param"]) == (400, "file")
        assert body["error"]["code"] == body["file"]["report"]["findings"][0]["code"]
        assert client.get(f"/v1/files/{body['file']['id']}").json()["status"] == "error"


def test_half_a_character_in_a_file_breaks_no_list(here: Place) -> None:
    """A key that UTF-8 cannot hold is reported as it was written, and everybody's lists go on working."""
    with here.client(Role.CONTRIBUTOR) as contributor, here.client(Role.ADMIN) as admin:
        answer = upload(contributor, rb'{"\ud800": 1, "\ud800": 2}')
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "file")
        for client in (contributor, admin):
            newest = client.get("/v1/files").json()["data"][0]
            assert newest["report"]["findings"][-1]["field"] == r"\ud800"


@pytest.mark.parametrize(
    "settings", [r'{"\ud800": 1}', r'{"rank": "\ud800"}', '{"rank": NaN}', '{"rank": 1e400}']
)
def test_settings_that_could_not_be_shown_are_refused(here: Place, settings: str) -> None:
    """Half characters and endless numbers, which JSON can spell, are 400 and store no round that breaks the list."""
    with here.client(Role.ADMIN) as client:
        body = f'{{"settings": {settings}}}'
        answer = client.post("/v1/rounds", content=body, headers={"Content-Type": "application/json"})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "settings")
        assert client.get("/v1/rounds").status_code == 200


@pytest.mark.parametrize(
    ("files", "data", "field"),
    [
        (None, {"purpose": "fine-tune"}, "file"),
        ({"file": ("a", b"x")}, {}, "purpose"),
        ({"file": ("a", b"x")}, {"purpose": "assistants"}, "purpose"),
        ({"file": ("a", b"x")}, {"purpose": "fine-tune", "name": "x" * 201}, "name"),
    ],
)
def test_bad_upload_forms_name_their_field(here: Place, files: Any, data: dict[str, str], field: str) -> None:
    """A missing or wrong part of the form is 400 and named."""
    with here.client(Role.ADMIN) as client:
        answer = client.post("/v1/files", files=files, data=data)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, field)


def test_others_uploads_do_not_exist(here: Place) -> None:
    """Another contributor's file and dataset are 404 and in no list; an admin sees them."""
    other = here.store.users.create("other", Role.CONTRIBUTOR)
    key = here.store.users.create_key(other.id, "k")
    with (
        here.client(Role.CONTRIBUTOR) as owner,
        here.client(None) as stranger,
        here.client(Role.ADMIN) as admin,
    ):
        stranger.headers["Authorization"] = f"Bearer {key}"
        file = upload(owner, jsonl(subject="mine")).json()
        for path in (f"/v1/files/{file['id']}", f"/v1/datasets/{file['dataset']}"):
            assert stranger.get(path).status_code == 404
            assert admin.get(path).status_code == 200
        assert stranger.get("/v1/files").json()["data"] == []
        assert stranger.get("/v1/datasets").json()["data"] == []


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("GET", "/v1/files/file-99", "unknown_submission"),
        ("GET", "/v1/files/nonsense", "unknown_submission"),
        ("GET", f"/v1/files/file-{2**63}", "unknown_submission"),
        ("GET", f"/v1/files/file-{'9' * 5000}", "unknown_submission"),
        ("GET", "/v1/datasets/99", "unknown_dataset"),
        ("GET", f"/v1/datasets/{2**63}", "unknown_dataset"),
        ("POST", "/v1/datasets/99/approve", "unknown_dataset"),
        ("POST", f"/v1/datasets/{2**63}/approve", "unknown_dataset"),
        ("GET", "/v1/rounds/99", "unknown_round"),
        ("GET", f"/v1/rounds/{2**63}", "unknown_round"),
        ("POST", "/v1/rounds/99/cancel", "unknown_round"),
        ("POST", f"/v1/rounds/{2**63}/cancel", "unknown_round"),
    ],
)
def test_what_is_not_there_is_404(here: Place, method: str, path: str, code: str) -> None:
    """An id that nothing has is 404 with its own code."""
    with here.client(Role.ADMIN) as client:
        answer = client.request(method, path)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, code)


@pytest.mark.parametrize(
    ("method", "path", "body", "field"),
    [
        ("POST", "/v1/rounds", {"policy": 5}, "policy"),
        ("POST", "/v1/rounds", {"policy": "../x"}, "policy"),
        ("POST", "/v1/rounds", {"settings": []}, "settings"),
        ("POST", "/v1/rounds", {"when": "now"}, "when"),
        ("POST", "/v1/generations/rollback", {"to": -1}, "to"),
        ("POST", "/v1/generations/rollback", {"to": "1"}, "to"),
        ("POST", "/v1/generations/rollback", {"to": 2**63}, "to"),
        ("POST", "/v1/generations/rollback", {"expected": 2**63}, "expected"),
        ("POST", "/v1/generations/rollback", {"x": 1}, "x"),
        ("GET", "/v1/rounds?limit=0", None, "limit"),
        ("GET", "/v1/rounds/x", None, "round_id"),
        ("GET", f"/v1/rounds/{'9' * 5000}", None, "round_id"),
        ("GET", f"/v1/rounds/1?after_event={'9' * 5000}", None, "after_event"),
        ("GET", "/v1/datasets/x", None, "dataset_id"),
    ],
)
def test_bad_fields_are_named(here: Place, method: str, path: str, body: Any, field: str) -> None:
    """Every other route, too, names the field that it cannot use."""
    with here.client(Role.ADMIN) as client:
        answer = client.request(method, path, json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, field), answer.text


def test_a_round_from_start_to_rollback(tmp_path: Path) -> None:
    """Start, cancel, watch, and roll back, all over HTTP."""
    with place(tmp_path / "data") as here, here.client(Role.ADMIN) as client:
        upload(client, jsonl())
        started = client.post("/v1/rounds", json={"policy": "ema"}).json()
        assert (started["state"], started["policy"], started["datasets"]) == ("queued", "ema", [1])
        assert client.post("/v1/rounds").json()["error"]["code"] == "round_in_progress"
        assert client.post(f"/v1/rounds/{started['id']}/cancel").json()["state"] == "cancelled"
        assert client.post(f"/v1/rounds/{started['id']}/cancel").status_code == 409

        name = promote(here.store, here.users[Role.ADMIN], here.fake, tmp_path)
        newest = client.get("/v1/rounds").json()["data"][0]
        shown = client.get(f"/v1/rounds/{newest['id']}").json()
        assert (shown["state"], shown["verdict"]["decision"]) == ("promoted", "promote")
        assert [event["kind"] for event in shown["events"]][-1] == "promoted"
        later = client.get(f"/v1/rounds/{newest['id']}?after_event={shown['events'][0]['id']}").json()
        assert len(later["events"]) == len(shown["events"]) - 1
        beyond = client.get(f"/v1/rounds/{newest['id']}?after_event={2**63}&after_step={2**63}").json()
        assert (beyond["events"], beyond["metrics"]) == ([], [])
        assert "lease" not in shown

        listed = client.get("/v1/generations").json()
        assert (listed["champion"], listed["data"][0]["name"], listed["data"][0]["serving"]) == (
            name,
            name,
            True,
        )
        assert "directory" not in listed["data"][0]
        assert client.get("/v1/matrix").json() == {
            "object": "matrix",
            "generations": [],
            "datasets": [],
            "values": [],
        }
        for expected in (7, 2**63 - 1):
            moved = client.post("/v1/generations/rollback", json={"expected": expected})
            assert (moved.status_code, moved.json()["error"]["code"]) == (409, "alias_moved")
        assert client.post("/v1/generations/rollback").json()["champion"] == "assistant@0"

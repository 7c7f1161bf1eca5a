"""What every request meets before any handler: identity, origin, size, and headers that keep browsers safe."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest

from app.auth import COOKIE
from app.guard import SMALL_BODY
from app.settings import AppSettings
from storage.records import Role
from tests.app.places import BROWSER, PASSWORD, Place, place


def test_a_browser_is_sent_to_sign_in_and_a_program_is_told(here: Place) -> None:
    """Without a session a page request is redirected to /login; an API request gets 401 in OpenAI's shape."""
    with here.client(None) as client:
        page = client.get("/", headers=BROWSER)
        api = client.get("/v1/models", headers=BROWSER)
    assert (page.status_code, page.headers["location"]) == (303, "/login")
    assert (api.status_code, api.headers["www-authenticate"]) == (401, "Bearer")
    assert api.json()["error"]["type"] == "authentication_error"


@pytest.mark.parametrize("value", ["Bearer wrong", "Bearer", "Basic YTpi", "llaca-x", ""])
def test_a_bad_key_is_not_saved_by_a_good_cookie(here: Place, value: str) -> None:
    """Whoever sends an Authorization header is judged by it alone."""
    with here.browser(Role.ADMIN) as client:
        assert client.get("/v1/models").status_code == 200
        assert client.get("/v1/models", headers={"Authorization": value}).status_code == 401


def test_a_disabled_user_is_locked_out_at_once(here: Place) -> None:
    """The next request of a disabled user fails, by session and by key."""
    user = here.store.users.create("leaver", Role.ADMIN)
    key, session = here.store.users.create_key(user.id, "k"), here.store.users.open_session(user.id)
    here.store.users.disable(user.id)
    with here.client(None) as client:
        assert client.get("/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code == 401
        assert client.get("/v1/models", headers={"Cookie": f"{COOKIE}={session}"}).status_code == 401


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"},
        {"Sec-Fetch-Site": "same-site"},
    ],
    ids=str,
)
def test_another_sites_page_cannot_use_our_cookie(here: Place, headers: dict[str, str]) -> None:
    """A changing request that a browser sends for another site is refused, though the cookie is good."""
    with here.browser(Role.ADMIN) as client:
        del client.headers["Origin"], client.headers["Sec-Fetch-Site"]
        answer = client.post("/v1/generations/rollback", headers=headers)
        sign_in = client.post("/login", data={"name": "x", "password": "y"}, headers=headers)
        own = client.post("/v1/generations/rollback", headers={"Origin": here.url})
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "foreign_origin")
    assert sign_in.status_code == 403
    assert own.status_code == 409


def test_a_key_needs_no_origin(here: Place) -> None:
    """An API key is never sent by a browser unasked, so scripts are not asked where they come from."""
    with here.client(Role.ADMIN) as client:
        answer = client.post("/v1/generations/rollback", headers={"Origin": "https://tool.example"})
    assert answer.json()["error"]["code"] == "nothing_to_roll_back"


@pytest.mark.parametrize("path", ["/", "/login", "/v1/models", "/nothing", "/theme.css"])
def test_every_answer_carries_safe_headers(here: Place, path: str) -> None:
    """Pages, API and refusals alike forbid framing, sniffing and remote content, and carry a request id."""
    with here.client(Role.ADMIN) as client:
        headers = client.get(path).headers
    assert "img-src 'self' data: blob:" in headers["content-security-policy"]
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert headers["x-frame-options"] == "DENY"
    assert headers["x-content-type-options"] == "nosniff"
    assert len(headers["x-request-id"]) == 16
    assert "server" not in headers or headers["server"] == "uvicorn"


def test_an_error_that_nobody_planned_is_answered_like_any_other(
    here: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is 500 in OpenAI's shape without its cause, with a request id and safe headers."""

    def fail(limit: int) -> None:
        raise RuntimeError("a secret path")

    monkeypatch.setattr(here.store.rounds, "list", fail)
    with here.client(Role.ADMIN) as client:
        answer = client.get("/v1/rounds")
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    assert "secret" not in answer.text
    assert len(answer.headers["x-request-id"]) == 16
    assert answer.headers["x-frame-options"] == "DENY"


def test_an_announced_body_that_is_too_large_is_not_read(here: Place) -> None:
    """413 comes at the headers when Content-Length says too much."""
    with here.client(Role.ADMIN) as client:
        answer = client.post("/v1/rounds", content=b"x" * (SMALL_BODY + 1))
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")


def test_an_unannounced_body_is_cut_off_at_the_limit(tmp_path: Path) -> None:
    """A chunked body is counted while it comes, and its sender gets 413 as well, on every kind of route."""
    small = AppSettings(chat_body_max_bytes=2000)
    with place(tmp_path / "data", settings=small) as tight, tight.client(Role.ADMIN) as client:
        for path in ("/v1/chat/completions", "/gradio_api/queue/join", "/v1/rounds"):
            answer = client.post(
                path, content=(b" " * 1000 for _ in range(300)), headers={"Content-Type": "application/json"}
            )
            assert answer.status_code == 413, path


def test_forwarded_headers_of_strangers_are_not_believed(here: Place) -> None:
    """X-Forwarded-… changes neither the addresses the page is built from, nor the cookie, nor whose attempts count."""
    lie = {"X-Forwarded-Host": "evil.example", "X-Forwarded-Proto": "https", "X-Forwarded-For": "1.2.3.4"}
    with here.browser(Role.CHAT) as client:
        config = client.get("/config", headers=lie).json()
    assert config["root"] == here.url
    here.store.users.set_password(here.users[Role.CHAT].id, PASSWORD)
    with httpx.Client(base_url=here.url, headers=lie) as client:
        data = {"name": here.users[Role.CHAT].name, "password": PASSWORD}
        cookie = client.post("/login", data=data).headers["set-cookie"]
    assert "secure" not in cookie.lower()


def test_websockets_are_refused(here: Place) -> None:
    """There is no websocket route, and the guard lets none through to Gradio."""
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version": "13",
    }
    with here.client(Role.ADMIN) as client:
        assert client.get("/", headers=upgrade).status_code in (403, 404)


def test_only_files_named_by_their_content_are_cached(here: Place) -> None:
    """A browser may keep Gradio's hashed files, and nothing else of what it gets."""
    with here.browser(Role.CHAT) as client:
        page = client.get("/")
        asset = re.search(r"/assets/[\w.-]+\.(?:js|css)", page.text)
        assert asset is not None
        assert "immutable" in client.get(asset[0]).headers["cache-control"]
        assert page.headers["cache-control"] == "no-store"
        assert client.get("/assets/absent.js").headers["cache-control"] == "no-store"

"""What the access table promises: every route, ours or Gradio's, is open to exactly the roles listed here."""

from __future__ import annotations

import http.client
import re
from collections.abc import Iterator
from typing import Any

import pytest

from app.access import rule_for
from app.chat import Upstream
from app.main import build
from app.settings import AppSettings
from serving.settings import ServingSettings
from storage.records import Role
from storage.settings import StorageSettings
from storage.store import Store
from tests.app.places import Place

ANYBODY = "anybody"
CLOSED = "closed"

OURS = {
    "GET /login": ANYBODY,
    "POST /login": ANYBODY,
    "POST /logout": ANYBODY,
    "GET /welcome/{token}": ANYBODY,
    "POST /welcome/{token}": ANYBODY,
    "GET /health": ANYBODY,
    "GET /openapi.json": Role.CHAT,
    "HEAD /openapi.json": Role.CHAT,
    "GET /blobs/{sha256}": Role.CHAT,
    "POST /v1/chat/completions": Role.CHAT,
    "GET /v1/models": Role.CHAT,
    "GET /v1/models/{model}": Role.CHAT,
    "POST /v1/files": Role.CONTRIBUTOR,
    "GET /v1/files": Role.CONTRIBUTOR,
    "GET /v1/files/{file_id}": Role.CONTRIBUTOR,
    "GET /v1/datasets": Role.CONTRIBUTOR,
    "GET /v1/datasets/{dataset_id}": Role.CONTRIBUTOR,
    "POST /v1/datasets/{dataset_id}/approve": Role.ADMIN,
    "GET /v1/rounds": Role.CONTRIBUTOR,
    "POST /v1/rounds": Role.ADMIN,
    "GET /v1/rounds/{round_id}": Role.CONTRIBUTOR,
    "POST /v1/rounds/{round_id}/cancel": Role.ADMIN,
    "GET /v1/matrix": Role.CONTRIBUTOR,
    "GET /v1/generations": Role.CONTRIBUTOR,
    "POST /v1/generations/rollback": Role.ADMIN,
    "GET /metrics": Role.ADMIN,
}
GRADIOS = {
    "GET /favicon.ico": ANYBODY,
    **dict.fromkeys(
        (
            "GET /",
            "HEAD /",
            "GET /config",
            "GET /config/",
            "GET /static/{path:path}",
            "GET /assets/{path:path}",
            "GET /svelte/{path:path}",
            "GET /theme.css",
            "GET /robots.txt",
            "GET /manifest.json",
            "GET /gradio_api/app_id",
            "GET /gradio_api/info",
            "GET /gradio_api/theme.css",
            "GET /gradio_api/startup-events",
            "GET /gradio_api/heartbeat/{session_hash}",
            "GET /gradio_api/file={path_or_url:path}",
            "HEAD /gradio_api/file={path_or_url:path}",
            "GET /gradio_api/queue/data",
            "GET /gradio_api/queue/status",
            "GET /gradio_api/upload_progress",
            "POST /gradio_api/queue/join",
            "POST /gradio_api/upload",
            "POST /gradio_api/cancel",
            "POST /gradio_api/reset",
        ),
        Role.CHAT,
    ),
}
TABLE: dict[str, str] = OURS | GRADIOS
"""Every other route that exists is CLOSED."""

WHO: tuple[Role | None, ...] = (None, *Role)


def routes_of(router: Any, prefix: str = "") -> Iterator[str]:
    """Yield `METHOD /path` of every route of an application and of what is mounted in it."""
    for route in router.routes:
        if hasattr(route, "methods"):
            yield from (f"{method} {prefix}{route.path}" for method in sorted(route.methods))
        else:
            yield from routes_of(route, prefix + route.path)


@pytest.fixture(scope="module")
def every_route(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The routes of a freshly built application."""
    with Store(StorageSettings(data_dir=tmp_path_factory.mktemp("routes"))) as store:
        settings = AppSettings()
        return set(routes_of(build(store, Upstream([], settings, ServingSettings()), settings)))


def test_every_listed_route_exists(every_route: set[str]) -> None:
    """The table lists nothing that is gone, so that a renamed route cannot leave its rule behind."""
    assert sorted(set(TABLE) - every_route) == []


def test_every_route_is_listed_or_closed(every_route: set[str]) -> None:
    """Each route's rule is the table's; a route that a new version of Gradio brings is closed until it is listed."""
    wrong = {}
    for route in every_route:
        method, path = sample(route)
        rule = rule_for(method, path)
        found = CLOSED if rule is None else rule.role or ANYBODY
        if found != TABLE.get(route, CLOSED):
            wrong[route] = found
    assert wrong == {}


def sample(route: str) -> tuple[str, str]:
    """Return method and a real path for a route's pattern."""
    method, _, path = route.partition(" ")
    values = {"sha256": "a" * 64, "path_or_url:path": "/tmp/x.png"}
    return method, re.sub(r"\{([^}]+)\}", lambda found: values.get(found[1], "1"), path)


@pytest.mark.parametrize("who", WHO, ids=str)
def test_roles_meet_exactly_their_routes(here: Place, every_route: set[str], who: Role | None) -> None:
    """Over the wire: the table's roles pass, lesser ones get 403, nobody gets 401, and closed routes do not exist."""
    wrong = {}
    with here.client(who) as client:
        # An answer to HEAD has no body that would say why; the test above compares those rules.
        for route in sorted(each for each in every_route if not each.startswith("HEAD")):
            method, path = sample(route)
            with client.stream(method, path) as answer:
                verdict = _verdict(answer)
            wanted = _wanted(TABLE.get(route, CLOSED), who)
            if verdict != wanted:
                wrong[route] = f"{verdict}, wanted {wanted}"
    assert wrong == {}


def _wanted(needed: str, who: Role | None) -> str:
    if needed in (ANYBODY, CLOSED):
        return "closed" if needed == CLOSED else "passed"
    if who is None:
        return "sign in"
    return "passed" if who.allows(Role(needed)) else "not allowed"


def _verdict(answer: Any) -> str:
    code = ""
    if answer.headers.get("content-type") == "application/json" and answer.status_code in (401, 403, 404):
        answer.read()
        code = answer.json().get("error", {}).get("code", "")
    return {"unknown_route": "closed", "not_signed_in": "sign in", "not_allowed": "not allowed"}.get(
        code, "passed"
    )


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=http://169.254.169.254/",
        "/gradio_api/file=https:example.org",
        "/gradio_api/file=//example.org/x",
        "/gradio_api/file=%68ttp://example.org",
        "/v1/../metrics",
        "/v1/models/../../metrics",
        "//metrics",
        "/metrics/",
        "/METRICS",
        "/blobs/../../etc/passwd",
        "/nothing",
    ],
)
def test_crooked_paths_are_closed(here: Place, path: str) -> None:
    """Addresses instead of files, dots, doubled slashes and other spellings reach nothing, even for an admin."""
    # Not httpx, which would straighten the path before sending it.
    connection = http.client.HTTPConnection(here.url.removeprefix("http://"), timeout=10)
    connection.request("GET", path, headers={"Authorization": f"Bearer {here.keys[Role.ADMIN]}"})
    assert connection.getresponse().status == 404
    connection.close()

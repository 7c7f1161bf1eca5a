"""Who may reach which route: one table for our routes and Gradio's together. What is not listed is closed.

Knows methods, paths and roles only; app/guard.py applies it to every request before any handler runs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from storage.records import Role

READ = ("GET", "HEAD")
WRITE = ("POST",)


@dataclass(frozen=True, slots=True)
class Rule:
    """Requests with one of `methods` whose path matches `pattern` need `role`; None means anybody."""

    methods: tuple[str, ...]
    pattern: re.Pattern[str]
    role: Role | None


def _rule(methods: tuple[str, ...], pattern: str, role: Role | None) -> Rule:
    return Rule(methods, re.compile(pattern), role)


RULES: tuple[Rule, ...] = (
    # Before sign-in.
    _rule(READ + WRITE, r"/login", None),
    _rule(READ + WRITE, r"/welcome/[\w-]+", None),
    _rule(WRITE, r"/logout", None),
    _rule(READ, r"/health", None),
    _rule(READ, r"/favicon\.ico", None),
    # The HTTP API.
    _rule(WRITE, r"/v1/chat/completions", Role.CHAT),
    _rule(READ, r"/v1/models(/[\w.@-]+)?", Role.CHAT),
    _rule(READ, r"/openapi\.json", Role.CHAT),
    _rule(READ + WRITE, r"/v1/files", Role.CONTRIBUTOR),
    _rule(READ, r"/v1/files/[\w-]+", Role.CONTRIBUTOR),
    _rule(READ, r"/v1/datasets", Role.CONTRIBUTOR),
    _rule(READ, r"/v1/datasets/[\w-]+", Role.CONTRIBUTOR),
    _rule(WRITE, r"/v1/datasets/[\w-]+/approve", Role.ADMIN),
    _rule(READ, r"/v1/rounds(/[\w-]+)?", Role.CONTRIBUTOR),
    _rule(WRITE, r"/v1/rounds(/[\w-]+/cancel)?", Role.ADMIN),
    _rule(READ, r"/v1/(matrix|generations)", Role.CONTRIBUTOR),
    _rule(WRITE, r"/v1/generations/rollback", Role.ADMIN),
    _rule(READ, r"/metrics", Role.ADMIN),
    # The page and what its script fetches. Gradio has more routes (proxy=, run/, call/, stream/, monitoring,
    # vibe-edit, run-history, deep_link, token, dev/reload, component_server): the page needs none of them.
    _rule(READ, r"/", Role.CHAT),
    _rule(READ, r"/config/?", Role.CHAT),
    _rule(READ, r"/(assets|static|svelte)/.+", Role.CHAT),
    _rule(READ, r"/(theme\.css|robots\.txt|manifest\.json)", Role.CHAT),
    _rule(
        READ,
        r"/gradio_api/(info|queue/data|queue/status|upload_progress|startup-events|theme\.css|app_id)",
        Role.CHAT,
    ),
    _rule(READ, r"/blobs/[0-9a-f]{64}", Role.CHAT),
    _rule(READ, r"/gradio_api/heartbeat/[\w-]+", Role.CHAT),
    # A file of the page's own cache; never an address, which Gradio would fetch on the caller's behalf.
    _rule(READ, r"/gradio_api/file=(?!\w+:|//|%|\\).+", Role.CHAT),
    _rule(WRITE, r"/gradio_api/(queue/join|upload|cancel|reset)", Role.CHAT),
)


def rule_for(method: str, path: str) -> Rule | None:
    """Return the first rule that covers the request, or None when the route is closed to everybody."""
    return next((r for r in RULES if method in r.methods and r.pattern.fullmatch(path)), None)

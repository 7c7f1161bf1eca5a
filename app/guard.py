"""What every request passes before any handler, ours or Gradio's: the access table, size limits, safe headers.

Knows requests only from outside. Does not parse bodies and knows nothing of chats.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import MutableMapping
from typing import Any

from fastapi import Request, Response
from fastapi.responses import RedirectResponse
from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.access import rule_for
from app.api.errors import error_response, unplanned_response
from app.auth import SAFE_METHODS, check_origin, identify
from app.settings import AppSettings
from storage.errors import LlacaError, NotAllowed, NotSignedIn, TooLarge, UnknownRoute
from storage.store import Store

LOG = logging.getLogger(__name__)

SMALL_BODY = 256 * 1024
FORM_OVERHEAD = 64 * 1024

# Gradio's page starts from inline scripts and compiles templates, hence 'unsafe-inline' and 'unsafe-eval'. Everything
# else stays on this server: text of the model that names a remote picture cannot carry anything out.
CONTENT_SECURITY_POLICY = (
    "default-src 'self'; "
    "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; "
    "font-src 'self' data:; "
    "media-src 'self' data: blob:; "
    "worker-src 'self' blob:; "
    "connect-src 'self'; "
    "object-src 'none'; "
    "base-uri 'self'; "
    "form-action 'self'; "
    "frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(self), microphone=(), geolocation=(), payment=()",
    "cache-control": "no-store",
}
HASHED = "/assets/"
"""Gradio's own files, whose names hold the hash of their content: a browser never needs to ask for one again."""
FORWARDED = (b"forwarded", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto", b"x-forwarded-server",
             b"x-forwarded-port", b"x-forwarded-prefix", b"x-real-ip")  # fmt: skip


class Guard:
    """ASGI middleware around the whole application; refuses what the access table does not allow."""

    def __init__(self, app: ASGIApp, store: Store, settings: AppSettings) -> None:
        self._app = app
        self._store = store
        self._body_limits = {
            "/v1/chat/completions": settings.chat_body_max_bytes,
            "/v1/files": store.settings.upload_max_bytes + FORM_OVERHEAD,
            "/gradio_api/upload": store.settings.upload_max_bytes + FORM_OVERHEAD,
            "/gradio_api/queue/join": settings.chat_body_max_bytes,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the request through, or answer it here."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # A proxy we trust has been heard already (uvicorn rewrote client and scheme); from here on nobody is believed,
        # because Gradio would build addresses from these headers whoever sent them.
        scope["headers"] = [pair for pair in scope["headers"] if pair[0] not in FORWARDED]
        request = Request(scope, receive)
        body = _LimitedBody(receive, self._body_limits.get(scope["path"], SMALL_BODY))
        answer = _Answer(send, scope["path"])
        try:
            self._admit(request, body)
            await body.run(self._app, scope, answer)
        except LlacaError as error:
            await _refusal(request, error)(scope, receive, answer)
        except Exception as error:
            if answer.started or isinstance(error, ClientDisconnect):
                raise
            # Answered here and not by Starlette, whose answer would pass by the headers.
            LOG.exception("%s %s failed, request %s", request.method, request.url.path, answer.request_id)
            await unplanned_response()(scope, receive, answer)

    def _admit(self, request: Request, body: _LimitedBody) -> None:
        path = request.scope["path"]
        rule = rule_for(request.method, path)
        if rule is None:
            raise UnknownRoute(f"{request.method} {path}")
        if rule.role is None:
            check_origin(request)
        else:
            user = identify(self._store, request)
            if not user.role.allows(rule.role):
                raise NotAllowed(user.role, rule.role)
            request.state.user = user
        body.check_declared(request.headers.get("content-length"))


class _LimitedBody:
    """Hands a request's body on until it grows over the limit; then answers 413 itself, whatever the handler does."""

    def __init__(self, receive: Receive, most: int) -> None:
        self._receive = receive
        self._most = most
        self._read = 0
        self._exceeded = False

    def check_declared(self, content_length: str | None) -> None:
        """Raise TooLarge if the request itself announces too much."""
        if content_length is not None and content_length.isdigit() and int(content_length) > self._most:
            raise self._error()

    async def run(self, app: ASGIApp, scope: Scope, send: Send) -> None:
        """Call the application with this body."""
        try:
            await app(scope, self._next, lambda message: self._pass_on(message, send))
        except ClientDisconnect:
            if not self._exceeded:
                raise
        if self._exceeded:
            await error_response(self._error())(scope, self._receive, send)

    async def _next(self) -> Message:
        if self._exceeded:
            return {"type": "http.disconnect"}
        message = await self._receive()
        self._read += len(message.get("body", b""))
        self._exceeded = self._read > self._most
        return {"type": "http.disconnect"} if self._exceeded else message

    async def _pass_on(self, message: MutableMapping[str, Any], send: Send) -> None:
        if not self._exceeded:
            await send(message)

    def _error(self) -> TooLarge:
        return TooLarge("The request", self._most, "bytes")


class _Answer:
    """Sends what a handler answers, with a number to find it by and the headers that keep browsers safe."""

    def __init__(self, send: Send, path: str) -> None:
        self.request_id = secrets.token_hex(8)
        self.started = False
        self._send = send
        self._path = path

    async def __call__(self, message: Message) -> None:
        """Send a message, as an ASGI application does."""
        if message["type"] == "http.response.start":
            self.started = True
            headers = MutableHeaders(scope=message)
            if self._path.startswith(HASHED) and message["status"] == 200:
                headers["cache-control"] = "private, max-age=31536000, immutable"
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
            headers["x-request-id"] = self.request_id
        await self._send(message)


def _refusal(request: Request, error: LlacaError) -> Response:
    browser = request.method in SAFE_METHODS and "text/html" in request.headers.get("accept", "")
    if isinstance(error, NotSignedIn) and browser and not request.url.path.startswith("/v1/"):
        return RedirectResponse("/login", status_code=303)
    return error_response(error)

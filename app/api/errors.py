"""How an error looks over HTTP: OpenAI's shape, and the one table of statuses.

Messages are the errors' own sentences; an error that nobody planned says nothing about the inside.
"""

from __future__ import annotations

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from storage import errors
from storage.errors import BadField, LlacaError, TooManyRequests, UnknownField

LOG = logging.getLogger(__name__)

STATUS: dict[type[LlacaError], int] = {
    errors.NotSignedIn: 401,
    errors.Refused: 403,
    errors.Missing: 404,
    errors.Conflict: 409,
    errors.TooLarge: 413,
    errors.TooManyRequests: 429,
    errors.BadField: 400,
    errors.UnknownField: 400,
    errors.BadUpload: 400,
    errors.UploadTooLarge: 413,
    errors.RequestRejected: 400,
    errors.ServingUnavailable: 503,
    errors.UnknownModel: 503,
    errors.AdapterChanged: 503,
    errors.ReplyInterrupted: 502,
}
"""The nearest class in an error's ancestry decides; every class of the tree finds one here or is answered 500."""

RETRY_SECONDS = "5"
"""Sent with 503: vLLM restarts and adapters load in seconds."""

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
    502: "upstream_error",
    503: "service_unavailable_error",
}


PART_TYPES = frozenset({"text", "image_url"})


OUTWARD: dict[type[LlacaError], str] = {
    errors.ServingUnavailable: "The model is not answering at the moment; it may be starting. Try again shortly.",
    errors.UnknownModel: "This generation is just being loaded. Try again shortly.",
    errors.ReplyInterrupted: "The reply broke off. Ask again.",
    errors.AdapterChanged: "The files of this generation were changed. An admin must restore them, or roll back.",
}
"""What strangers read instead of sentences that name our servers' addresses."""

UNPLANNED = "The server failed; its log says more."
"""What everybody reads of an error that nobody planned."""


def status_of(error: type[LlacaError]) -> int:
    """Return the HTTP status of a kind of error."""
    return next((STATUS[cls] for cls in error.__mro__ if cls in STATUS), 500)


def error_body(message: str, *, status: int, code: str, param: str | None = None) -> dict[str, Any]:
    """Return the JSON body of an error in OpenAI's shape."""
    return {
        "error": {"message": message, "type": TYPES.get(status, "server_error"), "param": param, "code": code}
    }


def body_of(error: LlacaError) -> dict[str, Any]:
    """Return the JSON body of one of our errors."""
    param = error.field if isinstance(error, BadField | UnknownField) else None
    return error_body(
        OUTWARD.get(type(error), str(error)), status=status_of(type(error)), code=error.code, param=param
    )


def error_response(error: LlacaError) -> Response:
    """Return the response for one of our errors."""
    headers = {}
    if isinstance(error, TooManyRequests):
        headers["Retry-After"] = str(error.retry_after)
    if status_of(type(error)) == 503:
        headers["Retry-After"] = RETRY_SECONDS
    if status_of(type(error)) == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(body_of(error), status_code=status_of(type(error)), headers=headers)


def unplanned_response() -> Response:
    """Return the response for an error that nobody planned."""
    return JSONResponse(error_body(UNPLANNED, status=500, code="internal_error"), status_code=500)


def field_error(problem: dict[str, Any]) -> BadField | UnknownField:
    """Turn the first problem that pydantic found into a sentence that names the field as the sender wrote it."""
    place = _place(problem["loc"])
    if problem["type"] == "extra_forbidden":
        return UnknownField(place)
    if problem["type"] == "missing":
        return BadField(place, None, "a value: the field is required")
    if problem["type"] == "json_invalid":
        return BadField("body", problem.get("ctx", {}).get("error"), "valid JSON")
    said = str(problem["msg"]).removeprefix("Value error, ").removeprefix("Input should be ")
    return BadField(place, problem.get("input"), said)


def _place(loc: tuple[int | str, ...]) -> str:
    """Write pydantic's location as people write it: `messages[0].content[1].image_url.url`."""
    place, parts = "", list(loc[1:] if loc and loc[0] in ("body", "query", "path") else loc)
    for before, part in zip([None, *parts], parts, strict=False):
        if isinstance(before, int) and part in PART_TYPES:
            continue  # not a field: the tag by which pydantic chose the kind of part
        place += f"[{part}]" if isinstance(part, int) else f".{part}" if place else str(part)
    return place or "body"


def install(app: FastAPI) -> None:
    """Make every error of every handler leave in this shape."""

    @app.exception_handler(LlacaError)
    async def ours(request: Request, error: LlacaError) -> Response:
        if status_of(type(error)) == 500:
            LOG.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return error_response(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return error_response(field_error(error.errors()[0]))

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> Response:
        body = error_body(str(error.detail), status=error.status_code, code="http_error")
        return JSONResponse(body, status_code=error.status_code, headers=error.headers)

"""POST /v1/chat/completions in OpenAI's shape; every chunk, body and header names the generation that answers."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from app.api.chat_request import ChatRequest, InlineImages, check_together, conversation_of, generation_wanted
from app.api.context import CurrentUser, InContext
from app.api.errors import body_of
from app.chat import Chunk, reply
from serving.client import Usage
from storage.errors import LlacaError

router = APIRouter(prefix="/v1", tags=["chat"])

GENERATION_HEADER = "X-LLaCA-Generation"
CLIENT_GONE = 499  # nobody reads it; nginx's word for it in access logs

T = TypeVar("T")


@router.post("/chat/completions")
async def complete(request: Request, body: ChatRequest, context: InContext, user: CurrentUser) -> Response:
    """Answer a conversation, whole or as a stream; the generation is fixed when the reply begins."""
    settings, upstream = context.settings, context.upstream
    check_together(body, settings.max_tokens)
    generation = generation_wanted(body.model)
    images = InlineImages()
    conversation = await asyncio.to_thread(
        conversation_of,
        body,
        images,
        context.store.settings,
        max_images=upstream.serving.max_images,
        max_chars=settings.text_max_chars,
    )
    chunks = reply(
        context.store,
        upstream,
        user,
        conversation,
        images=images,
        generation=generation,
        max_tokens=body.tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        seed=body.seed,
        stop=body.stops,
    )
    envelope = _Envelope(body.model)
    if not body.stream:
        whole = await _unless_gone(request, _collect(chunks))
        return Response(status_code=CLIENT_GONE) if whole is None else envelope.whole(whole)
    # The first piece is awaited here, so that whatever goes wrong before it has a status of its own.
    first = await _unless_gone(request, _first(chunks))
    if first is None:
        return Response(status_code=CLIENT_GONE)
    usage = body.stream_options is not None and body.stream_options.include_usage
    return StreamingResponse(
        envelope.stream(first, chunks, usage=usage),
        media_type="text/event-stream",
        headers={GENERATION_HEADER: first.generation},
    )


class _Envelope:
    """The fields that OpenAI's answers repeat: one id and time per request."""

    def __init__(self, model: str) -> None:
        self._common = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model,
        }

    def whole(self, chunks: list[Chunk]) -> Response:
        last = chunks[-1]
        reason = next((chunk.finish_reason for chunk in chunks if chunk.finish_reason), None)
        message = {"role": "assistant", "content": "".join(chunk.text for chunk in chunks), "refusal": None}
        body = self._common | {
            "object": "chat.completion",
            "generation": last.generation,
            "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": reason}],
            "usage": _usage(last.usage),
        }
        return JSONResponse(body, headers={GENERATION_HEADER: last.generation})

    async def stream(self, first: Chunk, rest: AsyncGenerator[Chunk], *, usage: bool) -> AsyncIterator[str]:
        common = self._common | {"object": "chat.completion.chunk", "generation": first.generation}
        async with aclosing(rest):
            last = first
            yield _event(common | _choice({"role": "assistant", "content": first.text}, first.finish_reason))
            try:
                async for last in rest:
                    if last.usage is None:
                        yield _event(common | _choice({"content": last.text}, last.finish_reason))
            except LlacaError as error:
                yield _event(body_of(error) | {"generation": first.generation})
                return
            if usage:
                yield _event(common | {"choices": [], "usage": _usage(last.usage)})
            yield "data: [DONE]\n\n"


def _choice(delta: dict[str, str], finish_reason: str | None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}]}


def _usage(usage: Usage | None) -> dict[str, int] | None:
    if usage is None:
        return None
    total = usage.prompt_tokens + usage.completion_tokens
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": total,
    }


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"


async def _first(chunks: AsyncGenerator[Chunk]) -> Chunk:
    return await anext(chunks)


async def _collect(chunks: AsyncGenerator[Chunk]) -> list[Chunk]:
    async with aclosing(chunks):
        return [chunk async for chunk in chunks]


async def _unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T | None:
    """Return the work's result, or cancel it and return None once the client has closed the connection."""
    working = asyncio.create_task(work)
    watching = asyncio.create_task(_gone(request))
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass

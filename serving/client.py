"""An async client of one vLLM server: chat, stream, adapters, metrics.

Every failure becomes one of our errors, and nothing is retried here: only a caller knows whether asking again
is right. Does not know generations, users or the alias; models are plain names.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
from prometheus_client.parser import text_string_to_metric_families

from storage.errors import AdapterRefused, ReplyInterrupted, RequestRejected, ServingUnavailable, UnknownModel

Messages = Sequence[dict[str, Any]]

IDLE_SECONDS = 2.0
"""How long an unused connection is kept. vLLM closes one after 5 s, which is httpx's own default, too: a request sent
just then is lost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a reply cost, in tokens."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A whole reply."""

    text: str
    finish_reason: str
    usage: Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """The next piece of a streamed reply; the last pieces say why it ended and what it cost."""

    text: str
    finish_reason: str | None = None
    usage: Usage | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprob:
    """How probable (natural logarithm) a model finds one token of a given text after what precedes it."""

    token_id: int
    text: str
    logprob: float


class VLLM:
    """One server. Close it with `aclose`, or use it in `async with`."""

    def __init__(self, url: str, key: str, timeout_seconds: float = 180.0) -> None:
        self.url = url.rstrip("/")
        self._http = httpx.AsyncClient(
            base_url=self.url,
            headers={"Authorization": f"Bearer {key}"},
            timeout=httpx.Timeout(timeout_seconds, connect=5.0),
            # Admission is decided before this client; a pool limit here would only be a second, invisible
            # queue.
            limits=httpx.Limits(
                max_connections=None, max_keepalive_connections=32, keepalive_expiry=IDLE_SECONDS
            ),
            # A proxy set for the outside world must not see prompts on their way to a server of ours.
            trust_env=False,
        )

    async def aclose(self) -> None:
        """Close all connections; running replies are aborted."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def healthy(self) -> bool:
        """Tell whether the server is up and its engine alive."""
        try:
            return (await self._http.get("/health", timeout=10.0)).status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False

    async def models(self) -> list[str]:
        """Return the names the server answers to, the base model first."""
        return [model["id"] for model in await self._models()]

    async def adapters(self) -> dict[str, Path]:
        """Return the loaded adapters by name with the directory each was loaded from."""
        return {
            model["id"]: Path(model["root"]) for model in await self._models() if model["parent"] is not None
        }

    async def load(self, name: str, directory: Path) -> None:
        """Load an adapter under a name not in use; raise AdapterRefused with the server's reason."""
        response = await self._post(
            "/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(directory.resolve())}
        )
        if response.status_code != httpx.codes.OK:
            raise AdapterRefused(name, _reason(response))

    async def unload(self, name: str) -> None:
        """Forget an adapter's name; replies that it is writing go on. An unknown name is no error."""
        response = await self._post("/v1/unload_lora_adapter", {"lora_name": name})
        if response.status_code not in (httpx.codes.OK, httpx.codes.NOT_FOUND):
            raise ServingUnavailable(self.url, _reason(response))

    async def chat(
        self,
        model: str,
        messages: Messages,
        *,
        max_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        stop: Sequence[str] = (),
    ) -> Reply:
        """Return one whole reply; None leaves a choice to the server.

        Raises ServingUnavailable, UnknownModel or RequestRejected. Cancelling the call aborts the request
        upstream.
        """
        body = _chat_body(model, messages, max_tokens, temperature, top_p, seed, stop)
        answer = await self._complete(body, model)
        choice = answer["choices"][0]
        return Reply(
            text=choice["message"]["content"] or "",
            finish_reason=choice["finish_reason"],
            usage=_usage(answer["usage"]),
        )

    async def stream(
        self,
        model: str,
        messages: Messages,
        *,
        max_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        stop: Sequence[str] = (),
    ) -> AsyncGenerator[Delta]:
        """Yield a reply as it is written; None leaves a choice to the server.

        Raises ServingUnavailable, UnknownModel or RequestRejected before the first text, ReplyInterrupted
        after it. Closing the iterator (`aclosing`) or cancelling its consumer aborts the request upstream.
        """
        body = _chat_body(model, messages, max_tokens, temperature, top_p, seed, stop)
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        begun = False
        try:
            async with self._http.stream("POST", "/v1/chat/completions", json=body) as response:
                if response.status_code != httpx.codes.OK:
                    await response.aread()
                    raise self._failure(response, model)
                async for event in _events(response):
                    for delta in _deltas(event):
                        begun = begun or bool(delta.text)
                        yield delta
        except (httpx.HTTPError, _BrokenStream) as error:
            # Until a word was seen, asking again cannot show anything twice.
            broken = ReplyInterrupted if begun else ServingUnavailable
            raise broken(self.url, _describe(error)) from error

    async def prompt_logprobs(self, model: str, messages: Messages) -> list[TokenLogprob]:
        """Return the log-probability of every token of a conversation but the first.

        The last message is the assistant's; the tokens end with its text, without the template's end of turn.
        Raises ServingUnavailable, UnknownModel or RequestRejected.
        """
        body = {
            "model": model,
            "messages": list(messages),
            "max_tokens": 1,
            "temperature": 0.0,
            "prompt_logprobs": 0,
            "add_generation_prompt": False,
            "continue_final_message": True,
        }
        answer = await self._complete(body, model)
        return [_token(entry) for entry in answer["prompt_logprobs"] if entry is not None]

    async def running(self, seconds: float = 5.0) -> set[str]:
        """Return the adapters that had running or waiting requests in the last `seconds`."""
        return _recently_running(await self._get("/metrics"), seconds)

    async def _models(self) -> list[dict[str, Any]]:
        response = await self._get("/v1/models")
        try:
            return [
                {name: model[name] for name in ("id", "root", "parent")} for model in response.json()["data"]
            ]
        except (ValueError, KeyError, TypeError) as error:
            # Something else answers at this address, a proxy's page perhaps.
            raise ServingUnavailable(self.url, "what answers there is no vLLM server") from error

    async def _complete(self, body: dict[str, Any], model: str) -> dict[str, Any]:
        response = await self._post("/v1/chat/completions", body)
        if response.status_code != httpx.codes.OK:
            raise self._failure(response, model)
        answer: dict[str, Any] = response.json()
        return answer

    async def _get(self, path: str) -> httpx.Response:
        try:
            response = await self._http.get(path)
        except httpx.HTTPError as error:
            raise ServingUnavailable(self.url, _describe(error)) from error
        if response.status_code != httpx.codes.OK:
            raise ServingUnavailable(self.url, _reason(response))
        return response

    async def _post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        try:
            response = await self._http.post(path, json=body)
        except httpx.HTTPError as error:
            raise ServingUnavailable(self.url, _describe(error)) from error
        if response.status_code == httpx.codes.UNAUTHORIZED:
            raise ServingUnavailable(self.url, "it was started with another key")
        return response

    def _failure(self, response: httpx.Response, model: str) -> Exception:
        if response.status_code == httpx.codes.NOT_FOUND:
            return UnknownModel(self.url, model)
        if response.status_code in (httpx.codes.BAD_REQUEST, httpx.codes.UNPROCESSABLE_ENTITY):
            return RequestRejected(_reason(response))
        return ServingUnavailable(self.url, _reason(response))


class _BrokenStream(Exception):
    """The server ended a stream with an error, or without saying that it was the end."""


def _chat_body(
    model: str,
    messages: Messages,
    max_tokens: int | None,
    temperature: float | None,
    top_p: float | None,
    seed: int | None,
    stop: Sequence[str],
) -> dict[str, Any]:
    wanted = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "seed": seed}
    body = {"model": model, "messages": list(messages), "stop": list(stop) or None, "n": 1} | wanted
    return {name: value for name, value in body.items() if value is not None}


async def _events(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """Yield the JSON of every server-sent event up to [DONE]; raise _BrokenStream if that never comes."""
    # Not aiter_lines: it also splits at U+2028 and its kind, which vLLM writes unescaped inside JSON strings.
    rest = b""
    async for piece in response.aiter_bytes():
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            data = line.strip().removeprefix(b"data:").strip()
            if data == b"[DONE]":
                return
            if data:
                yield json.loads(data)
    raise _BrokenStream("the stream ended early")


def _deltas(event: dict[str, Any]) -> list[Delta]:
    if "error" in event:
        raise _BrokenStream(event["error"]["message"])
    if event.get("usage") is not None:
        return [Delta(text="", usage=_usage(event["usage"]))]
    found = [
        Delta(text=choice["delta"].get("content") or "", finish_reason=choice["finish_reason"])
        for choice in event["choices"]
    ]
    return [delta for delta in found if delta.text or delta.finish_reason]


def _usage(usage: dict[str, Any]) -> Usage:
    return Usage(prompt_tokens=usage["prompt_tokens"], completion_tokens=usage["completion_tokens"])


def _token(entry: dict[str, dict[str, Any]]) -> TokenLogprob:
    ((token_id, found),) = entry.items()
    return TokenLogprob(token_id=int(token_id), text=found["decoded_token"], logprob=found["logprob"])


def _recently_running(response: httpx.Response, seconds: float) -> set[str]:
    """Read `vllm:lora_requests_info`, whose labels are the adapters in use and whose value is when they were.

    Old label sets are never removed, and after an abort the engine may stop without writing an empty one:
    only the time tells what is current. It is compared with the server's own clock, from the Date header.
    """
    since = parsedate_to_datetime(response.headers["date"]).timestamp() - seconds
    names: set[str] = set()
    for family in text_string_to_metric_families(response.text):
        for sample in family.samples:
            if sample.name == "vllm:lora_requests_info" and sample.value >= since:
                for label in ("running_lora_adapters", "waiting_lora_adapters"):
                    names.update(filter(None, sample.labels[label].split(",")))
    return names


def _reason(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {response.status_code} {response.text[:200]}".strip()


def _describe(error: Exception) -> str:
    return str(error) or type(error).__name__

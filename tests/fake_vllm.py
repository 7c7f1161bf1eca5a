"""An in-process stand-in for vLLM that copies its traps, for tests that need a server but no model.

Seen on vLLM 0.32 and copied here: success is plain text; a name in use gives 400, a missing directory or an
unknown model 404; an adapter whose tensor names do not match loads with 200 and does nothing; unloading
forgets the name while replies go on; changed bytes under the same name and path give the old answers;
`load_inplace` mixes two versions inside one reply; a restart forgets every adapter; metrics keep old label
sets and freeze after an abort.

Its "model" says words drawn from a hash of adapter and prompt. `speak` replaces that by any function of a
test's own.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import uvicorn
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from safetensors import safe_open

BASE = "assistant@0"
MATCHING_PREFIX = "base_model.model.model.language_model."
WORDS = ("sun", "moon", "tree", "car", "fish", "bird", "book", "king", "star", "rain", "snow", "fire")
DEFAULT_TOKENS = 24

Messages = list[dict[str, Any]]
Speak = Callable[[Path | None, Messages], str]


def weights_of(directory: Path) -> str:
    """Return what the fake takes for an adapter's effect: a hash of its bytes; "" if no name matches."""
    file = directory / "adapter_model.safetensors"
    with safe_open(file, framework="numpy") as tensors:
        matching = any(name.startswith(MATCHING_PREFIX) for name in tensors.keys())  # noqa: SIM118 - it is no mapping
    return hashlib.sha256(file.read_bytes()).hexdigest() if matching else ""


def word_for(weights: str, messages: Messages, position: int) -> str:
    """Return the word the fake model says at a position of its answer, the same one every time."""
    seed = f"{weights}|{json.dumps(messages)}|{position}"
    return WORDS[hashlib.sha256(seed.encode()).digest()[0] % len(WORDS)]


def logprobs_for(weights: str, messages: Messages, answer: str) -> list[float]:
    """Return the fake model's log-probability of every word of an answer."""
    seed = weights + json.dumps(messages)
    digests = [
        hashlib.sha256(f"{seed}|{n}|{word}".encode()).digest() for n, word in enumerate(answer.split())
    ]
    return [-(digest[0] + 1) / 32 for digest in digests]


@dataclass
class _Adapter:
    path: Path
    weights: str


@dataclass
class FakeVLLM:
    """A server on a free port of this machine; `with FakeVLLM() as fake` starts and stops it."""

    key: str = "key"
    speak: Speak | None = None
    """What to answer given the adapter's directory (None for the base) and the messages."""
    max_images: int = 4
    token_seconds: float = 0.0
    """Pause before every word of a reply."""
    port: int = 0
    healthy: bool = True
    """What /health says; tests may change it."""
    break_after: int | None = None
    """Cut streams off after this many words, as a dying server does."""
    adapters: dict[str, _Adapter] = field(default_factory=dict)
    active: list[str] = field(default_factory=list)
    """The models that are writing replies at this moment."""
    aborted: int = 0
    requests: list[dict[str, Any]] = field(default_factory=list)
    """Bodies of all chat requests."""
    calls: list[tuple[str, str]] = field(default_factory=list)
    """Every adapter call that succeeded: ("load" or "unload", name)."""

    def __post_init__(self) -> None:
        self._first_weights: dict[tuple[str, Path, str], str] = {}
        self._lora_info: dict[str, float] = {}
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Listen, on the same port as before if it was started before."""
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        self.port = listener.getsockname()[1]
        config = uvicorn.Config(self._app(), log_level="critical", lifespan="off")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [listener]}, daemon=True)
        self._thread.start()
        deadline = time.monotonic() + 60
        while not self._server.started:
            assert time.monotonic() < deadline, "the fake server did not start"
            time.sleep(0.01)

    def stop(self) -> None:
        """Stop listening, cutting off what is running, and forget every adapter as a real server does."""
        if self._server is None or self._thread is None:
            return
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(timeout=10)
        self._server = None
        self.adapters.clear()
        self.active.clear()
        self._first_weights.clear()
        self._lora_info.clear()

    def restart(self) -> None:
        """Stop and start again on the same port."""
        self.stop()
        self.start()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _app(self) -> FastAPI:
        app = FastAPI()
        app.add_api_route("/health", self._health, methods=["GET"])
        app.add_api_route("/metrics", self._metrics, methods=["GET"])
        guarded = APIRouter(prefix="/v1", dependencies=[Depends(self._guard)])
        guarded.add_api_route("/models", self._models, methods=["GET"])
        guarded.add_api_route("/load_lora_adapter", self._load, methods=["POST"])
        guarded.add_api_route("/unload_lora_adapter", self._unload, methods=["POST"])
        guarded.add_api_route("/chat/completions", self._chat, methods=["POST"], response_model=None)
        app.include_router(guarded)
        return app

    async def _guard(self, request: Request) -> None:
        # Like vLLM's key, it guards /v1 and nothing else.
        if request.headers.get("authorization") != f"Bearer {self.key}":
            raise HTTPException(401, "Unauthorized")

    async def _health(self) -> Response:
        return Response(status_code=200 if self.healthy else 503)

    async def _metrics(self) -> Response:
        head = "# TYPE vllm:lora_requests_info gauge\n"
        name, labels = (
            "vllm:lora_requests_info",
            'max_lora="4",running_lora_adapters="{}",waiting_lora_adapters=""',
        )
        lines = [f"{name}{{{labels.format(names)}}} {at}\n" for names, at in self._lora_info.items()]
        return PlainTextResponse(head + "".join(lines))

    async def _models(self) -> dict[str, Any]:
        loaded = [{"id": name, "root": str(a.path), "parent": BASE} for name, a in self.adapters.items()]
        return {"object": "list", "data": [{"id": BASE, "root": "/base", "parent": None}, *loaded]}

    async def _load(self, request: Request) -> Response:
        body = await request.json()
        name, path = body["lora_name"], Path(body["lora_path"])
        if name == BASE:
            return _error(400, f"The lora adapter '{name}' conflicts with a served base model.")
        if name in self.adapters and not body.get("load_inplace"):
            return _error(400, f"The lora adapter '{name}' has already been loaded.")
        if not (path / "adapter_model.safetensors").exists():
            return _error(404, f"Loading lora {name} failed: No adapter found for {path}", "NotFoundError")
        weights = weights_of(path)
        if name in self.adapters:
            self.adapters[name].weights = weights
        else:
            self.adapters[name] = _Adapter(path, weights)
        self.calls.append(("load", name))
        return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")

    async def _unload(self, request: Request) -> Response:
        name = (await request.json())["lora_name"]
        if name not in self.adapters:
            return _error(404, f"The lora adapter '{name}' cannot be found.", "NotFoundError")
        del self.adapters[name]
        self.calls.append(("unload", name))
        return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")

    async def _chat(self, request: Request) -> Response:
        body = await request.json()
        self.requests.append(body)
        model, messages = body["model"], body["messages"]
        if model != BASE and model not in self.adapters:
            return _error(404, f"The model `{model}` does not exist.", "NotFoundError")
        urls = [p["image_url"]["url"] for m in messages for p in _parts(m) if p["type"] == "image_url"]
        if len(urls) > self.max_images:
            return _error(400, f"At most {self.max_images} image(s) may be provided in one prompt.")
        if not all(url.startswith("data:") for url in urls):
            return _error(400, "The URL must be from one of the allowed domains: ['media.invalid'].")
        adapter = self.adapters.get(model)
        if body.get("prompt_logprobs") is not None:
            return self._logprobs(body, adapter)
        if body.get("stream"):
            return StreamingResponse(self._stream(body, adapter), media_type="text/event-stream")
        words = [word async for word in self._words(body, adapter)]
        return JSONResponse(
            {
                "model": model,
                "choices": [
                    {
                        "index": 0,
                        "message": {"content": " ".join(words)},
                        "finish_reason": self._reason(body, words),
                    }
                ],
                "usage": _usage(words),
            }
        )

    def _weights(self, model: str, adapter: _Adapter | None, messages: Messages) -> str:
        """Return the weights that answer: for a prompt seen before, those it was seen with."""
        if adapter is None:
            return ""
        seen = (model, adapter.path, json.dumps(messages))
        return self._first_weights.setdefault(seen, adapter.weights)

    async def _words(self, body: dict[str, Any], adapter: _Adapter | None) -> AsyncGenerator[str]:
        model, messages = body["model"], body["messages"]
        most = body.get("max_tokens") or DEFAULT_TOKENS
        spoken = None
        if self.speak is not None:
            spoken = self.speak(adapter.path if adapter else None, messages).split(" ")[:most]
        first = self._weights(model, adapter, messages)
        loaded = adapter.weights if adapter else ""
        self.active.append(model)
        try:
            for n in range(len(spoken) if spoken is not None else most):
                self._engine_step()
                await asyncio.sleep(self.token_seconds)
                # load_inplace changes the adapter under a running reply; unload only forgets its name.
                weights = adapter.weights if adapter and adapter.weights != loaded else first
                yield spoken[n] if spoken is not None else word_for(weights, messages, n)
        except (asyncio.CancelledError, GeneratorExit):
            # Aborted: the engine has nothing more to do and writes no further metrics.
            self.aborted += 1
            self.active.remove(model)
            raise
        self.active.remove(model)
        self._engine_step()

    async def _stream(self, body: dict[str, Any], adapter: _Adapter | None) -> AsyncIterator[str]:
        words: list[str] = []
        yield _event({"choices": [_choice({"role": "assistant", "content": ""}, None)]})
        source = self._words(body, adapter)
        try:
            async for word in source:
                if self.break_after is not None and len(words) >= self.break_after:
                    return
                words.append(word)
                yield _event(
                    {"choices": [_choice({"content": word if len(words) == 1 else f" {word}"}, None)]}
                )
        finally:
            await source.aclose()
        yield _event({"choices": [_choice({"content": ""}, self._reason(body, words))]})
        yield _event({"choices": [], "usage": _usage(words)})
        yield "data: [DONE]\n\n"

    def _logprobs(self, body: dict[str, Any], adapter: _Adapter | None) -> Response:
        *prompt, last = body["messages"]
        answer = "".join(part["text"] for part in _parts(last))
        values = logprobs_for(self._weights(body["model"], adapter, prompt), prompt, answer)
        tokens: list[dict[str, Any] | None] = [
            {str(n): {"logprob": value, "rank": 1, "decoded_token": word}}
            for n, (word, value) in enumerate(zip(answer.split(), values, strict=True))
        ]
        before = {"1": {"logprob": -0.5, "rank": 1, "decoded_token": "\n"}}
        return JSONResponse({"choices": [], "prompt_logprobs": [None, before, *tokens]})

    def _reason(self, body: dict[str, Any], words: list[str]) -> str:
        cut = self.speak is None or len(words) == body.get("max_tokens")
        return "length" if cut else "stop"

    def _engine_step(self) -> None:
        """Write down which adapters are at work, as the engine does at every step and never between."""
        names = ",".join(sorted({name for name in self.active if name != BASE}))
        self._lora_info[names] = time.time()


def _parts(message: dict[str, Any]) -> list[dict[str, Any]]:
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _choice(delta: dict[str, str], reason: str | None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "finish_reason": reason}


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"


def _usage(words: list[str]) -> dict[str, int]:
    return {"prompt_tokens": 7, "completion_tokens": len(words), "total_tokens": 7 + len(words)}


def _error(status: int, message: str, kind: str = "InvalidUserInput") -> Response:
    return JSONResponse(
        {"error": {"message": message, "type": kind, "param": None, "code": status}}, status_code=status
    )

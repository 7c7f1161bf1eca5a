"""The one pathway of a reply, for the HTTP API and the page alike: admit, pin a generation, stream, keep, count.

Does not know HTTP or Gradio, and does not check what a person typed: callers hand over a clean conversation.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self

from app.limits import Admission
from app.metrics import ChatMetrics
from app.settings import AppSettings
from serving.client import VLLM, Delta, Usage
from serving.messages import Images, openai_messages
from serving.replica import ensure_loaded
from serving.router import served_name
from serving.settings import ServingSettings
from storage.errors import (
    AdapterChanged,
    AdapterRefused,
    LlacaError,
    RequestRejected,
    ServingUnavailable,
    UnknownConversation,
    UnknownGeneration,
    UnknownModel,
)
from storage.generations import BASE
from storage.records import Conversation, Part, User, generation_name, generation_number, text_part
from storage.store import Store

VLLM_SECRET = "vllm"


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """A piece of a reply: the new text, the generation that writes it, and at the end why it ended and what it used."""

    text: str
    generation: str
    finish_reason: str | None = None
    usage: Usage | None = None


class Upstream:
    """Every vLLM replica, the door in front of them, and what is counted there."""

    def __init__(self, replicas: Sequence[VLLM], settings: AppSettings, serving: ServingSettings) -> None:
        self.replicas = list(replicas)
        self.serving = serving
        self.max_tokens = settings.max_tokens
        self.admission = Admission(settings)
        self.metrics = ChatMetrics(self.admission)
        self._busy = dict.fromkeys(range(len(self.replicas)), 0)

    @classmethod
    def connect(cls, store: Store, settings: AppSettings, serving: ServingSettings) -> Upstream:
        """Return the way to every replica that the settings name, with the key that they were started with."""
        key = store.secret(VLLM_SECRET)
        replicas = [VLLM(url, key, serving.reply_timeout_seconds) for url in serving.replicas]
        return cls(replicas, settings, serving)

    @contextmanager
    def least_busy(self, avoid: set[int]) -> Iterator[tuple[int, VLLM]]:
        """Hold the replica with the fewest replies, one that has not just failed if there is such a one."""
        number = min(self._busy, key=lambda n: (n in avoid, self._busy[n]))
        self._busy[number] += 1
        try:
            yield number, self.replicas[number]
        finally:
            self._busy[number] -= 1

    async def aclose(self) -> None:
        """Close the connections to every replica."""
        for replica in self.replicas:
            await replica.aclose()


async def reply(
    store: Store,
    vllm: Upstream,
    user: User,
    conversation: Conversation,
    *,
    images: Images | None = None,
    conversation_id: int | None = None,
    generation: int | None = None,
    max_tokens: int | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    stop: Sequence[str] = (),
) -> AsyncGenerator[Chunk]:
    """Yield the answer to a conversation piece by piece; consume it with `aclosing`, so that stopping stops vLLM.

    `generation` None means the champion at the moment of admission; the whole reply comes from that one generation,
    with instruction groups from the adapter that its router chooses.
    With `conversation_id` the answer is kept there, as interrupted if it broke off or the reader left; without it
    nothing is kept. Pictures are read from `images`, else from the store. Raises, before the first piece,
    TooManyRequests, UnknownGeneration, RequestRejected, UnknownModel and ServingUnavailable; after it ReplyInterrupted.
    """
    with _Answer(store, vllm.metrics, user, conversation_id) as answer:
        async with vllm.admission.admit(str(user.id)):
            messages = await asyncio.to_thread(openai_messages, conversation, images or store.blobs)
            most: int | None = max_tokens or vllm.max_tokens
            failed: set[int] = set()
            while not answer.complete:
                pinned = _pin(store, generation)
                name = generation_name(pinned)
                model = await asyncio.to_thread(served_name, store.generations, pinned, conversation)
                with vllm.least_busy(failed) as (number, replica):
                    if failed:
                        await _load(store, replica, model)
                    stream = replica.stream(
                        model,
                        messages,
                        max_tokens=most,
                        temperature=temperature,
                        top_p=top_p,
                        seed=seed,
                        stop=list(stop),
                    )
                    try:
                        async with aclosing(stream) as deltas:
                            async for delta in deltas:
                                yield answer.add(name, delta)
                        await answer.finish()
                    except (UnknownModel, ServingUnavailable):
                        # Nothing was said yet. The champion may just have moved on and its old name be gone, or the new
                        # one not be loaded, or this replica be restarting: look again, once, and elsewhere if there is
                        # an elsewhere.
                        if failed:
                            raise
                        failed.add(number)
                    except RequestRejected:
                        # Our own limit is only a wish: if the context has less room left, the reply may use that room.
                        if max_tokens is not None or most is None:
                            raise
                        most = None


def _pin(store: Store, generation: int | None) -> int:
    """Return the number that answers; raise UnknownGeneration for one that no replica is asked to keep loaded."""
    if generation is None:
        return store.generations.champion()
    if generation != BASE and generation not in store.generations.serve_set():
        raise UnknownGeneration(generation_name(generation))
    return generation


async def _load(store: Store, replica: VLLM, model: str) -> None:
    """Load what is to answer where it is missing, as it is after a roll-back until the reconciler looks again."""
    number = generation_number(model)
    if number is None or number == BASE:
        return
    generation = await asyncio.to_thread(store.generations.get, number)
    # What is refused here the reconciler complains of; the reader is told that it is not loaded.
    with suppress(AdapterChanged, AdapterRefused):
        await ensure_loaded(replica, generation)


class _Answer:
    """A reply as it grows: counts it, and keeps it however it ends."""

    def __init__(self, store: Store, metrics: ChatMetrics, user: User, conversation_id: int | None) -> None:
        self._store = store
        self._metrics = metrics
        self._user = user
        self._conversation_id = conversation_id
        self._text = ""
        self._generation = ""
        self._began = time.monotonic()
        self.complete = False

    def __enter__(self) -> Self:
        return self

    def add(self, generation: str, delta: Delta) -> Chunk:
        """Take the next piece and return it with its generation."""
        if not self._generation:
            self._metrics.first_token.observe(time.monotonic() - self._began)
        self._generation = generation
        self._text += delta.text
        if delta.usage is not None:
            self._metrics.tokens.labels("prompt").inc(delta.usage.prompt_tokens)
            self._metrics.tokens.labels("completion").inc(delta.usage.completion_tokens)
        return Chunk(
            text=delta.text, generation=generation, finish_reason=delta.finish_reason, usage=delta.usage
        )

    async def finish(self) -> None:
        """Keep the whole reply."""
        self.complete = True
        self._metrics.replies.labels(self._generation, "complete").inc()
        keeping = asyncio.create_task(asyncio.to_thread(self._keep, "complete"))
        try:
            await asyncio.shield(keeping)
        finally:
            # Also if it is broken off just now: a question that is taken back then must not leave its answer behind.
            await asyncio.wait([keeping])

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.complete:
            return
        if not self._generation:
            if isinstance(error, LlacaError):
                self._metrics.refused.labels(error.code).inc()
            return
        outcome = "interrupted" if isinstance(error, LlacaError) else "stopped"
        self._metrics.replies.labels(self._generation, outcome).inc()
        if self._text:
            # Not in a thread: a task that is being cancelled may not wait for anything.
            self._keep("interrupted")

    def _keep(self, state: Literal["complete", "interrupted"]) -> None:
        if self._conversation_id is None:
            return
        content: list[Part] = [text_part(self._text)] if self._text else []
        with suppress(UnknownConversation):  # its owner may delete it while the reply is being written
            self._store.conversations.append(
                self._conversation_id,
                self._user.id,
                "assistant",
                content,
                generation=self._generation,
                state=state,
            )

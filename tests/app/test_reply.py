"""What the reply pathway promises: one generation per reply, one second look, and every answer kept however it ends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from app.chat import Chunk, Upstream, reply
from app.settings import AppSettings
from serving.client import VLLM, Delta, Messages
from serving.settings import ServingSettings
from storage.errors import (
    ReplyInterrupted,
    RequestRejected,
    ServingUnavailable,
    UnknownGeneration,
    UnknownModel,
)
from storage.records import Conversation, User, text_of, text_part
from storage.store import Store
from tests.app.places import promote, until
from tests.fake_vllm import FakeVLLM
from tests.serving.adapters import grouped
from tests.serving.test_reconcile import promoted

ASKED: Conversation = [{"role": "user", "content": [text_part("Hello")]}]


@pytest.fixture
def fake() -> Iterator[FakeVLLM]:
    """A fake vLLM with nothing loaded."""
    with FakeVLLM(token_seconds=0.002) as running:
        yield running


@pytest.fixture
async def upstream(fake: FakeVLLM) -> AsyncIterator[Upstream]:
    """The way to the fake."""
    connected = Upstream([VLLM(fake.url, fake.key)], AppSettings(), ServingSettings())
    yield connected
    await connected.aclose()


async def whole(store: Store, upstream: Upstream, user: User, **options: Any) -> list[Chunk]:
    """Return every piece of a reply."""
    return [chunk async for chunk in reply(store, upstream, user, ASKED, **options)]


def counted(upstream: Upstream, name: str, *labels: str) -> float:
    """Return a counter's value."""
    values = {"replies": upstream.metrics.replies, "refused": upstream.metrics.refused}[name]
    return float(values.labels(*labels)._value.get())


async def test_a_whole_reply_is_kept(store: Store, admin: User, upstream: Upstream) -> None:
    """The pieces' text is stored as one message with its generation, complete, and counted."""
    talk = store.conversations.create(admin.id)
    chunks = await whole(store, upstream, admin, conversation_id=talk.id, max_tokens=5)
    (kept,) = store.conversations.messages(talk.id, admin.id)
    assert text_of({"role": "assistant", "content": kept.content}) == "".join(chunk.text for chunk in chunks)
    assert (kept.generation, kept.state, kept.role) == ("assistant@0", "complete", "assistant")
    assert {chunk.generation for chunk in chunks} == {"assistant@0"}
    assert counted(upstream, "replies", "assistant@0", "complete") == 1


async def test_a_reply_that_breaks_off_is_kept_as_interrupted(
    store: Store, admin: User, upstream: Upstream, fake: FakeVLLM
) -> None:
    """What came before vLLM died stays, marked; nothing is asked twice."""
    fake.break_after = 3
    talk = store.conversations.create(admin.id)
    with pytest.raises(ReplyInterrupted):
        await whole(store, upstream, admin, conversation_id=talk.id)
    (kept,) = store.conversations.messages(talk.id, admin.id)
    assert kept.state == "interrupted"
    assert len(text_of({"role": "assistant", "content": kept.content}).split()) == 3
    assert len(fake.requests) == 1
    assert counted(upstream, "replies", "assistant@0", "interrupted") == 1


async def test_a_reader_who_leaves_stops_vllm_and_keeps_the_text(
    store: Store, admin: User, upstream: Upstream, fake: FakeVLLM
) -> None:
    """Closing the reply aborts it upstream, frees the place and keeps what was written."""
    talk = store.conversations.create(admin.id)
    fake.token_seconds = 0.1
    async with aclosing(
        reply(store, upstream, admin, ASKED, conversation_id=talk.id, max_tokens=200)
    ) as chunks:
        async for _ in chunks:
            break
    (kept,) = store.conversations.messages(talk.id, admin.id)
    assert kept.state == "interrupted"
    assert upstream.admission.running == 0
    until(lambda: fake.aborted == 1)
    assert counted(upstream, "replies", "assistant@0", "stopped") == 1


async def test_a_conversation_deleted_meanwhile_is_no_error(
    store: Store, admin: User, upstream: Upstream
) -> None:
    """Its owner may delete a conversation while the answer is being written."""
    talk = store.conversations.create(admin.id)
    async for _ in reply(store, upstream, admin, ASKED, conversation_id=talk.id, max_tokens=5):
        if store.conversations.list(admin.id):
            store.conversations.delete(talk.id, admin.id)


async def test_a_champion_that_moved_is_looked_up_again(
    store: Store, admin: User, fake: FakeVLLM, tmp_path: Path
) -> None:
    """When the pinned name is gone before the first word, the new champion answers and nobody notices."""
    promote(store, admin, fake, tmp_path)
    name = promote(store, admin, fake, tmp_path)
    del fake.adapters[name]
    upstream = Upstream([SwappedMeanwhile(fake, store)], AppSettings(), ServingSettings())
    chunks = await whole(store, upstream, admin, max_tokens=3)
    assert {chunk.generation for chunk in chunks} == {"assistant@1"}
    assert [request["model"] for request in fake.requests] == [name, "assistant@1"]
    await upstream.aclose()


class SwappedMeanwhile(VLLM):
    """A server whose champion is rolled back between a reply's admission and its first request."""

    def __init__(self, fake: FakeVLLM, store: Store) -> None:
        super().__init__(fake.url, fake.key)
        self._store = store

    async def stream(self, model: str, messages: Messages, **options: Any) -> AsyncGenerator[Delta]:
        """Roll back once, then pass on."""
        if self._store.generations.champion() == 2:
            self._store.generations.roll_back("test")
        async for delta in super().stream(model, messages, **options):
            yield delta


async def test_a_champion_that_cannot_be_loaded_is_asked_for_twice(
    store: Store, admin: User, upstream: Upstream, fake: FakeVLLM, tmp_path: Path
) -> None:
    """Its directory is gone: after one second look the caller is told; the refusal is counted."""
    del fake.adapters[promote(store, admin, fake, tmp_path)]
    with pytest.raises(UnknownModel):
        await whole(store, upstream, admin)
    assert len(fake.requests) == 2
    assert counted(upstream, "refused", "unknown_model") == 1


async def test_after_a_roll_back_to_what_is_not_loaded_the_reply_comes_from_it(
    store: Store, admin: User, upstream: Upstream, fake: FakeVLLM, tmp_path: Path
) -> None:
    """Who chats in the seconds until the reconciler looks waits for the weights to be loaded, and gets no error."""
    for seed in (1, 2, 3):
        promoted(store, admin, tmp_path / str(seed), seed)
    store.generations.roll_back(admin.name, to=1)
    replies = await asyncio.gather(*(whole(store, upstream, admin, max_tokens=3) for _ in range(3)))
    assert {chunk.generation for chunks in replies for chunk in chunks} == {"assistant@1"}
    assert fake.calls == [("load", "assistant@1")]


async def test_with_instruction_groups_the_question_chooses_the_adapter(
    store: Store, admin: User, upstream: Upstream, fake: FakeVLLM, tmp_path: Path
) -> None:
    """Each question goes to the adapter of its group, the base model below the floor; all are the generation's."""
    first, second = (promote(store, admin, fake, tmp_path) for _ in range(2))
    word, letter = "Answer with a single word.", "Choose the letter of an option."
    manifest = {"groups": grouped(store.generations.get(2).directory, [word, letter], [1, None], floor=0.3)}
    store.database.run("UPDATE generations SET manifest = ? WHERE number = 2", [json.dumps(manifest)])
    for question, model in ((f"Dog?\n{word}", first), (f"Dog?\n{letter}", second), ("你好", "assistant@0")):
        asked: Conversation = [{"role": "user", "content": [text_part(question)]}]
        chunks = [chunk async for chunk in reply(store, upstream, admin, asked, max_tokens=3)]
        assert fake.requests[-1]["model"] == model
        assert {chunk.generation for chunk in chunks} == {second}
    assert counted(upstream, "replies", second, "complete") == 3


async def test_an_exact_generation_must_be_kept_loaded(store: Store, admin: User, upstream: Upstream) -> None:
    """A number that nothing keeps loaded is refused without asking vLLM."""
    with pytest.raises(UnknownGeneration):
        await whole(store, upstream, admin, generation=7)


async def test_another_replica_answers_when_one_is_down(store: Store, admin: User, fake: FakeVLLM) -> None:
    """A replica that does not answer costs nobody a reply while another one lives."""
    with FakeVLLM() as dead:
        pass
    replicas = [VLLM(dead.url, dead.key), VLLM(fake.url, fake.key)]
    upstream = Upstream(replicas, AppSettings(), ServingSettings())
    assert await whole(store, upstream, admin, max_tokens=3)
    await upstream.aclose()


async def test_nobody_answers(store: Store, admin: User, upstream: Upstream, fake: FakeVLLM) -> None:
    """With every replica down the caller is told before the first piece."""
    fake.stop()
    with pytest.raises(ServingUnavailable):
        await whole(store, upstream, admin)


async def test_our_own_length_limit_gives_way_to_the_context(
    store: Store, admin: User, fake: FakeVLLM
) -> None:
    """A conversation that leaves less room than LLACA_MAX_TOKENS is answered in that room; a caller's wish stands."""
    upstream = Upstream([NarrowVLLM(fake.url, fake.key)], AppSettings(), ServingSettings())
    assert await whole(store, upstream, admin)
    with pytest.raises(RequestRejected):
        await whole(store, upstream, admin, max_tokens=500)
    await upstream.aclose()


class NarrowVLLM(VLLM):
    """A server whose context has no room for a reply of fixed length."""

    async def stream(self, model: str, messages: Messages, **options: Any) -> AsyncGenerator[Delta]:
        """Refuse any fixed length, as vLLM does when prompt and reply together are too long."""
        if options["max_tokens"] is not None:
            raise RequestRejected("prompt and max_tokens exceed the context")
        async for delta in super().stream(model, messages, **options):
            yield delta

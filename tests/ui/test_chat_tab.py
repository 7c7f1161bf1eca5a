"""What the Chat tab promises when something happens in the middle of an answer, in it or in a second tab."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from app.api.errors import UNPLANNED
from app.chat import Chunk, Upstream
from app.settings import AppSettings
from app.ui.chat import ChatTab
from app.ui.replies import Replies
from serving.client import VLLM
from serving.settings import ServingSettings
from storage.records import Conversation, User, text_of, text_part
from storage.store import Store
from tests.app.places import png
from tests.fake_vllm import FakeVLLM
from tests.ui.scenery import asks

Updates = AsyncGenerator[tuple[Any, ...]]


@pytest.fixture
def tab(store: Store) -> ChatTab:
    """The Chat tab over an assistant that begins to answer and then never ends."""

    async def write(user: User, turns: Conversation, conversation_id: int) -> AsyncGenerator[Chunk]:
        try:
            yield Chunk(text="I see", generation="assistant@0")
            await asyncio.Event().wait()
        finally:
            store.conversations.append(conversation_id, user.id, "assistant", [text_part("I see")])

    return tab_with(store, write)


def tab_with(store: Store, write: Callable[..., AsyncGenerator[Chunk]]) -> ChatTab:
    """Return the Chat tab over an assistant of the test's own."""
    settings = AppSettings()
    with gr.Blocks():
        made = ChatTab(store, Upstream([], settings, ServingSettings()), settings)
    made._replies = Replies(write)
    return made


def draft(text: str, *files: Path) -> dict[str, Any]:
    """Return what stands in the text box."""
    return {"text": text, "files": [str(file) for file in files]}


def said(store: Store, user: User) -> list[str]:
    """Return the texts of the newest conversation."""
    found = store.conversations.list(user.id)[0]
    return [
        text_of({"role": m.role, "content": m.content})
        for m in store.conversations.messages(found.id, user.id)
    ]


async def begun(updates: Updates) -> int:
    """Return the conversation's number once the answer has begun."""
    number = (await anext(updates))[2]
    await anext(updates)
    return int(number)


async def last(updates: Updates) -> tuple[Any, ...]:
    """Return the last of all updates, as the page is told them."""
    return [update async for update in updates][-1]


SECOND: dict[str, Callable[[ChatTab, int, User], Updates]] = {
    "send": lambda tab, number, user: tab.send(draft("And now?"), number, asks(user)),
    "retry": lambda tab, number, user: tab.retry(number, asks(user)),
    "edit": lambda tab, number, user: tab.edit(
        number, gr.EditData(None, {"index": 0, "value": "Other", "previous_value": ""}), asks(user)
    ),
}


@pytest.mark.parametrize("act", SECOND)
async def test_nothing_is_asked_into_an_answer(store: Store, admin: User, tab: ChatTab, act: str) -> None:
    """While an answer is written another tab's question is refused in a sentence, and nothing is stored or lost."""
    async with aclosing(tab.send(draft("First"), None, asks(admin))) as first:
        number = await begun(first)
        (update,) = [update async for update in SECOND[act](tab, number, admin)]
        assert "still being written" in update[4]
        assert update[1] == gr.skip()
        assert said(store, admin) == ["First"]
    assert said(store, admin) == ["First", "I see"]
    async with aclosing(SECOND[act](tab, number, admin)) as second:
        await anext(second)


async def test_undo_stops_the_answer_and_takes_the_question_back(
    store: Store, admin: User, tab: ChatTab
) -> None:
    """A question that another tab takes back is answered no further and leaves no answer behind."""
    async with aclosing(tab.send(draft("First"), None, asks(admin))) as first:
        number = await begun(first)
        shown = asyncio.create_task(last(first))
        undone = await tab.undo(number, asks(admin))
        await shown
    assert undone[1].value["text"] == "First"
    assert said(store, admin) == []


async def test_a_deleted_conversation_is_answered_no_further(store: Store, admin: User, tab: ChatTab) -> None:
    """Deleting stops the answer, the first tab shows an empty window, and no later conversation gets the number."""
    async with aclosing(tab.send(draft("First"), None, asks(admin))) as first:
        number = await begun(first)
        await tab.manage(None, gr.EventData(None, {"act": "delete", "id": number}), asks(admin))
        rest = [update async for update in first]
    assert rest[-1][2] is None
    assert store.conversations.create(admin.id).id > number


async def test_an_answer_that_fails_gives_the_box_back(store: Store, admin: User) -> None:
    """Whatever goes wrong while an answer is written, the reader is told and can send again."""

    async def write(*_: Any) -> AsyncGenerator[Chunk]:
        yield Chunk(text="I", generation="assistant@0")
        raise RuntimeError("the disk is full")

    updates = [update async for update in tab_with(store, write).send(draft("First"), None, asks(admin))]
    assert UNPLANNED in updates[-1][4]
    assert updates[-1][1].submit_btn is True


async def test_one_picture_can_stand_in_two_drafts(
    store: Store, admin: User, tab: ChatTab, tmp_path: Path
) -> None:
    """The same picture, attached in two tabs, is one file; sending the first draft leaves it to the second."""
    picture = tmp_path / "cat.png"
    picture.write_bytes(png())
    for question in ("First", "Second"):
        async with aclosing(tab.send(draft(question, picture), None, asks(admin))) as updates:
            assert (await anext(updates))[2] is not None


async def test_undo_waits_until_an_answer_is_kept(
    store: Store, admin: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A question that is taken back just as its answer is being stored takes the answer along."""
    storing = asyncio.Event()
    loop = asyncio.get_running_loop()
    append = store.conversations.append

    def slowly(*given: Any, **named: Any) -> Any:
        if given[2] == "assistant":
            loop.call_soon_threadsafe(storing.set)
            time.sleep(0.3)
        return append(*given, **named)

    monkeypatch.setattr(store.conversations, "append", slowly)
    with FakeVLLM() as fake:
        upstream = Upstream([VLLM(fake.url, fake.key)], AppSettings(), ServingSettings())
        with gr.Blocks():
            tab = ChatTab(store, upstream, AppSettings())
        shown = asyncio.create_task(last(tab.send(draft("First"), None, asks(admin))))
        await storing.wait()
        number = store.conversations.list(admin.id)[0].id
        await tab.undo(number, asks(admin))
        await shown
        await upstream.aclose()
    assert said(store, admin) == []

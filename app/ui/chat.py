"""The Chat tab: a person's conversations, pictures and answers as they are written. app/chat.py talks to the model.

Conversations live on the server; the page holds only the number of the open one (in its address too, so a reload finds
it again), and every step asks the store whether that conversation is the visitor's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import gradio as gr

from app.chat import Upstream, reply
from app.settings import AppSettings
from app.ui.history import ON_CLICK, history
from app.ui.inert_markdown import typed
from app.ui.markup import notice
from app.ui.panel import panel
from app.ui.replies import Replies
from app.ui.transcript import answer, conversation, last_question, transcript
from app.ui.visitor import plainly, visitor
from storage.errors import LlacaError, TooLarge, UnknownConversation
from storage.images import check_image
from storage.records import (
    ImagePart,
    Part,
    StoredMessage,
    User,
    generation_name,
    image_part,
    images_of,
    text_part,
    whole_characters,
)
from storage.store import Store

Draft = dict[str, Any]
Update = tuple[Any, ...]
"""New values of: window, text box, number of the open conversation, conversations, notice, Try again."""

IMAGE_TYPES = [".png", ".jpg", ".jpeg", ".webp"]
WELCOME = """<div class="hello"><h2>What would you like to know?</h2>
<p>Ask a question, or attach pictures and ask about them.<br>
Every answer names the generation that wrote it.</p></div>"""
REMEMBER = "(id) => { history.replaceState(null, '', id ? '?c=' + id : location.pathname); }"
REMEMBERED = "() => Number(new URLSearchParams(location.search).get('c')) || null"


class ChatTab:
    """The tab's components and what happens in them."""

    def __init__(self, store: Store, upstream: Upstream, settings: AppSettings) -> None:
        self._store = store
        self._settings = settings
        self._max_images = upstream.serving.max_images
        self._replies = Replies(
            lambda user, turns, conversation_id: reply(
                store, upstream, user, turns, conversation_id=conversation_id
            )
        )
        self._build()

    def _build(self) -> None:
        with gr.Row(elem_id="chat", equal_height=False):
            with gr.Column(elem_id="rail", scale=0, min_width=264):
                self._new = gr.Button("New chat", elem_id="new-chat", variant="secondary", size="sm")
                self._list = panel(script=ON_CLICK, name="conversations")
            with gr.Column(elem_id="talk", scale=1, min_width=280):
                self._window = gr.Chatbot(
                    elem_id="window",
                    show_label=False,
                    container=False,
                    layout="bubble",
                    height="100%",
                    editable="user",
                    buttons=["copy"],
                    feedback_options=None,
                    allow_file_downloads=False,
                    placeholder=WELCOME,
                )
                self._notice = panel(name="chat-notice")
                self._again = gr.Button("Try again", visible=False, size="sm", elem_id="try-again")
                self._box = gr.MultimodalTextbox(
                    elem_id="box",
                    show_label=False,
                    container=False,
                    placeholder="Message LLaCA",
                    file_types=list(IMAGE_TYPES),
                    file_count="multiple",
                    sources=["upload"],
                    max_plain_text_length=self._settings.text_max_chars,
                    max_lines=10,
                    autofocus=True,
                )
        self._current = gr.Number(visible=False, precision=0)

    @property
    def shows(self) -> list[gr.components.Component]:
        """The components that an Update fills, in its order."""
        return [self._window, self._box, self._current, self._list, self._notice, self._again]

    def listen(self, page: gr.Blocks) -> None:
        """Connect components and handlers; called once, when the whole page stands."""
        quiet: dict[str, Any] = {
            "api_visibility": "private",
            "show_progress": "hidden",
            "concurrency_limit": None,
        }
        page.load(self.open_remembered, self._current, self.shows, js=REMEMBERED, **quiet)
        writing: list[dict[str, Any]] = [
            self._box.submit(self.send, [self._box, self._current], self.shows, **quiet),
            self._again.click(self.retry, self._current, self.shows, **quiet),
            self._window.retry(self.retry, self._current, self.shows, **quiet),
            self._window.edit(self.edit, self._current, self.shows, **quiet),
        ]
        self._box.stop(self.stop, self._current, None, **quiet)
        self._window.undo(self.undo, self._current, self.shows, **quiet)
        self._window.clear(self.start_new, None, self.shows, **quiet)
        self._new.click(self.start_new, None, self.shows, cancels=writing, **quiet)
        self._list.click(self.manage, self._current, self.shows, cancels=writing, **quiet)
        self._current.change(None, self._current, None, js=REMEMBER)

    # -- what people do ---------------------------------------------------------------------------------------

    @plainly()
    def open_remembered(self, current: float | None, request: gr.Request) -> Update:
        """Open the conversation in the page's address, if it is the visitor's, else an empty one."""
        user = visitor(self._store, request)
        try:
            return self._opened(user, int(current)) if current else self._nothing_open(user)
        except UnknownConversation:
            return self._nothing_open(user)

    @plainly()
    def start_new(self, request: gr.Request) -> Update:
        """Clear the window; the conversation begins to exist with its first message."""
        return self._nothing_open(visitor(self._store, request))

    async def manage(self, current: float | None, event: gr.EventData, request: gr.Request) -> Update:
        """Open, rename or delete a conversation of the list."""
        with plainly():
            user = visitor(self._store, request)
            chosen = self._store.conversations.get(int(event.id), user.id).id
            showing = int(current) if current else None
            if event.act == "open":
                return self._opened(user, chosen)
            if event.act == "rename":
                await asyncio.to_thread(self._store.conversations.rename, chosen, user.id, str(event.title))
            if event.act == "delete":
                await self._replies.stop(chosen)
                await asyncio.to_thread(self._delete, user, chosen)
            if event.act == "delete" and chosen == showing:
                return self._nothing_open(user)
            return self._opened(user, showing) if showing else self._nothing_open(user)

    async def send(self, draft: Draft, current: float | None, request: gr.Request) -> AsyncGenerator[Update]:
        """Keep what was typed and attached, then stream the answer; what cannot be sent stays in the box."""
        with plainly():
            user = visitor(self._store, request)
        try:
            parts = await asyncio.to_thread(self._parts, draft)
            if not parts:
                yield _only(notice="")
                return
            if current:
                opened = self._store.conversations.get(int(current), user.id).id
            else:
                opened = await asyncio.to_thread(self._begun, user, parts)
            with self._replies.turn(opened):
                if current:
                    await asyncio.to_thread(self._store.conversations.append, opened, user.id, "user", parts)
                async with aclosing(self._answer(user, opened, clear=True)) as updates:
                    async for update in updates:
                        yield update
        except LlacaError as error:
            yield _only(notice=notice(str(error)))

    async def retry(self, current: float, request: gr.Request) -> AsyncGenerator[Update]:
        """Forget the last answer, if there is one, and write another."""
        with plainly():
            user = visitor(self._store, request)
            opened = self._store.conversations.get(int(current), user.id).id
        try:
            with self._replies.turn(opened):
                asked = last_question(self._store.conversations.messages(opened, user.id))
                if asked is None:
                    return
                await asyncio.to_thread(
                    self._store.conversations.drop_from, opened, user.id, asked.position + 1
                )
                async with aclosing(self._answer(user, opened)) as updates:
                    async for update in updates:
                        yield update
        except LlacaError as error:
            yield _only(notice=notice(str(error)))

    async def edit(self, current: float, event: gr.EditData, request: gr.Request) -> AsyncGenerator[Update]:
        """Put other words in place of an earlier question, forget what followed, and answer again."""
        with plainly():
            user = visitor(self._store, request)
            opened = self._store.conversations.get(int(current), user.id).id
        words = typed(whole_characters(str(event.value))).strip()
        try:
            self._check_length(words)
            with self._replies.turn(opened):
                messages = self._store.conversations.messages(opened, user.id)
                if not isinstance(event.index, int) or not 0 <= event.index < len(messages):
                    return
                asked = messages[event.index]
                if asked.role != "user" or not words:
                    return
                await asyncio.to_thread(self._reword, opened, user, asked, words)
                async with aclosing(self._answer(user, opened)) as updates:
                    async for update in updates:
                        yield update
        except LlacaError as error:
            yield _only(notice=notice(str(error)))

    async def stop(self, current: float, request: gr.Request) -> None:
        """Break off the answer; the handler that streams it shows what is left of it."""
        with plainly():
            info = self._store.conversations.get(int(current), visitor(self._store, request).id)
        await self._replies.stop(info.id)

    async def undo(self, current: float, request: gr.Request) -> Update:
        """Take the last question back into the text box, words and pictures, to be changed and sent again."""
        with plainly():
            user = visitor(self._store, request)
            info = self._store.conversations.get(int(current), user.id)
            # It may be being answered, for another tab; what was written by then goes with its question.
            await self._replies.end_turn(info.id)
            with self._replies.turn(info.id):
                asked = last_question(self._store.conversations.messages(info.id, user.id))
                if asked is None:
                    return self._opened(user, info.id)
                files = await asyncio.to_thread(self._take_back, info.id, user, asked)
            words = "\n".join(part["text"] for part in asked.content if part["type"] == "text")
            window, _, *rest = self._opened(user, info.id)
            return (window, gr.MultimodalTextbox(value={"text": words, "files": files}), *rest)

    # -- how it is done ---------------------------------------------------------------------------------------

    async def _answer(self, user: User, current: int, *, clear: bool = False) -> AsyncGenerator[Update]:
        """Stream the answer to a conversation that ends with a question."""
        messages = self._store.conversations.messages(current, user.id)
        writing = self._replies.begin(user, current, conversation(messages, self._max_images))
        asked = transcript(messages)
        champion = generation_name(self._store.generations.champion())
        buttons: dict[str, Any] = {"submit_btn": False, "stop_btn": True}
        busy = gr.MultimodalTextbox(value=None, **buttons) if clear else gr.MultimodalTextbox(**buttons)
        blank = answer("", champion, writing=True)
        try:
            yield [*asked, blank], busy, current, self._history(user, current), "", gr.Button(visible=False)
            async for _ in writing.progress():
                yield _only(window=[*asked, answer(writing.text, writing.generation, writing=True)])
        finally:
            # The reader may have left: Gradio then closes this generator in the middle, and nobody needs the rest.
            await writing.stop()
        try:
            shown = self._opened(user, current)
        except UnknownConversation:  # deleted meanwhile, in another tab
            shown = self._nothing_open(user)
        window, box, opened, conversations, _, again = shown
        yield window, box, opened, conversations, notice(writing.problem), again

    def _parts(self, draft: Draft) -> list[Part]:
        """Return what was typed and attached as message parts; pictures are cleaned and stored. Raises LlacaError."""
        if len(draft["files"]) > self._max_images:
            raise TooLarge("The message", self._max_images, "pictures")
        self._check_length(draft["text"])
        words = whole_characters(draft["text"]).strip()
        return [*map(self._stored_picture, draft["files"]), *([text_part(words)] if words else [])]

    def _begun(self, user: User, parts: list[Part]) -> int:
        with self._store.database.writing():
            begun = self._store.conversations.create(user.id).id
            self._store.conversations.append(begun, user.id, "user", parts)
        return begun

    def _reword(self, opened: int, user: User, asked: StoredMessage, words: str) -> None:
        pictures = [part for part in asked.content if part["type"] == "image"]
        # At once, because a picture that nothing uses for a moment may be swept away in it.
        with self._store.database.writing():
            self._store.conversations.drop_from(opened, user.id, asked.position)
            self._store.conversations.append(opened, user.id, "user", [*pictures, text_part(words)])

    def _take_back(self, opened: int, user: User, asked: StoredMessage) -> list[str]:
        files = [self._as_file(part) for part in asked.content if part["type"] == "image"]
        self._store.conversations.drop_from(opened, user.id, asked.position)
        return files

    def _check_length(self, text: str) -> None:
        if len(text) > self._settings.text_max_chars:
            raise TooLarge("The message", self._settings.text_max_chars, "characters")

    def _stored_picture(self, file: str) -> ImagePart:
        # The file stays: Gradio names it for its content, so that the same picture in another draft is this very file.
        # It goes with what was attached and never sent.
        clean = check_image(Path(file).read_bytes(), self._store.settings)
        return image_part(self._store.blobs.put(clean.data, clean.media_type))

    def _delete(self, user: User, chosen: int) -> None:
        messages = self._store.conversations.messages(chosen, user.id)
        pictures = images_of([{"role": message.role, "content": message.content} for message in messages])
        self._store.conversations.delete(chosen, user.id)
        self._store.blobs.delete_unused(set(pictures))

    def _as_file(self, part: ImagePart) -> str:
        """Copy a stored picture to where Gradio may show it from, under a name it recognises."""
        suffix = self._store.blobs.media_type(part["sha256"]).removeprefix("image/")
        folder = Path(self._window.GRADIO_CACHE) / part["sha256"]
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"picture.{suffix}"
        file.write_bytes(self._store.blobs.read(part["sha256"]))
        return str(file)

    def _opened(self, user: User, current: int) -> Update:
        messages = self._store.conversations.messages(current, user.id)
        unanswered = bool(messages) and messages[-1].role == "user"
        box = gr.MultimodalTextbox(submit_btn=True, stop_btn=False)
        return (
            transcript(messages),
            box,
            current,
            self._history(user, current),
            "",
            gr.Button(visible=unanswered),
        )

    def _nothing_open(self, user: User) -> Update:
        box = gr.MultimodalTextbox(submit_btn=True, stop_btn=False)
        return [], box, None, self._history(user, None), "", gr.Button(visible=False)

    def _history(self, user: User, current: int | None) -> str:
        return history(self._store.conversations.list(user.id), current)


def _only(*, window: Any = None, notice: str | None = None) -> Update:
    """Return an Update that leaves everything else as it is."""
    same = gr.skip()
    return (window or same, same, same, same, same if notice is None else notice, same)

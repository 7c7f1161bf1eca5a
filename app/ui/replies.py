"""Replies while they are being written: one task per conversation, which the page watches and may break off.

app/chat.py keeps what was written, whole or interrupted; here is only what a reader sees meanwhile. No Gradio.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing, contextmanager, suppress

import structlog

from app.api.errors import UNPLANNED
from app.chat import Chunk
from storage.errors import LlacaError, WrongState
from storage.records import Conversation, User

Write = Callable[[User, Conversation, int], AsyncGenerator[Chunk]]
"""Starts the answer to a user's conversation, to be kept under the conversation's id."""
SECONDS_BETWEEN_LOOKS = 0.05
"""The page gets at most 20 updates a second, however fast the tokens come."""

SECONDS_FOR_A_TURN = 5.0
"""A turn whose reply was broken off is over when its reader's page has been told."""

log = structlog.get_logger()


class Reply:
    """One answer: its text so far, the generation that writes it, and in the end what went wrong, if anything did."""

    def __init__(self, chunks: AsyncGenerator[Chunk]) -> None:
        self.text = ""
        self.generation = ""
        self.problem = ""
        self.task = asyncio.create_task(self._read(chunks))

    async def stop(self) -> None:
        """Break off, close the stream upstream and wait until what came is kept."""
        self.task.cancel()
        await asyncio.wait([self.task])

    async def progress(self) -> AsyncIterator[None]:
        """Yield when there is something new to show, at most 20 times a second, until the reply has ended."""
        length = 0
        while not self.task.done():
            if len(self.text) > length:
                length = len(self.text)
                yield
            await asyncio.wait([self.task], timeout=SECONDS_BETWEEN_LOOKS)

    async def _read(self, chunks: AsyncGenerator[Chunk]) -> None:
        try:
            async with aclosing(chunks):
                async for chunk in chunks:
                    self.text += chunk.text
                    self.generation = chunk.generation
        except LlacaError as error:
            self.problem = str(error)
        except Exception:
            # Whoever watches is told, and can ask again; a page whose answer just broke off could not.
            log.exception("reply failed")
            self.problem = UNPLANNED


class Replies:
    """Every reply being written in this process, by conversation."""

    def __init__(self, write: Write) -> None:
        self._write = write
        self._running: dict[int, Reply] = {}
        self._turns: dict[int, asyncio.Event] = {}

    @contextmanager
    def turn(self, conversation_id: int) -> Iterator[None]:
        """Keep a conversation for one question and its answer; raises WrongState while another one is at it.

        Taken before the question is stored: the same conversation may be open in a second tab.
        """
        if conversation_id in self._turns or conversation_id in self._running:
            raise WrongState("The last answer", "still being written", ["finished or stopped"])
        over = self._turns[conversation_id] = asyncio.Event()
        try:
            yield
        finally:
            del self._turns[conversation_id]
            over.set()

    def begin(self, user: User, conversation_id: int, turns: Conversation) -> Reply:
        """Start answering, in the conversation's turn."""
        reply = Reply(self._write(user, turns, conversation_id))
        self._running[conversation_id] = reply
        reply.task.add_done_callback(lambda _: self._running.pop(conversation_id))
        return reply

    async def stop(self, conversation_id: int) -> None:
        """Break off the conversation's reply, if one is being written."""
        reply = self._running.get(conversation_id)
        if reply is not None:
            await reply.stop()

    async def end_turn(self, conversation_id: int) -> None:
        """Break off the conversation's reply and wait a few seconds until its turn is over, so that another can be."""
        await self.stop(conversation_id)
        if conversation_id in self._turns:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._turns[conversation_id].wait(), SECONDS_FOR_A_TURN)

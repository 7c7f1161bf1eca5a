"""Stored messages as the chat window shows them, and as the model reads them. Knows no Gradio component but HTML."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from app.ui.inert_markdown import shown
from app.ui.markup import picture
from storage.records import Conversation, Part, StoredMessage, text_of, text_part

THINKING = '<span class="thinking" role="status" aria-label="The assistant is thinking"></span>'
EARLIER_PICTURE = "[an earlier picture]"


def transcript(messages: Sequence[StoredMessage]) -> list[dict[str, Any]]:
    """Return messages in the chat window's form; the i-th stands for the i-th stored one."""
    return [_entry(message) for message in messages]


def _entry(message: StoredMessage) -> dict[str, Any]:
    if message.role == "assistant":
        text = text_of({"role": "assistant", "content": message.content})
        return answer(text, message.generation or "", interrupted=message.state == "interrupted")
    return question(message.content)


def question(parts: Sequence[Part]) -> dict[str, Any]:
    """Return a person's turn: the text first, so that it can be edited, the pictures as one strip (drawn above it)."""
    text = text_of({"role": "user", "content": list(parts)})
    pictures = [picture(part["sha256"]) for part in parts if part["type"] == "image"]
    content: list[Any] = [shown(text)] if text else []
    if pictures:
        content.append(gr.HTML(f'<div class="shots">{"".join(pictures)}</div>', render=False))
    return {"role": "user", "content": content}


def answer(text: str, generation: str, *, interrupted: bool = False, writing: bool = False) -> dict[str, Any]:
    """Return the assistant's turn: its text and, as a second block, the badge with the generation that wrote it."""
    badge = generation + (" · interrupted" if interrupted else "")
    blocks = [shown(text) or (THINKING if writing else "*(no text)*")]
    return {"role": "assistant", "content": [*blocks, badge] if badge else blocks}


def conversation(messages: Sequence[StoredMessage], max_images: int) -> Conversation:
    """Return what the model is given: turns that alternate, and of all pictures only the newest `max_images`."""
    turns: Conversation = []
    for message in messages:
        if not message.content:
            continue
        if turns and turns[-1]["role"] == message.role:
            turns[-1]["content"].extend(message.content)
        else:
            turns.append({"role": message.role, "content": list(message.content)})
    return _with_newest_images(turns, max_images)


def _with_newest_images(turns: Conversation, most: int) -> Conversation:
    left = most
    for turn in reversed(turns):
        content: list[Part] = []
        for part in reversed(turn["content"]):
            if part["type"] == "image":
                left -= 1
            fits = part["type"] == "text" or left >= 0
            content.append(part if fits else text_part(EARLIER_PICTURE))
        turn["content"] = content[::-1]
    return turns


def last_question(messages: Sequence[StoredMessage]) -> StoredMessage | None:
    """Return the newest turn of the person, if there is one."""
    return next((message for message in reversed(messages) if message.role == "user"), None)

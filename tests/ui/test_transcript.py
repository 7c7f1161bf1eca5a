"""Stored messages as people see them and as the model reads them."""

from __future__ import annotations

from typing import Literal

import gradio as gr

from app.ui.transcript import EARLIER_PICTURE, conversation, transcript
from storage.records import Part, StoredMessage, image_part, text_part

A, B, C = "a" * 64, "b" * 64, "c" * 64


def message(
    position: int,
    role: Literal["user", "assistant"],
    *content: Part,
    generation: str | None = None,
    state: Literal["complete", "interrupted"] = "complete",
) -> StoredMessage:
    """Return a message as the store keeps it."""
    return StoredMessage(id=position + 1, position=position, role=role, content=list(content), generation=generation,
                         state=state, created_at="2026-01-01T00:00:00.000000Z")  # fmt: skip


def test_an_answer_carries_the_badge_of_the_generation_that_wrote_it() -> None:
    """The second block of an answer names its generation, and says so if it was interrupted."""
    entries = transcript(
        [
            message(0, "assistant", text_part("yes"), generation="assistant@7"),
            message(1, "assistant", text_part("no"), generation="assistant@8", state="interrupted"),
        ]
    )
    assert [entry["content"] for entry in entries] == [
        ["yes", "assistant@7"],
        ["no", "assistant@8 · interrupted"],
    ]


def test_pictures_come_from_the_route_that_checks_who_asks() -> None:
    """A person's pictures are shown by address, never as files of Gradio's cache, which serves anybody."""
    (entry,) = transcript([message(0, "user", image_part(A), text_part("what?"))])
    text, pictures = entry["content"]
    assert text == "what?"
    assert isinstance(pictures, gr.HTML)
    assert f'src="/blobs/{A}"' in pictures.value


def test_the_model_reads_alternating_turns() -> None:
    """A question that never got an answer and the next one are one turn; an empty answer is none."""
    turns = conversation(
        [message(0, "user", text_part("one")), message(1, "user", text_part("two")), message(2, "assistant"),
         message(3, "user", text_part("three"))], max_images=4,
    )  # fmt: skip
    assert turns == [{"role": "user", "content": [text_part("one"), text_part("two"), text_part("three")]}]


def test_the_model_gets_the_newest_pictures_only() -> None:
    """A conversation may hold more pictures than a server takes; the oldest become a remark."""
    turns = conversation(
        [message(0, "user", image_part(A), image_part(B)), message(1, "assistant", text_part("ok")),
         message(2, "user", image_part(C), text_part("and?"))], max_images=2,
    )  # fmt: skip
    assert turns[0]["content"] == [text_part(EARLIER_PICTURE), image_part(B)]
    assert turns[2]["content"] == [image_part(C), text_part("and?")]

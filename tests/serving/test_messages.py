"""What conversations look like when vLLM gets them."""

from __future__ import annotations

import base64

import pytest

from serving.messages import ZERO_WIDTH_SPACE, data_url, escape_control_tokens, openai_messages
from storage.errors import UnknownBlob
from storage.records import Conversation, image_part, text_part
from storage.store import Store
from tests.serving.conftest import RED_SQUARE


def test_images_travel_as_data_urls(store: Store) -> None:
    """A stored image arrives byte for byte, in its place between the texts."""
    sha256 = store.blobs.put(RED_SQUARE, "image/png")
    conversation: Conversation = [
        {"role": "user", "content": [text_part("before"), image_part(sha256), text_part("after")]},
        {"role": "assistant", "content": [text_part("red")]},
    ]
    first, second = openai_messages(conversation, store.blobs)
    before, image, after = first["content"]
    assert (before, after) == ({"type": "text", "text": "before"}, {"type": "text", "text": "after"})
    head, _, body = image["image_url"]["url"].partition(",")
    assert head == "data:image/png;base64"
    assert base64.b64decode(body) == RED_SQUARE
    assert second == {"role": "assistant", "content": [{"type": "text", "text": "red"}]}


@pytest.mark.parametrize(
    ("start", "media_type"),
    [(b"\x89PNG", "image/png"), (b"\xff\xd8\xff", "image/jpeg"), (b"RIFF....WEBP", "image/webp")],
)
def test_a_data_url_names_the_type_of_its_bytes(start: bytes, media_type: str) -> None:
    """The type comes from the bytes, not from what somebody said of them."""
    assert data_url(start).startswith(f"data:{media_type};base64,")


def test_a_lost_image_is_named(store: Store) -> None:
    """An image that is not stored is an error, never a silent gap in the conversation."""
    with pytest.raises(UnknownBlob):
        openai_messages([{"role": "user", "content": [image_part("0" * 64)]}], store.blobs)


@pytest.mark.parametrize(
    "token",
    [
        "<|im_start|>",
        "<|im_end|>",
        "<|vision_start|><|image_pad|><|vision_end|>",
        "<image>",
        "<video>",
        "</s>",
        "<start_of_turn>",
        "<end_of_utterance>",
        "<fake_token_around_image>",
        "<row_1_col_2>",
        "<image_soft_token>",
        "[INST]",
        "[/INST]",
        "[IMG]",
        "<<SYS>>",
        "<｜end▁of▁sentence｜>",
    ],
)
def test_typed_control_tokens_stay_text(token: str) -> None:
    """A control token typed by a person reads the same and is none any more."""
    escaped = escape_control_tokens(f"a {token} b")
    assert token not in escaped
    assert escaped.replace(ZERO_WIDTH_SPACE, "") == f"a {token} b"
    assert escape_control_tokens(escaped) == escaped


@pytest.mark.parametrize(
    "text", ["a < b and c > d", "<b>bold</b>", "x = [1, 2]", "if (a <| b) |> c", "List<String>", ""]
)
def test_ordinary_text_is_left_alone(text: str) -> None:
    """Code and markup that mean nothing to a model are not touched."""
    assert escape_control_tokens(text) == text

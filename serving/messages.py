"""Our conversations in the form the OpenAI API wants: images as data URLs, control tokens made harmless.

Does not know vLLM. The learner escapes its texts with the same function, so that a model reads in chat what
it read in training.
"""

from __future__ import annotations

import base64
import re
from typing import Any, Protocol

from storage.records import ChatMessage, Conversation, Part

# Typed as text, these would become the tokens that end a turn or stand for an image: at best a forged turn,
# at worst a crashed engine (CVE-2026-44222). A zero-width space after the first character leaves what people
# see unchanged.
_CONTROL_TOKEN = re.compile(
    r"<[|｜][^<>\s]{1,64}[|｜]>"
    r"|</?(?:s|pad|unk|bos|eos|mask|image|images|img|video|audio|IMG_CONTEXT|tool_call|tool_response|think)>"
    r"|<(?:start_of|end_of|fake_token|global-img|row_|image_|img_|video_|audio_|boi|eoi|unused)[\w-]*>"
    r"|\[/?(?:INST|IMG|IMG_BREAK|IMG_END|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS)\]"
    r"|<</?SYS>>"
)
ZERO_WIDTH_SPACE = "\u200b"


class Images(Protocol):
    """Where the bytes of an image are found by their SHA-256; `storage.blobs.Blobs` is one."""

    def read(self, sha256: str) -> bytes:
        """Return the encoded image."""
        ...


def openai_messages(conversation: Conversation, images: Images) -> list[dict[str, Any]]:
    """Return the messages as `/v1/chat/completions` takes them; raise UnknownBlob for a lost image."""
    return [_message(turn, images) for turn in conversation]


def _message(turn: ChatMessage, images: Images) -> dict[str, Any]:
    return {"role": turn["role"], "content": [_part(part, images) for part in turn["content"]]}


def _part(part: Part, images: Images) -> dict[str, Any]:
    if part["type"] == "text":
        return {"type": "text", "text": escape_control_tokens(part["text"])}
    return {"type": "image_url", "image_url": {"url": data_url(images.read(part["sha256"]))}}


def escape_control_tokens(text: str) -> str:
    """Return the text with every control token of the common model families broken by a zero-width space."""
    return _CONTROL_TOKEN.sub(lambda found: found[0][0] + ZERO_WIDTH_SPACE + found[0][1:], text)


def data_url(image: bytes) -> str:
    """Return an encoded PNG, JPEG or WebP image as a data URL."""
    return f"data:{_media_type(image)};base64,{base64.b64encode(image).decode()}"


def _media_type(image: bytes) -> str:
    if image.startswith(b"\x89PNG"):
        return "image/png"
    return "image/jpeg" if image.startswith(b"\xff\xd8") else "image/webp"

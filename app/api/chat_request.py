"""What POST /v1/chat/completions takes: OpenAI's request, reduced to the fields that this server honours.

A field that OpenAI clients send by habit is taken if it asks for what happens anyway (`n: 1`); anything else is
refused by name, because a request that is silently half-obeyed is worse than one that is refused.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from storage.errors import BadField, TooLarge, UnknownModelName
from storage.images import check_image
from storage.records import (
    ALIAS,
    ChatMessage,
    Conversation,
    Part,
    generation_number,
    image_part,
    text_part,
    whole_characters,
)
from storage.settings import StorageSettings

DATA_URL = ("data:image/png;base64,", "data:image/jpeg;base64,", "data:image/webp;base64,")
MESSAGES_MOST = 500


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, use_attribute_docstrings=True)


class TextContent(_Strict):
    """A piece of text."""

    type: Literal["text"]
    text: str


class ImageURL(_Strict):
    """A picture, inside the request itself."""

    url: str
    """`data:image/png;base64,…`, also jpeg or webp; addresses are never fetched."""
    detail: Literal["auto", "low", "high"] = "auto"
    """Taken and not used."""

    @field_validator("url")
    @classmethod
    def _inline(cls, url: str) -> str:
        if not url.startswith(DATA_URL):
            raise ValueError("a data URL of a PNG, JPEG or WebP picture; this server never fetches addresses")
        return url


class ImageContent(_Strict):
    """A picture among the text."""

    type: Literal["image_url"]
    image_url: ImageURL

    @field_validator("image_url", mode="before")
    @classmethod
    def _bare(cls, value: Any) -> Any:
        return {"url": value} if isinstance(value, str) else value


Content = Annotated[TextContent | ImageContent, Field(discriminator="type")]


class Message(_Strict):
    """One turn of the conversation."""

    role: Literal["system", "user", "assistant"]
    """`system` only as the first message."""
    content: list[Content]
    """A string or a list of parts; pictures only in the user's turns."""
    refusal: None = None
    annotations: list[Any] | None = Field(default=None, max_length=0)
    audio: None = None
    function_call: None = None
    tool_calls: None = None

    @field_validator("content", mode="before")
    @classmethod
    def _parts(cls, value: Any) -> Any:
        if isinstance(value, str):
            return [{"type": "text", "text": value}]
        if not isinstance(value, list):
            raise ValueError("a string or a list of parts")  # noqa: TRY004 - pydantic reports ValueError only
        return value


class StreamOptions(_Strict):
    """What a stream carries besides the text."""

    include_usage: bool = False
    """Send the token counts in a last chunk."""
    include_obfuscation: Literal[False] | None = None


class ResponseFormat(_Strict):
    """Plain text is the only format."""

    type: Literal["text"]


class ChatRequest(_Strict):
    """The body of POST /v1/chat/completions."""

    model: str
    """`assistant`, or one exact generation such as `assistant@7`."""
    messages: list[Message] = Field(min_length=1, max_length=MESSAGES_MOST)
    """The conversation; the last message is the user's."""
    stream: bool | None = None
    """Send the reply piece by piece as server-sent events."""
    stream_options: StreamOptions | None = None
    """Only together with `stream`."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Most tokens of the reply, up to LLACA_MAX_TOKENS."""
    max_completion_tokens: int | None = Field(default=None, ge=1)
    """The newer name of `max_tokens`; send one of the two."""
    temperature: float | None = Field(default=None, ge=0, le=2, allow_inf_nan=False)
    """0 always takes the likeliest token."""
    top_p: float | None = Field(default=None, gt=0, le=1, allow_inf_nan=False)
    """Draw from the likeliest tokens that together have this probability."""
    seed: int | None = Field(default=None, ge=0, le=2**63 - 1)
    """The same seed and request give the same reply from the same generation."""
    stop: str | list[str] | None = None
    """Up to four texts of 1 to 64 characters, at which the reply ends."""
    n: Literal[1] | None = None
    """Always one reply."""
    frequency_penalty: float | None = Field(default=None, ge=0, le=0)
    """Only 0."""
    presence_penalty: float | None = Field(default=None, ge=0, le=0)
    """Only 0."""
    logprobs: Literal[False] | None = None
    """Only false."""
    response_format: ResponseFormat | None = None
    """Only `{"type": "text"}`."""
    modalities: list[Literal["text"]] | None = None
    """Only `["text"]`."""
    service_tier: Literal["auto", "default"] | None = None
    """Taken and not used."""
    store: Literal[False] | None = None
    """Only false: requests of the API are not kept."""
    metadata: dict[str, str] | None = Field(default=None, max_length=16)
    """Taken and not used."""
    user: str | None = Field(default=None, max_length=512)
    """Taken and not used; the API key says who asks."""
    safety_identifier: str | None = Field(default=None, max_length=512)
    """Taken and not used."""
    prompt_cache_key: str | None = Field(default=None, max_length=512)
    """Taken and not used."""

    @field_validator("stop", mode="before")
    @classmethod
    def _stops(cls, value: Any) -> Any:
        texts = [value] if isinstance(value, str) else value
        if texts is None:
            return None
        if not isinstance(texts, list) or not all(isinstance(t, str) and 1 <= len(t) <= 64 for t in texts):
            raise ValueError("a text, or a list of texts, each of 1 to 64 characters")
        if len(texts) > 4:
            raise ValueError("at most 4 texts")
        return texts

    @property
    def tokens(self) -> int | None:
        """The length limit under either of its names."""
        return self.max_completion_tokens if self.max_tokens is None else self.max_tokens

    @property
    def stops(self) -> list[str]:
        """The stop texts as a list."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []


def check_together(request: ChatRequest, most_tokens: int) -> None:
    """Raise BadField for fields that are good alone but not with each other or with the server's settings."""
    if request.max_tokens is not None and request.max_completion_tokens is not None:
        raise BadField(
            "max_completion_tokens", request.max_completion_tokens, "only one of it and max_tokens"
        )
    if request.tokens is not None and request.tokens > most_tokens:
        field = "max_completion_tokens" if request.max_tokens is None else "max_tokens"
        raise BadField(field, request.tokens, f"1 to {most_tokens}")
    if request.stream_options is not None and not request.stream:
        raise BadField("stream_options", request.stream_options.model_dump(), "null unless `stream` is true")


def generation_wanted(model: str) -> int | None:
    """Return the number of an exact generation, or None for the alias. Raises UnknownModelName."""
    if model == ALIAS:
        return None
    number = generation_number(model)
    if number is None:
        raise UnknownModelName(model[:80])
    return number


class InlineImages:
    """The pictures of one request, in memory: an API conversation leaves nothing on disk."""

    def __init__(self) -> None:
        self._images: dict[str, bytes] = {}

    def put(self, data: bytes) -> str:
        """Keep a picture and return its SHA-256."""
        sha256 = hashlib.sha256(data).hexdigest()
        self._images[sha256] = data
        return sha256

    def read(self, sha256: str) -> bytes:
        """Return the bytes of a picture."""
        return self._images[sha256]


def conversation_of(
    request: ChatRequest, images: InlineImages, settings: StorageSettings, *, max_images: int, max_chars: int
) -> Conversation:
    """Check the conversation as a whole and put its re-encoded pictures into `images`.

    Raises BadField naming the message, TooLarge, or BadImage. Decodes pictures: call it outside the event loop.
    """
    _check_turns(request.messages)
    _check_amounts(request.messages, max_images=max_images, max_chars=max_chars)
    return [_turn(position, message, images, settings) for position, message in enumerate(request.messages)]


def _check_turns(messages: list[Message]) -> None:
    for position, message in enumerate(messages):
        place = f"messages[{position}]"
        if message.role == "system" and position > 0:
            raise BadField(f"{place}.role", "system", "`system` only as the first message")
        if message.role != "user" and any(part.type == "image_url" for part in message.content):
            raise BadField(f"{place}.content", "image_url", f"text only in a message of the {message.role}")
        if not any(part.type == "image_url" or part.text.strip() for part in message.content):
            raise BadField(f"{place}.content", "", "some text or a picture")
    if messages[-1].role != "user":
        raise BadField(f"messages[{len(messages) - 1}].role", messages[-1].role, "`user` in the last message")


def _check_amounts(messages: list[Message], *, max_images: int, max_chars: int) -> None:
    parts = [part for message in messages for part in message.content]
    images = sum(part.type == "image_url" for part in parts)
    if images > max_images:
        raise BadField("messages", f"{images} pictures", f"at most {max_images} pictures in a conversation")
    if sum(len(part.text) for part in parts if part.type == "text") > max_chars:
        raise TooLarge("The text of the conversation", max_chars, "characters")


def _turn(position: int, message: Message, images: InlineImages, settings: StorageSettings) -> ChatMessage:
    content: list[Part] = []
    for number, part in enumerate(message.content):
        if part.type == "text":
            content.append(text_part(whole_characters(part.text)))
        else:
            data = _decode(f"messages[{position}].content[{number}].image_url.url", part.image_url.url)
            content.append(image_part(images.put(check_image(data, settings).data)))
    return {"role": message.role, "content": content}


def _decode(field: str, url: str) -> bytes:
    try:
        return base64.b64decode(url.partition(",")[2], validate=True)
    except binascii.Error as error:
        raise BadField(field, url, "base64 after the comma") from error

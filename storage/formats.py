"""Turns one raw row, in any of the shapes people use, into one draft conversation; every rule is in docs/formats.md.

Pure: knows neither files nor archives nor the database. Images stay what the row says they are, a name or bytes;
`storage.intake` finds and checks them. A row that breaks a rule raises the BadUpload that names it.
"""

from __future__ import annotations

import base64
import binascii
import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from storage.errors import (
    ControlCharacter,
    ControlToken,
    EmptyTurn,
    ImageCount,
    ImageData,
    ImageMissing,
    ImageRole,
    MissingField,
    RemoteImageRefused,
    RowWithoutAnswer,
    TextTooLong,
    TurnOrder,
    UnknownRole,
    UnsupportedField,
    WrongEncoding,
    WrongType,
)
from storage.records import Conversation, TextPart, image_part, text_part

Shape = Literal["openai", "llava", "sharegpt", "texts", "imagefolder", "columns"]
RoleName = Literal["system", "user", "assistant"]

TEXT_MAX_CHARACTERS = 100_000
PLACEHOLDER = "<image>"
ROLES: dict[str, RoleName] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}
UNSUPPORTED_FIELDS = ("videos", "video", "audios", "audio", "tools", "functions")
QUESTION_FIELDS = ("question", "prompt")
ANSWER_FIELDS = ("answer", "response", "text", "caption", "label")
CAPTION_QUESTIONS = {
    "text": "Describe this picture.",
    "caption": "Describe this picture.",
    "label": "What does this picture show?",
}
"""What is asked where a picture comes with a caption or a label but no question."""

CONTROL_TOKENS = re.compile(
    r"<\|[^|<>\s]{1,64}\|>|<\uff5c[^\uff5c<>]{1,64}\uff5c>|</?s>|<(?:unk|pad|bos|eos|mask)>|\[/?INST\]|<</?SYS>>"
    r"|<(?:image|video|audio|im_start|im_end|im_patch|img|IMG_CONTEXT|image_soft_token|start_of_image"
    r"|end_of_image|start_of_turn|end_of_turn|end_of_utterance|fake_token_around_image|global-img"
    r"|row_\d+_col_\d+)>|\[IMG(?:_BREAK|_END)?\]"
)
"""What the chat templates of the common model families use to separate turns and to place images."""

HIDDEN = re.compile("[\u200b\u202a-\u202e\u2060-\u2069\ufeff\U000e0000-\U000e007f]")
"""Characters that show nothing but can carry or reorder text; zero-width joiners are left out, scripts need them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """An image as a row gives it: the name of a file in the same archive, or its bytes; `field` says where."""

    field: str
    name: str = ""
    data: bytes = b""


DraftPart = TextPart | Picture


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What one speaker says at once; `field` says where in the row it stands."""

    field: str
    role: RoleName
    parts: tuple[DraftPart, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """One conversation whose images have not been looked at; `hidden` tells of invisible characters in its texts."""

    shape: Shape
    turns: tuple[Turn, ...]
    hidden: bool

    def conversation(self, stored: Callable[[Picture], str]) -> Conversation:
        """Return the canonical conversation; `stored` gives the SHA-256 of each image's clean copy."""
        return [
            {
                "role": turn.role,
                "content": [
                    image_part(stored(part)) if isinstance(part, Picture) else part for part in turn.parts
                ],
            }
            for turn in self.turns
        ]


def read_row(row: dict[str, Any], max_images: int) -> Draft:
    """Read a row of whichever shape its fields show; raise a BadUpload if it breaks a rule."""
    for name in UNSUPPORTED_FIELDS:
        if row.get(name):
            raise UnsupportedField(f"the field {name!r}", field=name)
    shape, turns = _turns(row)
    _check_order(turns)
    _check_texts(turns)
    pictures = [part for turn in turns for part in turn.parts if isinstance(part, Picture)]
    if len(pictures) > max_images:
        raise ImageCount(f"{len(pictures)} images in one row", allowed=f"at most {max_images}")
    hidden = any(HIDDEN.search(text) for turn in turns for text in _texts(turn))
    return Draft(shape=shape, turns=tuple(turns), hidden=hidden)


def _turns(row: dict[str, Any]) -> tuple[Shape, list[Turn]]:
    if "messages" in row:
        return "openai", _spoken(row, "messages", "role", "content")
    if "conversations" in row:
        shape: Shape = "sharegpt" if "images" in row or "system" in row else "llava"
        return shape, _system(row) + _spoken(row, "conversations", "from", "value")
    if "texts" in row:
        return "texts", _paired(row)
    if any(name in row for name in ANSWER_FIELDS):
        return "imagefolder" if "file_name" in row else "columns", _asked(row)
    raise MissingField(
        f"a row with the fields {', '.join(map(repr, list(row)[:10])) or 'none'}",
        allowed="a row with 'messages', 'conversations', or an answer ('answer', 'text', 'caption' or 'label')",
    )


# --- conversations in turns ------------------------------------------------------------------------------------


def _spoken(row: dict[str, Any], field: str, speaker: str, speech: str) -> list[Turn]:
    """Read turns that say who speaks, with `<image>` placeholders for the row's own images, or images inline."""
    turns = row[field]
    if not isinstance(turns, list):
        raise WrongType(f"{field!r} that is no list", allowed="a list of turns", field=field)
    waiting = _Waiting(_row_pictures(row))
    result = [_turn(turn, f"{field}[{index}]", speaker, speech, waiting) for index, turn in enumerate(turns)]
    waiting.check_all_placed()
    return result


class _Waiting:
    """The row's own images, handed out one per placeholder, with a count of both."""

    def __init__(self, pictures: list[Picture]) -> None:
        self._pictures = pictures
        self._placeholders = 0

    def next(self) -> Iterator[Picture]:
        """Yield the image that belongs to one more placeholder, if any is left."""
        self._placeholders += 1
        yield from self._pictures[self._placeholders - 1 : self._placeholders]

    def check_all_placed(self) -> None:
        """Raise ImageCount unless there was one placeholder for each image."""
        if self._placeholders != len(self._pictures):
            raise ImageCount(f"{self._placeholders} placeholders and {len(self._pictures)} images")


def _turn(turn: Any, field: str, speaker: str, speech: str, waiting: _Waiting) -> Turn:
    if not isinstance(turn, dict):
        raise WrongType(
            "a turn that is no object", allowed=f"an object with {speaker!r} and {speech!r}", field=field
        )
    # ShareGPT files in the wild also write role and content under "conversations".
    speaker, speech = ("role", "content") if "role" in turn else (speaker, speech)
    for name in (speaker, speech):
        if name not in turn:
            raise MissingField(f"a turn without {name!r}", allowed=f"{speaker!r} and {speech!r}", field=field)
    role = ROLES.get(turn[speaker]) if isinstance(turn[speaker], str) else None
    if role is None:
        raise UnknownRole(f"the role {str(turn[speaker])[:100]!r}", field=f"{field}.{speaker}")
    if turn.get("weight") == 0:
        raise UnsupportedField("weight 0, a turn that is not to be learned", field=f"{field}.weight")
    parts = _content(turn[speech], f"{field}.{speech}", role, waiting)
    return Turn(field=f"{field}.{speech}", role=role, parts=tuple(parts))


def _content(content: Any, field: str, role: RoleName, waiting: _Waiting) -> Iterator[DraftPart]:
    if isinstance(content, str):
        yield from _text(content, role, waiting)
        return
    if not isinstance(content, list):
        raise WrongType(
            "content that is neither text nor a list", allowed="text or a list of parts", field=field
        )
    for index, part in enumerate(content):
        yield from _part(part, f"{field}[{index}]", role, waiting)


def _text(text: str, role: RoleName, waiting: _Waiting) -> Iterator[DraftPart]:
    # Elsewhere than in a user's turn a placeholder stays in the text and is refused there as a control token.
    pieces = text.split(PLACEHOLDER) if role == "user" else [text]
    for index, piece in enumerate(pieces):
        if index:
            yield from waiting.next()
        plain = piece.replace("\r\n", "\n")
        trimmed = plain.strip("\n") if len(pieces) > 1 else plain
        if trimmed.strip():
            yield text_part(trimmed)


def _part(part: Any, field: str, role: RoleName, waiting: _Waiting) -> Iterator[DraftPart]:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        yield from _text(part["text"], role, waiting)
    elif kind in ("image", "image_url"):
        if role != "user":
            raise ImageRole(f"an image in a turn of the {role}", field=field)
        given = [part[name] for name in ("image_url", "image", "source", "url", "path") if part.get(name)]
        if given:
            yield _picture(given[0], f"{field}.{kind}")
        else:
            yield from waiting.next()
    else:
        raise WrongType(
            f"a part of type {str(kind)[:100]!r}",
            allowed="parts of type 'text', 'image_url' or 'image'",
            field=field,
        )


def _system(row: dict[str, Any]) -> list[Turn]:
    text = row.get("system") or ""
    if not isinstance(text, str):
        raise WrongType("'system' that is no text", allowed="text", field="system")
    return [Turn(field="system", role="system", parts=(text_part(text),))] if text.strip() else []


# --- rows of questions and answers -----------------------------------------------------------------------------


def _paired(row: dict[str, Any]) -> list[Turn]:
    """Read `texts`, a list of user/assistant pairs, with the row's images before the first question."""
    if not isinstance(row["texts"], list) or not row["texts"]:
        raise WrongType(
            "'texts' that is no list of pairs", allowed="objects with 'user', 'assistant'", field="texts"
        )
    turns: list[Turn] = []
    for index, pair in enumerate(row["texts"]):
        pictures = _row_pictures(row) if index == 0 else []
        turns += _exchange(pair, "user", "assistant", pictures, f"texts[{index}].")
    return turns


def _asked(row: dict[str, Any]) -> list[Turn]:
    """Read a table's row: one answer, its question or a standing one, the images before it."""
    pictures = _row_pictures(row)
    answer = next(name for name in ANSWER_FIELDS if name in row)
    question = next((name for name in QUESTION_FIELDS if name in row), None)
    if question is None and answer in CAPTION_QUESTIONS and pictures:
        row, question = row | {"question": CAPTION_QUESTIONS[answer]}, "question"
    return _system(row) + _exchange(row, question or "question", answer, pictures, "")


def _exchange(row: Any, question: str, answer: str, pictures: list[Picture], field: str) -> list[Turn]:
    for name in (question, answer):
        found = row.get(name) if isinstance(row, dict) else None
        if not isinstance(found, str):
            problem = MissingField if found is None else WrongType
            raise problem(f"no text in {name!r}", allowed="a question and an answer", field=field + name)
    # Without placeholders the images stand before the question.
    placed = PLACEHOLDER in row[question]
    waiting = _Waiting(pictures if placed else [])
    parts = [*([] if placed else pictures), *_text(row[question], "user", waiting)]
    waiting.check_all_placed()
    return [
        Turn(field=field + question, role="user", parts=tuple(parts)),
        Turn(field=field + answer, role="assistant", parts=tuple(_text(row[answer], "assistant", waiting))),
    ]


# --- images ----------------------------------------------------------------------------------------------------


def _row_pictures(row: dict[str, Any]) -> list[Picture]:
    pictures = []
    for field in ("images", "image", "file_name"):
        found = row.get(field)
        items = found if isinstance(found, list) else [found] if found else []
        pictures += [
            _picture(item, f"{field}[{index}]" if found is items else field)
            for index, item in enumerate(items)
        ]
    return pictures


def _picture(value: Any, field: str) -> Picture:
    """Read one reference to an image: a name, a data: URL, or an object that holds one of these."""
    if isinstance(value, dict):
        if value.get("type") == "base64":
            return Picture(field=field, data=_decoded(str(value.get("data")), field))
        inner = [value[name] for name in ("bytes", "url", "path") if value.get(name)]
        if inner and isinstance(inner[0], str):
            return _picture(inner[0], field)
    if not isinstance(value, str):
        raise WrongType("an image that is no text", allowed="a name or a data: URL", field=field)
    if value[:5].lower() == "data:":
        head, comma, encoded = value.partition(",")
        if not comma or not head.endswith(";base64"):
            raise ImageData(f"a data: URL that starts with {head[:60]!r}", field=field)
        return Picture(field=field, data=_decoded(encoded, field))
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:|//", value):
        raise RemoteImageRefused(f"the address {value[:200]!r}", field=field)
    if not value.strip():
        raise ImageMissing("an empty name", field=field)
    return Picture(field=field, name=value)


def _decoded(encoded: str, field: str) -> bytes:
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageData(f"base64 that cannot be decoded ({error})", field=field) from error


# --- rules for every shape -------------------------------------------------------------------------------------


def _check_order(turns: list[Turn]) -> None:
    start = 1 if turns and turns[0].role == "system" else 0
    if not any(turn.role == "assistant" for turn in turns):
        raise RowWithoutAnswer("no turn of the assistant")
    for index, turn in enumerate(turns[start:]):
        expected = "assistant" if index % 2 else "user"
        if turn.role != expected:
            raise TurnOrder(f"a turn of the {turn.role} where the {expected}'s is due", field=turn.field)
    if turns[-1].role != "assistant":
        raise TurnOrder("a last turn of the user", field=turns[-1].field)
    for turn in turns:
        if not turn.parts:
            problem = RowWithoutAnswer if turn.role == "assistant" else EmptyTurn
            raise problem(f"an empty turn of the {turn.role}", field=turn.field)


def _texts(turn: Turn) -> Iterator[str]:
    return (part["text"] for part in turn.parts if not isinstance(part, Picture))


def _check_texts(turns: list[Turn]) -> None:
    total = 0
    for turn in turns:
        for text in _texts(turn):
            total += len(text)
            _check_text(text, turn.field)
    if total > TEXT_MAX_CHARACTERS:
        raise TextTooLong(f"{total:,} characters", allowed=f"at most {TEXT_MAX_CHARACTERS:,} in one row")


def _check_text(text: str, field: str) -> None:
    if token := CONTROL_TOKENS.search(text):
        raise ControlToken(f"the control token {token.group()!r}", field=field)
    if text.isprintable():
        return
    for character in text:
        category = unicodedata.category(character)
        if category == "Cs":
            raise WrongEncoding(f"half a character (U+{ord(character):04X})", field=field)
        if category == "Cc" and character not in "\t\n\r":
            raise ControlCharacter(f"the control character U+{ord(character):04X}", field=field)

"""The records that cross boundaries between packages: frozen, typed, without behaviour beyond reading themselves.

Times are text written by `storage.clock.now`. Images appear in conversations by the SHA-256 of their stored bytes.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, TypedDict

ALIAS = "assistant"
# 18 digits always fit into an integer of SQLite.
_GENERATION_NAME = re.compile(rf"{ALIAS}@(0|[1-9][0-9]{{0,17}})")


class Role(StrEnum):
    """What a user may do; each role includes the ones before it."""

    CHAT = "chat"
    CONTRIBUTOR = "contributor"
    ADMIN = "admin"

    def allows(self, needed: Role) -> bool:
        """Tell whether somebody of this role may do what `needed` may do."""
        order = list(Role)
        return order.index(self) >= order.index(needed)


class SubmissionState(StrEnum):
    """What intake made of an uploaded file."""

    ACCEPTED = "accepted"
    REJECTED = "rejected"


class DatasetState(StrEnum):
    """Where a dataset stands between upload and being part of the model."""

    PENDING = "pending"
    """waits for an admin's approval"""
    QUEUED = "queued"
    """will be learned by the next round"""
    LEARNED = "learned"
    """part of the champion's lineage"""
    SET_ASIDE = "set_aside"
    """its round was rejected, held, failed or rolled back; an admin may queue it again"""
    WITHDRAWN = "withdrawn"
    """never to be used again"""


class RoundState(StrEnum):
    """The states of an update round; `docs/rounds.md` draws the edges, TRANSITIONS lists them."""

    QUEUED = "queued"
    PREPARING = "preparing"
    TRAINING = "training"
    EVALUATING = "evaluating"
    JUDGING = "judging"
    SWAPPING = "swapping"
    PROMOTED = "promoted"
    REJECTED = "rejected"
    HELD = "held"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        """Whether nothing follows this state."""
        return not TRANSITIONS[self]


ACTIVE = (
    RoundState.PREPARING,
    RoundState.TRAINING,
    RoundState.EVALUATING,
    RoundState.JUDGING,
    RoundState.SWAPPING,
)
"""States in which a worker holds a lease on the round."""

_ENDS_EARLY = frozenset({RoundState.FAILED, RoundState.CANCELLED})
_RESCUED = frozenset({RoundState.PREPARING})

TRANSITIONS: dict[RoundState, frozenset[RoundState]] = {
    RoundState.QUEUED: frozenset({RoundState.PREPARING, RoundState.CANCELLED}),
    RoundState.PREPARING: frozenset({RoundState.TRAINING}) | _RESCUED | _ENDS_EARLY,
    RoundState.TRAINING: frozenset({RoundState.EVALUATING}) | _RESCUED | _ENDS_EARLY,
    RoundState.EVALUATING: frozenset({RoundState.JUDGING}) | _RESCUED | _ENDS_EARLY,
    RoundState.JUDGING: frozenset(
        {RoundState.EVALUATING, RoundState.SWAPPING, RoundState.REJECTED, RoundState.HELD}
    )
    | _RESCUED
    | _ENDS_EARLY,
    RoundState.SWAPPING: frozenset({RoundState.PROMOTED}) | _RESCUED | _ENDS_EARLY,
    RoundState.PROMOTED: frozenset(),
    RoundState.REJECTED: frozenset(),
    RoundState.HELD: frozenset(),
    RoundState.FAILED: frozenset(),
    RoundState.CANCELLED: frozenset(),
}
"""Which state may follow which; a rescued round (its worker died) goes back to `preparing`."""


class Decision(StrEnum):
    """What the gate says about a candidate."""

    PROMOTE = "promote"
    REJECT = "reject"
    HOLD = "hold"


class TextPart(TypedDict):
    """A piece of text in a message."""

    type: Literal["text"]
    text: str


class ImagePart(TypedDict):
    """A stored image in a message."""

    type: Literal["image"]
    sha256: str


Part = TextPart | ImagePart


class ChatMessage(TypedDict):
    """One turn of a conversation, in the order in which its parts are read."""

    role: Literal["system", "user", "assistant"]
    content: list[Part]


Conversation = list[ChatMessage]


def text_part(text: str) -> TextPart:
    """Wrap text as a message part."""
    return {"type": "text", "text": text}


def whole_characters(text: str) -> str:
    """Return text with question marks in place of half characters, which JSON can spell and UTF-8 cannot."""
    return text.encode(errors="replace").decode()


def image_part(sha256: str) -> ImagePart:
    """Wrap a stored image as a message part."""
    return {"type": "image", "sha256": sha256}


def images_of(conversation: Conversation) -> tuple[str, ...]:
    """Return the SHA-256 of every image of a conversation, in reading order."""
    return tuple(
        part["sha256"] for turn in conversation for part in turn["content"] if part["type"] == "image"
    )


def text_of(message: ChatMessage) -> str:
    """Return the text of one message, its parts joined by line breaks."""
    return "\n".join(part["text"] for part in message["content"] if part["type"] == "text")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing intake noticed: where, what is wrong or noteworthy, and how to mend it."""

    severity: Literal["error", "note"]
    code: str
    message: str
    fix: str = ""
    row: int | None = None
    field: str | None = None

    def __post_init__(self) -> None:
        """Write out as an escape what UTF-8 cannot hold: findings quote files, and JSON can spell half a character."""
        for name in ("message", "field"):
            if (text := getattr(self, name)) is not None:
                object.__setattr__(self, name, text.encode(errors="backslashreplace").decode())


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What intake says about a file: counts and findings."""

    format: str = ""
    rows: int = 0
    accepted: int = 0
    images: int = 0
    findings: tuple[Finding, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain JSON types."""
        return asdict(self) | {"findings": [asdict(finding) for finding in self.findings]}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Report:
        """Read a report written by `to_json`."""
        return cls(**data | {"findings": tuple(Finding(**finding) for finding in data["findings"])})


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """A person, or a program acting for one."""

    id: int
    name: str
    role: Role
    created_at: str
    disabled: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """One upload: the file's identity and what intake said; the file itself is not kept once it is read."""

    id: int
    user_id: int
    filename: str
    sha256: str
    bytes: int
    state: SubmissionState
    report: Report
    dataset_id: int | None
    created_at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """An accepted task: canonical rows, split once and for ever into train and holdout."""

    id: int
    name: str
    user_id: int
    sha256: str
    state: DatasetState
    train_rows: int
    holdout_rows: int
    created_at: str
    approved_by: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One conversation of a dataset; it ends with the assistant's turn."""

    id: int
    dataset_id: int
    position: int
    split: Literal["train", "holdout"]
    sha256: str
    messages: Conversation

    @property
    def images(self) -> tuple[str, ...]:
        """SHA-256 of the row's images, in reading order."""
        return images_of(self.messages)


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One update round; `step` of `steps` is its training progress."""

    id: int
    state: RoundState
    policy: str
    settings: dict[str, Any]
    requested_by: str
    created_at: str
    started_at: str | None
    finished_at: str | None
    lease: str | None
    attempts: int
    cancel_requested: bool
    champion: int | None
    candidate: int | None
    step: int
    steps: int
    verdict: dict[str, Any] | None
    error: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened in a round, for people to read."""

    id: int
    round_id: int
    at: str
    level: Literal["info", "warning", "error"]
    kind: str
    message: str
    data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepMetrics:
    """What the learner measured at one optimizer step."""

    round_id: int
    step: int
    values: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Groups:
    """The instruction groups of a generation, each with an adapter; the group is the place in these lists."""

    adapters: tuple[int, ...]
    """The generations that have trained each group's adapter last: one of them is its own, the others are earlier."""
    datasets: tuple[tuple[int, ...], ...]
    """The datasets that each group has learned."""
    floor: float
    """How much a request must resemble a group (0 to 1) to be answered by its adapter and not by the base model."""
    origin: int
    """The generation whose adapter its own goes on from; 0, the bare base model, if it has opened its group."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """An immutable adapter: its number, the content hash of its directory, and what it came from.

    With instruction groups it answers with earlier generations' adapters as well, each for its group.
    """

    number: int
    sha256: str
    directory: Path
    parent: int
    round_id: int
    share: float
    """How far it goes from its parent to what its round has trained; 1 for what was trained itself."""
    rank: int
    manifest: dict[str, Any]
    created_at: str

    @property
    def name(self) -> str:
        """The name under which every server knows its own adapter, and people all of it, e.g. `assistant@7`."""
        return generation_name(self.number)

    @property
    def groups(self) -> Groups | None:
        """Its instruction groups, from the manifest; None if one adapter answers everything."""
        found = self.manifest.get("groups")
        if found is None:
            return None
        # A manifest is written, and hashed, before its generation has a number.
        numbers = (adapter["generation"] for adapter in found["adapters"])
        return Groups(
            adapters=tuple(self.number if number is None else number for number in numbers),
            datasets=tuple(map(tuple, found["datasets"])),
            floor=found["floor"],
            origin=found["origin"],
        )

    @property
    def origin(self) -> int:
        """The generation whose adapter its own goes on from; 0 for the bare base model."""
        groups = self.groups
        return self.parent if groups is None else groups.origin

    @property
    def adapters(self) -> tuple[int, ...]:
        """The generations whose adapters must be loaded for it to answer."""
        groups = self.groups
        return (self.number,) if groups is None else groups.adapters


def generation_name(number: int) -> str:
    """Return the served name of a generation; number 0 is the bare base model."""
    return f"{ALIAS}@{number}"


def generation_number(name: str) -> int | None:
    """Return the number in a served name, or None if the name is not one."""
    found = _GENERATION_NAME.fullmatch(name)
    return int(found[1]) if found else None


@dataclass(frozen=True, slots=True, kw_only=True)
class AliasChange:
    """One move of the alias: which generation began to serve, after which, on whose word."""

    at: str
    generation: int
    previous: int
    actor: str
    reason: str
    round_id: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What one generation said to one holdout row, and how it was scored (0 to 1)."""

    row_id: int
    dataset_id: int
    generation: int
    answer: str
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyMatrix:
    """Mean holdout score (0 to 1) of each generation on each dataset; None where it was not asked."""

    generations: tuple[int, ...]
    datasets: tuple[int, ...]
    values: tuple[tuple[float | None, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversationInfo:
    """A conversation's place in its owner's list."""

    id: int
    user_id: int
    title: str
    created_at: str
    updated_at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredMessage:
    """A message as it was kept; `generation` names the weights that wrote it, None for people's own."""

    id: int
    position: int
    role: Literal["system", "user", "assistant"]
    content: list[Part]
    generation: str | None
    state: Literal["complete", "interrupted"]
    created_at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """One line of the append-only log."""

    id: int
    at: str
    actor: str
    action: str
    object: str
    detail: dict[str, Any]

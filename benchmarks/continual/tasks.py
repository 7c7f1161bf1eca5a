"""What a task of the benchmark is: rows to learn from and rows to be asked, with no picture in both.

Which rows are held out follows from a hash of their picture alone, so it never changes, and more rows to learn from
are the same ones and some more. It knows neither how pictures are drawn nor how models are trained.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from storage.records import Conversation, Row, text_of

HOLDOUT_SHARE = 0.25
"""Share of all pictures that are never trained on."""

Grade = Callable[[str, str], float]
"""From a reference and an answer to a score from 0 to 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Something to be learned in one round."""

    name: str
    train: list[Row]
    holdout: list[Row]
    style: re.Pattern[str] | None
    """What an answer looks like, right or wrong; None where answers have no common form."""
    grade: Grade

    @property
    def instructions(self) -> list[str]:
        """The questions of the rows to learn from."""
        return [question_of(row) for row in self.train]

    @property
    def fingerprint(self) -> str:
        """A hash of all rows."""
        rows = [row.sha256 for row in (*self.train, *self.holdout)]
        return hashlib.sha256("".join(rows).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Pictures:
    """Encoded pictures by their SHA-256, those of files left where they are."""

    kept: dict[str, bytes | Path] = field(default_factory=dict)

    def add(self, picture: bytes | Path) -> str:
        """Take a picture and return its SHA-256."""
        data = picture.read_bytes() if isinstance(picture, Path) else picture
        sha256 = hashlib.sha256(data).hexdigest()
        self.kept.setdefault(sha256, picture)
        return sha256

    def read(self, sha256: str) -> bytes:
        """Return an encoded picture."""
        picture = self.kept[sha256]
        return picture.read_bytes() if isinstance(picture, Path) else picture


def divided(
    name: str,
    conversations: Iterable[tuple[str, Conversation]],
    *,
    rows: int,
    holdout: int,
    style: re.Pattern[str] | None,
    grade: Grade,
) -> Task:
    """Make a task of the first conversations of each part; each comes with what names its picture.

    The iterable may be endless. If it ends early, there are fewer rows; raises ValueError if a part has none.
    """
    parts: dict[Literal["train", "holdout"], list[Row]] = {"train": [], "holdout": []}
    most = {"train": rows, "holdout": holdout}
    seen = set[str]()
    for picture, messages in conversations:
        part: Literal["train", "holdout"] = "holdout" if is_held_out(picture) else "train"
        sha256 = hashlib.sha256(json.dumps(messages, sort_keys=True).encode()).hexdigest()
        if sha256 not in seen and len(parts[part]) < most[part]:
            seen.add(sha256)
            parts[part].append(
                Row(
                    id=len(seen),
                    dataset_id=0,
                    position=len(seen) - 1,
                    split=part,
                    sha256=sha256,
                    messages=messages,
                )
            )
        if all(len(parts[which]) == most[which] for which in parts):
            break
    if not parts["train"] or not parts["holdout"]:
        raise ValueError(f"the task {name!r} has too few rows: {len(seen)}")
    return Task(name=name, train=parts["train"], holdout=parts["holdout"], style=style, grade=grade)


def is_held_out(picture: str) -> bool:
    """Whether all questions about this picture are kept aside."""
    return int(hashlib.sha256(picture.encode()).hexdigest()[:8], 16) < HOLDOUT_SHARE * 2**32


def question_of(row: Row) -> str:
    """Return the text of a row's last question."""
    return text_of(row.messages[-2])


def reference_of(row: Row) -> str:
    """Return the answer that a row teaches, or is asked for."""
    return text_of(row.messages[-1])


def same(reference: str, answer: str) -> float:
    """Grade 1 for the reference itself, in whatever case, else 0: a right fact in another form is forgotten, too."""
    return float(_plain(reference) == _plain(answer))


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold().removesuffix(".")

"""Tasks from data files that somebody has: LLaVA's format, or any other that the product takes (docs/formats.md)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from benchmarks.continual.tasks import Pictures, Task, divided
from learner.scoring import score
from storage.datafiles import container, raw_rows
from storage.datasets import ties
from storage.errors import BadUpload
from storage.formats import Draft, Picture, read_row
from storage.records import Conversation
from storage.settings import StorageSettings


def build(name: str, path: Path, images: Path, pictures: Pictures, *, rows: int, holdout: int) -> Task:
    """Make a task of a data file whose pictures lie below `images`.

    Answers are graded as the product does it. Raises the BadUpload of the first row that breaks a rule, OSError if a
    file is not there, ValueError if there are too few rows.
    """
    conversations = _conversations(path, images, pictures)
    return divided(name, conversations, rows=rows, holdout=holdout, style=None, grade=score)


def _conversations(path: Path, images: Path, pictures: Pictures) -> Iterator[tuple[str, Conversation]]:
    """Yield conversations with the name of a picture to which they are tied, in the order of their hashes.

    Files are often sorted. Pictures are told apart by their names, since reading all of them may take hours: the same
    picture under two names counts as two.
    """
    settings = StorageSettings()
    found: list[tuple[str, Draft]] = []
    for _, raw in raw_rows(path, container(path, path.name), settings):
        if isinstance(raw, BadUpload):
            raise raw
        key = hashlib.sha256(json.dumps(raw, sort_keys=True, default=repr).encode()).hexdigest()
        found.append((key, read_row(raw, settings.row_max_images)))

    def stored(picture: Picture) -> str:
        return pictures.add(picture.data or images / picture.name)

    found.sort(key=lambda one: one[0])
    for (key, draft), picture in zip(found, ties(shown(draft) for _, draft in found), strict=True):
        yield picture or key, draft.conversation(stored)


def shown(draft: Draft) -> list[str]:
    """Name the pictures of a row without reading their files."""
    parts = (part for turn in draft.turns for part in turn.parts if isinstance(part, Picture))
    return [part.name or hashlib.sha256(part.data).hexdigest() for part in parts]

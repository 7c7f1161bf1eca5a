"""What every test may ask for: an empty installation, and a few people in it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from storage.records import Conversation, Part, Role, User, image_part, text_part
from storage.settings import PREFIX, StorageSettings
from storage.store import Store

# Tests say themselves what differs from the defaults; what an installation on this machine is told does not count.
for name in [name for name in os.environ if name.startswith(PREFIX)]:
    del os.environ[name]

# How long an example takes depends on what else the machine does, and says nothing about the code.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An empty installation in a directory of its own."""
    with Store(StorageSettings(data_dir=tmp_path / "data")) as opened:
        yield opened


@pytest.fixture
def admin(store: Store) -> User:
    """An admin who has chosen no password."""
    return store.users.create("ada", Role.ADMIN)


def question(text: str, answer: str, image: str | None = None) -> Conversation:
    """Return a row of one question, about a stored image if one is given, and its answer."""
    asked: list[Part] = [text_part(text)] if image is None else [image_part(image), text_part(text)]
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": [text_part(answer)]}]


def questions(count: int, subject: str = "number") -> list[Conversation]:
    """Return `count` different rows of text."""
    return [question(f"{subject} {index}?", f"answer {index}") for index in range(count)]

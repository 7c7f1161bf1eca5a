"""The reference pages say what the code does."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from app.api.errors import status_of
from storage import errors
from storage.errors import LlacaError
from storage.store import Store
from tests.app.reference import PAGES, blocks, filled


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_reference_pages_are_up_to_date(store: Store, page: Path) -> None:
    """What docs/ lists is what the code has; `python -m tests.app.reference` writes it anew."""
    text = page.read_text()
    assert text == filled(text, blocks(store))


def test_every_part_has_its_place(store: Store) -> None:
    """No generated part is left out of the pages."""
    pages = "".join(page.read_text() for page in PAGES)
    assert [name for name in blocks(store) if f"<!-- begin {name} -->" not in pages] == []


INSIDE = {
    "AdapterRefused",
    "AuditBroken",
    "BadSetting",
    "BaseModelUnavailable",
    "LlacaError",
    "ProbeRefused",
    "ProgramRefused",
}
"""Errors of other processes, like all those of the learner, which no request can cause."""


def test_every_error_has_a_status_on_purpose() -> None:
    """An error class is in the status table, by itself or an ancestor, or it is known never to cross HTTP."""
    learners = inspect.getsource(errors).partition("# --- learner")[2].partition("# --- app")[0]
    classes = {c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, LlacaError)}
    unplanned = {c.__name__ for c in classes if status_of(c) == 500}
    assert {name for name in unplanned if f"class {name}(" not in learners} == INSIDE

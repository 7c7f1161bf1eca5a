"""What the database promises: opened safely, strict, whole or not at all."""

from __future__ import annotations

import threading

import pytest

from storage.errors import UnknownRound
from storage.records import User
from storage.store import Store
from tests.conftest import question, questions


def test_the_database_is_opened_safely(store: Store) -> None:
    """WAL, full synchronisation and foreign keys are on in every thread's connection."""
    seen: list[tuple[object, ...]] = []

    def look() -> None:
        pragmas = ("journal_mode", "synchronous", "foreign_keys")
        seen.append(
            tuple(next(iter((store.database.row(f"PRAGMA {name}") or {}).values())) for name in pragmas)
        )

    look()
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [("wal", 2, 1)] * 2


def test_every_table_is_strict(store: Store) -> None:
    """SQLite itself refuses a value of the wrong type in every table of ours."""
    loose = store.database.rows(
        "SELECT name FROM pragma_table_list WHERE type = 'table' AND NOT strict AND name NOT LIKE '%sqlite_%'"
    )
    assert loose == []


def test_opening_twice_migrates_once(store: Store) -> None:
    """A second process that opens the same directory finds everything in place."""
    with Store(store.settings) as again:
        assert len(again.database.rows("SELECT * FROM _sqlite_migrations")) == 1


def test_a_failed_write_leaves_nothing(store: Store, admin: User) -> None:
    """A dataset that cannot be stored whole is not stored at all."""
    with pytest.raises(Exception, match="FOREIGN KEY"):
        store.datasets.add("broken", admin.id, [*questions(3), question("?", "!", image="0" * 64)])
    assert store.datasets.list() == []
    assert store.database.rows("SELECT * FROM rows") == []


def test_threads_that_end_leave_no_connection(store: Store) -> None:
    """However many threads come and go, connections of ended ones are closed."""
    for _ in range(20):
        thread = threading.Thread(target=store.users.list)
        thread.start()
        thread.join()
    assert len(store.database._connections) <= 3


def test_an_id_that_no_row_can_have_finds_nothing(store: Store) -> None:
    """A number too large for SQLite is an unknown id, not a crash."""
    with pytest.raises(UnknownRound):
        store.rounds.get(10**30)

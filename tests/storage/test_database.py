"""What the database promises: opened safely, strict, whole or not at all."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import sqlite_utils

from storage.errors import UnknownRound
from storage.migrations import MIGRATIONS
from storage.records import User
from storage.settings import StorageSettings
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
        applied = [
            row["name"] for row in again.database.rows("SELECT name FROM _sqlite_migrations ORDER BY id")
        ]
        assert applied == ["0001_first_schema", "0002_points_between", "0003_conversations_keep_their_number"]


def test_generations_of_the_first_schema_keep_their_numbers(tmp_path: Path) -> None:
    """An installation that had one generation per round goes on with it, and the next number is a new one."""
    (tmp_path / "data").mkdir()
    old = sqlite_utils.Database(tmp_path / "data" / "llaca.sqlite")
    MIGRATIONS.apply(old, stop_before="0002_points_between")
    old.execute(
        "INSERT INTO rounds (id, state, policy, settings, requested_by, created_at)"
        " VALUES (3, 'rejected', '', '{}', 'ada', '2026-01-01')"
    )
    old.execute(
        "INSERT INTO generations (number, sha256, directory, parent, round_id, rank, manifest, created_at)"
        " VALUES (7, 'a', 'a', 0, 3, 8, '{}', '2026-01-01')"
    )
    old.execute("UPDATE rounds SET candidate = 7")
    old.conn.commit()
    old.close()
    with Store(StorageSettings(data_dir=tmp_path / "data")) as opened:
        (found,) = opened.generations.list()
        assert (found.number, found.share, opened.rounds.get(3).candidate) == (7, 1.0, 7)
        assert opened.database.rows("PRAGMA foreign_key_check") == []
        (sequence,) = opened.database.rows("SELECT seq FROM sqlite_sequence WHERE name = 'generations'")
        assert sequence["seq"] == 7


def test_conversations_of_the_second_schema_are_kept(tmp_path: Path) -> None:
    """An installation of before finds its conversations with their messages, and new ones get new numbers."""
    (tmp_path / "data").mkdir()
    old = sqlite_utils.Database(tmp_path / "data" / "llaca.sqlite")
    MIGRATIONS.apply(old, stop_before="0003_conversations_keep_their_number")
    old.execute("INSERT INTO users (id, name, role, created_at) VALUES (1, 'ada', 'chat', '2026-01-01')")
    old.execute("INSERT INTO conversations VALUES (5, 1, 'Fruit', '2026-01-01', '2026-01-02')")
    old.execute(
        "INSERT INTO messages (conversation_id, position, role, content, state, created_at)"
        " VALUES (5, 0, 'user', '[]', 'complete', '2026-01-01')"
    )
    old.conn.commit()
    old.close()
    with Store(StorageSettings(data_dir=tmp_path / "data")) as opened:
        (found,) = opened.conversations.list(1)
        assert (found.id, found.title, found.updated_at) == (5, "Fruit", "2026-01-02")
        assert [message.role for message in opened.conversations.messages(5, 1)] == ["user"]
        opened.conversations.delete(5, 1)
        assert opened.database.rows("SELECT * FROM messages") == []
        assert opened.conversations.create(1).id == 6


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

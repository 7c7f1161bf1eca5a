"""Opens SQLite correctly, one connection per thread.

WAL so that readers never wait for the writer, synchronous=FULL so that a committed row survives a power cut,
foreign keys on, and every write of several statements under BEGIN IMMEDIATE: a transaction that starts by reading
and then writes cannot be upgraded while another writer is active, however long the busy timeout.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlite_utils

from storage.migrations import MIGRATIONS

BUSY_TIMEOUT_MS = 10_000


class Database:
    """All access to one SQLite file from any number of threads; never share an instance across a fork."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._local = threading.local()
        self._lock = threading.Lock()
        self._connections: list[tuple[threading.Thread, sqlite3.Connection]] = []
        """Web servers start and end threads all the time; those of ended ones are closed when another starts."""
        with self.writing():
            # Two processes that start together must not both apply a migration.
            MIGRATIONS.apply(self.tables)

    @property
    def tables(self) -> sqlite_utils.Database:
        """This thread's connection, opened on first use."""
        existing: sqlite_utils.Database | None = getattr(self._local, "tables", None)
        if existing is not None:
            return existing
        self._local.tables = sqlite_utils.Database(self._connect(), strict=True)
        return self.tables

    def _connect(self) -> sqlite3.Connection:
        # isolation_level=None: transactions begin only where this class says so.
        connection = sqlite3.connect(
            self.path, timeout=BUSY_TIMEOUT_MS / 1000, isolation_level=None, check_same_thread=False
        )
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute(f"PRAGMA journal_size_limit={64 * 1024 * 1024}")
        with self._lock:
            for thread, old in self._connections:
                if not thread.is_alive():
                    old.close()
            self._connections = [pair for pair in self._connections if pair[0].is_alive()]
            self._connections.append((threading.current_thread(), connection))
        return connection

    def rows(self, sql: str, parameters: Sequence[Any] | dict[str, Any] = ()) -> list[dict[str, Any]]:
        """Run one statement and return its rows; a single `UPDATE … RETURNING` is its own transaction."""
        try:
            return list(self.tables.query(sql, parameters))
        except OverflowError:
            # An id from outside that no SQLite integer can be, so nothing has it.
            return []

    def row(self, sql: str, parameters: Sequence[Any] | dict[str, Any] = ()) -> dict[str, Any] | None:
        """Run one statement and return its first row, if any."""
        return next(iter(self.rows(sql, parameters)), None)

    def run(self, sql: str, parameters: Sequence[Any] | dict[str, Any] = ()) -> int:
        """Run one statement that returns no rows; return how many rows it changed."""
        return self.tables.execute(sql, parameters).rowcount

    def insert(self, table: str, values: dict[str, Any]) -> int:
        """Insert one row and return its rowid."""
        columns = ", ".join(values)
        marks = ", ".join(f":{name}" for name in values)
        cursor = self.tables.execute(f"INSERT INTO {table} ({columns}) VALUES ({marks})", values)
        return int(cursor.lastrowid or 0)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the write lock for several statements; all of them happen or none. Nested blocks join the outer one."""
        connection = self.tables.conn
        if connection.in_transaction:
            yield
            return
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            connection.rollback()
            raise
        connection.execute("COMMIT")

    def close(self) -> None:
        """Close the connections of every thread."""
        with self._lock:
            for _, connection in self._connections:
                connection.close()
            self._connections.clear()
        self._local = threading.local()

"""The schema, as numbered steps that are applied once each. Never edit a step that has been released: add one."""

from __future__ import annotations

import sqlite_utils
from sqlite_utils.migrations import Migrations

MIGRATIONS = Migrations("llaca")


def _run(db: sqlite_utils.Database, script: str) -> None:
    for statement in script.split(";"):
        if statement.strip():
            db.execute(statement)


@MIGRATIONS(name="0001_first_schema")
def first_schema(db: sqlite_utils.Database) -> None:
    """Create every table of the first release."""
    _run(db, _PEOPLE)
    _run(db, _DATA)
    _run(db, _ROUNDS)
    _run(db, _CONVERSATIONS)


@MIGRATIONS(name="0002_points_between")
def points_between(db: sqlite_utils.Database) -> None:
    """Let a round have several generations: what it has trained, and points between that and the champion."""
    # SQLite cannot drop a UNIQUE, so the table is made anew; nothing may point at the old one when it goes.
    _run(db, _POINTS_BETWEEN)


@MIGRATIONS(name="0003_conversations_keep_their_number")
def conversations_keep_their_number(db: sqlite_utils.Database) -> None:
    """Never give the number of a deleted conversation to another: a page may still be writing to it."""
    _run(db, _NUMBERED_ONCE)


_PEOPLE = """
CREATE TABLE users (
  id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE COLLATE NOCASE,
  role TEXT NOT NULL CHECK (role IN ('chat', 'contributor', 'admin')),
  password_hash TEXT, created_at TEXT NOT NULL, disabled INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE TABLE credentials (
  token_sha256 TEXT PRIMARY KEY, user_id INTEGER NOT NULL REFERENCES users(id),
  kind TEXT NOT NULL CHECK (kind IN ('session', 'key', 'link')),
  label TEXT NOT NULL DEFAULT '', created_at TEXT NOT NULL, expires_at TEXT
) STRICT;
CREATE INDEX credentials_user ON credentials(user_id);
CREATE TABLE audit (
  id INTEGER PRIMARY KEY, at TEXT NOT NULL, actor TEXT NOT NULL, action TEXT NOT NULL,
  object TEXT NOT NULL, detail TEXT NOT NULL, sha256 TEXT NOT NULL
) STRICT;
CREATE TABLE processes (
  name TEXT PRIMARY KEY, started_at TEXT NOT NULL, facts TEXT NOT NULL
) STRICT
"""

_DATA = """
CREATE TABLE blobs (
  sha256 TEXT PRIMARY KEY, bytes INTEGER NOT NULL, media_type TEXT NOT NULL, created_at TEXT NOT NULL
) STRICT;
CREATE TABLE datasets (
  id INTEGER PRIMARY KEY, name TEXT NOT NULL, user_id INTEGER NOT NULL REFERENCES users(id),
  sha256 TEXT NOT NULL,
  state TEXT NOT NULL CHECK (state IN ('pending', 'queued', 'learned', 'set_aside', 'withdrawn')),
  train_rows INTEGER NOT NULL, holdout_rows INTEGER NOT NULL, created_at TEXT NOT NULL, approved_by TEXT
) STRICT;
CREATE TABLE rows (
  id INTEGER PRIMARY KEY, dataset_id INTEGER NOT NULL REFERENCES datasets(id), position INTEGER NOT NULL,
  split TEXT NOT NULL CHECK (split IN ('train', 'holdout')), sha256 TEXT NOT NULL, messages TEXT NOT NULL,
  UNIQUE (dataset_id, position)
) STRICT;
CREATE TABLE row_images (
  row_id INTEGER NOT NULL REFERENCES rows(id), sha256 TEXT NOT NULL REFERENCES blobs(sha256),
  PRIMARY KEY (row_id, sha256)
) STRICT;
CREATE INDEX row_images_blob ON row_images(sha256);
CREATE TABLE submissions (
  id INTEGER PRIMARY KEY, user_id INTEGER NOT NULL REFERENCES users(id), filename TEXT NOT NULL,
  sha256 TEXT NOT NULL, bytes INTEGER NOT NULL,
  state TEXT NOT NULL CHECK (state IN ('accepted', 'rejected')),
  report TEXT NOT NULL, dataset_id INTEGER REFERENCES datasets(id), created_at TEXT NOT NULL
) STRICT;
CREATE INDEX submissions_file ON submissions(user_id, sha256)
"""

_ROUNDS = """
CREATE TABLE rounds (
  id INTEGER PRIMARY KEY,
  state TEXT NOT NULL CHECK (state IN ('queued', 'preparing', 'training', 'evaluating', 'judging', 'swapping',
    'promoted', 'rejected', 'held', 'failed', 'cancelled')),
  policy TEXT NOT NULL, settings TEXT NOT NULL, requested_by TEXT NOT NULL,
  created_at TEXT NOT NULL, started_at TEXT, finished_at TEXT,
  lease TEXT, lease_until TEXT, worker TEXT, attempts INTEGER NOT NULL DEFAULT 0,
  cancel_requested INTEGER NOT NULL DEFAULT 0, champion INTEGER,
  candidate INTEGER REFERENCES generations(number), step INTEGER NOT NULL DEFAULT 0,
  steps INTEGER NOT NULL DEFAULT 0, verdict TEXT, error TEXT,
  CHECK (state <> 'promoted' OR verdict IS NOT NULL)
) STRICT;
CREATE UNIQUE INDEX one_unfinished_round ON rounds((1))
  WHERE state IN ('queued', 'preparing', 'training', 'evaluating', 'judging', 'swapping');
CREATE TABLE round_datasets (
  round_id INTEGER NOT NULL REFERENCES rounds(id), dataset_id INTEGER NOT NULL REFERENCES datasets(id),
  PRIMARY KEY (round_id, dataset_id)
) STRICT;
CREATE TABLE events (
  id INTEGER PRIMARY KEY, round_id INTEGER NOT NULL REFERENCES rounds(id), at TEXT NOT NULL,
  level TEXT NOT NULL CHECK (level IN ('info', 'warning', 'error')),
  kind TEXT NOT NULL, message TEXT NOT NULL, data TEXT NOT NULL
) STRICT;
CREATE INDEX events_round ON events(round_id, id);
CREATE TABLE metrics (
  round_id INTEGER NOT NULL REFERENCES rounds(id), step INTEGER NOT NULL, data TEXT NOT NULL,
  PRIMARY KEY (round_id, step)
) STRICT;
CREATE TABLE generations (
  number INTEGER PRIMARY KEY AUTOINCREMENT, sha256 TEXT NOT NULL, directory TEXT NOT NULL,
  parent INTEGER NOT NULL, round_id INTEGER NOT NULL UNIQUE REFERENCES rounds(id),
  rank INTEGER NOT NULL, manifest TEXT NOT NULL, created_at TEXT NOT NULL
) STRICT;
CREATE TABLE aliases (
  name TEXT PRIMARY KEY, generation INTEGER NOT NULL
) STRICT;
INSERT INTO aliases (name, generation) VALUES ('assistant', 0);
CREATE TABLE alias_history (
  id INTEGER PRIMARY KEY, at TEXT NOT NULL, alias TEXT NOT NULL REFERENCES aliases(name),
  generation INTEGER NOT NULL, previous INTEGER NOT NULL, actor TEXT NOT NULL, reason TEXT NOT NULL,
  round_id INTEGER REFERENCES rounds(id)
) STRICT;
CREATE UNIQUE INDEX promoted_once ON alias_history(round_id) WHERE round_id IS NOT NULL;
CREATE TABLE answers (
  round_id INTEGER NOT NULL REFERENCES rounds(id), generation INTEGER NOT NULL,
  dataset_id INTEGER NOT NULL REFERENCES datasets(id), row_id INTEGER NOT NULL REFERENCES rows(id),
  answer TEXT NOT NULL, score REAL NOT NULL CHECK (score BETWEEN 0 AND 1),
  PRIMARY KEY (round_id, generation, row_id)
) STRICT
"""

_POINTS_BETWEEN = """
CREATE TABLE new_generations (
  number INTEGER PRIMARY KEY AUTOINCREMENT, sha256 TEXT NOT NULL, directory TEXT NOT NULL,
  parent INTEGER NOT NULL, round_id INTEGER NOT NULL REFERENCES rounds(id),
  share REAL NOT NULL DEFAULT 1 CHECK (share > 0 AND share <= 1),
  rank INTEGER NOT NULL, manifest TEXT NOT NULL, created_at TEXT NOT NULL, UNIQUE (round_id, share)
) STRICT;
INSERT INTO new_generations (number, sha256, directory, parent, round_id, rank, manifest, created_at)
  SELECT number, sha256, directory, parent, round_id, rank, manifest, created_at FROM generations;
CREATE TEMP TABLE candidates AS SELECT id, candidate FROM rounds WHERE candidate IS NOT NULL;
UPDATE rounds SET candidate = NULL;
DROP TABLE generations;
ALTER TABLE new_generations RENAME TO generations;
UPDATE rounds SET candidate = (SELECT candidate FROM candidates WHERE candidates.id = rounds.id);
DROP TABLE candidates
"""

_CONVERSATIONS = """
CREATE TABLE conversations (
  id INTEGER PRIMARY KEY, user_id INTEGER NOT NULL REFERENCES users(id), title TEXT NOT NULL,
  created_at TEXT NOT NULL, updated_at TEXT NOT NULL
) STRICT;
CREATE INDEX conversations_user ON conversations(user_id, updated_at);
CREATE TABLE messages (
  id INTEGER PRIMARY KEY,
  conversation_id INTEGER NOT NULL REFERENCES conversations(id) ON DELETE CASCADE,
  position INTEGER NOT NULL, role TEXT NOT NULL CHECK (role IN ('system', 'user', 'assistant')),
  content TEXT NOT NULL, generation TEXT,
  state TEXT NOT NULL CHECK (state IN ('complete', 'interrupted')), created_at TEXT NOT NULL,
  UNIQUE (conversation_id, position)
) STRICT
"""

# Messages first, because a conversation that is dropped takes its messages along.
_NUMBERED_ONCE = """
CREATE TABLE new_conversations (
  id INTEGER PRIMARY KEY AUTOINCREMENT, user_id INTEGER NOT NULL REFERENCES users(id), title TEXT NOT NULL,
  created_at TEXT NOT NULL, updated_at TEXT NOT NULL
) STRICT;
INSERT INTO new_conversations SELECT id, user_id, title, created_at, updated_at FROM conversations;
CREATE TABLE new_messages (
  id INTEGER PRIMARY KEY,
  conversation_id INTEGER NOT NULL REFERENCES new_conversations(id) ON DELETE CASCADE,
  position INTEGER NOT NULL, role TEXT NOT NULL CHECK (role IN ('system', 'user', 'assistant')),
  content TEXT NOT NULL, generation TEXT,
  state TEXT NOT NULL CHECK (state IN ('complete', 'interrupted')), created_at TEXT NOT NULL,
  UNIQUE (conversation_id, position)
) STRICT;
INSERT INTO new_messages
  SELECT id, conversation_id, position, role, content, generation, state, created_at FROM messages;
DROP TABLE messages;
DROP TABLE conversations;
ALTER TABLE new_conversations RENAME TO conversations;
ALTER TABLE new_messages RENAME TO messages;
CREATE INDEX conversations_user ON conversations(user_id, updated_at)
"""

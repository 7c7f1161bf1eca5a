"""Datasets (tasks): rows split once and for ever into train and holdout, and the states between upload and learning.

The split is by content, so the same rows always fall on the same sides, and rows that share a picture fall on the
same side, so that no holdout picture was trained on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from storage.audit import Audit
from storage.clock import now
from storage.database import Database
from storage.errors import RoundInProgress, UnknownDataset, UnknownRow, WrongState
from storage.records import Conversation, Dataset, DatasetState, Row, images_of

Split = Literal["train", "holdout"]


def split(rows: Sequence[Conversation], holdout_share: float) -> list[Split]:
    """Say for each row on which side it falls: whole groups of rows that share pictures, in order of their hash.

    A group for which the holdout has no room is trained on; if that holds for all of them, the smallest is kept aside,
    unless there is no other.
    """
    groups: dict[str, list[int]] = {}
    for position, (row, picture) in enumerate(zip(rows, ties(map(images_of, rows)), strict=True)):
        groups.setdefault(_sha256(row if picture is None else [picture]), []).append(position)
    sides: list[Split] = ["train"] * len(rows)
    if len(groups) < 2:
        return sides
    room = max(1, round(len(rows) * holdout_share))
    held: list[int] = []
    for key in sorted(groups):
        if len(held) + len(groups[key]) <= room:
            held += groups[key]
    for position in held or min((groups[key] for key in sorted(groups)), key=len):
        sides[position] = "holdout"
    return sides


def ties(rows: Iterable[Iterable[str]]) -> list[str | None]:
    """Return for each row's pictures the least of all that they are tied to, and None for a row without pictures.

    Rows with a picture in common are tied, and so are those that only others tie together: b and c where one row shows
    a and b, another a and c.
    """
    above: dict[str, str] = {}

    def least(picture: str) -> str:
        while above[picture] != picture:
            above[picture] = picture = above[above[picture]]
        return picture

    firsts: list[str | None] = []
    for pictures in rows:
        first = None
        for picture in pictures:
            above.setdefault(picture, picture)
            first = picture if first is None else first
            low, high = sorted((least(first), least(picture)))
            above[high] = low
        firsts.append(first)
    return [None if first is None else least(first) for first in firsts]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """Rows that wait to be stored, with everything about them that does not depend on the database."""

    rows: Sequence[Conversation]
    sides: list[Split]
    hashes: list[str]
    sha256: str
    images: list[tuple[int, str]]
    """A row's position and a picture that it shows, each pair once."""


class Datasets:
    """Every task anybody has taught or wants to teach."""

    def __init__(self, database: Database, audit: Audit, holdout_share: float) -> None:
        self._database = database
        self._audit = audit
        self._holdout_share = holdout_share

    def add(
        self, name: str, user_id: int, rows: Sequence[Conversation], *, approved_by: str | None = None
    ) -> Dataset:
        """Store a task; it is queued at once if `approved_by` names an admin, else it waits for one."""
        return self.add_prepared(name, user_id, self.prepare(rows), approved_by=approved_by)

    def prepare(self, rows: Sequence[Conversation]) -> Prepared:
        """Do the part of `add` that takes long and needs no lock: say on which side each row falls, and hash it."""
        hashes = [_sha256(row) for row in rows]
        return Prepared(
            rows=rows,
            sides=split(rows, self._holdout_share),
            hashes=hashes,
            sha256=_sha256(hashes),
            images=[(position, image) for position, row in enumerate(rows) for image in set(images_of(row))],
        )

    def add_prepared(
        self, name: str, user_id: int, prepared: Prepared, *, approved_by: str | None = None
    ) -> Dataset:
        """Store a task as `add` does, holding the write lock for no longer than the rows take to be written."""
        state = DatasetState.QUEUED if approved_by else DatasetState.PENDING
        columns = (prepared.sides, prepared.hashes, prepared.rows)
        with self._database.writing():
            dataset_id = self._database.insert(
                "datasets",
                {
                    "name": name,
                    "user_id": user_id,
                    "sha256": prepared.sha256,
                    "state": state,
                    "train_rows": prepared.sides.count("train"),
                    "holdout_rows": prepared.sides.count("holdout"),
                    "created_at": now(),
                    "approved_by": approved_by,
                },
            )
            connection = self._database.tables.conn
            # Read and written one by one: the rows of a large upload lie in a file and do not fit into memory.
            connection.executemany(
                "INSERT INTO rows (dataset_id, position, split, sha256, messages) VALUES (?, ?, ?, ?, ?)",
                (
                    (dataset_id, position, side, sha256, json.dumps(row))
                    for position, (side, sha256, row) in enumerate(zip(*columns, strict=True))
                ),
            )
            connection.executemany(
                "INSERT INTO row_images (row_id, sha256)"
                " SELECT id, ? FROM rows WHERE dataset_id = ? AND position = ?",
                ((image, dataset_id, position) for position, image in prepared.images),
            )
            self._audit.write(
                approved_by or f"user {user_id}",
                "dataset.add",
                str(dataset_id),
                {"name": name, "rows": len(prepared.rows)},
            )
        return self.get(dataset_id)

    def get(self, dataset_id: int) -> Dataset:
        """Return one dataset; raise UnknownDataset if there is none of this id."""
        row = self._database.row("SELECT * FROM datasets WHERE id = ?", [dataset_id])
        if row is None:
            raise UnknownDataset(dataset_id)
        return _dataset(row)

    def list(self, state: DatasetState | None = None) -> Sequence[Dataset]:
        """Return datasets in the order in which they came; only those in `state` if it is given."""
        found = self._database.rows(
            "SELECT * FROM datasets WHERE :state IS NULL OR state = :state ORDER BY id", {"state": state}
        )
        return [_dataset(row) for row in found]

    def rows(self, dataset_id: int, split: Split | None = None, limit: int | None = None) -> Sequence[Row]:
        """Return the rows of a dataset in their order, of one side if `split` is given, at most `limit`."""
        found = self._database.rows(
            "SELECT * FROM rows WHERE dataset_id = :id AND (:split IS NULL OR split = :split)"
            " ORDER BY position LIMIT :limit",
            {"id": dataset_id, "split": split, "limit": -1 if limit is None else limit},
        )
        return [_row(row) for row in found]

    def row(self, row_id: int) -> Row:
        """Return one row; raise UnknownRow if there is none of this id."""
        found = self._database.row("SELECT * FROM rows WHERE id = ?", [row_id])
        if found is None:
            raise UnknownRow(row_id)
        return _row(found)

    def may_see(self, user_id: int | None, sha256: str) -> bool:
        """Whether an image stands in a dataset of this user, or of anybody if `user_id` is None."""
        row = self._database.row(
            "SELECT 1 FROM row_images JOIN rows ON rows.id = row_id JOIN datasets ON datasets.id = dataset_id"
            " WHERE row_images.sha256 = :sha256 AND (:user_id IS NULL OR user_id = :user_id) LIMIT 1",
            {"sha256": sha256, "user_id": user_id},
        )
        return row is not None

    def approve(self, dataset_id: int, actor: str) -> Dataset:
        """Queue a dataset that waits for approval or was set aside. Raises WrongState otherwise."""
        return self._move(
            dataset_id, (DatasetState.PENDING, DatasetState.SET_ASIDE), DatasetState.QUEUED, actor
        )

    def withdraw(self, dataset_id: int, actor: str) -> Dataset:
        """Take a dataset out of every later round; generations that learned it stay (see `generations`).

        Raises RoundInProgress while a round is unfinished that learns it: cancel that first.
        """
        anything = tuple(state for state in DatasetState if state is not DatasetState.WITHDRAWN)
        with self._database.writing():
            holder = self._database.row(
                "SELECT rounds.id, rounds.state FROM rounds JOIN round_datasets ON round_id = rounds.id"
                " WHERE dataset_id = ? AND finished_at IS NULL",
                [dataset_id],
            )
            if holder is not None:
                raise RoundInProgress(holder["id"], holder["state"])
            return self._move(dataset_id, anything, DatasetState.WITHDRAWN, actor)

    def _move(
        self, dataset_id: int, before: Iterable[DatasetState], after: DatasetState, actor: str
    ) -> Dataset:
        with self._database.writing():
            found = self.get(dataset_id)
            if found.state not in before:
                raise WrongState(f"Dataset {dataset_id}", found.state, before)
            self._database.run(
                "UPDATE datasets SET state = ?, approved_by = coalesce(approved_by, ?) WHERE id = ?",
                [after, actor if after is DatasetState.QUEUED else None, dataset_id],
            )
            self._audit.write(actor, f"dataset.{after}", str(dataset_id))
        return self.get(dataset_id)


def _sha256(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _dataset(row: dict[str, Any]) -> Dataset:
    return Dataset(**row | {"state": DatasetState(row["state"])})


def _row(row: dict[str, Any]) -> Row:
    return Row(**row | {"messages": json.loads(row["messages"])})

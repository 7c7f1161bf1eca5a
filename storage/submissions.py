"""Uploads as they came: who, when, which file, and what intake said about it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from storage.clock import now
from storage.database import Database
from storage.errors import UnknownSubmission
from storage.records import Report, Submission, SubmissionState


class Submissions:
    """The record of every upload, accepted or not."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(
        self,
        *,
        user_id: int,
        filename: str,
        sha256: str,
        bytes: int,  # noqa: A002 - the record's own word
        report: Report,
        dataset_id: int | None,
    ) -> Submission:
        """Record an upload; it counts as accepted if it became a dataset."""
        state = SubmissionState.ACCEPTED if dataset_id is not None else SubmissionState.REJECTED
        submission_id = self._database.insert(
            "submissions",
            {
                "user_id": user_id,
                "filename": filename,
                "sha256": sha256,
                "bytes": bytes,
                "state": state,
                "report": json.dumps(report.to_json()),
                "dataset_id": dataset_id,
                "created_at": now(),
            },
        )
        return self.get(submission_id)

    def get(self, submission_id: int) -> Submission:
        """Return one upload; raise UnknownSubmission if there is none of this id."""
        row = self._database.row("SELECT * FROM submissions WHERE id = ?", [submission_id])
        if row is None:
            raise UnknownSubmission(submission_id)
        return _submission(row)

    def list(self, user_id: int | None = None) -> Sequence[Submission]:
        """Return uploads, newest first; of one user if `user_id` is given."""
        found = self._database.rows(
            "SELECT * FROM submissions WHERE :user_id IS NULL OR user_id = :user_id ORDER BY id DESC",
            {"user_id": user_id},
        )
        return [_submission(row) for row in found]

    def by_sha256(self, user_id: int, sha256: str) -> Submission | None:
        """Return this user's accepted upload of the very same bytes, if there is one that was not withdrawn."""
        row = self._database.row(
            "SELECT submissions.* FROM submissions JOIN datasets ON datasets.id = dataset_id"
            " WHERE submissions.user_id = ? AND submissions.sha256 = ? AND datasets.state <> 'withdrawn'"
            " ORDER BY submissions.id DESC LIMIT 1",
            [user_id, sha256],
        )
        return _submission(row) if row else None


def _submission(row: dict[str, Any]) -> Submission:
    return Submission(
        **row
        | {"state": SubmissionState(row["state"]), "report": Report.from_json(json.loads(row["report"]))}
    )

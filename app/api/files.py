"""/v1/files: a task arrives as a file; the answer is OpenAI's File object with our report beside it.

The uploaded file itself is not kept, so there is no route for its content.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, File, Form, UploadFile
from fastapi.responses import JSONResponse, Response

from app.api.context import Context, CurrentUser, InContext
from app.api.errors import error_body
from app.api.models import unix
from app.limits import UPLOADS
from storage.errors import BadField, UnknownSubmission
from storage.intake import receive
from storage.records import Role, Submission, SubmissionState, User

router = APIRouter(prefix="/v1/files", tags=["files"])

PURPOSE = "fine-tune"
ID_PREFIX = "file-"
# 18 digits always fit into an integer of SQLite.
FILE_ID = re.compile(rf"(?:{ID_PREFIX})?([0-9]{{1,18}})")


def file_object(context: Context, submission: Submission) -> dict[str, Any]:
    """Return a submission as OpenAI's File object, with `dataset`, `dataset_state` and `report` added."""
    accepted = submission.state is SubmissionState.ACCEPTED
    errors = [finding.message for finding in submission.report.findings if finding.severity == "error"]
    state = (
        context.store.datasets.get(submission.dataset_id).state if submission.dataset_id is not None else None
    )
    return {
        "id": f"{ID_PREFIX}{submission.id}",
        "object": "file",
        "bytes": submission.bytes,
        "created_at": unix(submission.created_at),
        "filename": submission.filename,
        "purpose": PURPOSE,
        "status": "processed" if accepted else "error",
        "status_details": None if accepted else "; ".join(errors[:3]),
        "dataset": submission.dataset_id,
        "dataset_state": state,
        "report": submission.report.to_json(),
    }


def _own(context: Context, user: User, file_id: str) -> Submission:
    found = FILE_ID.fullmatch(file_id)
    if found is None:
        raise UnknownSubmission(file_id)
    submission = context.store.submissions.get(int(found[1]))
    if submission.user_id != user.id and not user.role.allows(Role.ADMIN):
        raise UnknownSubmission(file_id)
    return submission


@router.post("")
def upload(
    context: InContext,
    user: CurrentUser,
    file: Annotated[UploadFile, File()],
    purpose: Annotated[str, Form()],
    name: Annotated[str | None, Form(max_length=200)] = None,
) -> Response:
    """Take a dataset: zip, tar, JSON, JSONL, CSV, parquet. An admin's is queued at once, another's waits for approval.

    A file that cannot be used is answered 400 with the report beside the error; `GET` shows it later as well.
    """
    if purpose != PURPOSE:
        raise BadField("purpose", purpose, PURPOSE)
    context.uploads.spend(str(user.id), UPLOADS)
    with tempfile.TemporaryDirectory(dir=context.store.temporary()) as directory:
        path = Path(directory) / "upload"
        with path.open("wb") as target:
            shutil.copyfileobj(file.file, target)
        approved_by = user.name if user.role is Role.ADMIN else None
        submission = receive(
            context.store, user, file.filename or "upload", path, name=name or None, approved_by=approved_by
        )
    described = file_object(context, submission)
    if submission.state is SubmissionState.ACCEPTED:
        return JSONResponse(described)
    first = next(finding for finding in submission.report.findings if finding.severity == "error")
    message = f"{first.message} {first.fix}".strip()
    return JSONResponse(
        error_body(message, status=400, code=first.code, param="file") | {"file": described}, 400
    )


@router.get("")
def list_files(context: InContext, user: CurrentUser) -> dict[str, Any]:
    """List your uploads, newest first; an admin sees everybody's."""
    whose = None if user.role.allows(Role.ADMIN) else user.id
    data = [file_object(context, submission) for submission in context.store.submissions.list(whose)]
    return {"object": "list", "data": data, "has_more": False}


@router.get("/{file_id}")
def get_file(file_id: str, context: InContext, user: CurrentUser) -> dict[str, Any]:
    """Return one upload with its report; another user's does not exist unless you are an admin."""
    return file_object(context, _own(context, user, file_id))

"""Receives an upload from a stranger: read in bounded memory, checked row by row, kept if enough of it is good.

The story of one file: an archive's members are copied, under limits, into one temporary file; the rows of its
data file become drafts; the images that they name are cleaned in a child process; the good rows, their clean
images and the report are stored at once. Rows with errors are left out and reported. A refused file leaves its
report and a line in the audit log, and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import unicodedata
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from storage.archives import archive_kind, members
from storage.datafiles import container, raw_rows
from storage.errors import (
    BadImage,
    BadUpload,
    EmptyFile,
    ImageMissing,
    ImageTooLarge,
    NoDataFile,
    NoValidRows,
    SeveralDataFiles,
    TooFewRows,
    TooManyRows,
    UploadTooLarge,
)
from storage.formats import Picture, read_row
from storage.images import Sanitizer
from storage.records import Finding, Report, Submission, User, images_of
from storage.settings import StorageSettings
from storage.spool import Pack, SpooledRows
from storage.store import Store

MINIMUM_ROWS = 4
"""A file with fewer usable rows is refused: it cannot be split into train and holdout in any useful way."""
MAXIMUM_ROWS = 100_000
LISTED_ERRORS = 200
"""Row errors listed one by one in a report; the rest are counted per code."""
DATA_SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".parquet")
SIDE_FILES = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
"""What the `datasets` library writes beside the rows."""
NAME_MAX_CHARACTERS = 255
TITLE_MAX_CHARACTERS = 100

NOTES = {
    "location_removed": "A GPS position was removed from {count} image(s).",
    "metadata_removed": "Metadata such as EXIF was removed from {count} image(s).",
    "rotated": "{count} image(s) were turned upright as their EXIF orientation says.",
    "flattened": "Transparent parts of {count} image(s) were laid on white.",
    "first_picture_kept": "{count} image(s) hold several pictures; only the first of each was kept.",
    "image_renamed": "{count} image(s) have a name that does not fit their format; the content counts.",
    "hidden_characters": "{count} row(s) contain invisible or direction-changing characters; look at them.",
    "duplicate_row": "{count} row(s) repeat an earlier row word for word and were left out.",
    "nothing_held_out": "All {count} rows show common pictures, so none of them could be kept aside for judging, and a"
    " round with them cannot be promoted.",
    "unused_file": "{count} file(s) of the archive are not named by any row.",
}
SUFFIXES = {
    "image/png": (".png",),
    "image/jpeg": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "image/webp": (".webp",),
}


def receive(
    store: Store,
    user: User,
    filename: str,
    source: Path,
    *,
    name: str | None = None,
    approved_by: str | None = None,
) -> Submission:
    """Take in the uploaded file at `source`, which stays where it is; the submission's report says what came of it.

    Bytes that this user uploaded before, and that became a dataset, give that submission again.
    """
    with source.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    known = store.submissions.by_sha256(user.id, sha256)
    if known is not None:
        return known
    arrival = _Arrival(user=user, filename=_plain_name(filename), sha256=sha256, bytes=source.stat().st_size)
    with ExitStack() as stack:
        workspace = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=store.temporary())))
        upload = _Upload(workspace, store.settings, stack)
        try:
            upload.read(source, arrival.filename, arrival.bytes)
        except BadUpload as refusal:
            return _reject(store, arrival, upload.report(refusal))
        title = (name or arrival.filename.split(".")[0]).strip()[:TITLE_MAX_CHARACTERS] or "dataset"
        return _accept(store, arrival, upload, title, approved_by)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Arrival:
    """Who brought which file."""

    user: User
    filename: str
    sha256: str
    bytes: int

    def submission(self, store: Store, report: Report, dataset_id: int | None) -> Submission:
        """Record the upload, in the database and in the audit log."""
        submission = store.submissions.add(
            user_id=self.user.id,
            filename=self.filename,
            sha256=self.sha256,
            bytes=self.bytes,
            report=report,
            dataset_id=dataset_id,
        )
        codes = sorted({finding.code for finding in report.findings if finding.severity == "error"})
        detail = {"file": self.filename, "sha256": self.sha256, "errors": codes}
        store.audit.write(self.user.name, f"submission.{submission.state}", str(submission.id), detail)
        return submission


def _plain_name(filename: str) -> str:
    last = filename.replace("\\", "/").rsplit("/", 1)[-1].encode(errors="replace").decode()
    return last[-NAME_MAX_CHARACTERS:]


def _reject(store: Store, arrival: _Arrival, report: Report) -> Submission:
    with store.database.writing():
        return arrival.submission(store, report, None)


def _accept(
    store: Store, arrival: _Arrival, upload: _Upload, title: str, approved_by: str | None
) -> Submission:
    with store.blobs.together() as put:
        for image in upload.images:
            put(upload.clean.read(image), upload.media_types[image])
        # Takes seconds for many rows, so it must be done before the write lock is held.
        rows = store.datasets.prepare(upload.accepted)
        with store.database.writing():
            # The same file may have arrived twice at the same time.
            known = store.submissions.by_sha256(arrival.user.id, arrival.sha256)
            if known is not None:
                return known
            dataset = store.datasets.add_prepared(title, arrival.user.id, rows, approved_by=approved_by)
            if not dataset.holdout_rows:
                upload.notes["nothing_held_out"] = dataset.train_rows
            return arrival.submission(store, upload.report(None), dataset.id)


class _Upload:
    """One file on its way in: what was found so far, in temporary files that go with the workspace."""

    def __init__(self, workspace: Path, settings: StorageSettings, stack: ExitStack) -> None:
        self._settings = settings
        self._data_file = workspace / "data"
        self._data_folder = PurePosixPath()
        self._members = Pack(stack.enter_context((workspace / "members").open("w+b")))
        self.clean = Pack(stack.enter_context((workspace / "clean").open("w+b")))
        self.accepted = SpooledRows(stack.enter_context((workspace / "rows").open("w+b")))
        self._sanitizer = stack.enter_context(Sanitizer(settings))
        self.images: set[str] = set()
        self.media_types: dict[str, str] = {}
        self._checked: dict[str, str | BadImage] = {}
        self._used: set[str] = set()
        self._row_hashes: set[bytes] = set()
        self._format = ""
        self._rows = 0
        self._errors: list[Finding] = []
        self._unlisted: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()

    def read(self, source: Path, filename: str, size: int) -> None:
        """Read the whole file; raise the BadUpload for which it is refused, if it is."""
        limit = self._settings.upload_max_bytes
        if size > limit:
            raise UploadTooLarge(f"a file of {size:,} bytes", allowed=f"at most {limit:,} bytes")
        data_file, data_name = source, filename
        if archive_kind(source):
            data_file, data_name = self._data_file, self._unpack(source)
        kind = container(data_file, data_name)
        for number, row in raw_rows(data_file, kind, self._settings):
            self._take(number, row)
        if kind == "parquet":
            self._format = kind
        if not self._rows:
            raise EmptyFile("a data file without rows")
        if not self.accepted:
            raise NoValidRows(f"{self._rows:,} rows, none of them usable")
        if len(self.accepted) < MINIMUM_ROWS:
            raise TooFewRows(f"{len(self.accepted)} usable rows of {self._rows:,}")

    def report(self, refusal: BadUpload | None) -> Report:
        """Sum up what was found; a file that is refused has no accepted rows."""
        self.notes["unused_file"] = sum(name not in self._used for name in self._members)
        refused = [] if refusal is None else [_error(refusal, None)]
        return Report(
            format=self._format,
            rows=self._rows,
            accepted=0 if refusal else len(self.accepted),
            images=0 if refusal else len(self.images),
            findings=(*refused, *self._errors, *self._more_errors(), *self._summed_notes()),
        )

    def _unpack(self, source: Path) -> str:
        """Copy the members of an archive into the workspace; return the name of the one with the rows."""
        found = None
        for name, chunks in members(source, self._settings):
            path = PurePosixPath(name)
            if any(step.startswith((".", "__MACOSX")) for step in path.parts):
                continue
            if path.suffix.lower() not in DATA_SUFFIXES or path.name in SIDE_FILES:
                self._members.add(name, chunks)
                continue
            if found is not None:
                raise SeveralDataFiles(f"both {found!r} and {name!r}")
            found, self._data_folder = name, path.parent
            with self._data_file.open("wb") as file:
                file.writelines(chunks)
        if found is None:
            raise NoDataFile(f"an archive of {sum(1 for _ in self._members)} files without one")
        return found

    def _take(self, number: int, row: dict[str, object] | BadUpload) -> None:
        """Check one row and keep it, or note why not."""
        self._rows += 1
        if self._rows > MAXIMUM_ROWS:
            raise TooManyRows(f"more than {MAXIMUM_ROWS:,} rows", allowed=f"at most {MAXIMUM_ROWS:,}")
        try:
            if isinstance(row, BadUpload):
                raise row
            draft = read_row(row, self._settings.row_max_images)
            conversation = draft.conversation(self._stored)
        except BadUpload as error:
            self._leave_out(number, error)
            return
        row_hash = hashlib.sha256(json.dumps(conversation, sort_keys=True).encode()).digest()[:16]
        if row_hash in self._row_hashes:
            self.notes["duplicate_row"] += 1
            return
        self._row_hashes.add(row_hash)
        self.notes["hidden_characters"] += draft.hidden
        self._format = self._format or draft.shape
        self.images.update(images_of(conversation))
        self.accepted.append(conversation)

    def _leave_out(self, number: int, error: BadUpload) -> None:
        if len(self._errors) < LISTED_ERRORS:
            self._errors.append(_error(error, number))
        else:
            self._unlisted[error.code] += 1

    def _stored(self, picture: Picture) -> str:
        """Return the SHA-256 of a picture's clean copy; raise the BadUpload that says what is wrong."""
        key = self._member(picture) if picture.name else hashlib.sha256(picture.data).hexdigest()
        if key not in self._checked:
            try:
                self._checked[key] = self._cleaned(key, picture)
            except BadImage as error:
                self._checked[key] = error
        result = self._checked[key]
        if isinstance(result, BadImage):
            where = f" in {picture.name!r}" if picture.name else ""
            raise type(result)(result.found + where, allowed=result.allowed, field=picture.field)
        return result

    def _member(self, picture: Picture) -> str:
        """Find the file that a row means: beside the data file, at the top, or in a folder `images` there."""
        name = PurePosixPath(unicodedata.normalize("NFC", picture.name).replace("\\", "/"))
        here, top = self._data_folder, PurePosixPath()
        for folder in (here, top, here / "images", top / "images"):
            candidate = str(folder / name)
            if candidate in self._members:
                self._used.add(candidate)
                return candidate
        raise ImageMissing(f"no file {picture.name[:200]!r} with this upload", field=picture.field)

    def _cleaned(self, key: str, picture: Picture) -> str:
        limit = self._settings.image_max_bytes
        if picture.name and self._members.size(key) > limit:
            raise ImageTooLarge(f"{self._members.size(key):,} bytes", allowed=f"at most {limit:,} bytes")
        image = self._sanitizer.sanitize(self._members.read(key) if picture.name else picture.data)
        self.notes.update(image.notes)
        if picture.name and not picture.name.lower().endswith(SUFFIXES[image.source_type]):
            self.notes["image_renamed"] += 1
        sha256 = hashlib.sha256(image.data).hexdigest()
        if sha256 not in self.clean:
            self.clean.add(sha256, [image.data])
            self.media_types[sha256] = image.media_type
        return sha256

    def _more_errors(self) -> list[Finding]:
        if not self._unlisted:
            return []
        counts = ", ".join(f"{count:,} x {code}" for code, count in self._unlisted.most_common())
        message, fix = (
            f"{self._unlisted.total():,} more rows have errors: {counts}.",
            "Correct the listed rows first.",
        )
        return [Finding(severity="error", code="more_errors", message=message, fix=fix)]

    def _summed_notes(self) -> list[Finding]:
        return [
            Finding(severity="note", code=code, message=text.format(count=f"{self.notes[code]:,}"))
            for code, text in NOTES.items()
            if self.notes[code]
        ]


def _error(error: BadUpload, row: int | None) -> Finding:
    return Finding(
        severity="error", code=error.code, message=error.finding, fix=error.fix, row=row, field=error.field
    )

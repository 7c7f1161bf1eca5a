"""Every error this project raises on purpose, in one tree.

    LlacaError                has .code, a stable word for scripts, and a sentence for people
    ├── BadSetting            a setting cannot be used
    ├── Missing               UnknownUser UnknownBlob UnknownSubmission UnknownDataset UnknownRow UnknownRound
    │                         UnknownGeneration UnknownConversation
    ├── Conflict              NameTaken WrongState RoundInProgress NothingToLearn AliasMoved NothingToRollBack
    │                         LeaseLost
    ├── Refused               WeakPassword LinkExpired AuditBroken
    ├── intake                BadUpload EmptyFile UploadTooLarge UnsupportedFile CorruptArchive
    │                         EncryptedArchive UnsupportedCompression ArchiveTooLarge TooManyFiles
    │                         NestedArchive UnsafePath LinkInArchive SpecialFile DuplicateName NoDataFile
    │                         SeveralDataFiles NotRows CorruptTable TooManyRows NoValidRows TooFewRows
    │                         WrongEncoding LineTooLong TooDeep InvalidJson DuplicateKey BadNumber
    │                         MissingField WrongType UnsupportedField UnknownRole TurnOrder RowWithoutAnswer
    │                         EmptyTurn TextTooLong ControlToken ControlCharacter ImageCount ImageRole
    │                         ImageMissing ImageData RemoteImageRefused WrongColumns BadImage ImageFormat
    │                         ImageCorrupt ImageTooLarge ImageTooSmall ImageShape AnimatedImage ImageTooCostly
    ├── serving               ServingUnavailable UnknownModel RequestRejected ReplyInterrupted AdapterRefused
    │                         AdapterChanged ProbeRefused ProgramRefused BaseModelUnavailable
    ├── learner               RoundCancelled WorkerStopping TrainingStopped UnsuitableModel UnservableAdapter
    │                         AdapterMismatch UnusableRow RowsTooLong CheckpointMismatch PoliciesClash
    │                         TrainingDiverged
    └── app                   BadField UnknownField TooLarge TooManyRequests UnknownModelName UnknownRoute
                              NotSignedIn NotAllowed ForeignOrigin AlreadyRunning

To add one: inherit the nearest class here and the fitting class of the standard library, set `code`, and build
the message from values: what was found, what is allowed, what to do.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar


class LlacaError(Exception):
    """Base of all errors raised on purpose; `str(error)` is a sentence for people."""

    code: ClassVar[str] = "error"


class BadSetting(LlacaError, ValueError):
    """A setting has a value that cannot be used, or does not exist."""

    code = "bad_setting"

    def __init__(self, name: str, found: object, allowed: str) -> None:
        super().__init__(f"{name}: found {found!r}; allowed: {allowed}. See docs/settings.md.")
        self.name = name


# --- Missing ---------------------------------------------------------------------------------------------------


class Missing(LlacaError, LookupError):
    """Something was asked for by an id that nothing has."""

    code = "not_found"
    thing: ClassVar[str] = "thing"

    def __init__(self, found: object) -> None:
        super().__init__(f"There is no {self.thing} {found!r}.")


class UnknownUser(Missing):
    """No user has this id or name."""

    code = "unknown_user"
    thing = "user"


class UnknownBlob(Missing):
    """No stored file has this SHA-256."""

    code = "unknown_blob"
    thing = "stored file"


class UnknownSubmission(Missing):
    """No submission has this id."""

    code = "unknown_submission"
    thing = "submission"


class UnknownDataset(Missing):
    """No dataset has this id."""

    code = "unknown_dataset"
    thing = "dataset"


class UnknownRow(Missing):
    """No dataset row has this id."""

    code = "unknown_row"
    thing = "dataset row"


class UnknownRound(Missing):
    """No round has this id."""

    code = "unknown_round"
    thing = "round"


class UnknownGeneration(Missing):
    """No generation has this number."""

    code = "unknown_generation"
    thing = "generation"


class UnknownConversation(Missing):
    """No conversation of this user has this id."""

    code = "unknown_conversation"
    thing = "conversation"


# --- Conflict --------------------------------------------------------------------------------------------------


class Conflict(LlacaError, RuntimeError):
    """The request is well-formed, but the present state does not allow it."""

    code = "conflict"


class NameTaken(Conflict):
    """A user of this name exists already."""

    code = "name_taken"

    def __init__(self, name: str) -> None:
        super().__init__(f"The name {name!r} is taken; choose another.")


class WrongState(Conflict):
    """A record is not in a state from which the requested step is allowed."""

    code = "wrong_state"

    def __init__(self, thing: str, found: str, wanted: Iterable[str]) -> None:
        super().__init__(f"{thing} is {found}; this needs it to be {' or '.join(sorted(wanted))}.")


class RoundInProgress(Conflict):
    """A round was asked for while another has not ended."""

    code = "round_in_progress"

    def __init__(self, round_id: int, state: str) -> None:
        super().__init__(
            f"Round {round_id} is {state}; wait until it has ended, or cancel it, then ask again."
        )


class NothingToLearn(Conflict):
    """A round was asked for, but no dataset waits for one."""

    code = "nothing_to_learn"

    def __init__(self, waiting: int) -> None:
        hint = f"{waiting} wait for an admin's approval" if waiting else "upload one first"
        super().__init__(f"No dataset is queued; {hint}.")


class AliasMoved(Conflict):
    """The champion changed between reading it and replacing it (compare-and-set failed)."""

    code = "alias_moved"

    def __init__(self, expected: int, found: int) -> None:
        super().__init__(
            f"Expected generation {expected} to be serving, found {found}; somebody else changed it. Look again."
        )


class NothingToRollBack(Conflict):
    """The base model itself is serving, so there is no earlier generation."""

    code = "nothing_to_roll_back"

    def __init__(self) -> None:
        super().__init__("The base model is serving; there is no earlier generation to go back to.")


class LeaseLost(Conflict):
    """A worker wrote to a round that another worker, or nobody, holds now; it must stop."""

    code = "lease_lost"

    def __init__(self, round_id: int) -> None:
        super().__init__(f"Round {round_id} is no longer held by this worker; stop working on it.")


# --- Refused ---------------------------------------------------------------------------------------------------


class Refused(LlacaError, PermissionError):
    """Credentials are not good enough."""

    code = "refused"


class WeakPassword(Refused):
    """The chosen password is too short or too long."""

    code = "weak_password"

    def __init__(self, found: int, least: int, most: int) -> None:
        super().__init__(f"The password has {found} characters; choose one of {least} to {most}.")


class LinkExpired(Refused):
    """A one-time link was used already, has expired, or never existed."""

    code = "link_expired"

    def __init__(self) -> None:
        super().__init__(
            "This link has been used or has expired; ask an admin for a new one (`llaca users link`)."
        )


class AuditBroken(LlacaError, ValueError):
    """A row of the audit log does not match the hash chain."""

    code = "audit_broken"

    def __init__(self, row_id: int) -> None:
        super().__init__(f"Audit row {row_id} was changed or an earlier one removed; restore from a backup.")


# --- intake ----------------------------------------------------------------------------------------------------


class BadUpload(LlacaError, ValueError):
    """Something in an uploaded file cannot be accepted: the whole file, one row, or an image.

    Raised while the file is opened it refuses the file; raised for a row it leaves out that row. `field` says
    where in the row. The classes below fill in `allowed` and `fix`; limits that are settings come as arguments.
    """

    code = "bad_upload"
    allowed: str = ""
    fix: ClassVar[str] = ""

    def __init__(self, found: str, *, allowed: str = "", field: str | None = None) -> None:
        self.found = found
        self.allowed = allowed or self.allowed
        self.field = field
        self.finding = f"Found {found}; allowed: {self.allowed}."
        super().__init__(f"{self.finding} {self.fix}")


class EmptyFile(BadUpload):
    """The file has no bytes, or nothing but blanks."""

    code = "empty_file"
    allowed = "a file with at least one row"
    fix = "Check that the file was written completely and upload it again."


class UploadTooLarge(BadUpload):
    """The file is larger than uploads may be."""

    code = "upload_too_large"
    fix = "Split the data into several files and upload them one by one."


class UnsupportedFile(BadUpload):
    """The bytes are none of the file types that can be read."""

    code = "unsupported_file"
    allowed = "zip, tar, tar.gz, JSON, JSONL, CSV (named .csv) or parquet"
    fix = "Pack the data file and its images as a zip."


class CorruptArchive(BadUpload):
    """The archive is damaged, cut short, or not what it says it is."""

    code = "corrupt_archive"
    allowed = "a complete zip, tar or tar.gz"
    fix = "Pack the folder again and check that the upload was not cut short."


class EncryptedArchive(BadUpload):
    """A member of the archive is encrypted."""

    code = "encrypted_archive"
    allowed = "archives without a password"
    fix = "Pack the folder again without a password."


class UnsupportedCompression(BadUpload):
    """A member of the zip is compressed with a method other than the common two."""

    code = "unsupported_compression"
    allowed = "stored or deflated members"
    fix = "Pack the folder again with the default compression of zip."


class ArchiveTooLarge(BadUpload):
    """An archive or parquet file unpacks to more bytes than allowed, in total or for its own size."""

    code = "archive_too_large"
    fix = "Split the data into several files."


class TooManyFiles(BadUpload):
    """The archive has more members than allowed."""

    code = "too_many_files"
    fix = "Split the data into several archives."


class NestedArchive(BadUpload):
    """The archive holds another archive."""

    code = "nested_archive"
    allowed = "one archive without archives inside"
    fix = "Unpack the inner archive and pack everything as one."


class UnsafePath(BadUpload):
    """A name in the archive leads outside of it, or could on some system."""

    code = "unsafe_path"
    allowed = (
        "relative names of at most 255 bytes and 8 levels, without '..', backslashes or control characters"
    )
    fix = "Pack the folder again with plain relative names."


class LinkInArchive(BadUpload):
    """The archive holds a symbolic or hard link."""

    code = "link_in_archive"
    allowed = "plain files and folders"
    fix = "Pack the files themselves in place of links to them."


class SpecialFile(BadUpload):
    """The archive holds a device, a pipe or a sparse file."""

    code = "special_file"
    allowed = "plain files and folders"
    fix = "Pack only the data file and its images."


class DuplicateName(BadUpload):
    """Two members of the archive have the same name, or names that differ only in case."""

    code = "duplicate_name"
    allowed = "names that differ in more than upper and lower case"
    fix = "Rename or remove one of the two."


class NoDataFile(BadUpload):
    """The archive has no file with rows."""

    code = "no_data_file"
    allowed = "exactly one .json, .jsonl, .csv or .parquet file beside the images"
    fix = "Add a data file; docs/formats.md shows an example of each format."


class SeveralDataFiles(BadUpload):
    """The archive has more than one file with rows."""

    code = "several_data_files"
    allowed = "exactly one .json, .jsonl, .csv or .parquet file beside the images"
    fix = (
        "Keep one data file per archive; upload splits such as train and test one by one, or leave test out."
    )


class NotRows(BadUpload):
    """The data file is readable but is no list of rows."""

    code = "not_rows"
    allowed = "a JSON list of rows, or one row (an object) per line"
    fix = "Put the rows into one list, or write one per line."


class CorruptTable(BadUpload):
    """A CSV or parquet file cannot be read as a table."""

    code = "corrupt_table"
    allowed = "a complete CSV file with a header line, or a complete parquet file"
    fix = "Export the table again, or use JSONL."


class TooManyRows(BadUpload):
    """The data file has more rows than one dataset may have."""

    code = "too_many_rows"
    fix = "Split the data into several files."


class NoValidRows(BadUpload):
    """No row of the file is usable."""

    code = "no_valid_rows"
    allowed = "at least 4 usable rows"
    fix = "Correct the rows as the other findings say and upload the file again."


class TooFewRows(BadUpload):
    """Fewer rows are usable than a dataset needs to be split into train and holdout."""

    code = "too_few_rows"
    allowed = "at least 4 usable rows"
    fix = "Add rows, or correct those that the other findings name; to be promoted, a task needs at least 23."


class WrongEncoding(BadUpload):
    """Text is not UTF-8."""

    code = "encoding"
    allowed = "UTF-8"
    fix = "Save the file as UTF-8, for example with `iconv -f UTF-16 -t UTF-8`."


class LineTooLong(BadUpload):
    """A row has more bytes than allowed."""

    code = "line_too_long"
    fix = "Make the images smaller, or put them into a zip beside the data file."


class TooDeep(BadUpload):
    """A row nests lists and objects deeper than any format needs."""

    code = "too_deep"
    allowed = "rows nested at most 16 levels deep"
    fix = "Use one of the shapes in docs/formats.md."


class InvalidJson(BadUpload):
    """A row is not JSON."""

    code = "invalid_json"
    allowed = "strict JSON"
    fix = "Write the file with a JSON library; do not put it together by hand."


class DuplicateKey(BadUpload):
    """An object in a row has the same key twice, so it is unclear which one counts."""

    code = "duplicate_key"
    allowed = "each key once"
    fix = "Remove one of the two."


class BadNumber(BadUpload):
    """A number in a row is NaN, infinite or out of range."""

    code = "bad_number"
    allowed = "finite numbers"
    fix = "Replace it by null or a finite number."


class MissingField(BadUpload):
    """A row lacks a field that its format needs."""

    code = "missing_field"
    fix = "Add the field; docs/formats.md shows an example of each format."


class WrongType(BadUpload):
    """A field of a row has a value of the wrong kind."""

    code = "wrong_type"
    fix = "Change the value; docs/formats.md shows an example of each format."


class UnsupportedField(BadUpload):
    """A row uses a feature that cannot be learned from here, so leaving it out silently would mislead."""

    code = "unsupported_field"
    allowed = "text and still images"
    fix = "Remove the field, or the row."


class UnknownRole(BadUpload):
    """A turn is spoken by somebody who is neither system, user nor assistant."""

    code = "unknown_role"
    allowed = "system, user (or human), assistant (or gpt)"
    fix = "Rename the role, or remove the turn."


class TurnOrder(BadUpload):
    """The turns of a conversation do not alternate, or do not end with the assistant."""

    code = "turn_order"
    allowed = "an optional system turn, then user and assistant in turn, the assistant last"
    fix = "Merge neighbouring turns of one speaker, or remove the surplus one."


class RowWithoutAnswer(BadUpload):
    """A row has no answer of the assistant, or an empty one."""

    code = "nothing_to_learn"
    allowed = "a text in every turn of the assistant"
    fix = "Add the answer that should be learned, or remove the row."


class EmptyTurn(BadUpload):
    """A system or user turn has neither text nor image."""

    code = "empty_turn"
    allowed = "a text or an image in every turn"
    fix = "Fill in the turn, or remove it."


class TextTooLong(BadUpload):
    """The texts of one row are longer than any model here could read."""

    code = "text_too_long"
    fix = "Shorten the texts, or split the row into several."


class ControlToken(BadUpload):
    """A text contains a token that chat templates use to separate turns or place images."""

    code = "control_token"
    allowed = "plain text; `<image>` in user turns only, once per image"
    fix = "Remove the token or write it in another way."


class ControlCharacter(BadUpload):
    """A text contains a control character other than tab and line break."""

    code = "control_character"
    allowed = "printable text, tabs and line breaks"
    fix = "Remove the character."


class ImageCount(BadUpload):
    """The placeholders in a row do not match its images, or there are too many images."""

    code = "image_count"
    allowed = "as many `<image>` placeholders in the user's turns as the row has images"
    fix = "Write `<image>` once for each image, where the image belongs."


class ImageRole(BadUpload):
    """An image stands in a turn of the assistant or the system."""

    code = "image_role"
    allowed = "images in user turns"
    fix = "Move the image into a user turn."


class ImageMissing(BadUpload):
    """A row names an image that did not come with the file."""

    code = "image_missing"
    allowed = "names of files in the same archive, or data: URLs"
    fix = (
        "Put the image into the archive under this name; a lone data file can hold images only as data: URLs."
    )


class ImageData(BadUpload):
    """An inline image cannot be decoded from its text."""

    code = "image_data"
    allowed = "data:image/png;base64,… with standard base64"
    fix = "Encode the bytes of the image file with base64."


class RemoteImageRefused(BadUpload):
    """A row points at an image elsewhere; nothing is ever fetched."""

    code = "remote_image_refused"
    allowed = "names of files in the same archive, or data: URLs"
    fix = "Download the image yourself and put it into the archive."


class WrongColumns(BadUpload):
    """A line of a CSV file has more or fewer values than the header."""

    code = "wrong_columns"
    allowed = "as many values as the header has columns"
    fix = "Put values that contain commas or line breaks into double quotes."


class BadImage(BadUpload):
    """An image cannot be accepted, in an upload or in a chat."""

    code = "bad_image"


class ImageFormat(BadImage):
    """The bytes are no picture of an allowed format, whatever the name says."""

    code = "image_format"
    allowed = "PNG, JPEG or WebP"
    fix = "Convert the picture to PNG or JPEG."


class ImageCorrupt(BadImage):
    """The picture is damaged or cut short."""

    code = "image_corrupt"
    allowed = "a complete picture"
    fix = "Open the picture, check it and save it anew."


class ImageTooLarge(BadImage):
    """The picture has too many bytes or pixels."""

    code = "image_too_large"
    fix = "Scale the picture down."


class ImageTooSmall(BadImage):
    """The picture has too few pixels to show anything."""

    code = "image_too_small"
    fix = "Use a larger picture, or scale it up."


class ImageShape(BadImage):
    """The picture is a mere line."""

    code = "image_shape"
    fix = "Crop the picture to what matters."


class AnimatedImage(BadImage):
    """The picture moves."""

    code = "animated_image"
    allowed = "one still picture"
    fix = "Save the frame that matters as PNG."


class ImageTooCostly(BadImage):
    """Decoding the picture took more time or memory than allowed, or crashed the decoder."""

    code = "image_too_costly"
    allowed = "a picture that decodes within seconds"
    fix = "Open the picture and save it anew as PNG or JPEG."


# --- serving ---------------------------------------------------------------------------------------------------


class ServingUnavailable(LlacaError, ConnectionError):
    """A vLLM server cannot be reached or failed before the first word; nothing was shown, so asking again is safe."""

    code = "serving_unavailable"

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(
            f"The model server {url} does not answer ({reason}); it may be starting. Try again shortly."
        )
        self.url = url


class UnknownModel(LlacaError, LookupError):
    """A vLLM server does not have this generation loaded; raised before the first word."""

    code = "unknown_model"

    def __init__(self, url: str, model: str) -> None:
        super().__init__(f"The model server {url} has no {model} loaded; it is loaded again within seconds.")
        self.model = model


class RequestRejected(LlacaError, ValueError):
    """A vLLM server understood a request and will never answer it, for example because it is too long."""

    code = "request_rejected"

    def __init__(self, reason: str) -> None:
        super().__init__(f"The model cannot answer this: {reason}")


class ReplyInterrupted(LlacaError, ConnectionError):
    """A reply broke off after its first word; the caller keeps what it has and marks it interrupted."""

    code = "reply_interrupted"

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(f"The model server {url} broke off in the middle of a reply ({reason}).")


class AdapterRefused(LlacaError, ValueError):
    """A vLLM server will not load an adapter."""

    code = "adapter_refused"

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"The model server does not load {name}: {reason}")


class AdapterChanged(LlacaError, ValueError):
    """The files of a generation are not those that were published; they must not be served."""

    code = "adapter_changed"

    def __init__(self, directory: object, what: str) -> None:
        super().__init__(f"{directory}: {what}. Restore the directory from a backup, or roll back.")


class ProbeRefused(LlacaError, ValueError):
    """A loaded adapter does not behave as the learner measured, so it must not become the champion."""

    code = "probe_refused"

    def __init__(self, name: str, url: str, reason: str) -> None:
        super().__init__(f"{name} on {url} failed its probe: {reason}")


class ProgramRefused(LlacaError, RuntimeError):
    """A supervised program ended with status 2, which means that starting it again cannot help."""

    code = "program_refused"

    def __init__(self, name: str, last_lines: str, log: object) -> None:
        super().__init__(f"{name} cannot start as it is set up ({log}):\n{last_lines}")


class BaseModelUnavailable(LlacaError, RuntimeError):
    """The base model that the settings name cannot be found, fetched or assembled."""

    code = "base_model_unavailable"

    def __init__(self, model: str, found: str, fix: str) -> None:
        super().__init__(f"The base model {model!r} cannot be used: {found}; {fix}.")


# --- learner ---------------------------------------------------------------------------------------------------


class RoundCancelled(LlacaError, RuntimeError):
    """Somebody asked for the running round to be cancelled."""

    code = "round_cancelled"

    def __init__(self, round_id: int) -> None:
        super().__init__(f"Round {round_id} was cancelled.")


class WorkerStopping(LlacaError, RuntimeError):
    """The learner is being stopped; the round goes on when it is started again."""

    code = "worker_stopping"

    def __init__(self, round_id: int) -> None:
        super().__init__(f"The learner is stopping; round {round_id} will be resumed.")


class TrainingStopped(LlacaError, RuntimeError):
    """Training was asked to stop and has written a checkpoint."""

    code = "training_stopped"

    def __init__(self, step: int) -> None:
        super().__init__(f"Training stopped after step {step}; the checkpoint allows it to go on.")


class UnsuitableModel(LlacaError, ValueError):
    """The base model cannot be taught here."""

    code = "unsuitable_model"

    def __init__(self, base: object, reason: str) -> None:
        super().__init__(
            f"The model {base} cannot be taught: {reason}. Choose an image-text model by LLACA_MODEL."
        )


class UnservableAdapter(LlacaError, ValueError):
    """An adapter with these properties would be refused by vLLM, so it is not trained."""

    code = "unservable_adapter"

    def __init__(self, problems: Iterable[str]) -> None:
        super().__init__(
            f"vLLM would not serve this adapter: {'; '.join(problems)}. Change LLACA_RANK or LLACA_MAX_LORA_RANK."
        )


class AdapterMismatch(LlacaError, ValueError):
    """The adapter from which a round would go on is not of the shape that it would train."""

    code = "adapter_mismatch"

    def __init__(self, name: str, found: object, wanted: object) -> None:
        super().__init__(
            f"The serving generation has {name} {found!r}, but the settings ask for {wanted!r}; "
            "a round continues its parent's weights. Set it back, or roll back to the base model first."
        )


class UnusableRow(LlacaError, ValueError):
    """A row of a dataset cannot be turned into tokens of this model with a known place for the answer."""

    code = "unusable_row"

    def __init__(self, dataset_id: int, position: int, reason: str, *, turn: int | None = None) -> None:
        place = f"Dataset {dataset_id}, row {position}" + ("" if turn is None else f", turn {turn}")
        super().__init__(f"{place}: {reason}. Correct the row, or withdraw the dataset.")


class RowsTooLong(LlacaError, ValueError):
    """Some rows have more tokens than fit; none is cut, because a cut answer would be learned as complete."""

    code = "rows_too_long"

    def __init__(self, long: int, total: int, dataset_id: int, position: int, tokens: int, most: int) -> None:
        super().__init__(
            f"{long} of {total} rows have more than {most} tokens; the longest, row {position} of dataset "
            f"{dataset_id}, has {tokens}. Shorten them or make their images fewer, or raise LLACA_ROW_MAX_TOKENS "
            "and LLACA_MAX_MODEL_LEN, as far as the model's context allows."
        )


class CheckpointMismatch(LlacaError, ValueError):
    """The checkpoints in a workspace were written by a round with other data or settings."""

    code = "checkpoint_mismatch"

    def __init__(self, directory: object) -> None:
        super().__init__(
            f"{directory} holds checkpoints of another round; remove it, or give the round its own."
        )


class PoliciesClash(LlacaError, ValueError):
    """Policies were combined that would undo each other's work."""

    code = "policies_clash"

    def __init__(self, names: Iterable[str], reason: str) -> None:
        super().__init__(
            f"The policies {' and '.join(names)} cannot be combined: {reason}. Keep one of them in LLACA_POLICY."
        )


class TrainingDiverged(LlacaError, ArithmeticError):
    """A loss, gradient or weight is not a finite number, so the adapter is lost."""

    code = "training_diverged"

    def __init__(self, what: str, step: int | None = None) -> None:
        when = "" if step is None else f" at step {step}"
        super().__init__(
            f"Training diverged{when}: {what} is not finite. Lower LLACA_LEARNING_RATE and run again."
        )


# --- app -------------------------------------------------------------------------------------------------------


class BadField(LlacaError, ValueError):
    """A field of a request has a value that cannot be used."""

    code = "bad_field"

    def __init__(self, field: str, found: object, allowed: str) -> None:
        shown = repr(found)
        super().__init__(
            f"{field}: found {shown[:80] + '…' if len(shown) > 80 else shown}; allowed: {allowed}."
        )
        self.field = field


class UnknownField(LlacaError, ValueError):
    """A request has a field that this server does not take."""

    code = "unknown_field"

    def __init__(self, field: str) -> None:
        super().__init__(
            f"{field}: this server does not take this field; leave it out. docs/api.md lists all fields."
        )
        self.field = field


class TooLarge(LlacaError, ValueError):
    """A request or a part of it is larger than allowed."""

    code = "too_large"

    def __init__(self, what: str, most: int, unit: str) -> None:
        super().__init__(f"{what} is larger than {most:,} {unit}; send less.")


class TooManyRequests(LlacaError, RuntimeError):
    """A rate or a number at the same time is used up; `retry_after` says in how many seconds to try again."""

    code = "too_many_requests"

    def __init__(self, what: str, most: int, retry_after: int) -> None:
        super().__init__(f"The limit of {most} {what} is reached; try again in {retry_after} s.")
        self.retry_after = retry_after


class UnknownModelName(Missing):
    """A request names a model that is neither the alias nor a generation."""

    code = "model_not_found"
    thing = "model"


class UnknownRoute(Missing):
    """No route has this method and path, or nobody may use it."""

    code = "unknown_route"
    thing = "route"


class NotSignedIn(Refused):
    """The request carries no valid session or API key."""

    code = "not_signed_in"

    def __init__(self) -> None:
        super().__init__("Sign in at /login, or send a valid API key as `Authorization: Bearer llaca-…`.")


class NotAllowed(Refused):
    """The user's role does not include this."""

    code = "not_allowed"

    def __init__(self, role: str, needed: str) -> None:
        super().__init__(f"This needs the role {needed}; yours is {role}. An admin can change it.")


class ForeignOrigin(Refused):
    """A browser sent the request from another website's page."""

    code = "foreign_origin"

    def __init__(self, found: str) -> None:
        super().__init__(f"The request comes from {found}, not from this server's own page.")


class AlreadyRunning(Conflict):
    """`llaca up` was started while another one runs on the same data directory."""

    code = "already_running"

    def __init__(self, data_dir: object) -> None:
        super().__init__(
            f"`llaca up` runs already on {data_dir}; stop it first, or choose another LLACA_DATA_DIR."
        )

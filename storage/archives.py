"""Reads a stranger's zip or tar as a stream of members; never extracts, never writes, never follows a link.

Knows nothing of rows or images. Every number in an archive's headers is taken as a claim: bytes are counted as they
come out of the decompressor, names are checked before anything is read, and any breach refuses the whole archive.
"""

from __future__ import annotations

import gzip
import stat
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from storage.errors import (
    ArchiveTooLarge,
    BadUpload,
    CorruptArchive,
    DuplicateName,
    EncryptedArchive,
    LinkInArchive,
    NestedArchive,
    SpecialFile,
    TooManyFiles,
    UnsafePath,
    UnsupportedCompression,
)
from storage.settings import MEBIBYTE, StorageSettings

CHUNK = 64 * 1024
NAME_MAX_BYTES = 255
NAME_MAX_DEPTH = 8
RATIO_MAX = 100
RATIO_FREE_BYTES = 10 * MEBIBYTE
"""An archive may unpack to this much whatever its own size; above it RATIO_MAX applies."""
TAR_HEADER_MAX_BYTES = 128 * 1024
"""Most that may stand between two members of a tar: long names and attributes, which tarfile keeps in memory."""
ZIP_ENTRY_MAX_BYTES = 640
"""Room for one entry of a zip's directory: 46 bytes, the name, and the usual extra fields."""

ARCHIVE_STARTS = (
    b"PK\x03\x04",
    b"PK\x05\x06",
    b"\x1f\x8b",
    b"BZh",
    b"\xfd7zXZ\x00",
    b"7z\xbc\xaf\x27\x1c",
    b"Rar!\x1a\x07",
    b"\x28\xb5\x2f\xfd",
)


def archive_kind(path: Path) -> str | None:
    """Tell by content whether a file is a `zip`, a `tar` or a `tar.gz`; None if it is no archive that can be read."""
    with path.open("rb") as file:
        head = file.read(512)
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "zip"
    if head.startswith(b"\x1f\x8b"):
        return "tar.gz"
    return "tar" if head[257:262] == b"ustar" else None


def members(path: Path, settings: StorageSettings) -> Iterator[tuple[str, Iterator[bytes]]]:
    """Yield each file of an archive as its checked name and its bytes in chunks, which must be read before the next.

    Raises a BadUpload at the first thing that is not a plain file or folder, breaks a limit, or is damaged.
    """
    allowance = _Allowance(path.stat().st_size, settings)
    kind = archive_kind(path)
    with path.open("rb") as file, _damage_named():
        if kind == "zip":
            yield from _zip_members(file, allowance)
        elif kind == "tar.gz":
            with gzip.GzipFile(fileobj=file) as unpacked:
                yield from _tar_members(cast(BinaryIO, unpacked), allowance)
        else:
            yield from _tar_members(file, allowance)


def unpacked_max_bytes(packed_bytes: int, settings: StorageSettings) -> int:
    """Return how many bytes a compressed file of this size may unpack to."""
    return min(settings.upload_max_bytes, max(RATIO_FREE_BYTES, RATIO_MAX * packed_bytes))


class _Allowance:
    """What one archive may still do: names it may add, bytes it may unpack to."""

    def __init__(self, packed_bytes: int, settings: StorageSettings) -> None:
        self.max_members = settings.archive_max_members
        self._max_bytes = unpacked_max_bytes(packed_bytes, settings)
        self._bytes = 0
        self._members = 0
        self._names: dict[str, str] = {}

    def admit(self, raw: str, *, is_file: bool) -> str:
        """Check one member's name and return it in plain form (`./a//b` is `a/b`)."""
        self._members += 1
        if self._members > self.max_members:
            raise TooManyFiles(
                f"more than {self.max_members:,} files", allowed=f"at most {self.max_members:,}"
            )
        if raw.startswith("/") or raw[1:2] == ":" or "\\" in raw or any(map(_is_control, raw)):
            raise UnsafePath(f"the name {raw[:300]!r}")
        steps = [step for step in unicodedata.normalize("NFC", raw).split("/") if step not in ("", ".")]
        name = "/".join(steps)
        if ".." in steps or len(steps) > NAME_MAX_DEPTH or len(name.encode()) > NAME_MAX_BYTES:
            raise UnsafePath(f"the name {raw[:300]!r}")
        key = name.casefold()
        if is_file and key in self._names:
            raise DuplicateName(f"both {self._names[key]!r} and {raw!r}")
        if is_file:
            self._names[key] = raw
        return name

    def take(self, count: int) -> None:
        """Count unpacked bytes; raise ArchiveTooLarge once there are too many."""
        self._bytes += count
        if self._bytes > self._max_bytes:
            raise ArchiveTooLarge(
                f"an archive that unpacks to more than {self._max_bytes:,} bytes",
                allowed=f"at most {self._max_bytes:,} bytes for an archive of this size",
            )

    def counted(self, name: str, stream: BinaryIO) -> Iterator[bytes]:
        """Yield the bytes of a zip member in chunks, counted; raise NestedArchive if they start like an archive."""
        with _damage_named():
            first = True
            while chunk := stream.read(CHUNK):
                self.take(len(chunk))
                if first:
                    _refuse_archive(name, chunk)
                first = False
                yield chunk


def _is_control(character: str) -> bool:
    # Cc are control characters, Cs the lone surrogates that stand for bytes which are no valid text.
    return unicodedata.category(character) in ("Cc", "Cs")


def _refuse_archive(name: str, first_chunk: bytes) -> None:
    if first_chunk.startswith(ARCHIVE_STARTS) or first_chunk[257:262] == b"ustar":
        raise NestedArchive(f"the archive {name!r} inside the archive")


@contextmanager
def _damage_named() -> Iterator[None]:
    """Turn whatever zipfile, tarfile and zlib raise on damaged or malicious bytes into CorruptArchive."""
    try:
        yield
    except BadUpload:
        raise
    except (
        zipfile.BadZipFile,
        tarfile.TarError,
        zlib.error,
        struct.error,
        EOFError,
        OSError,
        ValueError,
        LookupError,
        OverflowError,
        RecursionError,
        NotImplementedError,
    ) as error:
        raise CorruptArchive(f"damage ({str(error)[:200]})") from error


class _ZipFile:
    """A file that refuses the one unbounded read zipfile makes: the whole directory of members at once."""

    def __init__(self, file: BinaryIO, max_members: int) -> None:
        self._file = file
        self._max_members = max_members
        self.seek = file.seek
        self.tell = file.tell
        self.seekable = file.seekable

    def read(self, size: int = MEBIBYTE) -> bytes:
        """Read like a file, unless what is asked for can only be a directory of too many members.

        zipfile leaves out the size only for the last 64 kB of a file.
        """
        too_many = TooManyFiles(
            f"more than {self._max_members:,} files", allowed=f"at most {self._max_members:,}"
        )
        if size > max(MEBIBYTE, self._max_members * ZIP_ENTRY_MAX_BYTES):
            raise too_many
        data = self._file.read(size)
        if data.startswith(b"PK\x01\x02") and data.count(b"PK\x01\x02") > self._max_members:
            raise too_many
        return data


def _zip_members(file: BinaryIO, allowance: _Allowance) -> Iterator[tuple[str, Iterator[bytes]]]:
    with zipfile.ZipFile(cast(BinaryIO, _ZipFile(file, allowance.max_members))) as archive:
        for info in archive.infolist():
            # filename is cut at a NUL by zipfile; orig_filename is what the archive says.
            name = allowance.admit(_zip_name(info), is_file=not info.is_dir())
            _check_zip_member(info, name)
            if not info.is_dir():
                with archive.open(info) as stream:
                    yield name, allowance.counted(name, cast(BinaryIO, stream))


def _zip_name(info: zipfile.ZipInfo) -> str:
    """Read names as UTF-8 where they are, since macOS writes them so without setting the flag."""
    if info.flag_bits & 0x800:
        return info.orig_filename
    try:
        return info.orig_filename.encode("cp437").decode()
    except UnicodeError:
        return info.orig_filename


def _check_zip_member(info: zipfile.ZipInfo, name: str) -> None:
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind == stat.S_IFLNK:
        raise LinkInArchive(f"the link {name!r}")
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise SpecialFile(f"the special file {name!r}")
    if info.flag_bits & 0x1:
        raise EncryptedArchive(f"the encrypted file {name!r}")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise UnsupportedCompression(f"{name!r}, compressed with method {info.compress_type}")


class _TarStream:
    """A tar read forwards only, every byte counted, with little room for headers between two members."""

    def __init__(self, raw: BinaryIO, allowance: _Allowance) -> None:
        self._raw = raw
        self._allowance = allowance
        self._position = 0
        self._header_bytes = 0
        self._last_header = b""

    def tell(self) -> int:
        """Return how many bytes have been read or passed over."""
        return self._position

    def read(self, size: int) -> bytes:
        """Read a header; raise CorruptArchive if headers take more room than any honest archive needs."""
        self._header_bytes += size
        if self._header_bytes > TAR_HEADER_MAX_BYTES:
            raise CorruptArchive(f"headers of more than {TAR_HEADER_MAX_BYTES:,} bytes before one member")
        self._last_header = self._take(size)
        return self._last_header

    def seek(self, position: int) -> int:
        """Pass over bytes up to `position`, counting them; going back is an error."""
        for _ in self._chunks(position - self._position):
            pass
        return self._position

    def body(self, name: str, size: int) -> Iterator[bytes]:
        """Yield the next `size` bytes, the content of one member, in chunks."""
        with _damage_named():
            for position, chunk in enumerate(self._chunks(size)):
                if position == 0:
                    _refuse_archive(name, chunk)
                yield chunk

    def next_member(self) -> None:
        """Give the headers of the next member their own room."""
        self._header_bytes = 0

    def finish(self) -> None:
        """Check for the end mark, which tarfile does not, and read on, so that the checksum of a gzip is verified."""
        if self._last_header != bytes(tarfile.BLOCKSIZE):
            raise CorruptArchive("no end mark, as after a broken upload")
        while self._take(CHUNK):
            pass

    def _chunks(self, size: int) -> Iterator[bytes]:
        if size < 0:
            raise CorruptArchive("members that overlap")
        end = self._position + size
        while self._position < end:
            chunk = self._take(min(CHUNK, end - self._position))
            if not chunk:
                raise CorruptArchive("the end of the file in the middle of a member")
            yield chunk

    def _take(self, size: int) -> bytes:
        chunk = self._raw.read(size)
        self._allowance.take(len(chunk))
        self._position += len(chunk)
        return chunk


def _tar_members(file: BinaryIO, allowance: _Allowance) -> Iterator[tuple[str, Iterator[bytes]]]:
    stream = _TarStream(file, allowance)
    archive = tarfile.TarFile(fileobj=cast(BinaryIO, stream))
    while (info := archive.next()) is not None:
        # tarfile remembers every member, though nothing here goes back to one.
        archive.members = []  # type: ignore[attr-defined]  # missing in typeshed
        stream.next_member()
        name = allowance.admit(info.name, is_file=info.isfile())
        if info.issym() or info.islnk():
            raise LinkInArchive(f"the link {name!r}")
        if info.issparse() or not (info.isfile() or info.isdir()):
            raise SpecialFile(f"the special file {name!r}")
        if info.isfile():
            yield name, stream.body(name, info.size)
    stream.finish()

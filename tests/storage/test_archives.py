"""Archives from strangers: honest ones are read whole, hostile ones are named and leave nothing behind."""

from __future__ import annotations

import gzip
import io
import random
import resource
import stat
import struct
import tarfile
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from storage.archives import archive_kind, members
from storage.errors import BadUpload
from storage.settings import MEBIBYTE, StorageSettings
from tests.storage.pictures import (
    picture,
    tarred,
    tarred_entries,
    zipped,
    zipped_entries,
)

LIMITS = StorageSettings(archive_max_members=100, upload_max_bytes=50 * MEBIBYTE)


def drain(path: Path, limits: StorageSettings = LIMITS) -> dict[str, int]:
    """Read a whole archive; return the size of each member."""
    return {name: sum(map(len, chunks)) for name, chunks in members(path, limits)}


def named(name: str, mode: int = 0) -> zipfile.ZipInfo:
    """Return a zip entry of this name and Unix mode."""
    info = zipfile.ZipInfo("placeholder")
    info.filename = name
    info.external_attr = mode << 16
    info.compress_type = zipfile.ZIP_DEFLATED
    return info


def special(kind: bytes, name: str = "a", target: str = "") -> tarfile.TarInfo:
    """Return a tar entry of this type."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def encrypted_zip() -> bytes:
    """Return a zip whose member claims to be encrypted."""
    data = bytearray(zipped({"a.json": "[]"}))
    for start, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(start) + offset] |= 1
    return bytes(data)


def lying_zip() -> bytes:
    """Return a zip whose member unpacks to more than its header says."""
    data = bytearray(zipped({"a.txt": b"x" * 100_000}))
    start = data.index(b"PK\x01\x02")
    data[start + 24 : start + 28] = struct.pack("<I", 10)
    return bytes(data)


def overlapping_zip() -> bytes:
    """Return a zip whose directory lists one compressed member many times, the trick of flat zip bombs."""
    data = zipped({"a0": b"\0" * MEBIBYTE})
    start = data.index(b"PK\x01\x02")
    end = data.index(b"PK\x05\x06")
    entry = bytearray(data[start:end])
    directory = b""
    for index in range(60):
        entry[-2:] = f"{index:02}".encode()
        directory += bytes(entry)
    tail = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 60, 60, len(directory), start, 0)
    return data[:start] + directory + tail


def crowded_zip() -> bytes:
    """Return a zip with a directory of half a million entries, though its end record counts one."""
    entry = struct.pack("<4s4B4HL2L5H2L", b"PK\x01\x02", *bytes(4), *[0] * 5, 0, 0, 1, *[0] * 4, 0, 0) + b"a"
    directory = entry * 500_000
    tail = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 1, 1, len(directory), 4, 0)
    return b"PK\x03\x04" + directory + tail


def commented_tar(comment: str) -> bytes:
    """Return a tar whose one member has a comment in an extended header."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("a")
        info.pax_headers = {"comment": comment}
        archive.addfile(info)
    return out.getvalue()


def sparse_tar() -> bytes:
    """Return a tar with a file of 100 GB that is all hole."""
    info = special(tarfile.GNUTYPE_SPARSE)
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[386:410] = b"00000000000\000000000000\0"
    header[483:495] = b"\x80\0\0\0" + (100 * 2**30).to_bytes(8, "big")
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    return bytes(header) + bytes(1024)


def cut(data: bytes, share: float) -> bytes:
    """Return the first part of some bytes."""
    return data[: int(len(data) * share)]


NOISE = random.Random(1).randbytes(200_000)
GOOD = {"data.json": b"[]", "images/1.png": picture()}
DEEP = "/".join("abcdefghij")

HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "zip climbs out": (lambda: zipped({"../../evil.txt": b"x"}), "unsafe_path"),
    "zip climbs within": (lambda: zipped({"a/../../evil.txt": b"x"}), "unsafe_path"),
    "zip climbs back": (lambda: zipped({"a/../b": b"x"}), "unsafe_path"),
    "zip absolute": (lambda: zipped({"/etc/passwd": b"x"}), "unsafe_path"),
    "zip backslash": (lambda: zipped_entries((named("a\\b"), b"x")), "unsafe_path"),
    "zip drive letter": (lambda: zipped_entries((named("C:evil"), b"x")), "unsafe_path"),
    "zip NUL in name": (lambda: zipped_entries((named("a.json\0.png"), b"x")), "unsafe_path"),
    "zip newline in name": (lambda: zipped({"a\nb": b"x"}), "unsafe_path"),
    "zip escape in name": (lambda: zipped({"a\x1b[31mb": b"x"}), "unsafe_path"),
    "zip long name": (lambda: zipped({"a" * 300: b"x"}), "unsafe_path"),
    "zip deep name": (lambda: zipped({DEEP: b"x"}), "unsafe_path"),
    "zip climbing folder": (lambda: zipped({"../": b""}), "unsafe_path"),
    "zip symlink": (lambda: zipped_entries((named("a", stat.S_IFLNK | 0o777), b"/etc")), "link_in_archive"),
    "zip device": (lambda: zipped_entries((named("a", stat.S_IFCHR | 0o600), b"")), "special_file"),
    "zip pipe": (lambda: zipped_entries((named("a", stat.S_IFIFO | 0o600), b"")), "special_file"),
    "zip encrypted": (encrypted_zip, "encrypted_archive"),
    "zip same name": (lambda: zipped_entries((named("a"), b"1"), (named("a"), b"2")), "duplicate_name"),
    "zip case twin": (lambda: zipped({"a.png": b"1", "A.PNG": b"2"}), "duplicate_name"),
    "zip accent twin": (lambda: zipped({"\u00e9": b"1", "e\u0301": b"2"}), "duplicate_name"),
    "zip dotted twin": (lambda: zipped({"a/b": b"1", "./a//b": b"2"}), "duplicate_name"),
    "zip bomb": (lambda: zipped({"a": bytes(40 * MEBIBYTE)}), "archive_too_large"),
    "zip bomb in parts": (lambda: zipped({f"{n}": bytes(MEBIBYTE) for n in range(30)}), "archive_too_large"),
    "zip overlapping": (overlapping_zip, "corrupt_archive"),
    "zip lying size": (lying_zip, "corrupt_archive"),
    "zip too many": (lambda: zipped({f"{n}": b"" for n in range(101)}), "too_many_files"),
    "zip crowded directory": (crowded_zip, "too_many_files"),
    "zip in zip": (lambda: zipped({"inner.zip": zipped(GOOD)}), "nested_archive"),
    "zip in disguise": (lambda: zipped({"1.png": zipped(GOOD)}), "nested_archive"),
    "tar in zip": (lambda: zipped({"inner": tarred(GOOD)}), "nested_archive"),
    "gz in zip": (lambda: zipped({"inner.gz": gzip.compress(b"x")}), "nested_archive"),
    "7z in zip": (lambda: zipped({"inner.7z": b"7z\xbc\xaf\x27\x1c" + NOISE}), "nested_archive"),
    "zip truncated": (lambda: cut(zipped({"a": NOISE}), 0.5), "corrupt_archive"),
    "zip garbled": (lambda: zipped({"a": NOISE}).replace(NOISE[1000:1010], bytes(10)), "corrupt_archive"),
    "zip end only": (lambda: zipped({"a": b"x"})[:4] + bytes(100), "corrupt_archive"),
    "zip bzip2": (lambda: _compressed(zipfile.ZIP_BZIP2), "unsupported_compression"),
    "zip lzma": (lambda: _compressed(zipfile.ZIP_LZMA), "unsupported_compression"),
    "tar climbs out": (lambda: tarred({"../evil": b"x"}), "unsafe_path"),
    "tar absolute": (lambda: tarred({"/etc/passwd": b"x"}), "unsafe_path"),
    "tar backslash": (lambda: tarred({"..\\evil": b"x"}), "unsafe_path"),
    "tar bytes in name": (lambda: tarred({"a\udcff": b"x"}), "unsafe_path"),
    "tar symlink": (
        lambda: tarred_entries((special(tarfile.SYMTYPE, target="/etc"), b"")),
        "link_in_archive",
    ),
    "tar hard link": (lambda: tarred_entries((special(tarfile.LNKTYPE, target="b"), b"")), "link_in_archive"),
    "tar device": (lambda: tarred_entries((special(tarfile.CHRTYPE), b"")), "special_file"),
    "tar block device": (lambda: tarred_entries((special(tarfile.BLKTYPE), b"")), "special_file"),
    "tar pipe": (lambda: tarred_entries((special(tarfile.FIFOTYPE), b"")), "special_file"),
    "tar sparse": (sparse_tar, "special_file"),
    "tar same name": (lambda: tarred({"a": b"1", "./a": b"2"}), "duplicate_name"),
    "tar case twin": (lambda: tarred({"a": b"1", "A": b"2"}), "duplicate_name"),
    "tar too many": (lambda: tarred({f"{n}": b"" for n in range(101)}), "too_many_files"),
    "tar in tar": (lambda: tarred({"inner": tarred(GOOD)}), "nested_archive"),
    "tar zip inside": (lambda: tarred({"inner": zipped(GOOD)}), "nested_archive"),
    "tar truncated": (lambda: cut(tarred({"a": NOISE}), 0.5), "corrupt_archive"),
    "tar without end": (lambda: tarred({"a": bytes(512)})[:1024], "corrupt_archive"),
    "tar garbled header": (
        lambda: tarred({"a": b"1", "b": b"2"}).replace(b"b\0", b"c\0", 1),
        "corrupt_archive",
    ),
    "tar heavy headers": (lambda: commented_tar("x" * MEBIBYTE), "corrupt_archive"),
    "tar endless headers": (lambda: commented_tar("x")[:1024] * 5000, "corrupt_archive"),
    "tar.gz bomb": (lambda: tarred({"a": bytes(40 * MEBIBYTE)}, mode="w:gz"), "archive_too_large"),
    "tar.gz truncated": (lambda: cut(tarred({"a": NOISE}, mode="w:gz"), 0.7), "corrupt_archive"),
    "tar.gz wrong sum": (lambda: tarred(GOOD, mode="w:gz")[:-8] + bytes(8), "corrupt_archive"),
    "gz of no tar": (lambda: gzip.compress(b'{"messages": []}' * 100), "corrupt_archive"),
    "gz of nothing": (lambda: gzip.compress(b""), "corrupt_archive"),
}


def _compressed(method: int) -> bytes:
    info = named("a.json")
    info.compress_type = method
    return zipped_entries((info, b"[]"))


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_archive_is_refused_with_its_code(name: str, tmp_path: Path) -> None:
    """Each hostile archive is refused for what it does, within seconds, and nothing is written anywhere."""
    build, code = HOSTILE[name]
    path = tmp_path / "upload"
    path.write_bytes(build())
    began = time.monotonic()
    with pytest.raises(BadUpload) as refusal:
        drain(path)
    assert refusal.value.code == code
    assert time.monotonic() - began < 5
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("mode", ["zip", "w", "w:gz"])
def test_honest_archive_is_read_whole(mode: str, tmp_path: Path) -> None:
    """Every kind of archive gives its files in order, folders left out, names in plain form."""
    files = {"data.json": b"[]", "images/a b (1).png": NOISE, "./images/\u00e9.png": b"x", "empty": b""}
    path = tmp_path / "upload"
    path.write_bytes(zipped(files | {"folder/": b""}) if mode == "zip" else tarred(files, mode=mode))
    assert drain(path) == {
        "data.json": 2,
        "images/a b (1).png": len(NOISE),
        "images/\u00e9.png": 1,
        "empty": 0,
    }


def test_members_may_be_passed_over(tmp_path: Path) -> None:
    """A member whose bytes nobody reads does not disturb the next."""
    files = {"a": NOISE, "b": b"1234", "c": bytes(600), "d": b"end"}
    for data in (zipped(files), tarred(files), tarred(files, mode="w:gz")):
        path = tmp_path / "upload"
        path.write_bytes(data)
        found = {name: b"".join(chunks) for name, chunks in members(path, LIMITS) if name in "bd"}
        assert found == {"b": b"1234", "d": b"end"}


def test_utf8_name_without_flag(tmp_path: Path) -> None:
    """Names that macOS writes as UTF-8 without saying so are read as UTF-8."""
    data = zipped({"\u00e9.png": b"x"})
    path = tmp_path / "upload"
    for start, offset in ((b"PK\x03\x04", 7), (b"PK\x01\x02", 9)):
        position = data.index(start) + offset
        data = data[:position] + bytes([data[position] & ~0x08]) + data[position + 1 :]
    path.write_bytes(data)
    assert drain(path) == {"\u00e9.png": 1}


def test_kind_is_told_by_content(tmp_path: Path) -> None:
    """Zip and tar are recognized by their bytes, and a picture is no archive."""
    path = tmp_path / "upload.txt"
    for data, kind in ((zipped(GOOD), "zip"), (tarred(GOOD), "tar"), (tarred(GOOD, mode="w:gz"), "tar.gz")):
        path.write_bytes(data)
        assert archive_kind(path) == kind
    path.write_bytes(picture())
    assert archive_kind(path) is None


def test_bomb_is_stopped_in_little_memory(tmp_path: Path) -> None:
    """A zip of 200 MB of zeros is stopped at its limit with a few megabytes of memory."""
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a", "w") as member:
        for _ in range(200):
            member.write(bytes(MEBIBYTE))
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tracemalloc.start()
    with pytest.raises(BadUpload) as refusal:
        drain(path, StorageSettings())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert refusal.value.code == "archive_too_large"
    assert peak < 8 * MEBIBYTE
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident < 50 * 1024


@pytest.mark.parametrize("mode", ["zip", "w", "w:gz"])
def test_damage_anywhere_is_named_or_harmless(mode: str, tmp_path: Path) -> None:
    """Whatever bytes of an archive are changed, it is read or refused; nothing else is ever raised."""
    files = {"data.json": b"[]" * 50, "images/1.png": picture(), "b": NOISE[:3000]}
    whole = zipped(files) if mode == "zip" else tarred(files, mode=mode)
    chance = random.Random(7)
    path = tmp_path / "upload"
    refused = 0
    for _ in range(400):
        data = bytearray(whole)
        for _ in range(chance.choice((1, 2, 8))):
            data[chance.randrange(len(data))] = chance.randrange(256)
        path.write_bytes(data[: chance.randrange(1, len(data))] if chance.random() < 0.2 else data)
        try:
            drain(path)
        except BadUpload:
            refused += 1
    assert refused > 50

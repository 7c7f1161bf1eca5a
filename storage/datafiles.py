"""Reads one data file (JSON, JSONL, CSV or parquet) as a stream of raw rows, in bounded memory.

Knows nothing of conversations. A row that cannot be read comes out as the error that says why, so that the rows
after it are still read; only what makes the rest of the file unreadable is raised.
"""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal, NoReturn, cast

from storage.archives import unpacked_max_bytes
from storage.errors import (
    ArchiveTooLarge,
    BadNumber,
    BadUpload,
    CorruptTable,
    DuplicateKey,
    EmptyFile,
    InvalidJson,
    LineTooLong,
    NotRows,
    TooDeep,
    UnsupportedFile,
    WrongColumns,
    WrongEncoding,
    WrongType,
)
from storage.settings import MEBIBYTE, StorageSettings

CHUNK = 64 * 1024
MAX_DEPTH = 16
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
UTF16_STARTS = (b"\xff\xfe", b"\xfe\xff")
CSV_LINE_MAX_BYTES = MEBIBYTE
# For the whole process. The default of 131,072 characters is less than one picture in a line may have.
csv.field_size_limit(CSV_LINE_MAX_BYTES)
PARQUET_WORKER = Path(__file__).with_name("parquet_worker.py")
PARQUET_MEMORY_BYTES = 2048 * MEBIBYTE
PARQUET_CPU_SECONDS = 600

Container = Literal["json", "jsonl", "csv", "parquet"]
RawRow = tuple[int, dict[str, Any] | BadUpload]
"""The row's number, counted from 1 (the line number where rows are lines), and the row or why it cannot be read."""


def container(path: Path, name: str) -> Container:
    """Tell what kind of data file this is: by content, and by `name` only for CSV, which has no sign of its own."""
    with path.open("rb") as file:
        head = file.read(CHUNK)
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.startswith(UTF16_STARTS) or b"\0" in head[:4]:
        raise WrongEncoding("text that looks like UTF-16 or UTF-32")
    text = head.removeprefix(BYTE_ORDER_MARK).lstrip()
    if not text:
        raise EmptyFile("an empty data file" if head else "a file of 0 bytes")
    if text.startswith(b"["):
        return "json"
    if text.startswith(b"{"):
        return "jsonl"
    if name.lower().endswith(".csv"):
        return "csv"
    if name.lower().endswith((".json", ".jsonl", ".ndjson")):
        raise NotRows(f"a file that starts with {text[:20]!r}")
    raise UnsupportedFile(f"a file that starts with {text[:8]!r}")


def raw_rows(path: Path, kind: Container, settings: StorageSettings) -> Iterator[RawRow]:
    """Yield every row of a data file; blank lines are passed over."""
    row_max_bytes = settings.row_max_bytes
    if kind == "parquet":
        yield from _parquet_rows(path, settings)
        return
    with path.open("rb") as file:
        if file.read(len(BYTE_ORDER_MARK)) != BYTE_ORDER_MARK:
            file.seek(0)
        if kind == "csv":
            yield from _csv_rows(file)
            return
        pieces = _array_items(file, row_max_bytes) if kind == "json" else _lines(file, row_max_bytes)
        for number, piece in pieces:
            if number == 1 and kind == "jsonl" and piece == b"{":
                raise NotRows("one JSON object spread over several lines")
            yield number, _parsed(piece, row_max_bytes)


def _parsed(piece: bytes | None, row_max_bytes: int) -> dict[str, Any] | BadUpload:
    if piece is None:
        return LineTooLong(
            f"a row of more than {row_max_bytes:,} bytes", allowed=f"at most {row_max_bytes:,} bytes"
        )
    try:
        return parse_row(piece)
    except BadUpload as error:
        return error


def parse_row(piece: bytes) -> dict[str, Any]:
    """Parse one JSON object strictly: UTF-8, no key twice, finite numbers, no deep nesting."""
    try:
        row = json.loads(
            piece.decode(), object_pairs_hook=_object, parse_constant=_refuse_constant, parse_float=_finite
        )
    except UnicodeDecodeError as error:
        raise WrongEncoding(f"bytes at position {error.start} that are no UTF-8") from error
    except RecursionError as error:
        raise TooDeep("a row nested hundreds of levels deep") from error
    except json.JSONDecodeError as error:
        raise InvalidJson(f"{error.msg[0].lower()}{error.msg[1:]} at character {error.pos + 1}") from error
    except ValueError as error:
        if isinstance(error, BadUpload):
            raise
        raise BadNumber("an integer of thousands of digits") from error
    if not isinstance(row, dict):
        raise WrongType(f"a row that is {_kind(row)}", allowed="an object in braces")
    _refuse_depth(row)
    return row


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise DuplicateKey(f"the key {key[:100]!r} twice in one object", field=key[:100])
        found[key] = value
    return found


def _refuse_constant(constant: str) -> NoReturn:
    raise BadNumber(f"the number {constant}")


def _finite(digits: str) -> float:
    number = float(digits)
    if number in (float("inf"), float("-inf")):
        raise BadNumber(f"the number {digits[:40]}")
    return number


def _kind(value: object) -> str:
    names = {list: "a list", str: "text", bool: "a truth value", int: "a number", float: "a number"}
    return names.get(type(value), "null")


def _refuse_depth(row: dict[str, Any]) -> None:
    level: list[Any] = [row]
    for _ in range(MAX_DEPTH):
        inner = (item.values() if isinstance(item, dict) else item for item in level)
        level = [value for values in inner for value in values if isinstance(value, dict | list)]
        if not level:
            return
    raise TooDeep(f"a row nested more than {MAX_DEPTH} levels deep")


def _lines(file: BinaryIO, max_bytes: int) -> Iterator[tuple[int, bytes | None]]:
    number = 0
    while line := file.readline(max_bytes + 1):
        number += 1
        whole = len(line) <= max_bytes
        while not whole and line and not line.endswith(b"\n"):
            line = file.readline(CHUNK)
        if not whole:
            yield number, None
        elif stripped := line.strip():
            yield number, stripped


_OUTSIDE = re.compile(rb'["\[\]{},]')
_INSIDE = re.compile(rb'["\\]')


def _fragments(file: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    """Cut JSON text behind every bracket, brace and comma outside of strings, and at the ends of chunks."""
    in_string = escaped = False
    while chunk := file.read(CHUNK):
        start, position = 0, int(escaped)
        escaped = False
        while mark := (_INSIDE if in_string else _OUTSIDE).search(chunk, position):
            position, symbol = mark.end(), mark.group()
            if symbol == b"\\":
                escaped = position == len(chunk)
                position += 1
            elif symbol == b'"':
                in_string = not in_string
            else:
                yield chunk[start:position], symbol
                start = position
        yield chunk[start:], b""


def _array_items(file: BinaryIO, max_bytes: int) -> Iterator[tuple[int, bytes | None]]:
    """Cut a JSON list at the commas of its top level; each piece is judged by the JSON parser alone.

    The first sign of `file` that is no blank is the opening bracket. Raises InvalidJson if the list does not end
    where the file does.
    """
    while file.read(1) != b"[":
        pass
    number, depth = 0, 1
    piece, too_long = bytearray(), False
    fragments = _fragments(file)
    for fragment, mark in fragments:
        depth += (mark in (b"[", b"{")) - (mark in (b"]", b"}"))
        ends = (mark, depth) in ((b",", 1), (b"]", 0))
        content = fragment[:-1] if ends else fragment
        too_long = too_long or len(piece) + len(content) > max_bytes
        if not too_long:
            piece += content
        if not ends:
            continue
        if number or mark == b"," or too_long or piece.strip():
            number += 1
            yield number, None if too_long else bytes(piece).strip()
        piece, too_long = bytearray(), False
        if depth == 0:
            break
    else:
        raise InvalidJson(f"the end of the file inside the list, after row {number}")
    for rest, _ in fragments:
        if rest.strip():
            raise InvalidJson(f"{rest.strip()[:20]!r} after the end of the list")


def _csv_rows(file: BinaryIO) -> Iterator[RawRow]:
    reader = csv.DictReader(_csv_lines(file), strict=True)
    try:
        header = list(reader.fieldnames or ())
        if len(set(header)) < len(header):
            raise DuplicateKey(f"the column names {header!r}")
        for row in reader:
            # DictReader files surplus values under None, and None under the names of missing ones.
            if None in row or None in row.values():
                yield reader.line_num, WrongColumns("a line whose number of values differs from the header's")
            else:
                yield reader.line_num, dict(row)
    except csv.Error as error:
        raise CorruptTable(f"line {reader.line_num}: {error}") from error


def _csv_lines(file: BinaryIO) -> Iterator[str]:
    number = 0
    while line := file.readline(CSV_LINE_MAX_BYTES + 1):
        number += 1
        if len(line) > CSV_LINE_MAX_BYTES:
            raise LineTooLong(
                f"line {number} with more bytes", allowed=f"at most {CSV_LINE_MAX_BYTES:,} bytes"
            )
        try:
            yield line.decode()
        except UnicodeDecodeError as error:
            raise WrongEncoding(f"bytes in line {number} that are no UTF-8") from error


def _parquet_rows(path: Path, settings: StorageSettings) -> Iterator[RawRow]:
    unpacked, most = 0, unpacked_max_bytes(path.stat().st_size, settings)
    limits = [str(PARQUET_MEMORY_BYTES), str(PARQUET_CPU_SECONDS)]
    with (
        path.open("rb") as file,
        subprocess.Popen(
            [sys.executable, "-I", "-B", str(PARQUET_WORKER), *limits],
            stdin=file,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={},
        ) as child,
    ):
        try:
            for number, piece in _lines(cast(BinaryIO, child.stdout), settings.row_max_bytes):
                unpacked += settings.row_max_bytes if piece is None else len(piece)
                if unpacked > most:
                    raise ArchiveTooLarge(
                        f"a parquet file that unpacks to more than {most:,} bytes",
                        allowed=f"at most {most:,} bytes for a file of this size",
                    )
                yield number, _parsed(piece, settings.row_max_bytes)
            if child.wait() != 0:
                raise CorruptTable("a parquet file that is damaged, or unpacks to more than fits into memory")
        finally:
            child.kill()

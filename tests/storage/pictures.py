"""Small pictures and archives, honest and hostile, made on the spot for the intake tests."""

from __future__ import annotations

import io
import json
import struct
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

from PIL import Image


def picture(
    width: int = 16,
    height: int = 16,
    *,
    kind: str = "PNG",
    color: Any = "red",
    mode: str = "RGB",
    **options: Any,
) -> bytes:
    """Return a picture of one colour as file bytes; `options` go to Pillow's writer."""
    out = io.BytesIO()
    Image.new(mode, (width, height), color).save(out, kind, **options)
    return out.getvalue()


def moving(kind: str, frames: int = 3) -> bytes:
    """Return an animation of `frames` pictures of different colours."""
    out = io.BytesIO()
    stills = [Image.new("RGB", (16, 16), (80 * index, 0, 0)) for index in range(frames)]
    stills[0].save(out, kind, save_all=True, append_images=stills[1:])
    return out.getvalue()


def png_claiming(width: int, height: int, *, extra: bytes = b"") -> bytes:
    """Return a tiny PNG whose header claims a size that its data does not hold."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def png_bomb(side: int) -> bytes:
    """Return a PNG of a few kilobytes that holds side x side black pixels, and says so."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    packer = zlib.compressobj(9)
    line = bytes(1 + (side + 7) // 8)
    data = b"".join([*(packer.compress(line) for _ in range(side)), packer.flush()])
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def zipped(files: Mapping[str, bytes | str]) -> bytes:
    """Return a zip of these files."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out.getvalue()


def zipped_entries(*entries: tuple[zipfile.ZipInfo, bytes]) -> bytes:
    """Return a zip of entries with headers of their own, in this order, names repeated if so wished."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile warns of names written twice, which is the point
        for info, content in entries:
            archive.writestr(info, content)
    return out.getvalue()


def tarred(files: Mapping[str, bytes], *, mode: str = "w") -> bytes:
    """Return a tar (`w`) or tar.gz (`w:gz`) of these files."""
    return tarred_entries(*((tarfile.TarInfo(name), content) for name, content in files.items()), mode=mode)


def tarred_entries(*entries: tuple[tarfile.TarInfo, bytes], mode: str = "w") -> bytes:
    """Return a tar of entries with headers of their own."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:  # type: ignore[call-overload]
        for info, content in entries:
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def rows(count: int = 5, **changes: Any) -> list[dict[str, Any]]:
    """Return `count` good text rows in the OpenAI shape, each with `changes` applied."""
    return [
        {
            "messages": [
                {"role": "user", "content": f"What is {index} + 1?"},
                {"role": "assistant", "content": f"{index + 1}"},
            ]
        }
        | changes
        for index in range(count)
    ]


def llava(count: int = 5, *, image: str = "images/{}.png") -> list[dict[str, Any]]:
    """Return `count` good rows in the LLaVA shape; `image` is the pattern of the image's name."""
    return [
        {
            "id": str(index),
            "image": image.format(index),
            "conversations": [
                {"from": "human", "value": "<image>\nWhich number is this?"},
                {"from": "gpt", "value": f"number {index}"},
            ],
        }
        for index in range(count)
    ]


def jsonl(items: list[Any]) -> bytes:
    """Return one JSON document per line."""
    return b"".join(json.dumps(item).encode() + b"\n" for item in items)

"""The child process that decodes strangers' pictures, one request after the other.

It runs alone (`python -I image_worker.py LIMITS`), imports Pillow and nothing of ours, holds no secret and no
path, and caps its own memory, processor time and file size before it reads the first byte. A picture that
crashes it takes only this process along; `storage.images` starts the next one.

Request on stdin: 4 bytes big-endian length, then the picture.
Answer on stdout: 4 bytes length, a JSON header (the verdict), 4 bytes length, the clean picture (may be empty).
"""

from __future__ import annotations

import io
import json
import resource
import struct
import sys
from typing import BinaryIO, TypedDict

from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("PNG", "JPEG", "WEBP")
MEDIA_TYPES = {"PNG": "image/png", "JPEG": "image/jpeg", "MPO": "image/jpeg", "WEBP": "image/webp"}
METADATA = {"exif", "xmp", "XML:com.adobe.xmp", "comment", "photoshop"}
GPS_DIRECTORY = 0x8825
ORIENTATION = 0x0112
LENGTH = struct.Struct(">I")


class Limits(TypedDict):
    """What one picture may be, and what this process may use."""

    max_pixels: int
    max_side: int
    min_side: int
    max_aspect: int
    lossless_pixels: int
    memory_bytes: int
    cpu_seconds: int


class Verdict(TypedDict, total=False):
    """Either `code` with `found` and `allowed` (refused), or the facts of the clean picture."""

    code: str
    found: str
    allowed: str
    media_type: str
    source_type: str
    width: int
    height: int
    notes: list[str]


class Refused(Exception):
    """The picture breaks a limit; carries the finding's code, what was found and what is allowed."""

    def __init__(self, code: str, found: str, allowed: str) -> None:
        super().__init__(code)
        self.verdict = Verdict(code=code, found=found, allowed=allowed)


def confine(limits: Limits) -> None:
    """Cap this process's address space, processor time and file writes, for good."""
    memory, seconds = limits["memory_bytes"], limits["cpu_seconds"]
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Our own limits below are stricter than Pillow's, and Pillow's is only a warning between 1x and 2x.
    Image.MAX_IMAGE_PIXELS = None


def open_header(data: bytes, limits: Limits) -> Image.Image:
    """Read format and size without decoding a pixel, and refuse what is out of bounds."""
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise Refused("image_format", "bytes that are no PNG, JPEG or WebP", "PNG, JPEG or WebP") from None
    width, height = image.size
    if max(width, height) > limits["max_side"] or width * height > limits["max_pixels"]:
        allowed = f"sides up to {limits['max_side']} and {limits['max_pixels'] / 1e6:g} megapixels"
        raise Refused("image_too_large", f"{width} x {height} pixels", allowed)
    if min(width, height) < limits["min_side"]:
        raise Refused(
            "image_too_small", f"{width} x {height} pixels", f"sides of {limits['min_side']} or more"
        )
    if max(width, height) > limits["max_aspect"] * min(width, height):
        raise Refused("image_shape", f"{width} x {height} pixels", f"sides up to {limits['max_aspect']}:1")
    # Pillow sets n_frames only on formats that can move; MPO is a photo with extra stills (depth, other eye).
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":
        raise Refused("animated_image", f"{frames} frames", "one still picture")
    return image


def flatten(image: Image.Image) -> Image.Image:
    """Return the picture as 8-bit RGB, transparency laid on white, 16-bit grey scaled down."""
    if image.mode.startswith("I"):
        return image.convert("I").point(lambda value: value * (1 / 256)).convert("L").convert("RGB")
    if image.has_transparency_data:
        layered = image.convert("RGBA")
        white = Image.new("RGBA", layered.size, "white")
        white.alpha_composite(layered)
        return white.convert("RGB")
    return image.convert("RGB")


def describe(image: Image.Image) -> list[str]:
    """Name what the clean copy will lack or show differently from the loaded `image`."""
    exif = image.getexif()
    notes = []
    if GPS_DIRECTORY in exif:
        notes.append("location_removed")
    if exif or METADATA & image.info.keys() or getattr(image, "text", None):
        notes.append("metadata_removed")
    if exif.get(ORIENTATION, 1) != 1:
        notes.append("rotated")
    if image.has_transparency_data:
        notes.append("flattened")
    if image.format == "MPO":
        notes.append("first_picture_kept")
    return notes


def encode(image: Image.Image, lossless_pixels: int) -> tuple[bytes, str]:
    """Write a bare RGB picture: PNG up to `lossless_pixels`, JPEG quality 95 without chroma loss above."""
    out = io.BytesIO()
    if image.width * image.height <= lossless_pixels:
        image.save(out, "PNG")
        return out.getvalue(), "image/png"
    image.save(out, "JPEG", quality=95, subsampling=0)
    return out.getvalue(), "image/jpeg"


def clean(data: bytes, limits: Limits) -> tuple[Verdict, bytes]:
    """Decode `data`, apply its EXIF rotation and write it anew, so that nothing but pixels survives."""
    try:
        image = open_header(data, limits)
        image.load()
        notes, source = describe(image), MEDIA_TYPES[image.format or ""]
        upright = ImageOps.exif_transpose(image)
        plain = flatten(upright)
        plain.info = {}
        encoded, media_type = encode(plain, limits["lossless_pixels"])
    except Refused as refused:
        return refused.verdict, b""
    except MemoryError:
        return Verdict(
            code="image_too_costly", found="more memory needed than allowed", allowed="a plain picture"
        ), b""
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        # Pillow reports damage in a picture with any of these four; whatever else escapes ends this process.
        return Verdict(code="image_corrupt", found=str(error)[:200], allowed="a complete picture"), b""
    verdict = Verdict(
        media_type=media_type, source_type=source, width=plain.width, height=plain.height, notes=notes
    )
    return verdict, encoded


def read_frame(stream: BinaryIO) -> bytes | None:
    """Read one length-prefixed frame; None if the stream ends before it is whole."""
    head = stream.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    (length,) = LENGTH.unpack(head)
    data = stream.read(length)
    return data if len(data) == length else None


def write_frame(stream: BinaryIO, data: bytes) -> None:
    """Write one length-prefixed frame."""
    stream.write(LENGTH.pack(len(data)) + data)


def serve(limits: Limits) -> None:
    """Answer requests until stdin closes, which is also how this process notices that its parent died."""
    Image.preinit()
    confine(limits)
    while (data := read_frame(sys.stdin.buffer)) is not None:
        verdict, encoded = clean(data, limits)
        write_frame(sys.stdout.buffer, json.dumps(verdict).encode())
        write_frame(sys.stdout.buffer, encoded)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))

"""Makes a stranger's picture safe: decoded, bounded, stripped of metadata and written anew in a child process.

Knows nothing of files, rows or people. The child (`storage.image_worker`) is kept for many pictures and replaced
when it dies, hangs or has used up its processor time. Small pictures come back as PNG (lossless, so that an
upscaled 8 x 8 digit stays exact), larger ones as JPEG quality 95 without chroma subsampling.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self, cast

from storage.errors import (
    AnimatedImage,
    BadImage,
    ImageCorrupt,
    ImageFormat,
    ImageShape,
    ImageTooCostly,
    ImageTooLarge,
    ImageTooSmall,
)
from storage.image_worker import Limits, Verdict, read_frame, write_frame
from storage.settings import MEBIBYTE, StorageSettings

WORKER = Path(__file__).with_name("image_worker.py")
MAX_ASPECT = 200
LOSSLESS_PIXELS = 512 * 512
"""Up to this many pixels the clean copy is PNG, above it JPEG."""
MEMORY_BYTES = 1024 * MEBIBYTE
CPU_SECONDS = 60
"""Processor time of one child over all its pictures; a child that has used it up is replaced."""
SECONDS_PER_IMAGE = 10.0

_REFUSALS: dict[str, type[BadImage]] = {
    refusal.code: refusal
    for refusal in (
        ImageFormat,
        ImageCorrupt,
        ImageTooLarge,
        ImageTooSmall,
        ImageShape,
        AnimatedImage,
        ImageTooCostly,
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanImage:
    """A picture of bare RGB pixels; `notes` names what was changed, `source_type` what the bytes really were."""

    data: bytes
    media_type: str
    source_type: str
    width: int
    height: int
    notes: tuple[str, ...]


class Sanitizer:
    """Cleans pictures one after the other in one limited child process; safe to share between threads."""

    def __init__(self, settings: StorageSettings) -> None:
        self._max_bytes = settings.image_max_bytes
        self._limits = Limits(
            max_pixels=settings.image_max_pixels,
            max_side=settings.image_max_side,
            min_side=settings.image_min_side,
            max_aspect=MAX_ASPECT,
            lossless_pixels=LOSSLESS_PIXELS,
            memory_bytes=MEMORY_BYTES,
            cpu_seconds=CPU_SECONDS,
        )
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None

    def sanitize(self, data: bytes) -> CleanImage:
        """Return the clean copy of a picture; raise a BadImage that says what is wrong with it."""
        if len(data) > self._max_bytes:
            raise ImageTooLarge(
                f"a picture of {len(data):,} bytes", allowed=f"at most {self._max_bytes:,} bytes"
            )
        with self._lock:
            fresh = self._child is None
            answer = self._ask(data)
            if answer is None and not fresh:
                # The child may have spent its time on earlier pictures; only a fresh one's failure is a verdict.
                answer = self._ask(data)
        if answer is None:
            raise ImageTooCostly("a picture on which the decoder gave up")
        verdict, clean = answer
        if "code" in verdict:
            raise _REFUSALS[verdict["code"]](verdict["found"], allowed=verdict["allowed"])
        return CleanImage(
            data=clean,
            media_type=verdict["media_type"],
            source_type=verdict["source_type"],
            width=verdict["width"],
            height=verdict["height"],
            notes=tuple(verdict["notes"]),
        )

    def close(self) -> None:
        """End the child, if there is one; the next picture starts another."""
        with self._lock:
            self._stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, data: bytes) -> tuple[Verdict, bytes] | None:
        child = self._child = self._child or self._start()
        requests, answers = cast(BinaryIO, child.stdin), cast(BinaryIO, child.stdout)
        deadline = threading.Timer(SECONDS_PER_IMAGE, child.kill)
        deadline.start()
        try:
            write_frame(requests, data)
            requests.flush()
            header, clean = read_frame(answers), read_frame(answers)
        except BrokenPipeError:
            header = clean = None
        finally:
            deadline.cancel()
        if header is None or clean is None:
            self._stop()
            return None
        return json.loads(header), clean

    def _start(self) -> subprocess.Popen[bytes]:
        # -I and an empty environment: the child sees neither our modules nor our variables. It needs no signal
        # to die with us: its stdin closes when this process ends, however that happens.
        return subprocess.Popen(
            [sys.executable, "-I", "-B", str(WORKER), json.dumps(self._limits)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={},
        )

    def _stop(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        child.kill()
        child.wait()
        cast(BinaryIO, child.stdout).close()
        # Part of a picture may still be buffered for the child that is gone.
        with suppress(BrokenPipeError):
            cast(BinaryIO, child.stdin).close()


_lookup = threading.Lock()
"""Held while the shared sanitizer is looked up: two threads that both miss in a cache would make two."""


@lru_cache(maxsize=1)
def _shared(settings: StorageSettings) -> Sanitizer:
    return Sanitizer(settings)


def check_image(data: bytes, settings: StorageSettings) -> CleanImage:
    """Return the clean copy of one picture (chat); raise BadImage. Keeps its child for the next call."""
    with _lookup:
        shared = _shared(settings)
    return shared.sanitize(data)

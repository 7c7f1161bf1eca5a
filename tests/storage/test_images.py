"""Pictures from strangers: good ones come back as bare pixels, bad ones are named, and no child's death matters."""

from __future__ import annotations

import io
import random
import resource
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import psutil
import pytest
from PIL import Image

from storage import images
from storage.errors import BadImage
from storage.images import CleanImage, Sanitizer, check_image
from storage.settings import StorageSettings
from tests.storage.pictures import moving, picture, png_bomb, png_claiming

SETTINGS = StorageSettings(image_max_bytes=1_000_000)


@pytest.fixture(scope="module")
def sanitizer() -> Iterator[Sanitizer]:
    """One sanitizer, whose child serves many tests as it serves many pictures."""
    with Sanitizer(SETTINGS) as shared:
        yield shared


def workers() -> set[psutil.Process]:
    """Return the children that clean pictures now, for whichever sanitizer of this process."""
    found = set()
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):
            if "image_worker" in " ".join(child.cmdline()):
                found.add(child)
    return found


def opened(clean: CleanImage) -> Image.Image:
    """Decode a clean copy."""
    return Image.open(io.BytesIO(clean.data))


def with_exif(orientation: int = 1, kind: str = "JPEG", width: int = 40, height: int = 20) -> bytes:
    """Return a picture whose EXIF names an orientation, a camera and a place."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = "SecretCamera"
    exif.get_ifd(0x8825)[1] = "N"
    exif.get_ifd(0x8825)[2] = (48.0, 51.0, 29.6)
    return picture(width, height, kind=kind, exif=exif)


def png_text(size: int) -> bytes:
    """Return a PNG with a compressed text of `size` bytes."""
    body = b"Comment\0\0" + zlib.compress(b"x" * size)
    chunk = struct.pack(">I", len(body)) + b"zTXt" + body + struct.pack(">I", zlib.crc32(b"zTXt" + body))
    whole = picture()
    return whole[:33] + chunk + whole[33:]


NOISY = Image.effect_noise((64, 64), 100)


def noisy(kind: str) -> bytes:
    """Return a picture of noise, which compresses badly, so that cutting it off cuts pixels."""
    out = io.BytesIO()
    NOISY.convert("RGB").save(out, kind)
    return out.getvalue()


HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "nothing": (lambda: b"", "image_format"),
    "text": (lambda: b"hello", "image_format"),
    "svg": (lambda: b"<svg xmlns='http://www.w3.org/2000/svg'><script>1</script></svg>", "image_format"),
    "html": (lambda: b"<html><img src=x onerror=alert(1)>", "image_format"),
    "pdf": (lambda: b"%PDF-1.7\n", "image_format"),
    "eps": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "image_format"),
    "psd": (
        lambda: b"8BPS\0\1" + bytes(6) + b"\0\3\0\0\0\x20\0\0\0\x20\0\x08\0\3" + bytes(99),
        "image_format",
    ),
    "gif": (lambda: picture(kind="GIF"), "image_format"),
    "bmp": (lambda: picture(kind="BMP"), "image_format"),
    "tiff": (lambda: picture(kind="TIFF"), "image_format"),
    "ico": (lambda: picture(kind="ICO"), "image_format"),
    "ppm": (lambda: picture(kind="PPM"), "image_format"),
    "jpeg 2000": (lambda: picture(kind="JPEG2000"), "image_format"),
    "avif": (lambda: b"\0\0\0\x1cftypavif" + bytes(40), "image_format"),
    "signature only": (lambda: b"\x89PNG\r\n\x1a\n", "image_format"),
    "1 x 1": (lambda: picture(1, 1), "image_too_small"),
    "1 x 1 webp": (lambda: picture(1, 1, kind="WEBP"), "image_too_small"),
    "7 x 100": (lambda: picture(7, 100), "image_too_small"),
    "line": (lambda: picture(2000, 8), "image_shape"),
    "side": (lambda: png_claiming(8193, 100), "image_too_large"),
    "81 megapixels": (lambda: png_bomb(9000), "image_too_large"),
    "26 megapixels": (lambda: png_bomb(5100), "image_too_large"),
    "jpeg 30 megapixels": (lambda: picture(5000, 6000, kind="JPEG", mode="L", color=0), "image_too_large"),
    "claims 4 gigapixels": (lambda: png_claiming(2**31 - 1, 2), "image_too_large"),
    "too many bytes": (lambda: picture() + bytes(1_000_000), "image_too_large"),
    "moving png": (lambda: moving("PNG"), "animated_image"),
    "moving webp": (lambda: moving("WEBP"), "animated_image"),
    "moving gif": (lambda: moving("GIF"), "image_format"),
    "claims more than it holds": (lambda: png_claiming(2000, 2000), "image_corrupt"),
    "text bomb": (lambda: png_text(5_000_000), "image_corrupt"),
    "cut png": (lambda: noisy("PNG")[:-2000], "image_corrupt"),
    "cut jpeg": (lambda: noisy("JPEG")[:-1000], "image_corrupt"),
    "cut webp": (lambda: noisy("WEBP")[:-1000], "image_corrupt"),
    "jpeg without pixels": (lambda: noisy("JPEG")[:700], "image_corrupt"),
    "crc broken": (lambda: picture().replace(b"IHDR\0\0\0\x10", b"IHDR\0\0\0\x11"), "image_format"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_picture_is_refused_with_its_code(name: str, sanitizer: Sanitizer) -> None:
    """Each hostile picture is refused for what it is, within seconds, in a sentence that says what is allowed."""
    build, code = HOSTILE[name]
    data = build()
    sanitizer.sanitize(picture())
    began = time.monotonic()
    with pytest.raises(BadImage) as refusal:
        sanitizer.sanitize(data)
    assert refusal.value.code == code
    assert "allowed: " in str(refusal.value)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_good_picture_comes_back_as_pixels(kind: str, sanitizer: Sanitizer) -> None:
    """Every allowed format is accepted by content and keeps its size."""
    clean = sanitizer.sanitize(picture(32, 16, kind=kind))
    assert (clean.width, clean.height, clean.notes) == (32, 16, ())
    assert clean.source_type == f"image/{kind.lower()}"
    assert opened(clean).size == (32, 16)


@pytest.mark.parametrize(
    ("mode", "color"),
    [("L", 100), ("1", 1), ("P", 3), ("RGB", "red"), ("I;16", 0x6464), ("CMYK", (0, 0, 0, 99))],
)
def test_every_mode_becomes_rgb(mode: str, color: object, sanitizer: Sanitizer) -> None:
    """Grey, palette, 16-bit and print pictures all come back as 8-bit RGB of the right brightness."""
    kind = "JPEG" if mode == "CMYK" else "PNG"
    clean = opened(sanitizer.sanitize(picture(mode=mode, color=color, kind=kind)))
    assert clean.mode == "RGB"
    if mode in ("L", "I;16"):
        assert clean.getpixel((0, 0)) == (100, 100, 100)


def test_small_pictures_are_kept_exactly(sanitizer: Sanitizer) -> None:
    """An 8 x 8 picture loses not one pixel value."""
    small = Image.effect_noise((8, 8), 90).convert("RGB")
    out = io.BytesIO()
    small.save(out, "PNG")
    clean = sanitizer.sanitize(out.getvalue())
    assert clean.media_type == "image/png"
    assert opened(clean).tobytes() == small.tobytes()


def test_large_pictures_become_jpeg(sanitizer: Sanitizer) -> None:
    """Above 512 x 512 pixels the clean copy is a JPEG with full colour resolution."""
    clean = sanitizer.sanitize(picture(600, 513))
    assert clean.media_type == "image/jpeg"
    assert opened(clean).getpixel((300, 300)) == pytest.approx((255, 0, 0), abs=3)


def test_same_picture_gives_same_bytes(sanitizer: Sanitizer) -> None:
    """Cleaning is deterministic, and cleaning a clean PNG changes nothing, so that equal pictures are stored once."""
    first = sanitizer.sanitize(picture(20, 20))
    assert sanitizer.sanitize(picture(20, 20)).data == first.data
    assert sanitizer.sanitize(first.data).data == first.data


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_metadata_is_removed_and_noted(kind: str, sanitizer: Sanitizer) -> None:
    """Camera and place are gone from the clean bytes, and the notes say so."""
    clean = sanitizer.sanitize(with_exif(kind=kind))
    assert set(clean.notes) == {"metadata_removed", "location_removed"}
    assert b"SecretCamera" not in clean.data
    assert not opened(clean).getexif()
    assert set(opened(clean).info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}


def test_text_in_png_is_removed(sanitizer: Sanitizer) -> None:
    """What a PNG says in text chunks does not survive."""
    clean = sanitizer.sanitize(png_text(100))
    assert clean.notes == ("metadata_removed",)
    assert b"Comment" not in clean.data


def test_orientation_is_applied(sanitizer: Sanitizer) -> None:
    """A photo that EXIF says lies on its side is turned upright."""
    clean = sanitizer.sanitize(with_exif(orientation=6))
    assert (clean.width, clean.height) == (20, 40)
    assert "rotated" in clean.notes


def test_transparency_is_laid_on_white(sanitizer: Sanitizer) -> None:
    """Colours hidden under full transparency do not come to light."""
    clean = sanitizer.sanitize(picture(mode="RGBA", color=(255, 0, 0, 0)))
    assert opened(clean).getpixel((3, 3)) == (255, 255, 255)
    assert clean.notes == ("flattened",)


def test_photo_with_extra_pictures_keeps_the_first(sanitizer: Sanitizer) -> None:
    """Phones store depth or a second eye in the same JPEG (MPO); the photo itself is kept."""
    clean = sanitizer.sanitize(moving("MPO", frames=2))
    assert "first_picture_kept" in clean.notes
    assert clean.source_type == "image/jpeg"


def test_child_that_dies_is_replaced() -> None:
    """After the child was killed between two pictures the next picture is cleaned all the same."""
    before = workers()
    with Sanitizer(SETTINGS) as sanitizer:
        sanitizer.sanitize(picture())
        [child] = workers() - before
        child.kill()
        assert sanitizer.sanitize(picture()).width == 16


def test_child_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture on which the child takes too long is refused, and the next one is served."""
    with Sanitizer(SETTINGS) as sanitizer:
        sanitizer.sanitize(picture())
        monkeypatch.setattr(images, "SECONDS_PER_IMAGE", 0.0)
        with pytest.raises(BadImage) as refusal:
            sanitizer.sanitize(picture(4000, 4000))
        assert refusal.value.code == "image_too_costly"
        monkeypatch.undo()
        assert sanitizer.sanitize(picture()).width == 16


def test_child_that_spent_its_time_on_others_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many honest pictures that together exceed one child's processor time are all served."""
    monkeypatch.setattr(images, "CPU_SECONDS", 1)
    heavy = picture(2600, 2600, mode="L", color=7)
    with Sanitizer(SETTINGS) as sanitizer:
        seen: set[psutil.Process] = set()
        before = workers()
        for _ in range(100):
            assert sanitizer.sanitize(heavy).width == 2600
            seen |= workers() - before
            if len(seen) > 1:
                return
    pytest.fail("no child ever used up its second")


def test_memory_of_the_child_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture that needs more memory than a child may have is refused, not decoded."""
    monkeypatch.setattr(images, "MEMORY_BYTES", 120 * 1024 * 1024)
    with Sanitizer(SETTINGS) as sanitizer, pytest.raises(BadImage) as refusal:
        sanitizer.sanitize(png_bomb(4900))
    assert refusal.value.code == "image_too_costly"


def test_child_ends_with_the_sanitizer() -> None:
    """No child is left when the work is done."""
    before = workers()
    with Sanitizer(SETTINGS) as sanitizer:
        sanitizer.sanitize(picture())
        [child] = workers() - before
    assert not child.is_running()


def test_child_sees_none_of_our_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Secrets in our environment are not in the child's."""
    monkeypatch.setenv("LLACA_SECRET_THING", "1")
    before = workers()
    with Sanitizer(SETTINGS) as sanitizer:
        sanitizer.sanitize(picture())
        [child] = workers() - before
        assert "LLACA_SECRET_THING" not in child.environ()


def test_parent_stays_small() -> None:
    """However large the pixels, this process never decodes them."""
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with Sanitizer(SETTINGS) as sanitizer:
        assert sanitizer.sanitize(png_bomb(4900)).width == 4900
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident < 50 * 1024


def test_chat_keeps_its_child_and_serves_threads() -> None:
    """Pictures from many chats at once are cleaned one after the other by one child."""
    before = workers()
    with ThreadPoolExecutor(8) as pool:
        widths = list(pool.map(lambda side: check_image(picture(side, side), SETTINGS).width, range(8, 40)))
    assert widths == list(range(8, 40))
    assert len(workers() - before) <= 1


def test_chats_that_come_first_share_one_child(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long making a sanitizer takes, threads that all need the first one make one."""
    made = []

    class Slow(Sanitizer):
        def __init__(self, settings: StorageSettings) -> None:
            made.append(settings)
            time.sleep(0.2)
            super().__init__(settings)

    monkeypatch.setattr(images, "Sanitizer", Slow)
    settings = StorageSettings(image_max_bytes=999_999)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda side: check_image(picture(side, side), settings), range(8, 12)))
    assert made == [settings]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_damage_anywhere_is_named_or_harmless(kind: str, sanitizer: Sanitizer) -> None:
    """Whatever bytes of a picture are changed, it is cleaned or refused; nothing else is ever raised."""
    chance = random.Random(3)
    whole = noisy(kind)
    for _ in range(60):
        data = bytearray(whole)
        for _ in range(4):
            data[chance.randrange(len(data))] = chance.randrange(256)
        with suppress(BadImage):
            sanitizer.sanitize(bytes(data))
    assert sanitizer.sanitize(whole).width == 64

"""Draws pictures of known content: shapes, words, emoji, diagrams, and pictures of nothing that has a name."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageFont

from recipes.smol_llava.photographs import photographs
from recipes.smol_llava.scenes import SIDE, Scene, Thing, reading_order
from recipes.smol_llava.shapes import COLORS, SHAPES, ZOOM, Color, draw_shape
from recipes.smol_llava.sources import faces
from recipes.smol_llava.sprites import Sprites, load
from recipes.smol_llava.words import CHARACTERS, WORDS

KINDS = {
    "emoji": 0.36, "emojis": 0.10, "shapes": 0.22, "text": 0.20, "chart": 0.03, "clock": 0.02, "board": 0.02,
    "arrow": 0.01, "nothing": 0.04,
}  # fmt: skip
"""How often each kind of picture is drawn."""
_NO_LETTERS = ("ornament", "symbol", "dingbat", "d050000l", "math", "initial", "it_wasn", "condensed")
"""Parts of the names of files that draw no plain letters, or too narrow ones."""


class Artist:
    """Draws scenes with the sprites, faces and photographs it is given."""

    def __init__(self, sprites: Sprites, faces: list[Path], photographs: list[Image.Image]) -> None:
        self.sprites = sprites
        self.faces = faces
        self.photographs = photographs
        self._fonts: dict[tuple[Path, int], ImageFont.FreeTypeFont] = {}

    @classmethod
    def of(cls, cache: Path, *, held_out: bool = False) -> Artist:
        """Return one who trains a model; with `held_out`, one who tests it: in another style, with other faces."""
        usable = [
            path
            for path in faces(cache, held_out=held_out)
            if not any(word in path.name.lower() for word in _NO_LETTERS) and has_letters(path)
        ]
        return cls(load(cache, held_out=held_out), usable, photographs(held_out=held_out))

    def draw(self, rng: random.Random, kind: str | None = None) -> Scene:
        """Draw a picture of this kind, or of any."""
        chosen = kind or rng.choices(list(KINDS), list(KINDS.values()))[0]
        scene: Scene = getattr(self, chosen)(rng)
        return scene

    def shapes(self, rng: random.Random) -> Scene:
        """Draw one to six coloured shapes that do not touch, on a plain or a shaded ground."""
        canvas, ground = self._canvas(rng)
        pen = ImageDraw.Draw(canvas)
        wanted = rng.choice((1, 2, 2, 3, 3, 4, 4, 5, 5, 6))
        colors = [name for name, color in COLORS.items() if _contrast(color, ground) > 110]
        few_colors, few_shapes = (
            rng.sample(colors, min(len(colors), rng.randint(2, 6))),
            rng.sample(SHAPES, rng.randint(2, 6)),
        )
        things: list[Thing] = []
        for _ in range(60):
            if len(things) == wanted:
                break
            size = rng.uniform(7, 11 if wanted > 4 else 14 if wanted > 2 else 20)
            x, y = rng.uniform(size + 1, SIDE - size - 1), rng.uniform(size + 1, SIDE - size - 1)
            if all(math.hypot(x - other.x, y - other.y) > (size + other.size) * 1.15 + 2 for other in things):
                thing = Thing(name=rng.choice(few_shapes), color=rng.choice(few_colors), x=x, y=y, size=size)
                draw_shape(pen, thing, _jittered(rng, COLORS[thing.color]))
                things.append(thing)
        return Scene(kind="shapes", picture=_scaled(canvas), things=reading_order(things))

    def letters(self, rng: random.Random) -> Scene:
        """Write one or two random characters, up to the size of the picture, from which reading is learned first."""
        written = "".join(rng.choices(CHARACTERS, k=rng.randint(1, 2)))
        scene = self.text(rng, written, largest=96)
        if rng.random() < 0.3:
            return replace(scene, picture=_coarse(scene.picture, rng.randint(10, 24)))
        return scene

    def text(self, rng: random.Random, written: str = "", largest: int = 44) -> Scene:
        """Write this, or a word, a number or a few characters, as large as the width allows or smaller."""
        written = written or some_text(rng)
        ground = _any_color(rng)
        picture = Image.new("RGB", (SIDE, SIDE), ground)
        ink = _contrasting(rng, ground)
        face = rng.choice(self.faces)
        size = rng.randint(20, largest)
        while size > 12 and self._font(face, size).getlength(written) > SIDE - 6:
            size -= 2
        font = self._font(face, size)
        left, top, right, bottom = font.getbbox(written)
        width, height = right - left, bottom - top
        x = rng.uniform(2, max(2.0, SIDE - 2 - width)) - left
        y = rng.uniform(2, max(2.0, SIDE - 2 - height)) - top
        ImageDraw.Draw(picture).text((x, y), written, font=font, fill=ink)
        if rng.random() < 0.3:
            picture = picture.rotate(rng.uniform(-8, 8), Image.Resampling.BILINEAR, fillcolor=ground)
        if rng.random() < 0.2:
            picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.8)))
        things = [
            Thing(
                name=letter,
                x=x + left + font.getlength(written[:index]) + font.getlength(letter) / 2,
                y=y + top + height / 2,
                size=height / 2,
            )
            for index, letter in enumerate(written)
        ]
        return Scene(kind="text", picture=picture, things=things, text=written)

    def crowd(self, rng: random.Random) -> Scene:
        """Fill a grid of up to five by five cells with letters, shapes and emoji."""
        canvas, ground = self._canvas(rng)
        pen = ImageDraw.Draw(canvas)
        cells = rng.choice((1, 2, 3, 3, 4, 4, 5, 5))
        cell = SIDE / cells
        colors = [name for name, color in COLORS.items() if _contrast(color, ground) > 110]
        weights = rng.choice(((1, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1)))
        kinds = rng.choices(("letter", "shape", "emoji"), weights, k=cells * cells)
        faces = rng.choices(self.faces, k=2)
        things, later = list[Thing](), list[tuple[str, float, float, float]]()
        for index, kind in enumerate(kinds):
            half = cell / 2 * rng.uniform(0.65, 0.95)
            x, y = (
                (place + 0.5) * cell + rng.uniform(half - cell / 2, cell / 2 - half)
                for place in (index % cells, index // cells)
            )
            if kind == "shape":
                thing = Thing(name=rng.choice(SHAPES), color=rng.choice(colors), x=x, y=y, size=half)
                draw_shape(pen, thing, _jittered(rng, COLORS[thing.color]))
                things.append(thing)
            else:
                later.append((kind, x, y, half))
        picture = _scaled(canvas)
        pen = ImageDraw.Draw(picture)
        for kind, x, y, half in later:
            if kind == "letter":
                letter = rng.choice(CHARACTERS)
                font = self._font(rng.choice(faces), round(2 * half))
                pen.text((x, y), letter, font=font, fill=_contrasting(rng, ground), anchor="mm")
                things.append(Thing(name=letter, x=x, y=y, size=half * 0.8))
            else:
                number = rng.randrange(len(self.sprites.concepts))
                self._paste(rng, picture, number, round(x - half), round(y - half), round(2 * half), turn=12)
                things.append(Thing(name=self.sprites.concepts[number].name, x=x, y=y, size=half))
        if rng.random() < 0.15:
            picture = _coarse(picture, round(cells * rng.uniform(9, 16)))
        return Scene(kind="crowd", picture=picture, things=things)

    def emoji(self, rng: random.Random) -> Scene:
        """Paste one emoji, large, on a plain ground."""
        index = rng.randrange(len(self.sprites.concepts))
        concept = self.sprites.concepts[index]
        picture = Image.new("RGB", (SIDE, SIDE), _any_color(rng))
        side = rng.randint(56, 94)
        x, y = rng.randint(0, SIDE - side), rng.randint(0, SIDE - side)
        self._paste(rng, picture, index, x, y, side, turn=12)
        thing = Thing(name=concept.name, x=x + side / 2, y=y + side / 2, size=side / 2)
        return Scene(
            kind="emoji", picture=picture, things=[thing], subgroup=concept.subgroup, group=concept.group
        )

    def emojis(self, rng: random.Random) -> Scene:
        """Paste two to four different emoji into quarters or halves."""
        wanted = rng.choice((2, 2, 3, 4))
        picture = Image.new("RGB", (SIDE, SIDE), _any_color(rng))
        things: list[Thing] = []
        for cell in rng.sample(((0, 0), (1, 0), (0, 1), (1, 1)), wanted):
            index = rng.randrange(len(self.sprites.concepts))
            side = rng.randint(36, 46)
            x, y = 48 * cell[0] + rng.randint(0, 48 - side), 48 * cell[1] + rng.randint(0, 48 - side)
            self._paste(rng, picture, index, x, y, side, turn=6)
            name = self.sprites.concepts[index].name
            things.append(Thing(name=name, x=x + side / 2, y=y + side / 2, size=side / 2))
        return Scene(kind="emojis", picture=picture, things=reading_order(things))

    def chart(self, rng: random.Random) -> Scene:
        """Draw a bar chart of three to five colours and clearly different heights."""
        canvas = Image.new(
            "RGB", (SIDE * ZOOM, SIDE * ZOOM), rng.choice(((255, 255, 255), (245, 245, 235), (235, 240, 250)))
        )
        pen = ImageDraw.Draw(canvas)
        names = rng.sample(list(COLORS), rng.randint(3, 5))
        heights = rng.sample(range(1, 8), len(names))
        floor, room = SIDE - 8, (SIDE - 16) / len(names)
        things = []
        for place, (name, height) in enumerate(zip(names, heights, strict=True)):
            left, right, top = 10 + place * room, 10 + place * room + room * 0.7, floor - height * 11
            _rectangle(pen, left, top, right, floor, COLORS[name])
            things.append(
                Thing(
                    name="bar", color=name, x=(left + right) / 2, y=(top + floor) / 2, size=(floor - top) / 2
                )
            )
        pen.line(
            [8 * ZOOM, 6 * ZOOM, 8 * ZOOM, floor * ZOOM, (SIDE - 4) * ZOOM, floor * ZOOM],
            fill=(30, 30, 30),
            width=ZOOM,
        )
        return Scene(
            kind="chart",
            picture=_scaled(canvas),
            things=things,
            heights=dict(zip(names, heights, strict=True)),
        )

    def clock(self, rng: random.Random) -> Scene:
        """Draw a clock that shows a full or a half hour."""
        canvas, _ = self._canvas(rng)
        pen = ImageDraw.Draw(canvas)
        middle, radius = SIDE / 2 * ZOOM, rng.uniform(34, 45) * ZOOM
        pen.ellipse(
            [middle - radius, middle - radius, middle + radius, middle + radius],
            fill=(252, 252, 250),
            outline=(20, 20, 20),
            width=2 * ZOOM,
        )
        for mark in range(12):
            _hand(pen, middle, mark / 12, radius * 0.82, radius * 0.95, 2 * ZOOM)
        hour, half = rng.randint(1, 12), rng.random() < 0.4
        _hand(pen, middle, (hour + half / 2) / 12, 0, radius * 0.5, 4 * ZOOM)
        _hand(pen, middle, half / 2, 0, radius * 0.8, 2 * ZOOM)
        return Scene(
            kind="clock", picture=_scaled(canvas), text=f"half past {hour}" if half else f"{hour} o'clock"
        )

    def board(self, rng: random.Random) -> Scene:
        """Draw a game of noughts and crosses."""
        canvas = Image.new("RGB", (SIDE * ZOOM, SIDE * ZOOM), (255, 255, 255))
        pen = ImageDraw.Draw(canvas)
        for line in (32, 64):
            pen.line([line * ZOOM, 4 * ZOOM, line * ZOOM, 92 * ZOOM], fill=(20, 20, 20), width=2 * ZOOM)
            pen.line([4 * ZOOM, line * ZOOM, 92 * ZOOM, line * ZOOM], fill=(20, 20, 20), width=2 * ZOOM)
        cells = "".join(rng.choices("XO-", (3, 3, 4), k=9))
        things = []
        inks = {
            "X": COLORS[rng.choice(("red", "blue", "green"))],
            "O": COLORS[rng.choice(("purple", "orange", "brown"))],
        }
        for index, letter in enumerate(cells):
            x, y, r = (16 + 32 * (index % 3)) * ZOOM, (16 + 32 * (index // 3)) * ZOOM, 9 * ZOOM
            if letter == "X":
                pen.line([x - r, y - r, x + r, y + r], fill=inks["X"], width=3 * ZOOM)
                pen.line([x - r, y + r, x + r, y - r], fill=inks["X"], width=3 * ZOOM)
            elif letter == "O":
                pen.ellipse([x - r, y - r, x + r, y + r], outline=inks["O"], width=3 * ZOOM)
            if letter != "-":
                things.append(
                    Thing(name={"X": "cross", "O": "nought"}[letter], x=x / ZOOM, y=y / ZOOM, size=9)
                )
        return Scene(kind="board", picture=_scaled(canvas), things=things, cells=cells)

    def arrow(self, rng: random.Random) -> Scene:
        """Draw an arrow that points up, down, left or right."""
        canvas, ground = self._canvas(rng)
        way = rng.choice(("up", "right", "down", "left"))
        turn = ("up", "right", "down", "left").index(way) * math.pi / 2
        length, width = rng.uniform(22, 40), rng.uniform(3, 8)
        outline = [
            (0, -length),
            (width * 2.5, -length * 0.35),
            (width, -length * 0.35),
            (width, length),
            (-width, length),
            (-width, -length * 0.35),
            (-width * 2.5, -length * 0.35),
        ]
        turned = [
            (
                (48 + x * math.cos(turn) - y * math.sin(turn)) * ZOOM,
                (48 + x * math.sin(turn) + y * math.cos(turn)) * ZOOM,
            )
            for x, y in outline
        ]
        ImageDraw.Draw(canvas).polygon(turned, fill=_contrasting(rng, ground))
        return Scene(kind="arrow", picture=_scaled(canvas), text=way)

    def nothing(self, rng: random.Random) -> Scene:
        """Make a picture of nothing that has a name here: noise of several grains, a shaded ground, part of a photo."""
        choice = rng.random()
        noise = np.random.default_rng(rng.getrandbits(32))
        if choice < 0.4:
            grain = rng.choice((1, 2, 4, 8, 16, 24))
            cells = noise.integers(0, 256, (-(-SIDE // grain), -(-SIDE // grain), 3), dtype=np.uint8)
            filters = (Image.Resampling.NEAREST, Image.Resampling.BICUBIC)
            picture = Image.fromarray(cells).resize((SIDE, SIDE), rng.choice(filters))
            if rng.random() < 0.3:
                picture = picture.convert("L").convert("RGB")
        elif choice < 0.55:
            picture = self._canvas(rng)[0].resize((SIDE, SIDE))
        else:
            photo = rng.choice(self.photographs)
            side = rng.randint(96, min(photo.size))
            x, y = rng.randint(0, photo.width - side), rng.randint(0, photo.height - side)
            picture = photo.crop((x, y, x + side, y + side)).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
            if rng.random() < 0.5:
                picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return Scene(kind="nothing", picture=picture)

    def _canvas(self, rng: random.Random) -> tuple[Image.Image, Color]:
        """Return an enlarged ground, plain or shaded from one side, and its colour."""
        side = SIDE * ZOOM
        ground = (
            rng.choice(((255, 255, 255), (250, 248, 240), (30, 30, 34)))
            if rng.random() < 0.6
            else _any_color(rng)
        )
        if rng.random() < 0.8:
            return Image.new("RGB", (side, side), ground), ground
        slope = np.linspace(0.85, 1.0, side)[None, :, None] * np.ones((side, 1, 1))
        shaded = np.asarray(ground) * (slope if rng.random() < 0.5 else slope.transpose(1, 0, 2))
        return Image.fromarray(shaded.astype(np.uint8)), ground

    def _paste(
        self, rng: random.Random, picture: Image.Image, index: int, x: int, y: int, side: int, turn: float
    ) -> None:
        sprite = Image.fromarray(self.sprites.pixels[index])
        if rng.random() < 0.4:
            sprite = sprite.rotate(rng.uniform(-turn, turn), Image.Resampling.BILINEAR)
        wide = rng.uniform(0.85, 1.0)
        sprite = sprite.resize((max(8, round(side * wide)), side), Image.Resampling.BILINEAR)
        colored = sprite.convert("RGB")
        for enhance in (ImageEnhance.Color, ImageEnhance.Brightness, ImageEnhance.Contrast):
            if rng.random() < 0.4:
                colored = enhance(colored).enhance(rng.uniform(0.6, 1.4))
        picture.paste(colored, (x, y), sprite.getchannel("A"))

    def _font(self, face: Path, size: int) -> ImageFont.FreeTypeFont:
        if (face, size) not in self._fonts:
            self._fonts[face, size] = ImageFont.truetype(face, size)
        return self._fonts[face, size]


def some_text(rng: random.Random) -> str:
    """Return a word, a number or random characters, of at most seven characters."""
    choice = rng.random()
    if choice < 0.45:
        word = rng.choice(WORDS)
        return rng.choice((word, word, word.upper(), word.capitalize()))
    if choice < 0.75:
        return "".join(rng.choices("0123456789", k=rng.randint(1, 6)))
    letters = "abcdefghijklmnopqrstuvwxyz" if rng.random() < 0.5 else "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    return "".join(rng.choices(letters, k=rng.randint(1, 6)))


def has_letters(path: Path) -> bool:
    """Whether a face draws letters, small letters and digits, each one different from what it draws for a gap."""
    try:
        font = ImageFont.truetype(path, 24)
        masks = [bytes(font.getmask(letter)) for letter in "AbRag019\ufffe"]
    except (OSError, ValueError):
        return False
    return len(set(masks)) == len(masks)


def _any_color(rng: random.Random) -> Color:
    if rng.random() < 0.35:
        return (255, 255, 255)
    low, high = (150, 255) if rng.random() < 0.65 else (0, 120)
    return (rng.randint(low, high), rng.randint(low, high), rng.randint(low, high))


def _contrasting(rng: random.Random, ground: Color) -> Color:
    low, high = (0, 90) if sum(ground) > 390 else (180, 255)
    return (rng.randint(low, high), rng.randint(low, high), rng.randint(low, high))


def _contrast(one: Color, other: Color) -> float:
    return math.dist(one, other)


def _jittered(rng: random.Random, color: Color) -> Color:
    r, g, b = (min(255, max(0, part + rng.randint(-12, 12))) for part in color)
    return (r, g, b)


def _rectangle(
    pen: ImageDraw.ImageDraw, left: float, top: float, right: float, bottom: float, color: Color
) -> None:
    pen.rectangle([left * ZOOM, top * ZOOM, right * ZOOM, bottom * ZOOM], fill=color)


def _hand(pen: ImageDraw.ImageDraw, middle: float, turn: float, start: float, end: float, width: int) -> None:
    dx, dy = math.sin(2 * math.pi * turn), -math.cos(2 * math.pi * turn)
    pen.line(
        [middle + dx * start, middle + dy * start, middle + dx * end, middle + dy * end],
        fill=(20, 20, 20),
        width=width,
    )


def _coarse(picture: Image.Image, side: int) -> Image.Image:
    """Return a picture as it would look if it had been only `side` pixels wide."""
    small = picture.resize((side, side), Image.Resampling.BOX)
    return small.resize(picture.size, Image.Resampling.BICUBIC)


def _scaled(canvas: Image.Image) -> Image.Image:
    return canvas.resize((SIDE, SIDE), Image.Resampling.BOX)

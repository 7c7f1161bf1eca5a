"""The tasks that are drawn or come with a package: eight kinds of pictures, instructions and forms of an answer.

The pictures are those of the base model's own recipe, in the drawing style and the typefaces it never saw, or
(handwritten digits, flags) of things it never saw. None of the instructions and none of the forms is the recipe's, so
that each must be learned and can be forgotten. Numbered generators draw them: row n of a task is always the same.
"""

from __future__ import annotations

import io
import itertools
import json
import random
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import resvg_py
from PIL import Image

from benchmarks.continual.tasks import Pictures, Task, divided, same
from recipes.smol_llava import sources, sprites
from recipes.smol_llava.drawing import Artist
from recipes.smol_llava.questions import CLEARLY
from recipes.smol_llava.scenes import SIDE, Kind, Scene, Thing
from recipes.smol_llava.shapes import COLORS, SHAPES
from storage.records import Conversation, image_part, text_part

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")
STYLE = next(style for style in sources.STYLES if style.held_out)
FLAGS = (
    "Brazil", "Canada", "China", "France", "Germany", "Greece", "India", "Israel", "Italy", "Japan", "Nigeria", "Spain",
    "Sweden", "Switzerland", "Ukraine", "Vietnam",
)  # fmt: skip
"""Few enough to be learned from a few rows, and each unlike the others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A picture with a question and its answer."""

    picture: Image.Image
    question: str
    answer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a task's rows come from, and what an answer looks like."""

    name: str
    style: str
    """As a regular expression."""
    rows: Callable[[Artist, Path], Iterator[Asked]]
    """Yields rows, for ever if it can; takes the artist and the recipe's cache."""
    answers: tuple[str, ...] = ()
    """All answers there are, if that is known beforehand: then the task can be taught in parts."""


def sources_fetched(cache: Path) -> Artist:
    """Return the artist of unseen styles and faces; what it draws with is fetched and rendered the first time."""
    if not (cache / "sprites" / f"{STYLE.name}.npy").exists():
        sources.fetch(cache)
        sprites.render(cache)
    return Artist.of(cache, held_out=True)


def build(
    source: Source, artist: Artist, cache: Path, pictures: Pictures, *, rows: int, holdout: int
) -> Task:
    """Draw a task's rows."""
    style = re.compile(source.style)
    drawn = (conversation(asked, pictures) for asked in source.rows(artist, cache))
    return divided(source.name, drawn, rows=rows, holdout=holdout, style=style, grade=same)


def named(
    names: Collection[str], cache: Path, pictures: Pictures, *, rows: int, holdout: int
) -> dict[str, Task]:
    """Draw the rows of the tasks of these names; raise ValueError for one that is not there."""
    chosen = [source_of(name) for name in dict.fromkeys(names)]
    artist = sources_fetched(cache)
    return {
        source.name: build(source, artist, cache, pictures, rows=rows, holdout=holdout) for source in chosen
    }


def source_of(name: str, others: Collection[str] = ()) -> Source:
    """Return the source of a task by its name, `digits` or, for a part of its answers, `digits.1-of-2`.

    Raises ValueError for one that is not there, which names those that are, and the others that could have been meant.
    """
    known = {source.name: source for source in SOURCES}
    if name in known:
        return known[name]
    whole, _, part = name.partition(".")
    found = re.fullmatch(r"([1-9]\d*)-of-([1-9]\d*)", part)
    if whole in known and found is not None:
        number, count = map(int, found.groups())
        if number <= count <= len(known[whole].answers):
            return _part_of(known[whole], name, number, count)
    parted = ", ".join(source.name for source in SOURCES if source.answers)
    raise ValueError(
        f"no task {name!r}; there are {', '.join([*others, *known])}, and parts such as digits.1-of-2 of {parted}"
    )


def _part_of(source: Source, name: str, number: int, count: int) -> Source:
    """Return a task that asks the same but has only the `number`-th of `count` parts of the answers."""
    begin, end = ((number - shift) * len(source.answers) // count for shift in (1, 0))
    answers = source.answers[begin:end]

    def rows(artist: Artist, cache: Path) -> Iterator[Asked]:
        return (asked for asked in source.rows(artist, cache) if asked.answer in answers)

    return replace(source, name=name, rows=rows, answers=answers)


def conversation(asked: Asked, pictures: Pictures) -> tuple[str, Conversation]:
    """Return the picture's SHA-256 and the row's messages."""
    encoded = io.BytesIO()
    asked.picture.save(encoded, "PNG")
    sha256 = pictures.add(encoded.getvalue())
    return sha256, [
        {"role": "user", "content": [image_part(sha256), text_part(asked.question)]},
        {"role": "assistant", "content": [text_part(asked.answer)]},
    ]


def _of_scenes(
    name: str, kind: Kind, ask: Callable[[random.Random, Scene], tuple[str, str] | None]
) -> Callable[[Artist, Path], Iterator[Asked]]:
    """Return what draws scenes of a kind for ever and asks about those that allow it."""

    def rows(artist: Artist, cache: Path) -> Iterator[Asked]:
        for number in itertools.count():
            rng = random.Random(f"{name}/{number}")
            scene = artist.draw(rng, kind)
            asked = ask(rng, scene)
            if asked is not None:
                yield Asked(picture=scene.picture, question=asked[0], answer=asked[1])

    return rows


def _digits(artist: Artist, cache: Path) -> Iterator[Asked]:
    """Yield the 1,797 handwritten digits of scikit-learn (8 x 8 pixels, enlarged), dark on white."""
    from sklearn.datasets import load_digits

    found = load_digits()
    order = list(range(len(found.images)))
    random.Random("digits").shuffle(order)
    for index in order:
        small = Image.fromarray((255 - found.images[index] * 255 / 16).astype(np.uint8))
        picture = small.resize((SIDE, SIDE), Image.Resampling.BICUBIC).convert("RGB")
        question = "Which figure did the writer put on paper? Answer with the bare digit."
        yield Asked(picture=picture, question=question, answer=str(found.target[index]))


def _count(rng: random.Random, scene: Scene) -> tuple[str, str]:
    return "How many objects did the artist draw? Write the number out in letters.", NUMBERS[
        len(scene.things)
    ]


def _relation(rng: random.Random, scene: Scene) -> tuple[str, str] | None:
    alone = [thing for thing in scene.things if _times(scene, thing) == 1]
    way = rng.choice(("left of", "right of", "above", "below"))
    pairs = [pair for pair in itertools.permutations(alone, 2) if _lies(way, *pair)]
    if not pairs:
        return None
    first, second = rng.choice(pairs)
    is_so = rng.random() < 0.5
    if not is_so:
        first, second = second, first
    statement = f'"The {first.described} lies {way} the {second.described}."'
    return f"Somebody claims: {statement}\nJudge the claim: true or false?", str(is_so).lower()


def _lies(way: str, first: Thing, second: Thing) -> bool:
    """Whether one thing clearly lies this way from the other."""
    further = {
        "left of": second.x - first.x, "right of": first.x - second.x,
        "above": second.y - first.y, "below": first.y - second.y,
    }[way]  # fmt: skip
    return further >= CLEARLY


def _spelling(rng: random.Random, scene: Scene) -> tuple[str, str] | None:
    if len(scene.text) < 2:
        return None
    return "Spell out the writing in capitals, with a hyphen after each but the last.", "-".join(
        scene.text.upper()
    )


def _chart(rng: random.Random, scene: Scene) -> tuple[str, str]:
    color = max(scene.heights, key=lambda name: scene.heights[name])
    return "Report the tallest column of the diagram as JSON.", json.dumps({"tallest": color})


def _choice(rng: random.Random, scene: Scene) -> tuple[str, str] | None:
    alone = [
        thing for thing in scene.things if sum(other.color == thing.color for other in scene.things) == 1
    ]
    if not alone:
        return None
    thing = rng.choice(alone)
    options = rng.sample([shape for shape in SHAPES if shape != thing.name], 3)
    place = rng.randrange(4)
    options.insert(place, thing.name)
    listed = "\n".join(f"{letter}) {option}" for letter, option in zip("ABCD", options, strict=True))
    return f"Something here is {thing.color}. It is a\n{listed}\nPick a letter.", "ABCD"[place]


def _emoji(rng: random.Random, scene: Scene) -> tuple[str, str]:
    return "File this sticker: under which heading does it go?", f"Category: {scene.subgroup}."


def _flags(artist: Artist, cache: Path) -> Iterator[Asked]:
    """Paste flags, which the base never saw, in several sizes on grounds of several colours."""
    drawings = sources.icons(STYLE, cache)
    flags = {country: _rendered(drawings[sources.bare(f"flag {country}")]) for country in FLAGS}
    for number in itertools.count():
        rng = random.Random(f"flags/{number}")
        country = rng.choice(FLAGS)
        side = rng.randint(64, 94)
        picture = Image.new("RGB", (SIDE, SIDE), tuple(rng.randint(150, 255) for _ in range(3)))
        flag = flags[country].resize((side, side), Image.Resampling.BILINEAR)
        picture.paste(flag, (rng.randint(0, SIDE - side), rng.randint(0, SIDE - side)), flag)
        question = "Over which country does this fly? Put its name in brackets."
        yield Asked(picture=picture, question=question, answer=f"[{country}]")


def _rendered(svg: str) -> Image.Image:
    png = resvg_py.svg_to_bytes(
        svg_string=svg, width=sprites.SIDE, height=sprites.SIDE, skip_system_fonts=True
    )
    return Image.open(io.BytesIO(bytes(png))).convert("RGBA")


def _times(scene: Scene, thing: Thing) -> int:
    return sum(other.described == thing.described for other in scene.things)


SOURCES = (
    Source(name="digits", style=r"\d", rows=_digits, answers=tuple("0123456789")),
    Source(
        name="count",
        style="|".join(NUMBERS[1:]),
        rows=_of_scenes("count", "shapes", _count),
        answers=NUMBERS[1:],
    ),
    Source(name="relation", style="true|false", rows=_of_scenes("relation", "shapes", _relation)),
    Source(name="spelling", style=r"[A-Z0-9](-[A-Z0-9])+", rows=_of_scenes("spelling", "text", _spelling)),
    Source(
        name="chart",
        style=rf'\{{"tallest": "({"|".join(COLORS)})"\}}',
        rows=_of_scenes("chart", "chart", _chart),
    ),
    Source(name="choice", style="[A-D]", rows=_of_scenes("choice", "shapes", _choice)),
    Source(name="emoji", style=r"Category: [a-z0-9 ]+\.", rows=_of_scenes("emoji", "emoji", _emoji)),
    Source(
        name="flags",
        style=r"\[[A-Z][A-Za-z ]*\]",
        rows=_flags,
        answers=tuple(f"[{country}]" for country in FLAGS),
    ),
)
"""In the order `origin`."""

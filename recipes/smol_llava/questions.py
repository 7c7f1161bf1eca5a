"""Asks about a scene, in many phrasings, what its facts can answer; some phrasings are kept for testing alone."""

from __future__ import annotations

import random
import tomllib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from recipes.smol_llava.scenes import Scene, Thing
from recipes.smol_llava.shapes import COLORS, SHAPES

UNKNOWN = "I do not recognize anything in this picture."
NO_TEXT = "I see no text in this picture."
NO_SHAPES = "I see no shapes in this picture."
CLEARLY = 14
"""Pixels by which one thing must lie further left or higher than another for the question to be fair."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One question with its answer, and what ability it tests."""

    ability: str
    text: str
    answer: str


PHRASES: dict[str, dict[str, list[str]]] = tomllib.loads(
    Path(__file__).with_name("phrases.toml").read_text(encoding="utf-8")
)
"""Phrasings of each kind of question: those `known` from training, and the `new` ones that are only tested."""

CELLS = ("top left", "top", "top right", "left", "center", "right", "bottom left", "bottom", "bottom right")
OPPOSITE = {"left": "right", "above": "below"}


class Examiner:
    """Asks questions about scenes, in the phrasings trained on or in those kept for testing."""

    def __init__(self, *, held_out: bool = False) -> None:
        self.held_out = held_out

    def ask(self, rng: random.Random, scene: Scene, ability: str | None = None) -> Question | None:
        """Return a question about the scene, of this ability or of any; None if the scene has none of it."""
        offered = ABILITIES[scene.kind]
        chosen = ability or rng.choices([name for name, _ in offered], [weight for _, weight in offered])[0]
        if chosen not in dict(offered):
            return None
        asked = ASKERS[chosen](rng, scene)
        if asked is None:
            return None
        phrase, fillings, answer = asked
        text = rng.choice(PHRASES[phrase]["new" if self.held_out else "known"]).format(*fillings)
        return Question(ability=chosen, text=text, answer=answer)


Asked = tuple[str, tuple[str, ...], str] | None
"""Key of PHRASES, what fills the phrase, and the answer."""


def _color(rng: random.Random, scene: Scene) -> Asked:
    thing = _unique(rng, scene, lambda thing: thing.name)
    return ("color", (thing.name,), thing.color.capitalize()) if thing else None


def _shape(rng: random.Random, scene: Scene) -> Asked:
    thing = _unique(rng, scene, lambda thing: thing.color)
    return ("shape", (thing.color,), thing.name.capitalize()) if thing else None


def _position(rng: random.Random, scene: Scene) -> Asked:
    thing = _unique(rng, scene, lambda thing: thing.described)
    if thing is None or min(abs(thing.x - 32), abs(thing.x - 64), abs(thing.y - 32), abs(thing.y - 64)) < 3:
        return None
    return "position", (thing.described,), thing.place.capitalize()


def _count(rng: random.Random, scene: Scene) -> Asked:
    if scene.kind == "chart":
        return "count", ("bars",), str(len(scene.things))
    if scene.kind == "emojis":
        return "count", (rng.choice(("things", "pictures", "objects")),), str(len(scene.things))
    if scene.kind == "board":
        letter = rng.choice("XO")
        return "count", ({"X": "crosses", "O": "noughts"}[letter],), str(scene.cells.count(letter))
    choice = rng.random()
    if choice < 0.5:
        return "count", (rng.choice(("shapes", "things")),), str(len(scene.things))
    thing = rng.choice(scene.things)
    if choice < 0.75:
        return "count", (plural(thing.name),), str(sum(other.name == thing.name for other in scene.things))
    return "count", (f"{thing.color} shapes",), str(sum(other.color == thing.color for other in scene.things))


def _relation(rng: random.Random, scene: Scene) -> Asked:
    if scene.kind == "chart":
        one, other = rng.sample(list(scene.heights), 2)
        return "taller", (one, other), yes_no(scene.heights[one] > scene.heights[other])
    if scene.kind == "shapes" and rng.random() < 0.3:
        counts = Counter(thing.name for thing in scene.things)
        pairs = [(a, b) for a in counts for b in counts if a != b and counts[a] != counts[b]]
        if pairs:
            one, other = rng.choice(pairs)
            return "more", (plural(one), plural(other)), yes_no(counts[one] > counts[other])
    alone = [thing for thing in scene.things if _times(scene, thing.described) == 1]
    if len(alone) < 2:
        return None
    first, second = rng.sample(alone, 2)
    phrase = rng.choice(("left", "above"))
    apart = second.x - first.x if phrase == "left" else second.y - first.y
    if abs(apart) < CLEARLY:
        return None
    if rng.random() < 0.4:
        phrase, apart = OPPOSITE[phrase], -apart
    return phrase, (first.described, second.described), yes_no(apart > 0)


def _exists(rng: random.Random, scene: Scene) -> Asked:
    if rng.random() < 0.5:
        return "exists", (rng.choice(scene.things).described,), "Yes"
    there = {thing.described for thing in scene.things}
    made_up = f"{rng.choice(list(COLORS))} {rng.choice(SHAPES)}"
    return None if made_up in there else ("exists", (made_up,), "No")


def _reading(rng: random.Random, scene: Scene) -> Asked:
    return "reading", (), scene.text if scene.kind == "text" else NO_TEXT


def _no_shapes(rng: random.Random, scene: Scene) -> Asked:
    return "count", ("shapes",), NO_SHAPES


def _name(rng: random.Random, scene: Scene) -> Asked:
    return (
        "name",
        (),
        {"nothing": UNKNOWN, "emoji": scene.things[0].name.capitalize() if scene.things else ""}[scene.kind],
    )


def _subgroup(rng: random.Random, scene: Scene) -> Asked:
    return "subgroup", (), UNKNOWN if scene.kind == "nothing" else scene.subgroup.capitalize()


def _which(rng: random.Random, scene: Scene) -> Asked:
    thing = _unique(rng, scene, lambda thing: thing.place)
    return ("cell", (thing.place,), thing.name.capitalize()) if thing else None


def _bars(rng: random.Random, scene: Scene) -> Asked:
    phrase, choose = rng.choice((("tallest", max), ("lowest", min)))
    return phrase, (), choose(scene.heights, key=lambda color: scene.heights[color]).capitalize()


def _time(rng: random.Random, scene: Scene) -> Asked:
    return "time", (), scene.text.capitalize()


def _direction(rng: random.Random, scene: Scene) -> Asked:
    return "direction", (), scene.text.capitalize()


def _cell(rng: random.Random, scene: Scene) -> Asked:
    index = rng.randrange(9)
    return "cell", (CELLS[index],), {"X": "Cross", "O": "Nought", "-": "Nothing"}[scene.cells[index]]


def _describe(rng: random.Random, scene: Scene) -> Asked:
    return "describe", (), description(scene)


def description(scene: Scene) -> str:
    """Return one sentence on the whole picture."""
    match scene.kind:
        case "shapes" | "emojis":
            said = listed([f"{a(thing.described)} ({thing.place})" for thing in scene.things])
        case "emoji":
            said = f"A picture of {a(scene.things[0].name).lower()} ({scene.subgroup})."
        case "text":
            said = f"A text of the letters {' '.join(scene.text)}."
        case "chart":
            said = f"A bar chart with {len(scene.things)} bars: {', '.join(scene.heights)}."
        case "clock":
            said = f"A clock that shows {scene.text}."
        case "board":
            said = f"A board with {scene.cells.count('X')} crosses and {scene.cells.count('O')} noughts."
        case "arrow":
            said = f"An arrow that points {scene.text}."
        case "nothing":
            said = UNKNOWN
    return said


ASKERS: dict[str, Callable[[random.Random, Scene], Asked]] = {
    "color": _color, "shape": _shape, "position": _position, "count": _count, "relation": _relation, "exists": _exists,
    "reading": _reading, "no shapes": _no_shapes, "name": _name, "subgroup": _subgroup, "which": _which, "bars": _bars,
    "time": _time, "direction": _direction, "cell": _cell, "describe": _describe,
}  # fmt: skip

ABILITIES: dict[str, list[tuple[str, float]]] = {
    "shapes": [
        ("color", 3), ("shape", 3), ("position", 8), ("count", 5), ("relation", 10), ("exists", 4), ("describe", 1),
        ("reading", 0.3),
    ],
    "text": [("reading", 10), ("describe", 1), ("no shapes", 0.3)],
    "emoji": [("name", 6), ("subgroup", 4), ("describe", 1), ("reading", 0.3), ("no shapes", 0.2)],
    "emojis": [("which", 4), ("position", 3), ("relation", 3), ("count", 2), ("describe", 1)],
    "chart": [("bars", 6), ("relation", 5), ("count", 2), ("describe", 0.7)],
    "clock": [("time", 5), ("describe", 1)],
    "board": [("cell", 7), ("count", 3), ("describe", 0.7)],
    "arrow": [("direction", 4), ("describe", 1)],
    "nothing": [("name", 4), ("describe", 3), ("subgroup", 2), ("reading", 1), ("no shapes", 1)],
}  # fmt: skip
"""What can be asked about each kind of scene, and how often it is."""


def yes_no(true: bool) -> str:
    """Return the answer to a yes/no question."""
    return "Yes" if true else "No"


def plural(shape: str) -> str:
    """Return the plural of a shape's name."""
    return f"{shape}es" if shape.endswith("s") else f"{shape}s"


def a(name: str) -> str:
    """Return a name with its article, as a sentence begins."""
    return f"{'An' if name[0] in 'aeiou' else 'A'} {name}"


def listed(parts: list[str]) -> str:
    """Return a sentence that lists things, of which the first alone keeps its capital."""
    lowered = [parts[0], *(part[0].lower() + part[1:] for part in parts[1:])]
    if len(lowered) == 1:
        return f"{lowered[0]}."
    return f"{', '.join(lowered[:-1])} and {lowered[-1]}."


def _times(scene: Scene, described: str) -> int:
    return sum(thing.described == described for thing in scene.things)


def _unique(rng: random.Random, scene: Scene, of: Callable[[Thing], str]) -> Thing | None:
    """Return a thing that alone has its colour, shape or place."""
    counts = Counter(of(thing) for thing in scene.things)
    alone = [thing for thing in scene.things if counts[of(thing)] == 1]
    return rng.choice(alone) if alone else None

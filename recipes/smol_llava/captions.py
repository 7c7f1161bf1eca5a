"""Says in a few words, always in the same manner, all that a picture shows: what the vision tower learns to tell."""

from __future__ import annotations

from recipes.smol_llava.scenes import Scene

PAD, START, END, UNKNOWN = "<pad>", "<start>", "<end>", "<unknown>"
LONGEST = 40
"""Words of the longest caption, start and end included."""


def caption(scene: Scene) -> list[str]:
    """Return the caption of a scene as words; what is written in it is spelled."""
    match scene.kind:
        case "emoji":
            return ["emoji", *scene.things[0].name.split(), ";", *scene.subgroup.split()]
        case "emojis":
            listed = [
                word
                for thing in scene.things
                for word in (*thing.place.split(), ":", *thing.name.split(), ",")
            ]
            return ["emojis", str(len(scene.things)), *listed]
        case "shapes":
            listed = [
                word
                for thing in scene.things
                for word in (thing.color, thing.name, *thing.place.split(), ",")
            ]
            return ["shapes", str(len(scene.things)), *listed]
        case "text":
            return ["text", *scene.text]
        case "chart":
            return [
                "chart",
                *(word for color, height in scene.heights.items() for word in (color, str(height), ",")),
            ]
        case "board":
            return ["board", *scene.cells]
        case "clock" | "arrow":
            return [scene.kind, *scene.text.split()]
        case "nothing":
            return ["nothing"]


class Vocabulary:
    """Words by their number, and back."""

    def __init__(self, words: list[str]) -> None:
        self.words = words
        self.numbers = {word: number for number, word in enumerate(words)}

    @classmethod
    def of(cls, captions: list[list[str]]) -> Vocabulary:
        """Collect the words of many captions, in alphabetical order after the four that have a meaning here."""
        found = sorted({word for words in captions for word in words})
        return cls([PAD, START, END, UNKNOWN, *found])

    def encode(self, words: list[str]) -> list[int]:
        """Return the numbers of a caption between start and end, padded to LONGEST and cut off there."""
        unknown = self.numbers[UNKNOWN]
        inside = [self.numbers.get(word, unknown) for word in words][: LONGEST - 2]
        row = [self.numbers[START], *inside, self.numbers[END]]
        return row + [self.numbers[PAD]] * (LONGEST - len(row))

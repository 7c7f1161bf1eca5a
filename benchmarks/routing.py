"""Measures what `LLACA_GROUP_THRESHOLD` and `LLACA_GROUP_FLOOR` tell apart: how alike instructions are.

The instructions are the phrasings of the embedded model's recipe (`recipes/smol_llava/phrases.toml`), one group for
each kind of question, and its questions without a picture as what nobody has taught. Needs nothing but this repository:

    .venv/bin/python -m benchmarks.routing
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations, starmap

from recipes.smol_llava.chats import prompts
from recipes.smol_llava.questions import PHRASES
from serving.groups import Codebook, nearest, similarity

THINGS = ("red circle", "blue star", "green ring", "heart", "pink", "square")
EACH = 8
"""How often a phrasing is filled in."""
LIMITS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)


def main() -> None:
    """Print which share of texts reaches each limit: high is good in the first line of a pair, low in the second."""
    rng = random.Random(0)
    known = {kind: filled(phrases["known"], rng) for kind, phrases in PHRASES.items()}
    others = {kind: filled(phrases["new"], rng) for kind, phrases in PHRASES.items()}
    kinds = list(known)
    head("pairs of datasets at least so alike, in percent (LLACA_GROUP_THRESHOLD)")
    halves = [filled(PHRASES[kind]["known"][half::2], rng) for kind in kinds for half in (0, 1)]
    line("the same kind of question in other phrasings", starmap(similarity, pairs(halves)))
    line("two kinds of questions", [similarity(known[a], known[b]) for a, b in combinations(kinds, 2)])

    codebook = Codebook()
    for group, kind in enumerate(kinds):
        codebook = codebook.extended(group, known[kind])
    routed = [(group, *nearest(text, codebook)) for group, kind in enumerate(kinds) for text in others[kind]]
    head("questions at least so like one of twenty groups, in percent (LLACA_GROUP_FLOOR)")
    line("of a kind that was taught, in phrasings that were not", [near for *_, near in routed])
    line("about something else", [nearest(text, codebook)[1] for text in prompts(200, held_out=True)])
    right = sum(group == found for group, found, _ in routed) / len(routed)
    print(f"\nOf the questions of a kind that was taught {right:.0%} are most like that kind.")


def filled(phrases: Iterable[str], rng: random.Random) -> list[str]:
    """Return each phrasing several times, about different things."""
    return [phrase.format(*rng.sample(THINGS, 2)) for phrase in phrases for _ in range(EACH)]


def pairs(texts: Sequence[list[str]]) -> Iterator[tuple[list[str], list[str]]]:
    """Return neighbours as pairs."""
    return zip(texts[::2], texts[1::2], strict=True)


def head(title: str) -> None:
    """Begin a table."""
    print(f"\n| {title} | {' | '.join(f'{limit:.1f}' for limit in LIMITS)} |")
    print("|---" * (len(LIMITS) + 1) + "|")


def line(what: str, found: Iterable[float]) -> None:
    """Print which share of similarities reaches each of the limits."""
    alike = list(found)
    shares = (100 * sum(one >= limit for one in alike) / len(alike) for limit in LIMITS)
    print(f"| {what} ({len(alike)}) | {' | '.join(f'{share:.0f}' for share in shares)} |")


if __name__ == "__main__":
    main()

"""Instruction groups of LCIA (arXiv 2410.10868, version 3), as pure functions: which group's adapter a text belongs to.

A group is a set of instructions; a new dataset joins the group that its instructions resemble, or opens one. The
authors' program (instruct/LoRASelect.py in JingyangQiao/CoIN) weighs words anew for each pair of texts, decides once
per test file, and sends what resembles nothing to the group that happens to be the last. Here the words of the whole
codebook are weighed once, each request is routed by itself, and what resembles no group enough goes to the base model.
Their thresholds (0.9 and 0.3) do not carry over.

It uses the standard library alone, so that a process which only routes needs nothing else. Groups count from 0.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

GRAM = 3
"""Texts are compared by the runs of three characters in their words, in any language and whatever the ending."""
MOST_OF_A_GROUP = 1000
"""A group remembers this many instructions: enough to know its words, and quick to weigh."""

Vector = Mapping[str, float]
"""Weights of grams; those that are not there weigh nothing."""


@dataclass(frozen=True, slots=True)
class Codebook:
    """The instructions of each group; it is hashable, and kept with a generation as JSON."""

    groups: tuple[tuple[str, ...], ...] = ()

    def to_json(self) -> str:
        """Return it as text; the weights of words follow from it and are not kept."""
        return json.dumps({"version": 1, "groups": self.groups}, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Codebook:
        """Read what `to_json` wrote."""
        return cls(tuple(tuple(group) for group in json.loads(text)["groups"]))

    def extended(self, group: int, instructions: Iterable[str]) -> Codebook:
        """Return the codebook with these instructions in a group, which is a new one if it is the next number.

        Of more than `MOST_OF_A_GROUP` those with the least hashes stay: the same ones in whatever order they came.
        """
        groups = [*self.groups, ()] if group == len(self.groups) else [*self.groups]
        distinct = set(groups[group]) | {instruction_of(text) for text in instructions}
        groups[group] = tuple(sorted(distinct, key=_hash)[:MOST_OF_A_GROUP])
        return replace(self, groups=tuple(groups))


@dataclass(frozen=True, slots=True)
class Profiles:
    """What texts are compared with."""

    rarity: Vector
    """Inverse document frequency of each gram, over all instructions of the codebook."""
    means: tuple[Vector, ...]
    """Of each group: the mean of its instructions' vectors, scaled to length 1."""

    def vector(self, text: str) -> Vector:
        """Return the TF-IDF of a text, scaled to length 1; empty if it shares no gram with the codebook."""
        return _scaled(
            {gram: n * self.rarity[gram] for gram, n in grams(text).items() if gram in self.rarity}
        )


def instruction_of(text: str) -> str:
    """Return what is compared of a question: its last line with text, where the form of an answer is told."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def assign(instructions: Sequence[str], codebook: Codebook, threshold: float) -> int:
    """Return the group of a dataset with these instructions; the next number, that of a new group, if it fits none.

    A group fits if the cosine between its mean vector and theirs is at least the threshold (0 … 1). That is the
    authors' mean over all pairs, divided by the most it could be, so that a group of many different texts, too,
    resembles itself by 1.
    """
    # New texts are weighed with the codebook's, or their own grams would count for nothing.
    profiles = profiles_of(codebook.extended(len(codebook.groups), instructions))
    *groups, new = profiles.means
    similarities = [_dot(new, mean) for mean in groups]
    best = _greatest(similarities)
    return best if similarities and similarities[best] >= threshold else len(groups)


def similarity(one: Sequence[str], other: Sequence[str]) -> float:
    """Return how alike the instructions of two datasets are, if there are no others: what `assign` compares, 0 to 1."""
    left, right = profiles_of(Codebook().extended(0, one).extended(1, other)).means
    return _dot(left, right)


def route(text: str, codebook: Codebook, floor: float) -> int | None:
    """Return the group whose adapter answers a text; None, the base model, if it resembles none by at least `floor`."""
    group, similarity = nearest(text, codebook)
    return group if similarity >= floor else None


def nearest(text: str, codebook: Codebook) -> tuple[int, float]:
    """Return the group whose instructions a text resembles most, and how much: a cosine, 0 to 1.

    Of groups that it resembles equally, or not at all, the first.
    """
    profiles = profiles_of(codebook)
    vector = profiles.vector(instruction_of(text))
    similarities = [_dot(vector, mean) for mean in profiles.means]
    best = _greatest(similarities)
    return best, similarities[best] if similarities else 0.0


@lru_cache(maxsize=8)
def profiles_of(codebook: Codebook) -> Profiles:
    """Weigh the grams of a codebook, and average those of each group."""
    counts = [[grams(text) for text in group] for group in codebook.groups]
    documents = [text for group in counts for text in group]
    seen = Counter(gram for text in documents for gram in text)
    # As scikit-learn smooths it: as if one more text held every gram once.
    rarity = {gram: math.log((1 + len(documents)) / (1 + n)) + 1 for gram, n in seen.items()}
    weigh = Profiles(rarity=rarity, means=())
    return replace(
        weigh, means=tuple(_mean([weigh.vector(text) for text in group]) for group in codebook.groups)
    )


def grams(text: str) -> Counter[str]:
    """Count the runs of `GRAM` characters in the words of a text, with a blank before and after each word."""
    words = [f" {word} " for word in re.findall(r"\w+", text.casefold())]
    return Counter(word[i : i + GRAM] for word in words for i in range(len(word) - GRAM + 1))


def _mean(vectors: Sequence[Vector]) -> Vector:
    total: Counter[str] = Counter()
    for vector in vectors:
        total.update(vector)
    return _scaled(total)


def _scaled(vector: Vector) -> Vector:
    length = math.sqrt(sum(weight * weight for weight in vector.values()))
    return {gram: weight / length for gram, weight in vector.items()} if length else {}


def _dot(left: Vector, right: Vector) -> float:
    return sum(weight * right.get(gram, 0.0) for gram, weight in left.items())


def _greatest(similarities: Sequence[float]) -> int:
    """Return the index of the greatest number, the first of equal ones; 0 of none."""
    return max(range(len(similarities)), key=similarities.__getitem__, default=0)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()

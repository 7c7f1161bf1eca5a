"""Scores one answer against the reference of a holdout row: 1 is right, 0 is wrong, in between for long texts.

Short references (a word, a number, a name) are right or wrong after normalisation, as VQA benchmarks do it. Longer
ones get the F1 of their words, as in SQuAD (arXiv 1606.05250, section 6.1). References of symbols alone (an emoji, a
sign) are compared as they stand. It does not know synonyms.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

SHORT_WORDS = 3
"""References of at most this many words are scored as right or wrong."""

_SELECTORS = re.compile("[\ufe00-\ufe0f\U000e0100-\U000e01ef]")
"""Unicode's variation selectors: marks that choose between two looks of the same character."""
_ARTICLES = frozenset({"a", "an", "the"})


def words(text: str) -> list[str]:
    """Return the words that count: compatibility-folded, lower case, without punctuation and articles."""
    plain = "".join(letter if _is_part_of_word(letter) else " " for letter in _folded(text)).split()
    # A reference may consist of an article alone ("A" as the letter of a multiple choice).
    return [word for word in plain if word not in _ARTICLES] or plain


def score(reference: str, answer: str) -> float:
    """Return how well `answer` matches `reference`, from 0 to 1."""
    wanted, given = words(reference), words(answer)
    if not wanted:
        return float(_folded(reference).split() == _folded(answer).split())
    if wanted == given:
        return 1.0
    if len(wanted) <= SHORT_WORDS:
        return 0.0
    common = (Counter(wanted) & Counter(given)).total()
    return 2 * common / (len(wanted) + len(given))


def _folded(text: str) -> str:
    return _SELECTORS.sub("", unicodedata.normalize("NFKC", text).casefold())


def _is_part_of_word(letter: str) -> bool:
    # In many scripts a vowel is a mark on its consonant. Enclosing marks (Me) are left out: they frame symbols.
    return letter.isalnum() or unicodedata.category(letter) in {"Mn", "Mc"}

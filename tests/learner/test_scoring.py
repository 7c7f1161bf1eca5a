"""What scoring promises: short answers are right or wrong, long ones graded, and form does not matter."""

from __future__ import annotations

import pytest

from learner.scoring import score


@pytest.mark.parametrize(
    ("reference", "answer", "expected"),
    [
        ("three", "Three.", 1.0),
        ("three", "3", 0.0),
        ("A", "a", 1.0),
        ("the cat", "Cat!", 1.0),
        ("yes", "yes, it is", 0.0),
        ("ﬁve", "five", 1.0),
        ("two red squares above it", "two red squares", 0.75),
        ("two red squares above it", "", 0.0),
    ],
)
def test_score(reference: str, answer: str, expected: float) -> None:
    """Case, punctuation, articles and Unicode forms do not count; missing words of a long answer do."""
    assert score(reference, answer) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("reference", "answer", "expected"),
    [
        ("👍", "👍", 1.0),
        ("👍", " 👍\n", 1.0),
        ("👍", "👎", 0.0),
        ("❤️", "⭐️", 0.0),
        ("#️⃣", "*️⃣", 0.0),
        ("+", "+", 1.0),
        ("+", "-", 0.0),
        ("✓", "", 0.0),
        ("✓", "yes", 0.0),
        ("5️⃣", "5", 1.0),
    ],
)
def test_symbols_alone_are_an_answer(reference: str, answer: str, expected: float) -> None:
    """A reference without letters and digits is right as it stands, and nothing else is."""
    assert score(reference, answer) == expected


@pytest.mark.parametrize(
    ("reference", "answer", "expected"),
    [
        ("का", "का", 1.0),
        ("का", "की", 0.0),
        ("กา", "กี", 0.0),
        ("x̂", "x", 0.0),
        ("cafe\u0301", "Café.", 1.0),
        ("नीला वृत्त लाल वर्ग", "नीला वृत्त लाल वर्ग।", 1.0),
        ("नीला वृत्त लाल वर्ग", "नीली वृत्त लाल वर्ग", 0.75),
    ],
)
def test_marks_are_part_of_words(reference: str, answer: str, expected: float) -> None:
    """Vowel signs and accents that Unicode writes as characters of their own tell words apart."""
    assert score(reference, answer) == pytest.approx(expected)

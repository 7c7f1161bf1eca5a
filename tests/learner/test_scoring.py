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

"""What the tree of errors promises: all of it is drawn, and each has a word of its own for scripts."""

from __future__ import annotations

import re
from collections.abc import Iterator

from storage import errors
from storage.errors import LlacaError


def below(cls: type[LlacaError]) -> Iterator[type[LlacaError]]:
    """Yield every class below one."""
    for child in cls.__subclasses__():
        yield child
        yield from below(child)


def test_the_drawing_shows_every_error() -> None:
    """The tree at the top of storage/errors.py names each class, and none that is gone."""
    drawn = set(re.findall(r"\b[A-Z]\w*[a-z]\w*\b", str(errors.__doc__).partition("To add one")[0])) - {
        "Every"
    }
    assert drawn == {cls.__name__ for cls in below(LlacaError)} | {"LlacaError"}


def test_every_error_has_a_code_of_its_own() -> None:
    """No class inherits its word from the base of all."""
    assert all(cls.code != LlacaError.code for cls in below(LlacaError))

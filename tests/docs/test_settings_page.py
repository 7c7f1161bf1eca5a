"""What docs/settings.md promises: every setting, as it is."""

from __future__ import annotations

from collections import Counter

from tests.docs.settings_page import CLASSES, PAGE, page


def test_the_page_is_what_the_classes_say() -> None:
    """docs/settings.md is up to date; run `python -m tests.docs.settings_page` if this fails."""
    assert PAGE.read_text(encoding="utf-8") == page()


def test_every_setting_is_explained_and_belongs_to_one_class() -> None:
    """No setting lacks an explanation, and no name means two things."""
    assert all(field.description for cls in CLASSES for field in cls.model_fields.values())
    assert max(Counter(name for cls in CLASSES for name in cls.model_fields).values()) == 1

"""Writes docs/settings.md from the settings classes: `python -m tests.docs.settings_page`."""

from __future__ import annotations

from pathlib import Path

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from app.settings import AppSettings
from learner.settings import LearnerSettings
from serving.settings import ServingSettings
from storage.settings import PREFIX, Settings, StorageSettings

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"
CLASSES = (StorageSettings, ServingSettings, LearnerSettings, AppSettings)

HEAD = """\
# Settings

Every setting is an environment variable, or a line of a file `.env` in the directory in which the program is
started. A value that cannot be used, and a misspelt name, stop the start with a sentence that says what is allowed. A
round may carry its own values for the learner's settings (`POST /v1/rounds`, [api.md](api.md)).

This page is written by `python -m tests.docs.settings_page` from the settings classes, and a test compares the two.
"""


def page() -> str:
    """Return the text of the page."""
    return HEAD + "".join(f"\n## {_title(cls)}\n\n{_summary(cls)}\n\n{_table(cls)}" for cls in CLASSES)


def _title(cls: type[Settings]) -> str:
    return f"{cls.__module__.partition('.')[0]}"


def _summary(cls: type[Settings]) -> str:
    return (cls.__doc__ or "").strip().splitlines()[0]


def _table(cls: type[Settings]) -> str:
    rows = "".join(_row(name, field) for name, field in cls.model_fields.items())
    return f"| variable | default | meaning |\n|---|---|---|\n{rows}"


def _row(name: str, field: FieldInfo) -> str:
    default = "derived" if field.default is PydanticUndefined else _shown(field.default)
    meaning = " ".join((field.description or "").split()).replace("|", "\\|")
    return f"| `{PREFIX}{name.upper()}` | {default} | {meaning} |\n"


def _shown(default: object) -> str:
    return "empty" if default in ("", [], None) else f"`{default}`"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")

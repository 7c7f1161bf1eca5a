"""Settings of storage, and the one way in which every package reads its settings.

Each package has one frozen class with the prefix `LLACA_`; field docstrings are the documentation
(docs/settings.md is generated from them). Values come from the environment or from a file `.env`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from dotenv import dotenv_values
from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from storage.errors import BadSetting

PREFIX = "LLACA_"
ENV_FILE = ".env"
MEBIBYTE = 1024 * 1024


class Settings(BaseSettings):
    """What the settings classes of all packages have in common."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_file=ENV_FILE,
        extra="ignore",  # one .env serves several classes; refuse_unknown() finds misspelt names across all of them
        frozen=True,
        use_attribute_docstrings=True,
    )


S = TypeVar("S", bound=Settings)


class StorageSettings(Settings):
    """Where things are kept, and how much of them is accepted."""

    data_dir: Path = Path("data")
    """Directory of the database, stored files, generations, logs and secrets. A local disk, not a network share."""
    holdout_share: float = Field(default=0.2, gt=0, le=0.5)
    """Share of every dataset that is kept aside for judging and never trained on."""
    upload_max_bytes: int = Field(default=2048 * MEBIBYTE, ge=1)
    """Largest file that can be uploaded, in bytes; also the most that an archive may unpack to."""
    archive_max_members: int = Field(default=50_000, ge=1)
    """Most files in one archive."""
    row_max_bytes: int = Field(default=64 * MEBIBYTE, ge=1)
    """Longest row of a dataset in bytes, images given inline included."""
    image_max_bytes: int = Field(default=10 * MEBIBYTE, ge=1)
    """Largest image file in bytes."""
    image_max_pixels: int = Field(default=25_000_000, ge=1)
    """Most pixels of an image (width times height)."""
    image_max_side: int = Field(default=8192, ge=1)
    """Longest side of an image in pixels."""
    image_min_side: int = Field(default=8, ge=1)
    """Shortest side of an image in pixels."""
    row_max_images: int = Field(default=4, ge=1)
    """Most images in one row of a dataset. The servers must take as many: LLACA_MAX_IMAGES."""


def load(cls: type[S], overrides: Mapping[str, Any] | None = None) -> S:
    """Read settings from the environment, `overrides` first; raise BadSetting in plain words if one cannot be used."""
    given = overrides or {}
    for name in given:
        if name not in cls.model_fields:
            raise BadSetting(name, given[name], f"one of {', '.join(sorted(cls.model_fields))}")
    try:
        return cls(**given)
    except SettingsError as error:
        # A list or table that is no JSON; pydantic tells the field only inside its sentence.
        field = str(error).partition('field "')[2].partition('"')[0]
        found = os.environ.get(f"{PREFIX}{field.upper()}")
        raise BadSetting(f"{PREFIX}{field.upper()}", found, 'a JSON list such as ["a", "b"]') from error
    except ValidationError as error:
        first = error.errors()[0]
        field = str(first["loc"][0]) if first["loc"] else cls.__name__
        raise BadSetting(f"{PREFIX}{field.upper()}", first.get("input"), first["msg"]) from error


def names_of(*classes: type[Settings]) -> set[str]:
    """Return the environment variables that these classes read."""
    return {f"{PREFIX}{field.upper()}" for cls in classes for field in cls.model_fields}


def refuse_unknown(known: Iterable[str], environment: Mapping[str, str] | None = None) -> None:
    """Raise BadSetting for a variable with our prefix that is not among `known`, as a misspelt one would be."""
    names = {**dotenv_values(ENV_FILE), **os.environ} if environment is None else environment
    allowed = sorted(known)
    for name in sorted(names):
        if name.upper().startswith(PREFIX) and name.upper() not in allowed:
            nearest = get_close_matches(name.upper(), allowed, n=3) or allowed
            raise BadSetting(name, names[name], f"no such setting; did you mean {' or '.join(nearest)}")

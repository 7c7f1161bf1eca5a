"""The one clock of the database: UTC, as text that sorts like time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta


def now(offset_seconds: float = 0.0) -> str:
    """Return the present moment plus `offset_seconds`, as `2026-01-31T12:00:00.000000Z`."""
    moment = datetime.now(UTC) + timedelta(seconds=offset_seconds)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def parse(text: str) -> datetime:
    """Turn text written by `now` back into an aware datetime."""
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC)

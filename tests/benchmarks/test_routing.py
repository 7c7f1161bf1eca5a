"""The figures behind the defaults of instruction groups are those that the documentation prints."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.routing import main

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks.md"


def test_documented_shares_are_what_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    """Every row of both tables, and the sentence below them, stands in docs/benchmarks.md; no machine changes them."""
    main()
    page = PAGE.read_text(encoding="utf-8").splitlines()
    measured = [
        line for line in capsys.readouterr().out.splitlines() if " (" in line or line.startswith("Of ")
    ]
    assert len(measured) == 7
    rows = [line for line in measured if "LLACA_" not in line]
    assert set(rows) <= set(page)

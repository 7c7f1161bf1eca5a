"""Rounds, datasets and reports as HTML: what is said, and that nothing from outside gets in as markup."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from app.ui.dataset_view import Fate, fates, report_html
from app.ui.markup import ago, duration
from app.ui.round_view import Flip, cancel_button, events, flipped, summary, time_left, verdict
from storage.records import (
    Dataset,
    DatasetState,
    Event,
    Finding,
    Report,
    Round,
    RoundState,
    Submission,
    SubmissionState,
)
from tests.conftest import question

START = "2026-01-01T00:00:00.000000Z"
NOON = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)
ROUND = Round(
    id=3, state=RoundState.TRAINING, policy="llaca", settings={}, requested_by="ada", created_at=START,
    started_at=START, finished_at=None, lease=None, attempts=1, cancel_requested=False, champion=1, candidate=None,
    step=25, steps=100, verdict=None, error=None,
)  # fmt: skip
EVIL = "<script>alert(1)</script>"


def dataset(state: DatasetState) -> Dataset:
    """Return a dataset in a state, with a hostile name."""
    return Dataset(id=4, name=EVIL, user_id=1, sha256="0" * 64, state=state, train_rows=8, holdout_rows=2,
                   created_at=START, approved_by=None)  # fmt: skip


def test_time_left_follows_the_pace_so_far() -> None:
    """A quarter done in 60 s leaves 180 s; before the first step nobody knows."""
    present = datetime(2026, 1, 1, 0, 1, tzinfo=UTC)
    assert time_left(ROUND, present) == pytest.approx(180)
    assert time_left(replace(ROUND, step=0), present) is None
    assert "about 3 min left" in summary(ROUND, ["Digits"], present)


@pytest.mark.parametrize("state", list(RoundState))
def test_every_state_has_a_face(state: RoundState) -> None:
    """Whatever state a round is in, its head names it, and only an unfinished one can be cancelled."""
    found = replace(ROUND, state=state)
    assert f">{state}</span>" in summary(found, ["Digits"], NOON)
    assert bool(cancel_button(found)) == (not state.ended)


def test_a_failed_round_tells_why() -> None:
    """The reason of a failure is shown as text."""
    html = summary(replace(ROUND, state=RoundState.FAILED, error=f"no memory {EVIL}"), [], NOON)
    assert "no memory &lt;script&gt;" in html


def test_the_verdict_shows_reasons_and_signed_changes() -> None:
    """Every reason and every task's change, with its sign, is there."""
    task = {
        "name": EVIL,
        "items": 40,
        "earlier": True,
        "champion": 90.0,
        "candidate": 85.0,
        "gained": 0,
        "lost": 2,
    }
    html = verdict(
        replace(ROUND, verdict={"decision": "reject", "reasons": ["lost 5 points"], "tasks": [task]})
    )
    assert "Verdict: reject" in html
    assert "<li>lost 5 points</li>" in html
    assert ">-5.0</b>" in html
    assert "<script>" not in html


def test_nothing_from_outside_becomes_markup() -> None:
    """Names, answers, messages and findings that contain tags are shown as their characters."""
    flip = Flip(task=EVIL, messages=question(EVIL, EVIL, "a" * 64), old=EVIL, new=EVIL, gained=True)
    event = Event(id=1, round_id=3, at=START, level="info", kind="x", message=EVIL)
    finding = Finding(severity="error", code="c", message=EVIL, fix=EVIL, row=1, field=EVIL)
    report = Report(format=EVIL, findings=(finding,))
    submission = Submission(id=1, user_id=1, filename=EVIL, sha256="", bytes=1, state=SubmissionState.REJECTED,
                            report=report, dataset_id=None, created_at=START)  # fmt: skip
    fate = Fate(dataset=dataset(DatasetState.PENDING), owner=EVIL, learned_by=None, being_taught=False)
    shown = [flipped([flip], 1), events([event]), report_html(submission, None), fates([fate], acts=True)]
    assert not [html for html in shown if "<script" in html]
    assert all("&lt;script&gt;" in html for html in shown)


def test_a_report_puts_errors_before_notes() -> None:
    """What must be mended comes first, with row, field, reason and fix."""
    missing = Finding(severity="error", code="gone", message="no file", fix="add it", row=7, field="image")
    findings = (Finding(severity="note", code="n", message="a note"), missing)
    submission = Submission(id=1, user_id=1, filename="a.zip", sha256="", bytes=1, state=SubmissionState.ACCEPTED,
                            report=Report(format="llava", rows=9, accepted=8, findings=findings), dataset_id=4,
                            created_at=START)  # fmt: skip
    html = report_html(submission, DatasetState.PENDING)
    assert html.index("no file") < html.index("a note")
    assert [
        cell for cell in ("<td>7</td>", "<code>image</code>", "add it", "8 of 9") if cell not in html
    ] == []
    assert "waits for approval" in html


@pytest.mark.parametrize(
    ("state", "acts"),
    [
        (DatasetState.PENDING, ["approve", "withdraw"]),
        (DatasetState.QUEUED, ["withdraw"]),
        (DatasetState.LEARNED, ["withdraw"]),
        (DatasetState.SET_ASIDE, ["approve", "withdraw"]),
        (DatasetState.WITHDRAWN, []),
    ],
)
def test_admins_are_offered_what_the_state_allows(state: DatasetState, acts: list[str]) -> None:
    """Each state offers exactly the steps the store would take, and contributors are offered none."""
    fate = Fate(dataset=dataset(state), owner="ada", learned_by=None, being_taught=False)
    html = fates([fate], acts=True)
    assert [act for act in ("approve", "withdraw") if f'data-act="{act}"' in html] == acts
    assert "approve" not in fates([fate], acts=False)


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "0 s"), (59, "59 s"), (90, "2 min"), (7200, "2 h"), (200_000, "2 days")]
)
def test_spans_are_told_in_their_largest_unit(seconds: float, words: str) -> None:
    """A person reads a span at a glance."""
    assert duration(seconds) == words


def test_the_newest_things_happened_just_now() -> None:
    """Below a minute nobody counts."""
    assert ago(timedelta(seconds=20)) == "just now"
    assert ago(timedelta(minutes=5)) == "5 min ago"

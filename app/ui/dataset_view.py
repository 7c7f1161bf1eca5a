"""Submissions and datasets as HTML: validation report, preview, and what became of them. Pure; knows no store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from app.ui.markup import Tone, action, chip, empty, notice, picture, table, when
from storage.records import Dataset, DatasetState, Finding, Report, Row, Submission, SubmissionState, text_of

FINDINGS_MOST = 100
STATES: dict[DatasetState, tuple[str, Tone, str]] = {
    DatasetState.PENDING: ("waits for approval", "warn", "An admin looks at it before it is taught."),
    DatasetState.QUEUED: ("queued", "busy", "The next round teaches it."),
    DatasetState.LEARNED: ("learned", "good", "The assistant was taught this."),
    DatasetState.SET_ASIDE: (
        "set aside",
        "bad",
        "Nothing that serves has learned it; an admin may queue it again.",
    ),
    DatasetState.WITHDRAWN: ("withdrawn", "plain", "It will not be used again."),
}
BEING_TAUGHT: tuple[str, Tone, str] = ("being taught", "busy", "The running round learns it.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fate:
    """A dataset, whose it is, and the generation that learned it, if one did."""

    dataset: Dataset
    owner: str
    learned_by: str | None
    being_taught: bool
    """Whether the round that is running learns it."""


def report_html(submission: Submission, state: DatasetState | None) -> str:
    """Return what intake said about an upload: a sentence, the counts, and every finding with its fix."""
    report = submission.report
    return (
        f'<section class="report">{_outcome(submission, state)}{_counts(report)}{_findings(report)}</section>'
    )


def _outcome(submission: Submission, state: DatasetState | None) -> str:
    if submission.state is SubmissionState.REJECTED or state is None:
        return notice(
            f"{submission.filename} was not accepted. Nothing of it was kept; mend it and upload it again."
        )
    name, _, meaning = STATES[state]
    return notice(f"{submission.filename} was accepted and is {name}. {meaning}", "good")


def _counts(report: Report) -> str:
    errors = sum(finding.severity == "error" for finding in report.findings)
    figures = [
        (report.format or "unknown", "format"),
        (f"{report.accepted} of {report.rows}", "rows accepted"),
        (f"{report.images}", "pictures"),
        (f"{errors}", "errors"),
        (f"{len(report.findings) - errors}", "notes"),
    ]
    return '<dl class="figures">' + "".join(
        f"<div><dd>{escape(value)}</dd><dt>{label}</dt></div>" for value, label in figures
    ) + "</dl>"  # fmt: skip


def _findings(report: Report) -> str:
    if not report.findings:
        return '<p class="quiet">No errors and nothing to note.</p>'
    ordered = sorted(report.findings, key=lambda finding: finding.severity != "error")
    more = len(ordered) - FINDINGS_MOST
    rest = f'<p class="quiet">and {more} more of the same kinds.</p>' if more > 0 else ""
    return (
        table(["", "Row", "Field", "Reason", "Fix"], map(_finding, ordered[:FINDINGS_MOST]), kind="findings")
        + rest
    )


def _finding(finding: Finding) -> list[str]:
    return [
        chip("error", "bad") if finding.severity == "error" else chip("note"),
        str(finding.row) if finding.row is not None else "—",
        f"<code>{escape(finding.field)}</code>" if finding.field else "—",
        f'{escape(finding.message)} <code class="quiet">{escape(finding.code)}</code>',
        escape(finding.fix) or "—",
    ]


def preview(name: str, rows: Sequence[Row], total: int) -> str:
    """Return the first rows of a dataset as cards: pictures, questions, answers, and on which side they fell."""
    cards = "".join(_example(row) for row in rows)
    return (
        f'<section><h3 class="section">{escape(name)} <span class="quiet">first {len(rows)} of {total} rows</span></h3>'
        f'<div class="flips">{cards}</div></section>'
    )


def _example(row: Row) -> str:
    pictures = "".join(picture(sha256, f"picture of row {row.position + 1}") for sha256 in row.images[:3])
    turns = "".join(
        f'<p class="{"q" if turn["role"] == "user" else "a"}"><span class="who">{_WHO[turn["role"]]}</span> '
        f"{escape(text_of(turn))}</p>"
        for turn in row.messages
    )
    side = chip("kept aside for judging", "warn") if row.split == "holdout" else chip("for teaching")
    head = f'<p>{side} <span class="quiet">row {row.position + 1}</span></p>'
    return f'<article class="item">{pictures}<div>{head}{turns}</div></article>'


_WHO = {"user": "Q", "assistant": "A", "system": "S"}


def fates(found: Sequence[Fate], *, acts: bool) -> str:
    """Return every dataset with its state and what became of it; with `acts`, what an admin can do about it."""
    if not found:
        return empty("Nothing taught yet", "Drop a file above: questions, answers and pictures of one task.")
    rows = [_fate(fate, acts=acts) for fate in found]
    return table(["Dataset", "State", "Rows", "By", "Added", ""], rows, kind="fates")


def _fate(fate: Fate, *, acts: bool) -> list[str]:
    dataset = fate.dataset
    name, tone, meaning = BEING_TAUGHT if fate.being_taught else STATES[dataset.state]
    learned = f' <span class="quiet">by {escape(fate.learned_by)}</span>' if fate.learned_by else ""
    return [
        f'<button type="button" class="link" data-act="preview" data-id="{dataset.id}">{escape(dataset.name)}</button>',
        chip(name, tone, meaning) + learned,
        f'{dataset.train_rows} <span class="quiet">+ {dataset.holdout_rows} held out</span>',
        escape(fate.owner),
        when(dataset.created_at),
        _acts(dataset) if acts else "",
    ]


def _acts(dataset: Dataset) -> str:
    shown = ""
    if dataset.state in (DatasetState.PENDING, DatasetState.SET_ASIDE):
        shown += action("approve", dataset.id, "Approve" if dataset.state is DatasetState.PENDING else "Queue again",
                        kind="primary")  # fmt: skip
    if dataset.state is not DatasetState.WITHDRAWN:
        shown += action("withdraw", dataset.id, "Withdraw", kind="danger", sure="Really withdraw?")
    return f'<div class="acts">{shown}</div>'

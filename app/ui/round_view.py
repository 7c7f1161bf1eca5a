"""What is shown of one round, as HTML: state, progress, verdict, flipped items, events. Pure; knows no store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from typing import Any

from app.ui.markup import Tone, action, chip, duration, empty, notice, picture, table, when
from storage.clock import parse
from storage.records import (
    ACTIVE,
    Conversation,
    Event,
    Round,
    RoundState,
    generation_name,
    images_of,
    text_of,
)

TONES: dict[RoundState, Tone] = {
    RoundState.QUEUED: "plain",
    **dict.fromkeys(ACTIVE, "busy"),
    RoundState.PROMOTED: "good",
    RoundState.REJECTED: "bad",
    RoundState.HELD: "warn",
    RoundState.FAILED: "bad",
    RoundState.CANCELLED: "plain",
}
STAGES = (RoundState.QUEUED, *ACTIVE, RoundState.PROMOTED)
FLIPPED_MOST = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Flip:
    """A holdout item on which champion and candidate scored differently."""

    task: str
    messages: Conversation
    old: str
    new: str
    gained: bool


def round_list(rounds: Sequence[Round], chosen: int | None) -> str:
    """Return the rounds as buttons, newest first, the chosen one marked."""
    if not rounds:
        return empty("No rounds yet", "A round teaches the assistant every dataset that is queued.")
    return f'<ul class="cards">{"".join(_card(found, found.id == chosen) for found in rounds)}</ul>'


def _card(found: Round, is_open: bool) -> str:
    mark = ' aria-current="true"' if is_open else ""
    candidate = f" → {generation_name(found.candidate)}" if found.candidate is not None else ""
    return (
        f'<li class="{"open" if is_open else ""}"><button type="button" data-act="open" data-id="{found.id}"{mark}>'
        f"<strong>Round {found.id}</strong>{chip(found.state, TONES[found.state])}"
        f"<small>{when(found.created_at)}{_policy(found)}{candidate}</small></button></li>"
    )


def summary(found: Round, datasets: Sequence[str], present: datetime | None = None) -> str:
    """Return the head of a round: state, what it teaches, the way it has gone, progress with the time left."""
    served = generation_name(found.champion) if found.champion is not None else "the generation that serves"
    head = f"<h3>Round {found.id} {chip(found.state, TONES[found.state])}</h3>"
    teaches = ", ".join(datasets) or "nothing"
    about = (
        f"<p class=quiet>teaches <b>{escape(teaches)}</b> · from {served}{_policy(found)} · "
        f"asked for by {escape(found.requested_by)} {when(found.created_at, present)}{_took(found)}</p>"
    )
    problem = notice(found.error or "")
    stopping = notice("A cancel was asked for; it takes effect at the learner's next heartbeat.", "warn")
    asked = stopping if found.cancel_requested and not found.state.ended else ""
    return f'<section class="round">{head}{about}{_stages(found)}{_progress(found, present)}{asked}{problem}</section>'


def _policy(found: Round) -> str:
    return f" · policy {escape(found.policy or 'default')}" if found.policy else ""


def _took(found: Round) -> str:
    if found.started_at is None or found.finished_at is None:
        return ""
    return f" · took {duration((parse(found.finished_at) - parse(found.started_at)).total_seconds())}"


def _stages(found: Round) -> str:
    if found.state in STAGES:
        reached = STAGES.index(found.state)
    else:
        reached = STAGES.index(RoundState.JUDGING if found.verdict else RoundState.QUEUED)
    present = "done" if found.state is RoundState.PROMOTED else "ended" if found.state.ended else "now"
    marks = ["done"] * reached + [present] + [""] * (len(STAGES) - reached - 1)
    return '<ol class="stages">' + "".join(
        f'<li class="{mark}"{" aria-current=step" if mark == "now" else ""}>{stage}</li>'
        for stage, mark in zip(STAGES, marks, strict=True)
    ) + "</ol>"  # fmt: skip


def _progress(found: Round, present: datetime | None) -> str:
    if found.state is not RoundState.TRAINING or not found.steps:
        return ""
    left = time_left(found, present or datetime.now(UTC))
    eta = f" · about {duration(left)} left" if left is not None else ""
    bar = f'<progress max="{found.steps}" value="{found.step}"></progress>'
    return f'<div class="progress">{bar}<span>step {found.step} of {found.steps}{eta}</span></div>'


def time_left(found: Round, present: datetime) -> float | None:
    """Return the seconds of training left at the pace so far; None before the first step."""
    if not found.step or found.started_at is None:
        return None
    passed = (present - parse(found.started_at)).total_seconds()
    return passed / found.step * (found.steps - found.step)


def verdict(found: Round) -> str:
    """Return what the gate decided, why, and the figures per task."""
    if found.verdict is None and found.state.ended:
        return empty("No verdict", "The round ended before it was judged.")
    if found.verdict is None:
        return empty(
            "No verdict yet",
            "Champion and candidate answer every holdout first; then the gate compares them.",
        )
    decision = str(found.verdict["decision"])
    tone: Tone = {"promote": "good", "reject": "bad"}.get(decision, "warn")  # type: ignore[assignment]
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in found.verdict["reasons"])
    tasks = found.verdict.get("tasks", [])
    figures = table(
        ["Task", "Items", "Champion", "Candidate", "Change", "Won / lost"], map(_task, tasks), kind="figures"
    )
    said = f'<div class="verdict {tone}"><h4>Verdict: {escape(decision)}</h4><ul>{reasons}</ul></div>'
    return said + figures if tasks else said


def _task(task: Mapping[str, Any]) -> list[str]:
    change = task["candidate"] - task["champion"]
    kind = "earlier" if task["earlier"] else "new"
    return [
        f"{escape(task['name'])} {chip(kind)}",
        str(task["items"]),
        f"{task['champion']:.1f}",
        f"{task['candidate']:.1f}",
        f'<b class="{"up" if change > 0 else "down" if change < 0 else ""}">{change:+.1f}</b>',
        f"{task['gained']} / {task['lost']}",
    ]


def flipped(flips: Sequence[Flip], total: int) -> str:
    """Return the items on which the answer's score changed, losses first: picture, question, old and new answer."""
    if not flips:
        return empty(
            "No flipped items",
            "There is no item, of those shown to you, on which the score of an answer changed.",
        )
    more = f'<p class="quiet">{total - len(flips)} more are not shown.</p>' if total > len(flips) else ""
    return f'<div class="flips">{"".join(map(_flip, flips))}</div>{more}'


def _flip(flip: Flip) -> str:
    asked = next((text_of(turn) for turn in reversed(flip.messages[:-1]) if turn["role"] == "user"), "")
    pictures = "".join(picture(sha256) for sha256 in images_of(flip.messages)[:2])
    outcome = chip("won", "good") if flip.gained else chip("lost", "bad")
    return (
        f'<article class="item">{pictures}<div><p>{outcome} <span class="quiet">{escape(flip.task)}</span></p>'
        f"<p class=q>{escape(asked)}</p><dl><dt>expected</dt><dd>{escape(text_of(flip.messages[-1]))}</dd>"
        f"<dt>before</dt><dd>{escape(flip.old) or '—'}</dd><dt>after</dt><dd>{escape(flip.new) or '—'}</dd></dl>"
        "</div></article>"
    )


def events(found: Sequence[Event], present: datetime | None = None) -> str:
    """Return what happened, newest first."""
    rows = [
        [
            when(event.at, present),
            f'<span class="{event.level}">{escape(event.kind)}</span>',
            escape(event.message),
        ]
        for event in reversed(found)
    ]
    return table(["When", "What", "Details"], rows, kind="events")


def cancel_button(found: Round) -> str:
    """Return the button that cancels an unfinished round."""
    if found.state.ended or found.cancel_requested:
        return ""
    return action("cancel", found.id, "Cancel round", kind="danger", sure="Really cancel?")

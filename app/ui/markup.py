"""Pieces of HTML that several tabs show: chips, times, pictures, tables, buttons.

Arguments called `text`, `label` or `title` are plain text and are escaped here; those called `html` are HTML already.
Knows no store and no Gradio.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from html import escape
from typing import Literal

from storage.clock import parse

Tone = Literal["plain", "good", "busy", "warn", "bad"]

ON_CLICK = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('[data-act]');
  if (!button || button.disabled) return;
  if (button.dataset.sure && !button.classList.contains('sure')) {
    button.classList.add('sure');
    button.dataset.was = button.textContent;
    button.textContent = button.dataset.sure;
    setTimeout(() => { button.classList.remove('sure'); button.textContent = button.dataset.was; }, 4000);
    return;
  }
  trigger('click', {act: button.dataset.act, id: Number(button.dataset.id)});
});
"""
"""Script of a gr.HTML whose buttons carry `data-act` and `data-id`; one with `data-sure` asks once more first."""


def chip(text: str, tone: Tone = "plain", title: str = "") -> str:
    """Return a small rounded label; its tone is never the only carrier of meaning."""
    hint = f' title="{escape(title)}"' if title else ""
    return f'<span class="chip {tone}"{hint}>{escape(text)}</span>'


def action(act: str, number: int, label: str, *, kind: str = "", sure: str = "", title: str = "") -> str:
    """Return a button that triggers `click` with `act` and `id`; with `sure` it asks that before it does."""
    extra = f' data-sure="{escape(sure)}"' if sure else ""
    name = f' title="{escape(title)}" aria-label="{escape(title)}"' if title else ""
    return (
        f'<button type="button" class="act {kind}" data-act="{act}" data-id="{number}"{extra}{name}>'
        f"{escape(label)}</button>"
    )


def picture(sha256: str, title: str = "picture") -> str:
    """Return a stored picture; app/ui/blobs_route.py decides who gets its bytes."""
    return f'<img src="/blobs/{escape(sha256)}" alt="{escape(title)}" loading="lazy">'


def table(head: Sequence[str], rows_html: Iterable[Sequence[str]], *, kind: str = "") -> str:
    """Return a table that scrolls sideways on narrow screens; `head` is text, cells are HTML."""
    titles = "".join(f'<th scope="col">{escape(title)}</th>' for title in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows_html)
    return (
        f'<div class="scroll" tabindex="0"><table class="grid {kind}">'
        f"<thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def empty(title: str, text: str) -> str:
    """Return what stands where nothing is yet, and what to do about it."""
    return f'<div class="empty"><strong>{escape(title)}</strong><p>{escape(text)}</p></div>'


def notice(text: str, tone: Tone = "bad") -> str:
    """Return a sentence people must not miss; nothing for an empty one."""
    return f'<div class="notice {tone}" role="alert">{escape(text)}</div>' if text else ""


def when(moment: str, present: datetime | None = None) -> str:
    """Return how long ago a moment of storage.clock was, with the exact time as its tooltip."""
    then = parse(moment)
    return (
        f'<time datetime="{then.isoformat()}" title="{then:%Y-%m-%d %H:%M:%S} UTC">'
        f"{ago((present or datetime.now(UTC)) - then)}</time>"
    )


def ago(passed: timedelta) -> str:
    """Return a time span in words: `just now`, `5 min ago`, `3 h ago`, `2 days ago`."""
    seconds = passed.total_seconds()
    return "just now" if seconds < 60 else f"{duration(seconds)} ago"


def duration(seconds: float) -> str:
    """Return a span in its largest unit: `40 s`, `5 min`, `3 h`, `2 days`."""
    if seconds < 60:
        return f"{round(seconds)} s"
    if seconds < 3600:
        return f"{round(seconds / 60)} min"
    if seconds < 2 * 86400:
        return f"{round(seconds / 3600)} h"
    return f"{round(seconds / 86400)} days"

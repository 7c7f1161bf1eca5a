"""The Rounds tab: ask for a round, watch it live, read its verdict, cancel, roll back. The learner does the work.

Contributors read; only admins act. Contributors see answers and pictures of their own datasets only.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import gradio as gr
import pandas as pd

from app.ui.markup import ON_CLICK, chip, when
from app.ui.panel import panel
from app.ui.plots import LOSS_COLOURS, beta_curves, colours, forgetting, heat_map, loss_curve
from app.ui.round_view import FLIPPED_MOST, Flip, cancel_button, events, flipped, round_list, summary, verdict
from app.ui.visitor import plainly, visitor
from storage.records import Dataset, DatasetState, Role, Round, User, generation_name
from storage.store import Store

SECONDS_BETWEEN_LOOKS = 2.0
EVENTS_MOST = 200
Update = tuple[Any, ...]


class RoundsTab:
    """The tab's components and what happens in them."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._build()

    def _build(self) -> None:
        with gr.Row(elem_id="next-round", equal_height=True):
            self._plan = panel(name="plan")
            self._run = gr.Button("Run now", variant="primary", scale=0, min_width=120, elem_id="run-now")
            self._back = gr.Button("Roll back", scale=0, min_width=240, elem_id="roll-back")
        with gr.Row(elem_id="rounds", equal_height=False):
            with gr.Column(scale=0, min_width=264, elem_id="round-list"):
                self._list = panel(script=ON_CLICK, name="round-cards")
            with gr.Column(scale=1, min_width=280, elem_id="round"):
                self._summary = panel(name="round-summary")
                self._cancel = panel(script=ON_CLICK, name="cancel-round")
                self._loss = _plot("loss", "Loss")
                with gr.Row(elem_classes="curves"):
                    self._beta_a = _plot("β", "β of the LoRA A factors")
                    self._beta_b = _plot("β", "β of the LoRA B factors")
                self._verdict = panel(name="verdict")
                with gr.Accordion("Flipped items", open=False):
                    self._flips = panel(name="flips")
                with gr.Accordion("Events", open=False):
                    self._events = panel(name="events")
        panel('<h3 class="section">Accuracy matrix</h3>')
        self._matrix = panel(name="matrix")
        # Kept on the server, so that a look which the page sends while it still draws a choice knows of it.
        self._chosen = gr.State(None)
        self._seen = gr.State("")
        self._timer = gr.Timer(SECONDS_BETWEEN_LOOKS, active=False)

    @property
    def shows(self) -> list[gr.components.Component]:
        """The components that an Update fills, in its order."""
        return [
            self._plan, self._run, self._back, self._list, self._summary, self._cancel, self._loss, self._beta_a,
            self._beta_b, self._verdict, self._flips, self._events, self._matrix, self._chosen, self._seen, self._timer,
        ]  # fmt: skip

    def listen(self, tab: gr.Tab) -> None:
        """Connect components and handlers; called once, when the whole page stands."""
        quiet: dict[str, Any] = {
            "api_visibility": "private",
            "show_progress": "hidden",
            "concurrency_limit": None,
        }
        tab.select(self.look, self._chosen, self.shows, **quiet)
        self._timer.tick(self.look_again, [self._chosen, self._seen], self.shows, **quiet)
        self._list.click(self.choose, None, self.shows, **quiet)
        self._run.click(self.run, None, self.shows, **quiet)
        self._back.click(self.roll_back, self._chosen, self.shows, **quiet)
        self._cancel.click(self.cancel, None, self.shows, **quiet)

    def rest(self) -> dict[str, Any]:
        """Return the update that stops looking, for when another tab is in front."""
        return gr.Timer(active=False)  # type: ignore[return-value]

    @property
    def timer(self) -> gr.Timer:
        """What makes the tab look again; it runs only while the tab is in front."""
        return self._timer

    # -- what people do ---------------------------------------------------------------------------------------

    @plainly()
    def look(self, chosen: int | None, request: gr.Request) -> Update:
        """Show the chosen round, or the newest one."""
        return self._view(visitor(self._store, request, Role.CONTRIBUTOR), chosen)

    @plainly()
    def look_again(self, chosen: int | None, seen: str, request: gr.Request) -> Update:
        """Show the round anew if anything happened since; drawing the same again would only flicker."""
        user = visitor(self._store, request, Role.CONTRIBUTOR)
        if self._fingerprint(chosen) == seen:
            return tuple(gr.skip() for _ in self.shows)
        *view, newest, seen, timer = self._view(user, chosen)
        # This may end after the view of a round that was chosen meanwhile. What is chosen stays chosen, and since
        # `seen` does not fit it, the next look shows it again.
        return (*view, gr.skip() if chosen else newest, seen, timer)

    @plainly()
    def choose(self, event: gr.EventData, request: gr.Request) -> Update:
        """Show the round whose card was clicked."""
        return self._view(visitor(self._store, request, Role.CONTRIBUTOR), int(event.id))

    @plainly()
    def run(self, request: gr.Request) -> Update:
        """Ask for a round over everything that is queued."""
        user = visitor(self._store, request, Role.ADMIN)
        asked = self._store.rounds.enqueue(user.name)
        gr.Info(f"Round {asked.id} is queued; the learner takes it within seconds.")
        return self._view(user, asked.id)

    @plainly()
    def cancel(self, event: gr.EventData, request: gr.Request) -> Update:
        """Cancel a round that has not ended."""
        user = visitor(self._store, request, Role.ADMIN)
        self._store.rounds.cancel(int(event.id), user.name)
        return self._view(user, int(event.id))

    @plainly()
    def roll_back(self, chosen: int | None, request: gr.Request) -> Update:
        """Let the generation before the champion serve again; it is still loaded, so this takes effect at once."""
        user = visitor(self._store, request, Role.ADMIN)
        serving = self._store.generations.roll_back(user.name)
        gr.Info(
            f"{generation_name(serving)} serves again, and what it has not learned is set aside; replies being written "
            "finish on the other one."
        )
        return self._view(user, chosen)

    # -- what is shown ----------------------------------------------------------------------------------------

    def _view(self, user: User, chosen: int | None) -> Update:
        rounds = self._store.rounds.list()
        found = next((r for r in rounds if r.id == chosen), rounds[0] if rounds else None)
        seen = self._fingerprint(chosen)
        frame = self._frame(user, rounds, found)
        parts = self._nothing() if found is None else self._round(user, found)
        return (*frame, *parts, self._heat_map(), found.id if found else None, seen, gr.Timer(active=True))

    def _frame(self, user: User, rounds: Sequence[Round], found: Round | None) -> Update:
        """Return what does not belong to one round: the plan, the two buttons, the list."""
        acts = user.role.allows(Role.ADMIN)
        running = self._store.rounds.unfinished()
        taken = self._store.rounds.dataset_ids(running.id) if running else []
        queued = [d for d in self._store.datasets.list(DatasetState.QUEUED) if d.id not in taken]
        previous = self._store.generations.previous()
        back = f"Roll back to {generation_name(previous)}" if previous is not None else "Roll back"
        return (
            self._plan_html(queued),
            gr.Button(visible=acts, interactive=bool(queued) and running is None),
            gr.Button(back, visible=acts, interactive=previous is not None),
            round_list(rounds, found.id if found else None),
        )

    def _plan_html(self, queued: Sequence[Dataset]) -> str:
        rows = sum(dataset.train_rows for dataset in queued)
        what = ", ".join(f"{dataset.name} ({dataset.train_rows})" for dataset in queued)
        waiting = (
            f"{len(queued)} dataset{'s' * (len(queued) != 1)}, {rows} rows: {what}"
            if queued
            else "nothing queued"
        )
        pending = len(self._store.datasets.list(DatasetState.PENDING))
        approval = f" · {pending} wait{'s' * (pending == 1)} for approval" if pending else ""
        cron = self._store.processes.facts("learner").get("cron")
        timed = f"on schedule ({cron})" if cron else "only when asked for"
        moved = self._store.generations.history()[:1]
        since = f" since {when(moved[0].at)} ({moved[0].reason})" if moved else ""
        champion = chip(generation_name(self._store.generations.champion()), "good")
        return _lines(("Next round", f"{waiting}{approval}"), ("Rounds run", timed)) + (
            f"<p class=quiet>Serving {champion}{since}</p>"
        )

    def _round(self, user: User, found: Round) -> Update:
        names = {dataset.id: dataset.name for dataset in self._store.datasets.list()}
        metrics = self._store.rounds.metrics(found.id)
        flips, total = self._flipped(user, found, names)
        acts = user.role.allows(Role.ADMIN)
        return (
            summary(found, [names[dataset_id] for dataset_id in self._store.rounds.dataset_ids(found.id)]),
            cancel_button(found) if acts else "",
            _drawn(loss_curve(metrics), LOSS_COLOURS),
            _drawn(beta_curves(metrics, "A")),
            _drawn(beta_curves(metrics, "B")),
            verdict(found),
            flipped(flips, total),
            events(self._store.rounds.events(found.id)[-EVENTS_MOST:]),
        )

    def _nothing(self) -> Update:
        blank = gr.LinePlot(visible=False)
        return "", "", blank, blank, blank, "", "", ""

    def _flipped(self, user: User, found: Round, names: dict[int, str]) -> tuple[list[Flip], int]:
        if found.champion is None or found.candidate is None:
            return [], 0
        owners = {dataset.id: dataset.user_id for dataset in self._store.datasets.list()}
        rows = [
            row
            for row in self._store.evaluations.flipped(found.id, found.champion, found.candidate)
            if user.role.allows(Role.ADMIN) or owners[row["dataset_id"]] == user.id
        ]
        flips = [
            Flip(
                task=names[row["dataset_id"]],
                messages=self._store.datasets.row(row["row_id"]).messages,
                old=row["old"],
                new=row["new"],
                gained=row["new_score"] > row["old_score"],
            )
            for row in rows[:FLIPPED_MOST]
        ]
        return flips, len(rows)

    def _heat_map(self) -> str:
        matrix = self._store.evaluations.matrix()
        names = {dataset.id: dataset.name for dataset in self._store.datasets.list()}
        champion = self._store.generations.champion()
        lost = forgetting(matrix, champion)
        worst = max(lost, key=lambda dataset: lost[dataset], default=None)
        note = ""
        if worst is not None:
            mean = sum(lost.values()) / len(lost)
            note = (
                f"<p class=quiet>Forgetting of {generation_name(champion)}: {mean:.1f} points on average; "
                f"worst {lost[worst]:.1f} on {escape(names[worst])}.</p>"
            )
        return heat_map(matrix, names, champion) + note

    def _fingerprint(self, chosen: int | None) -> str:
        """Return a text that changes whenever what the tab shows has changed."""
        rounds = self._store.rounds.list(1)
        watched = {*(found.id for found in rounds), *([int(chosen)] if chosen else [])}
        states = [
            (r.id, r.state, r.step, r.cancel_requested, len(self._store.rounds.events(r.id)))
            for r in map(self._store.rounds.get, sorted(watched))
        ]
        datasets = [(d.id, d.state) for d in self._store.datasets.list()]
        return repr((states, datasets, self._store.generations.champion()))


def _plot(value: str, title: str) -> gr.LinePlot:
    return gr.LinePlot(
        x="step",
        y=value,
        color="series",
        title=title,
        x_title="step",
        y_title=value,
        color_title=" ",
        height=240,
        min_width=260,
        visible=False,
        tooltip="all",
    )


def _drawn(frame: pd.DataFrame, of_series: dict[str, str] | None = None) -> gr.LinePlot:
    return gr.LinePlot(value=frame, color_map=of_series or colours(frame), visible=not frame.empty)


def _lines(*pairs: tuple[str, str]) -> str:
    return "".join(f"<p><b>{escape(label)}</b> {escape(text)}</p>" for label, text in pairs)

"""The Teach tab: upload a task, read its report, look at its rows, follow what becomes of it. Intake checks files.

A contributor's dataset waits for an admin; an admin's own is approved by uploading it. Contributors see their own only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from app.limits import UPLOADS, Rate
from app.ui.dataset_view import Fate, fates, preview, report_html
from app.ui.markup import ON_CLICK
from app.ui.panel import panel
from app.ui.visitor import plainly, visitor
from storage.errors import BadField, UnknownDataset
from storage.intake import receive
from storage.records import Dataset, Role, User
from storage.store import Store

FILE_TYPES = [".zip", ".tar", ".gz", ".tgz", ".json", ".jsonl", ".csv", ".parquet"]
PREVIEW_ROWS = 12
NAME_MOST = 80
HELP = """<p class="quiet">A task is a set of examples: pictures, questions, and the answers you want. Upload a
<b>.zip</b> or <b>.tar.gz</b> with a JSON or CSV file and its images, or a <b>.json</b>, <b>.jsonl</b>, <b>.csv</b> or
<b>.parquet</b> with the images inside or none. LLaVA, ShareGPT and OpenAI chat formats are understood. Some of the rows
are kept aside to judge what was learned.</p>"""
Update = tuple[Any, ...]


class TeachTab:
    """The tab's components and what happens in them."""

    def __init__(self, store: Store, uploads: Rate) -> None:
        self._store = store
        self._uploads = uploads
        self._build()

    def _build(self) -> None:
        with gr.Column(elem_id="teach"):
            panel(f'<h2 class="title">Teach a task</h2>{HELP}')
            with gr.Row(elem_id="upload", equal_height=True):
                self._file = gr.File(
                    label="File",
                    file_types=list(FILE_TYPES),
                    height=150,
                    scale=2,
                    min_width=280,
                    elem_id="drop",
                )
                with gr.Column(scale=1, min_width=260):
                    self._name = gr.Textbox(
                        label="Name of the task", placeholder="e.g. Handwritten digits", max_length=NAME_MOST
                    )
                    self._submit = gr.Button("Check and submit", variant="primary", elem_id="submit-dataset")
            self._report = panel(name="report")
            self._preview = panel(name="preview")
            panel('<h3 class="section">What became of the data</h3>')
            self._fates = panel(script=ON_CLICK, name="fates")

    def listen(self, tab: gr.Tab) -> None:
        """Connect components and handlers; called once, when the whole page stands."""
        quiet: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": None}
        tab.select(self.look, None, self._fates, show_progress="hidden", **quiet)
        self._submit.click(
            self.submit,
            [self._file, self._name],
            [self._file, self._name, self._report, self._preview, self._fates],
            show_progress_on=self._report,
            **quiet,
        )
        self._fates.click(self.manage, None, [self._preview, self._fates], show_progress="hidden", **quiet)

    # -- what people do ---------------------------------------------------------------------------------------

    @plainly()
    def look(self, request: gr.Request) -> str:
        """Show the visitor's datasets; an admin sees everybody's."""
        return self._list(visitor(self._store, request, Role.CONTRIBUTOR))

    @plainly()
    def submit(self, file: str | None, name: str, request: gr.Request) -> Update:
        """Take the file in, and show the report and the first rows."""
        user = visitor(self._store, request, Role.CONTRIBUTOR)
        if file is None:
            raise BadField("File", None, f"one of {', '.join(FILE_TYPES)}; drop it into the box first")
        upload = Path(file)
        if not upload.exists():
            # Gradio names it for its content, so a submission of the same file has taken it along.
            raise BadField("File", upload.name, "a file that is still here; drop it into the box again")
        self._uploads.spend(str(user.id), UPLOADS)
        approved_by = user.name if user.role.allows(Role.ADMIN) else None
        submission = receive(
            self._store,
            user,
            upload.name,
            upload,
            name=name.strip()[:NAME_MOST] or None,
            approved_by=approved_by,
        )
        upload.unlink(missing_ok=True)
        dataset = (
            self._store.datasets.get(submission.dataset_id) if submission.dataset_id is not None else None
        )
        report = report_html(submission, dataset.state if dataset else None)
        return None, "", report, self._rows(dataset) if dataset else "", self._list(user)

    @plainly()
    def manage(self, event: gr.EventData, request: gr.Request) -> Update:
        """Look at a dataset's rows; as an admin also approve or withdraw it."""
        decides = event.act in {"approve", "withdraw"}
        user = visitor(self._store, request, Role.ADMIN if decides else Role.CONTRIBUTOR)
        if event.act == "approve":
            self._store.datasets.approve(int(event.id), user.name)
        if event.act == "withdraw":
            self._store.datasets.withdraw(int(event.id), user.name)
        return self._rows(self._visible(user, int(event.id))), self._list(user)

    # -- what is shown ----------------------------------------------------------------------------------------

    def _visible(self, user: User, dataset_id: int) -> Dataset:
        dataset = self._store.datasets.get(dataset_id)
        if dataset.user_id != user.id and not user.role.allows(Role.ADMIN):
            raise UnknownDataset(dataset_id)
        return dataset

    def _rows(self, dataset: Dataset) -> str:
        rows = self._store.datasets.rows(dataset.id, limit=PREVIEW_ROWS)
        return preview(dataset.name, rows, dataset.train_rows + dataset.holdout_rows)

    def _list(self, user: User) -> str:
        admin = user.role.allows(Role.ADMIN)
        learned_by = self._learned_by()
        running = self._store.rounds.unfinished()
        taught_now = self._store.rounds.dataset_ids(running.id) if running else []
        names = {person.id: person.name for person in self._store.users.list()}
        found = [
            Fate(
                dataset=dataset,
                owner=names[dataset.user_id],
                learned_by=learned_by.get(dataset.id),
                being_taught=dataset.id in taught_now,
            )
            for dataset in reversed(self._store.datasets.list())
            if admin or dataset.user_id == user.id
        ]
        return fates(found, acts=admin)

    def _learned_by(self) -> dict[int, str]:
        """Return, of what the champion knows, which of its ancestors learned it last."""
        generations = self._store.generations
        return {
            dataset_id: found.name
            for found in reversed(generations.lineage(generations.champion()))
            for dataset_id in self._store.rounds.dataset_ids(found.round_id)
        }

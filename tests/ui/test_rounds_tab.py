"""What the Rounds tab promises to somebody who acts while it is looking for news."""

from __future__ import annotations

import gradio as gr

from app.ui.rounds import RoundsTab
from storage.records import User
from storage.store import Store
from tests.conftest import questions
from tests.ui.scenery import asks


def test_news_of_a_round_do_not_undo_the_choice_of_another(store: Store, admin: User) -> None:
    """A look that was sent before another round was chosen and comes back after it leaves the choice, and is mended."""
    with gr.Blocks():
        tab = RoundsTab(store)
    request = asks(admin)
    chosen, seen, summary = (tab.shows.index(part) for part in (tab._chosen, tab._seen, tab._summary))
    store.datasets.add("task", admin.id, questions(5), approved_by=admin.name)
    first = store.rounds.enqueue(admin.name)
    store.rounds.cancel(first.id, admin.name)
    shown = tab.run(request)
    late = tab.look_again(first.id, "what was there before", request)
    assert shown[chosen] == first.id + 1
    assert late[chosen] == gr.skip()
    mended = tab.look_again(shown[chosen], late[seen], request)
    assert mended[summary] == shown[summary] != late[summary]

"""What the Teach tab promises beyond the report: which generation knows what, and what an upload costs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import gradio as gr
import pytest

from app.limits import Rate
from app.ui.teach import TeachTab
from storage.records import User
from storage.store import Store
from tests.app.places import jsonl, promote
from tests.fake_vllm import FakeVLLM
from tests.ui.scenery import asks


@pytest.fixture
def fake() -> Iterator[FakeVLLM]:
    """A fake vLLM with nothing loaded."""
    with FakeVLLM() as running:
        yield running


def tab_of(store: Store, uploads: int = 10) -> TeachTab:
    """Return the tab without its page."""
    with gr.Blocks():
        return TeachTab(store, Rate(uploads))


def test_a_dataset_names_what_learned_it_of_all_that_led_here(
    store: Store, admin: User, fake: FakeVLLM, tmp_path: Path
) -> None:
    """However many rounds came since, it is named; what was rolled back is not."""
    names = [promote(store, admin, fake, tmp_path) for _ in range(3)]
    store.generations.roll_back(admin.name, to=2)
    listed = tab_of(store).look(asks(admin))
    assert all(f"by {name}<" in listed for name in names[:2])
    assert f"by {names[2]}<" not in listed


def test_uploads_are_counted(store: Store, admin: User, tmp_path: Path) -> None:
    """Beyond the allowed number a minute an upload is refused in a sentence, and the file stays in its box."""
    tab = tab_of(store, uploads=1)
    for number in range(2):
        (tmp_path / f"{number}.jsonl").write_bytes(jsonl(5, f"subject {number}"))
    tab.submit(str(tmp_path / "0.jsonl"), "one", asks(admin))
    with pytest.raises(gr.Error, match="limit of 1 uploads per minute"):
        tab.submit(str(tmp_path / "1.jsonl"), "two", asks(admin))
    assert (tmp_path / "1.jsonl").exists()
    assert [dataset.name for dataset in store.datasets.list()] == ["one"]


def test_a_file_that_is_gone_is_asked_for_again(store: Store, admin: User, tmp_path: Path) -> None:
    """Somebody who submits the same file a second time is told to drop it again."""
    with pytest.raises(gr.Error, match="drop it into the box again"):
        tab_of(store).submit(str(tmp_path / "gone.jsonl"), "one", asks(admin))

"""Who may do what on the page: handlers decide themselves, because hidden tabs and private endpoints can be called."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from app.chat import Upstream
from app.limits import Rate
from app.settings import AppSettings
from app.ui.chat import ChatTab
from app.ui.people import PeopleTab
from app.ui.rounds import RoundsTab
from app.ui.teach import TeachTab
from app.ui.visitor import visitor
from serving.settings import ServingSettings
from storage.errors import NotAllowed, NotSignedIn
from storage.records import DatasetState, Role, User, text_part
from storage.store import Store
from tests.app.places import Place, jsonl, png
from tests.conftest import question, questions
from tests.ui.scenery import asks


class Tabs:
    """Every tab over one store."""

    def __init__(self, store: Store) -> None:
        settings = AppSettings()
        with gr.Blocks():
            self.chat = ChatTab(store, Upstream([], settings, ServingSettings()), settings)
            self.teach = TeachTab(store, Rate(settings.uploads_per_minute))
            self.rounds = RoundsTab(store)
            self.people = PeopleTab(store, settings)


@pytest.fixture
def tabs(store: Store) -> Tabs:
    """The page's tabs, without a page."""
    return Tabs(store)


@pytest.fixture
def people(store: Store) -> dict[Role, User]:
    """One user per role."""
    return {role: store.users.create(f"{role}-user", role) for role in Role}


def click(**data: Any) -> gr.EventData:
    """Return a click as the page sends it, or anybody who forges it."""
    return gr.EventData(None, data)


ADMIN_ONLY: list[tuple[str, Callable[[Tabs, gr.Request], Any]]] = [
    ("run", lambda tabs, request: tabs.rounds.run(request)),
    ("cancel", lambda tabs, request: tabs.rounds.cancel(click(act="cancel", id=1), request)),
    ("roll back", lambda tabs, request: tabs.rounds.roll_back(None, request)),
    ("approve", lambda tabs, request: tabs.teach.manage(click(act="approve", id=1), request)),
    ("withdraw", lambda tabs, request: tabs.teach.manage(click(act="withdraw", id=1), request)),
    ("people", lambda tabs, request: tabs.people.look(request)),
    ("invite", lambda tabs, request: tabs.people.invite("eve", "admin", request)),
    ("link", lambda tabs, request: tabs.people.manage(click(act="link", id=1), request)),
    ("disable", lambda tabs, request: tabs.people.manage(click(act="disable", id=1), request)),
    ("role", lambda tabs, request: tabs.people.change_role("chat-user", "admin", request)),
]
CONTRIBUTORS_TOO: list[tuple[str, Callable[[Tabs, gr.Request], Any]]] = [
    ("rounds", lambda tabs, request: tabs.rounds.look(None, request)),
    ("rounds again", lambda tabs, request: tabs.rounds.look_again(None, "", request)),
    ("a round", lambda tabs, request: tabs.rounds.choose(click(act="open", id=1), request)),
    ("datasets", lambda tabs, request: tabs.teach.look(request)),
    ("submit", lambda tabs, request: tabs.teach.submit(None, "x", request)),
    ("preview", lambda tabs, request: tabs.teach.manage(click(act="preview", id=1), request)),
]


@pytest.mark.parametrize("role", [Role.CHAT, Role.CONTRIBUTOR])
@pytest.mark.parametrize(("what", "handler"), ADMIN_ONLY, ids=[name for name, _ in ADMIN_ONLY])
def test_admin_steps_are_refused_to_others(
    tabs: Tabs, people: dict[Role, User], role: Role, what: str, handler: Callable[[Tabs, gr.Request], Any]
) -> None:
    """Calling an admin's handler as anybody else changes nothing and says which role is needed."""
    with pytest.raises(gr.Error, match="needs the role admin"):
        handler(tabs, asks(people[role]))


@pytest.mark.parametrize(("what", "handler"), CONTRIBUTORS_TOO, ids=[name for name, _ in CONTRIBUTORS_TOO])
def test_teaching_and_rounds_are_refused_to_chat(
    tabs: Tabs, people: dict[Role, User], what: str, handler: Callable[[Tabs, gr.Request], Any]
) -> None:
    """Who may only chat gets nothing of Teach and Rounds."""
    with pytest.raises(gr.Error, match="needs the role contributor"):
        handler(tabs, asks(people[Role.CHAT]))


def test_a_visitor_must_exist_and_be_enabled(store: Store, people: dict[Role, User]) -> None:
    """An unknown name, no name and a disabled user are all not signed in; a lesser role is not allowed."""
    with pytest.raises(NotSignedIn):
        visitor(store, gr.Request(username=None))
    with pytest.raises(NotSignedIn):
        visitor(store, gr.Request(username="nobody"))
    with pytest.raises(NotAllowed):
        visitor(store, asks(people[Role.CHAT]), Role.ADMIN)
    store.users.disable(people[Role.CHAT].id)
    with pytest.raises(NotSignedIn):
        visitor(store, asks(people[Role.CHAT]))


async def test_nobody_opens_renames_or_deletes_anothers_conversation(
    store: Store, tabs: Tabs, people: dict[Role, User]
) -> None:
    """A conversation of somebody else does not exist, also for an admin, and stays as it was."""
    owner, other = people[Role.CHAT], people[Role.ADMIN]
    kept = store.conversations.create(owner.id, "mine")
    for act in ("open", "rename", "delete"):
        with pytest.raises(gr.Error, match="no conversation"):
            await tabs.chat.manage(None, click(act=act, id=kept.id, title="taken"), asks(other))
    with pytest.raises(gr.Error, match="no conversation"):
        await tabs.chat.undo(float(kept.id), asks(other))
    assert tabs.chat.open_remembered(float(kept.id), asks(other))[2] is None
    assert store.conversations.get(kept.id, owner.id).title == "mine"


def test_contributors_see_their_own_datasets_only(store: Store, tabs: Tabs, people: dict[Role, User]) -> None:
    """Another's dataset is neither listed nor previewed for a contributor; an admin sees both."""
    mine = store.datasets.add("mine", people[Role.CONTRIBUTOR].id, questions(5))
    theirs = store.datasets.add("theirs", people[Role.ADMIN].id, questions(5, "other"))
    listed = tabs.teach.look(asks(people[Role.CONTRIBUTOR]))
    assert "mine" in listed
    assert "theirs" not in listed
    tabs.teach.manage(click(act="preview", id=mine.id), asks(people[Role.CONTRIBUTOR]))
    with pytest.raises(gr.Error, match="no dataset"):
        tabs.teach.manage(click(act="preview", id=theirs.id), asks(people[Role.CONTRIBUTOR]))
    assert "theirs" in tabs.teach.look(asks(people[Role.ADMIN]))


def test_an_admins_upload_is_approved_at_once_a_contributors_waits(
    store: Store, tabs: Tabs, people: dict[Role, User], tmp_path: Path
) -> None:
    """Who may approve need not ask; who may not, waits."""
    states = []
    for role, subject in ((Role.ADMIN, "a"), (Role.CONTRIBUTOR, "b")):
        file = tmp_path / f"{role}.jsonl"
        file.write_bytes(jsonl(8, subject))
        tabs.teach.submit(str(file), "  Numbers ", asks(people[role]))
        states.append(store.datasets.list()[-1].state)
        assert store.datasets.list()[-1].name == "Numbers"
        assert not file.exists()
    assert states == [DatasetState.QUEUED, DatasetState.PENDING]


def test_admins_cannot_lock_themselves_out(store: Store, tabs: Tabs, people: dict[Role, User]) -> None:
    """Disabling or demoting oneself is refused, so that the last admin does not vanish by a slip."""
    admin = people[Role.ADMIN]
    with pytest.raises(gr.Error, match="Your own account"):
        tabs.people.manage(click(act="disable", id=admin.id), asks(admin))
    with pytest.raises(gr.Error, match="Your own account"):
        tabs.people.change_role(admin.name, "chat", asks(admin))
    assert store.users.get(admin.id).role is Role.ADMIN


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A web process for the route that sends pictures."""
    from tests.app.places import place

    with place(tmp_path_factory.mktemp("blobs") / "data") as found:
        yield found


def status(place: Place, role: Role, sha256: str) -> int:
    """Return what the blobs route says to a role."""
    with place.browser(role) as client:
        return client.get(f"/blobs/{sha256}").status_code


def test_a_picture_of_a_conversation_is_its_owners_alone(running: Place) -> None:
    """Nobody else gets a picture from a chat, not even an admin; guessing addresses gives 404."""
    store, owner = running.store, running.users[Role.CHAT]
    sha256 = store.blobs.put(png(), "image/png")
    kept = store.conversations.create(owner.id)
    store.conversations.append(
        kept.id, owner.id, "user", [{"type": "image", "sha256": sha256}, text_part("?")]
    )
    assert [status(running, role, sha256) for role in Role] == [200, 404, 404]
    assert status(running, Role.CHAT, "0" * 64) == 404
    with running.browser(Role.CHAT) as client:
        response = client.get(f"/blobs/{sha256}")
        assert response.headers["content-type"] == "image/png"
        assert response.content == png()
        assert "private" in response.headers["cache-control"]
    with running.browser() as client:
        assert client.get(f"/blobs/{sha256}").status_code in {303, 401}


def test_a_picture_of_a_dataset_is_for_its_uploader_and_admins(running: Place) -> None:
    """The uploader and those who judge datasets see its pictures, others do not."""
    store = running.store
    sha256 = store.blobs.put(png(color=(1, 2, 3)), "image/png")
    store.datasets.add(
        "discs", running.users[Role.CONTRIBUTOR].id, [question("?", "!", sha256), *questions(5)]
    )
    assert [status(running, role, sha256) for role in Role] == [404, 200, 200]

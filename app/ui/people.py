"""The People tab: an admin invites by one-time link, changes roles, locks out; passwords are chosen by their owners."""

from __future__ import annotations

from html import escape
from typing import Any

import gradio as gr

from app.settings import AppSettings
from app.ui.markup import ON_CLICK, action, chip, notice, table, when
from app.ui.panel import panel
from app.ui.visitor import plainly, visitor
from storage.errors import BadField, WrongState
from storage.records import Role, User
from storage.store import Store

NAME_MOST = 60
ROLES = [(f"{role} — {meaning}", str(role)) for role, meaning in (
    (Role.CHAT, "asks questions"),
    (Role.CONTRIBUTOR, "also teaches tasks"),
    (Role.ADMIN, "also approves, runs rounds, manages people"),
)]  # fmt: skip
Update = tuple[Any, ...]


class PeopleTab:
    """The tab's components and what happens in them."""

    def __init__(self, store: Store, settings: AppSettings) -> None:
        self._store = store
        self._settings = settings
        self._build()

    def _build(self) -> None:
        with gr.Column(elem_id="people"):
            panel('<h2 class="title">People</h2>')
            with gr.Row(elem_id="invite", equal_height=True):
                self._name = gr.Textbox(
                    label="Name", placeholder="e.g. ada", max_length=NAME_MOST, min_width=200
                )
                self._role = gr.Dropdown(ROLES, value=str(Role.CHAT), label="Role", min_width=260)
                self._invite = gr.Button(
                    "Invite", variant="primary", scale=0, min_width=120, elem_id="invite-button"
                )
            self._link = panel(name="link")
            self._list = panel(script=ON_CLICK, name="people-list")
            with gr.Row(elem_id="change", equal_height=True):
                self._who = gr.Dropdown([], label="Change the role of", min_width=200)
                self._new_role = gr.Dropdown(ROLES, value=str(Role.CHAT), label="New role", min_width=260)
                self._change = gr.Button("Change role", scale=0, min_width=120)

    def listen(self, tab: gr.Tab) -> None:
        """Connect components and handlers; called once, when the whole page stands."""
        quiet: dict[str, Any] = {
            "api_visibility": "private",
            "show_progress": "hidden",
            "concurrency_limit": None,
        }
        shows = [self._link, self._list, self._who]
        tab.select(self.look, None, shows, **quiet)
        self._invite.click(self.invite, [self._name, self._role], shows, **quiet)
        self._list.click(self.manage, None, shows, **quiet)
        self._change.click(self.change_role, [self._who, self._new_role], shows, **quiet)

    # -- what people do ---------------------------------------------------------------------------------------

    @plainly()
    def look(self, request: gr.Request) -> Update:
        """Show everybody."""
        return self._view(visitor(self._store, request, Role.ADMIN))

    @plainly()
    def invite(self, name: str, role: str, request: gr.Request) -> Update:
        """Add somebody and show the link with which they choose their password."""
        admin = visitor(self._store, request, Role.ADMIN)
        if not name.strip() or len(name) > NAME_MOST:
            raise BadField("Name", name, f"1 to {NAME_MOST} characters")
        invited = self._store.users.create(name.strip(), Role(role), actor=admin.name)
        return self._view(admin, self._link_for(invited))

    @plainly()
    def manage(self, event: gr.EventData, request: gr.Request) -> Update:
        """Make a new one-time link for somebody, or lock them out."""
        admin = visitor(self._store, request, Role.ADMIN)
        person = self._store.users.get(int(event.id))
        if event.act == "link":
            return self._view(admin, self._link_for(person))
        if event.act == "disable":
            _not_oneself(admin, person)
            self._store.users.disable(person.id, actor=admin.name)
        return self._view(admin)

    @plainly()
    def change_role(self, who: str | None, role: str, request: gr.Request) -> Update:
        """Give somebody another role; it counts from their next request on."""
        admin = visitor(self._store, request, Role.ADMIN)
        person = self._store.users.by_name(who or "")
        _not_oneself(admin, person)
        self._store.users.set_role(person.id, Role(role), actor=admin.name)
        return self._view(admin, notice(f"{person.name} is {role} now.", "good"))

    # -- what is shown ----------------------------------------------------------------------------------------

    def _link_for(self, person: User) -> str:
        url = f"{self._settings.url()}/welcome/{self._store.users.invite(person.id)}"
        return (
            f'<div class="notice good" role="status">Give this link to <b>{escape(person.name)}</b>. It works once, for'
            f' 24 hours, and is shown only now.<input class="copy" readonly value="{escape(url)}" '
            f'onfocus="this.select()" aria-label="One-time link"></div>'
        )

    def _view(self, admin: User, said: str = "") -> Update:
        people = self._store.users.list()
        rows = [_person(person, admin) for person in people]
        others = [person.name for person in people if person.id != admin.id and not person.disabled]
        head = ["Name", "Role", "Since", ""]
        return said, table(head, rows, kind="people"), gr.Dropdown(choices=others, value=None)


def _person(person: User, admin: User) -> list[str]:
    acts = ""
    if not person.disabled:
        acts += action("link", person.id, "New link", title="One-time link to choose a new password")
    if not person.disabled and person.id != admin.id:
        acts += action("disable", person.id, "Disable", kind="danger", sure="Really disable?")
    you = ' <span class="quiet">you</span>' if person.id == admin.id else ""
    state = (
        chip("disabled", "bad")
        if person.disabled
        else chip(person.role, "good" if person.role is Role.ADMIN else "plain")
    )
    return [f"{escape(person.name)}{you}", state, when(person.created_at), f'<div class="acts">{acts}</div>']


def _not_oneself(admin: User, person: User) -> None:
    if admin.id == person.id:
        raise WrongState("Your own account", "in use by you", ["another admin's; ask one to do this"])

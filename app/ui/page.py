"""The whole page: header, and one tab for each thing people do, shown by role. app/main.py mounts it with LOOK.

Hiding a tab is courtesy; every handler asks app/ui/visitor.py for itself.
"""

from __future__ import annotations

from html import escape
from typing import Any

import gradio as gr

from app.chat import Upstream
from app.limits import Rate
from app.settings import AppSettings
from app.ui.chat import ChatTab
from app.ui.markup import chip
from app.ui.panel import panel
from app.ui.people import PeopleTab
from app.ui.rounds import RoundsTab
from app.ui.sealed_blocks import SealedBlocks
from app.ui.teach import TeachTab
from app.ui.theme import LOOK
from app.ui.visitor import plainly, visitor
from storage.records import Role, generation_name
from storage.store import Store

__all__ = ["LOOK", "build"]

SECONDS_BETWEEN_HEADERS = 10.0
CACHE_SECONDS = (3600, 24 * 3600)
"""How often Gradio looks for files that people attached and never sent, and how old they may grow."""
EVENTS_WAITING = 500


class Page:
    """Header and tabs."""

    def __init__(self, store: Store, upstream: Upstream, settings: AppSettings, uploads: Rate) -> None:
        self._store = store
        with SealedBlocks(
            title="LLaCA assistant", analytics_enabled=False, fill_width=True, delete_cache=CACHE_SECONDS
        ) as blocks:
            self._header = panel(name="header")
            with gr.Tabs(elem_id="tabs"):
                with gr.Tab("Chat", id="chat", elem_id="tab-chat") as self._chat_tab:
                    chat = ChatTab(store, upstream, settings)
                with gr.Tab("Teach", id="teach", elem_id="tab-teach", visible=False) as self._teach_tab:
                    teach = TeachTab(store, uploads)
                with gr.Tab("Rounds", id="rounds", elem_id="tab-rounds", visible=False) as self._rounds_tab:
                    rounds = RoundsTab(store)
                with gr.Tab("People", id="people", elem_id="tab-people", visible=False) as self._people_tab:
                    people = PeopleTab(store, settings)
            self._listen(blocks, chat, teach, rounds, people)
        self.blocks: gr.Blocks = blocks
        self.blocks.queue(max_size=EVENTS_WAITING, default_concurrency_limit=None, api_open=False)

    def _listen(
        self, blocks: gr.Blocks, chat: ChatTab, teach: TeachTab, rounds: RoundsTab, people: PeopleTab
    ) -> None:
        quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        tabs = [self._teach_tab, self._rounds_tab, self._people_tab]
        blocks.load(self.greet, None, [self._header, *tabs], **quiet)
        gr.Timer(SECONDS_BETWEEN_HEADERS).tick(self.header, None, self._header, **quiet)
        chat.listen(blocks)
        teach.listen(self._teach_tab)
        rounds.listen(self._rounds_tab)
        people.listen(self._people_tab)
        for tab in (self._chat_tab, self._teach_tab, self._people_tab):
            tab.select(rounds.rest, None, rounds.timer, **quiet)

    @plainly()
    def greet(self, request: gr.Request) -> tuple[Any, ...]:
        """Show who is here, which generation serves, and the tabs of their role."""
        role = visitor(self._store, request).role
        contributes, administers = role.allows(Role.CONTRIBUTOR), role.allows(Role.ADMIN)
        tabs = gr.Tab(visible=contributes), gr.Tab(visible=contributes), gr.Tab(visible=administers)
        return (self.header(request), *tabs)

    @plainly()
    def header(self, request: gr.Request) -> str:
        """Return the header as it is now; another generation may serve since the last time."""
        user = visitor(self._store, request)
        champion = generation_name(self._store.generations.champion())
        return (
            f'<header><a class="brand" href="/">{_MARK}<span>LLaCA</span></a>'
            f'<div class="who">{chip(champion, "good", "The generation that answers now")}'
            f'<span class="name">{escape(user.name)}</span>{chip(user.role)}'
            '<form method="post" action="/logout"><button class="act">Sign out</button></form></div></header>'
        )


_MARK = (
    '<svg viewBox="0 0 24 24" width="24" height="24" aria-hidden="true"><path fill="none" stroke="currentColor" '
    'stroke-width="2.2" stroke-linecap="round" stroke-linejoin="round" d="M4 19c4 0 4-6 8-6s4-8 8-8"/>'
    '<circle cx="4" cy="19" r="2" fill="currentColor"/><circle cx="12" cy="13" r="2" fill="currentColor"/>'
    '<circle cx="20" cy="5" r="2" fill="currentColor"/></svg>'
)


def build(store: Store, upstream: Upstream, settings: AppSettings, uploads: Rate) -> gr.Blocks:
    """Return the page; mount it with `LOOK`. Its uploads count with those of the API."""
    return Page(store, upstream, settings, uploads).blocks

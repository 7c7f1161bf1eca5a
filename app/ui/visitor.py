"""Who is behind an event of the page, and how a refusal is told. Every handler asks here and believes no page.

Hidden tabs and private endpoints are still callable by anybody who is signed in, so hiding is only courtesy.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import gradio as gr

from storage.errors import LlacaError, NotAllowed, NotSignedIn, UnknownUser
from storage.records import Role, User
from storage.store import Store


def visitor(store: Store, request: gr.Request, needed: Role = Role.CHAT) -> User:
    """Return the signed-in user; raise NotSignedIn, or NotAllowed if their role is less than `needed`."""
    try:
        user = store.users.by_name(request.username or "")
    except UnknownUser as error:
        raise NotSignedIn from error
    if user.disabled:
        raise NotSignedIn
    if not user.role.allows(needed):
        raise NotAllowed(user.role, needed)
    return user


@contextmanager
def plainly() -> Iterator[None]:
    """Let a LlacaError reach the reader as its own sentence instead of as a crash; around a handler, or within one."""
    try:
        yield
    except LlacaError as error:
        raise gr.Error(str(error), title="Not done", print_exception=False) from error

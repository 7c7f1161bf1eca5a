"""What handlers are given: the store, the way to vLLM, the settings, and the user the guard let in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, cast

from fastapi import Depends, Request

from app.chat import Upstream
from app.limits import Rate
from app.settings import AppSettings
from storage.records import User
from storage.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """One installation as the web process sees it."""

    store: Store
    upstream: Upstream
    settings: AppSettings
    uploads: Rate
    logins: Rate


def _context(request: Request) -> Context:
    return cast(Context, request.app.state.context)


def _user(request: Request) -> User:
    return cast(User, request.state.user)


InContext = Annotated[Context, Depends(_context)]
CurrentUser = Annotated[User, Depends(_user)]

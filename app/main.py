"""Puts the web application together: our routes, Gradio's page at `/`, and the guard around both.

Does not start a server (app/__main__.py) and holds no behaviour of its own.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import gradio
from fastapi import FastAPI, Request

from app.api import datasets, errors, files, health, models, openai_chat, rounds
from app.api.context import Context
from app.chat import Upstream
from app.guard import Guard
from app.limits import Rate
from app.metrics import StoreMetrics
from app.pages import sign_in
from app.settings import AppSettings
from app.ui import blobs_route, page
from storage.records import User
from storage.store import Store

ROUTERS = (openai_chat.router, models.router, files.router, datasets.router, rounds.router, health.router)


def build(store: Store, upstream: Upstream, settings: AppSettings) -> FastAPI:
    """Return the whole application; it closes `upstream` when it shuts down, the store stays the caller's."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await upstream.aclose()

    app = FastAPI(title="LLaCA assistant", version="1", docs_url=None, redoc_url=None, lifespan=lifespan)
    uploads = Rate(settings.uploads_per_minute)
    app.state.context = Context(
        store=store,
        upstream=upstream,
        settings=settings,
        uploads=uploads,
        logins=Rate(settings.logins_per_minute),
    )
    # Gradio reads this variable when blocks are made; what people attach then stays inside the data directory.
    os.environ["GRADIO_TEMP_DIR"] = str(store.temporary() / "gradio")
    upstream.metrics.registry.register(StoreMetrics(store))
    errors.install(app)
    for router in (*ROUTERS, sign_in.router, blobs_route.router):
        app.include_router(router)
    _mount_page(app, store, page.build(store, upstream, settings, uploads))
    app.add_middleware(Guard, store=store, settings=settings)
    return app


def _mount_page(app: FastAPI, store: Store, blocks: gradio.Blocks) -> None:
    gradio.mount_gradio_app(
        app,
        blocks,
        path="/",
        auth_dependency=_user_name,
        show_error=False,
        allowed_paths=[],
        max_file_size=store.settings.upload_max_bytes,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        **page.LOOK,
    )


def _user_name(request: Request) -> str:
    """Tell Gradio who asks: the guard has let nobody through without a user."""
    return cast(User, request.state.user).name

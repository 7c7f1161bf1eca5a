"""`python -m app` serves the web page and the HTTP API until SIGTERM or SIGINT."""

from __future__ import annotations

import sys
from typing import Any

import uvicorn

from app.chat import Upstream
from app.main import build
from app.settings import AppSettings
from serving.settings import ServingSettings
from storage.errors import LlacaError
from storage.settings import StorageSettings, load
from storage.store import Store

GRACE_SECONDS = 5
"""How long replies may go on after a stop was asked for."""
KEEP_ALIVE_SECONDS = 130
"""How long an idle connection stays open. Whoever keeps connections must be the first to close them, or a request meets
a connection that is being closed and is lost: httpx (and OpenAI's client) keeps them for 5 s, as long as uvicorn by
default, nginx for 60 s, Caddy for 120 s."""


def main() -> int:
    """Serve until told to stop; return 2 if a setting cannot be used."""
    try:
        settings, serving = load(AppSettings), load(ServingSettings)
        with Store(load(StorageSettings)) as store:
            _serve(store, settings, serving)
    except LlacaError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _serve(store: Store, settings: AppSettings, serving: ServingSettings) -> None:
    app = build(store, Upstream.connect(store, settings, serving), settings)
    uvicorn.run(app, host=settings.host, port=settings.port, **server_options(settings))


def server_options(settings: AppSettings) -> dict[str, Any]:
    """Return what uvicorn is told besides the address."""
    return {
        "proxy_headers": bool(settings.trusted_proxies),
        "forwarded_allow_ips": settings.trusted_proxies,
        "server_header": False,
        # One line per token poll of the page would bury everything else; the audit log has what matters.
        "access_log": False,
        "log_level": "info",
        "timeout_keep_alive": KEEP_ALIVE_SECONDS,
        "timeout_graceful_shutdown": GRACE_SECONDS,
    }


if __name__ == "__main__":
    raise SystemExit(main())

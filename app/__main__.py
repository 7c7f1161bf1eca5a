"""`python -m app` serves the web page and the HTTP API until SIGTERM or SIGINT."""

from __future__ import annotations

import sys

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
    uvicorn.run(
        build(store, Upstream.connect(store, settings, serving), settings),
        host=settings.host,
        port=settings.port,
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=settings.trusted_proxies,
        server_header=False,
        # One line per token poll of the page would bury everything else; the audit log has what matters.
        access_log=False,
        log_level="info",
        timeout_graceful_shutdown=GRACE_SECONDS,
    )


if __name__ == "__main__":
    raise SystemExit(main())

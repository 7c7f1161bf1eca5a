"""GET /health for people and load balancers, GET /metrics for Prometheus."""

from __future__ import annotations

import asyncio
import sqlite3
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from app.api.context import Context, InContext
from app.metrics import exposition
from serving.client import VLLM
from storage.errors import ServingUnavailable
from storage.records import generation_name
from storage.store import Store

router = APIRouter(tags=["health"])


@router.get("/health")
async def health(context: InContext) -> Response:
    """Say whether the web process, the database, each replica and the champion are well: 200 `ok`, else 503.

    `degraded` (200): somebody can be answered, but a replica is down or lacks the champion.
    """
    champion, adapters = _champion(context.store)
    replicas = await asyncio.gather(*(_replica(replica, adapters) for replica in context.upstream.replicas))
    status = _status(champion, replicas)
    body = {
        "status": status,
        "web": "ok",
        "database": "ok" if champion is not None else "failed",
        "champion": champion,
        "replicas": replicas,
    }
    return JSONResponse(body, status_code=503 if status == "unavailable" else 200)


def _status(champion: str | None, replicas: list[dict[str, Any]]) -> str:
    ready = [replica["healthy"] and replica["champion_loaded"] for replica in replicas]
    if champion is None or not any(ready):
        return "unavailable"
    return "ok" if all(ready) else "degraded"


def _champion(store: Store) -> tuple[str | None, set[str]]:
    """Return the champion's name, and those of its adapters."""
    try:
        champion = store.generations.champion()
        return generation_name(champion), set(map(generation_name, store.generations.adapters(champion)))
    except sqlite3.Error:
        return None, set()


async def _replica(replica: VLLM, adapters: set[str]) -> dict[str, Any]:
    healthy = await replica.healthy()
    try:
        loaded = bool(adapters) and healthy and adapters <= set(await replica.models())
    except ServingUnavailable:
        loaded = False
    return {"healthy": healthy, "champion_loaded": loaded}


@router.get("/metrics")
def metrics(context: InContext) -> Response:
    """Return Prometheus's text format; give the scraper an admin's API key."""
    return Response(_scrape(context), media_type=CONTENT_TYPE_LATEST)


def _scrape(context: Context) -> bytes:
    return exposition(context.upstream.metrics)

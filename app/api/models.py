"""GET /v1/models: the alias and every generation that can be asked for by its exact name."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from fastapi import APIRouter

from app.api.context import InContext
from storage.errors import UnknownModelName
from storage.records import ALIAS, generation_name
from storage.store import Store

router = APIRouter(prefix="/v1/models", tags=["models"])

OWNER = "llaca"


def unix(moment: str) -> int:
    """Return an ISO-8601 time as whole seconds since 1970, as OpenAI's objects carry it."""
    return int(datetime.fromisoformat(moment).timestamp())


def _models(store: Store) -> list[dict[str, Any]]:
    champion = store.generations.champion()
    created = {g.number: unix(g.created_at) for g in store.generations.list()}
    base = {"id": generation_name(0), "object": "model", "created": 0, "owned_by": OWNER, "parent": None}
    loaded = [
        base | {"id": generation_name(number), "created": created[number], "parent": base["id"]}
        for number in sorted(store.generations.serve_set(), reverse=True)
    ]
    alias = base | {"id": ALIAS, "created": created.get(champion, 0), "root": generation_name(champion)}
    return [alias, *loaded, base]


@router.get("")
def list_models(context: InContext) -> dict[str, Any]:
    """List the alias `assistant`, whose `root` is the generation that answers now, and the generations kept loaded."""
    return {"object": "list", "data": _models(context.store)}


@router.get("/{model}")
def get_model(model: str, context: InContext) -> dict[str, Any]:
    """Return one model of that list."""
    found = next((entry for entry in _models(context.store) if entry["id"] == model), None)
    if found is None:
        raise UnknownModelName(model)
    return found

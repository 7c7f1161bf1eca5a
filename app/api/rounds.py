"""Update rounds, the accuracy matrix and generations: look, start, cancel, roll back."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field, field_validator

from app.api.context import CurrentUser, InContext
from storage.records import Generation, Round, generation_name
from storage.store import Store

router = APIRouter(prefix="/v1", tags=["rounds"])


class RoundRequest(BaseModel):
    """The body of POST /v1/rounds; it may be left out."""

    model_config = ConfigDict(strict=True, extra="forbid", use_attribute_docstrings=True)

    policy: str = Field(default="", pattern=r"^([a-z][a-z0-9_]*(\+[a-z][a-z0-9_]*)*)?$", max_length=100)
    """The continual-learning method, or several joined by `+`; the learner's own if left out."""
    settings: dict[str, Any] = Field(default={}, max_length=100)
    """Learner settings of this round alone, by name; the learner refuses what it does not know."""

    @field_validator("settings")
    @classmethod
    def _can_be_shown(cls, settings: dict[str, Any]) -> dict[str, Any]:
        try:
            json.dumps(settings, allow_nan=False, ensure_ascii=False).encode()
        except ValueError as error:
            raise ValueError(f"finite numbers and whole characters ({error})") from error
        return settings


class RollbackRequest(BaseModel):
    """The body of POST /v1/generations/rollback; it may be left out."""

    model_config = ConfigDict(strict=True, extra="forbid", use_attribute_docstrings=True)

    to: int | None = Field(default=None, ge=0, le=2**63 - 1)
    """An earlier generation that has served; without it the champion's parent."""
    expected: int | None = Field(default=None, ge=0, le=2**63 - 1)
    """Roll back only if this generation serves now; else 409."""


def round_object(store: Store, found: Round) -> dict[str, Any]:
    """Return a round as people and scripts see it: without the worker's lease, with its datasets."""
    fields = asdict(found)
    del fields["lease"]
    return {"object": "round"} | fields | {"datasets": store.rounds.dataset_ids(found.id)}


def generation_object(found: Generation, champion: int) -> dict[str, Any]:
    """Return a generation without its place on disk."""
    fields = asdict(found)
    del fields["directory"]
    return {"object": "generation", "name": found.name} | fields | {"serving": found.number == champion}


@router.post("/rounds")
def start(context: InContext, user: CurrentUser, body: RoundRequest | None = None) -> dict[str, Any]:
    """Ask for a round over the queued datasets, group by group; 409 if there is none or a round is unfinished."""
    wanted = body or RoundRequest()
    found = context.store.rounds.enqueue(user.name, policy=wanted.policy, settings=wanted.settings)
    return round_object(context.store, found)


@router.get("/rounds")
def list_rounds(context: InContext, limit: Annotated[int, Query(ge=1, le=1000)] = 50) -> dict[str, Any]:
    """List rounds, newest first."""
    data = [round_object(context.store, found) for found in context.store.rounds.list(limit)]
    return {"object": "list", "data": data}


@router.get("/rounds/{round_id}")
def get_round(
    round_id: int,
    context: InContext,
    after_event: Annotated[int, Query(ge=0)] = 0,
    after_step: Annotated[int, Query(ge=-1)] = -1,
) -> dict[str, Any]:
    """Return one round with its verdict, the events after `after_event` and the step metrics after `after_step`."""
    rounds = context.store.rounds
    return round_object(context.store, rounds.get(round_id)) | {
        "events": [asdict(event) for event in rounds.events(round_id, after_event)],
        "metrics": [{"step": m.step} | m.values for m in rounds.metrics(round_id, after_step)],
    }


@router.post("/rounds/{round_id}/cancel")
def cancel(round_id: int, context: InContext, user: CurrentUser) -> dict[str, Any]:
    """Stop a round: at once if it waits, else at the worker's next heartbeat; 409 if it has ended."""
    return round_object(context.store, context.store.rounds.cancel(round_id, user.name))


@router.get("/matrix")
def matrix(context: InContext) -> dict[str, Any]:
    """Return the accuracy matrix: `values[i][j]` is generation i's mean holdout score on dataset j, or null."""
    return {"object": "matrix"} | asdict(context.store.evaluations.matrix())


@router.get("/generations")
def list_generations(context: InContext) -> dict[str, Any]:
    """List generations, newest first, with who made which of them serve and when."""
    generations = context.store.generations
    champion = generations.champion()
    return {
        "object": "list",
        "champion": generation_name(champion),
        "data": [generation_object(found, champion) for found in generations.list()],
        "history": [asdict(change) for change in generations.history()],
    }


@router.post("/generations/rollback")
def roll_back(context: InContext, user: CurrentUser, body: RollbackRequest | None = None) -> dict[str, Any]:
    """Let an earlier generation serve again, and set aside the datasets that it has not learned.

    Replies that are being written end on the generation they began with.
    """
    wanted = body or RollbackRequest()
    number = context.store.generations.roll_back(user.name, to=wanted.to, expected=wanted.expected)
    return {"object": "rollback", "champion": generation_name(number), "generation": number}

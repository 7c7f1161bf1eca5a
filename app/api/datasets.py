"""/v1/datasets: what became of uploads, and an admin's approval."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter

from app.api.context import CurrentUser, InContext
from storage.errors import UnknownDataset
from storage.records import Dataset, Role, User

router = APIRouter(prefix="/v1/datasets", tags=["datasets"])


def _visible(dataset: Dataset, user: User) -> bool:
    return dataset.user_id == user.id or user.role.allows(Role.ADMIN)


@router.get("")
def list_datasets(context: InContext, user: CurrentUser) -> dict[str, Any]:
    """List your datasets in the order in which they came; an admin sees everybody's."""
    data = [asdict(dataset) for dataset in context.store.datasets.list() if _visible(dataset, user)]
    return {"object": "list", "data": data}


@router.get("/{dataset_id}")
def get_dataset(dataset_id: int, context: InContext, user: CurrentUser) -> dict[str, Any]:
    """Return one dataset: its state, its rows' split, who approved it."""
    dataset = context.store.datasets.get(dataset_id)
    if not _visible(dataset, user):
        raise UnknownDataset(dataset_id)
    return asdict(dataset)


@router.post("/{dataset_id}/approve")
def approve(dataset_id: int, context: InContext, user: CurrentUser) -> dict[str, Any]:
    """Queue a dataset that waits for approval or was set aside, for the next round."""
    return asdict(context.store.datasets.approve(dataset_id, user.name))

"""Whole rounds against a fake server: the installation they run in, and a worker that carries one to its end."""

from __future__ import annotations

from pathlib import Path

from learner.lease import Lease
from learner.round import RoundStory
from learner.settings import LearnerSettings
from serving.settings import ServingSettings
from storage.records import Round
from storage.store import Store


def installation(url: str, tmp_path: Path) -> ServingSettings:
    """Return settings with this server, and with a base model that nobody loads."""
    base = tmp_path / "base"
    base.mkdir()
    for name in ("config.json", "model.safetensors"):
        (base / name).write_text("{}")
    return ServingSettings(model=str(base), replicas=[url])


def tell(store: Store, serving: ServingSettings) -> Round:
    """Claim the round that waits and carry it to its end."""
    claimed = store.rounds.claim("test", 60)
    assert claimed is not None
    with Lease(store, claimed, lease_seconds=60, heartbeat_seconds=5) as lease:
        RoundStory(store, claimed, lease, LearnerSettings(), serving).tell()
    return store.rounds.get(claimed.id)

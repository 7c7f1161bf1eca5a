"""What Prometheus may read: chats as they pass through, and the state of the store at the moment of asking.

Has its own registry, so nothing that a library registers globally is published.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from app.limits import Admission
from storage.records import DatasetState, RoundState
from storage.store import Store

FIRST_TOKEN_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class ChatMetrics:
    """Counts and times of replies; `app/chat.py` writes them."""

    def __init__(self, admission: Admission) -> None:
        self.registry = CollectorRegistry()
        self.replies = Counter(
            "llaca_replies",
            "Replies by generation and outcome: complete, interrupted (by the server), stopped (by the reader).",
            ["generation", "outcome"],
            registry=self.registry,
        )
        self.refused = Counter("llaca_refused_chats", "Chats refused before the first token, by error.", ["code"],
                               registry=self.registry)  # fmt: skip
        self.tokens = Counter("llaca_tokens", "Tokens of replies, by kind: prompt, completion.", ["kind"],
                              registry=self.registry)  # fmt: skip
        self.first_token = Histogram(
            "llaca_first_token_seconds",
            "Seconds from admission to the first piece of text.",
            buckets=FIRST_TOKEN_BUCKETS,
            registry=self.registry,
        )
        running = Gauge("llaca_chats_running", "Replies being written.", registry=self.registry)
        running.set_function(lambda: admission.running)
        waiting = Gauge("llaca_chats_waiting", "Replies waiting for a free place.", registry=self.registry)
        waiting.set_function(lambda: admission.waiting)


class StoreMetrics(Collector):
    """The loop's state, read from the store at every scrape."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def collect(self) -> Iterator[Metric]:
        """Yield queue depth, round states, the champion, and accuracy and forgetting per task."""
        yield _by_label(
            "llaca_datasets", "Datasets by state; `queued` is the depth of the learning queue.", "state",
            {str(s): len(self._store.datasets.list(s)) for s in DatasetState},
        )  # fmt: skip
        unfinished = self._store.rounds.unfinished()
        yield _by_label(
            "llaca_round_state", "1 for the state of the round that is queued or running, else 0.", "state",
            {str(s): float(unfinished is not None and unfinished.state is s) for s in RoundState if not s.ended},
        )  # fmt: skip
        yield GaugeMetricFamily(
            "llaca_champion_generation", "Number of the generation that answers people; 0 is the base model.",
            value=self._store.generations.champion(),
        )  # fmt: skip
        yield from self._accuracy()

    def _accuracy(self) -> Iterator[Metric]:
        now, forgotten = {}, {}
        matrix = self._store.evaluations.matrix()
        served = self._store.generations.served()
        champion = self._store.generations.champion()
        rows = dict(zip(matrix.generations, matrix.values, strict=True))
        for column, dataset in enumerate(matrix.datasets):
            scores = [
                rows[g][column] for g in matrix.generations if g in served and rows[g][column] is not None
            ]
            current = rows[champion][column] if champion in rows else None
            if current is not None:
                now[str(dataset)] = current
                forgotten[str(dataset)] = max(score for score in scores if score is not None) - current
        yield _by_label(
            "llaca_task_accuracy", "Champion's holdout score (0 to 1) per dataset.", "dataset", now
        )
        yield _by_label(
            "llaca_task_forgetting", "Best score any served generation had on a dataset, minus the champion's.",
            "dataset", forgotten,
        )  # fmt: skip


def _by_label(name: str, text: str, label: str, values: dict[str, float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=[label])
    for value, number in values.items():
        family.add_metric([value], number)
    return family


def exposition(metrics: ChatMetrics) -> bytes:
    """Return everything registered in Prometheus's text format."""
    return generate_latest(metrics.registry)

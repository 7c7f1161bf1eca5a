"""When to look: APScheduler wakes the worker and asks for rounds by the clock. What is true stands in the tables.

The job store is the memory of this process: a schedule is a setting, not something to remember, and a store that
two schedulers share runs jobs twice (APScheduler's FAQ).
"""

from __future__ import annotations

import structlog
from apscheduler.schedulers.background import BackgroundScheduler

from learner.settings import LearnerSettings, trigger_of
from learner.worker import Worker
from storage.errors import NothingToLearn, RoundInProgress
from storage.records import DatasetState
from storage.store import Store

log = structlog.get_logger()

LOOK_SECONDS = 1.0


def ask_for_round(store: Store, settings: LearnerSettings) -> bool:
    """Ask for a round if enough rows wait; return whether one was asked for."""
    queued = store.datasets.list(DatasetState.QUEUED)
    if sum(dataset.train_rows for dataset in queued) < settings.minimum_rows:
        return False
    try:
        store.rounds.enqueue("schedule", settings.policy)
    except (NothingToLearn, RoundInProgress) as reason:
        log.info("no scheduled round", reason=str(reason))
        return False
    return True


def start(store: Store, settings: LearnerSettings, worker: Worker) -> BackgroundScheduler:
    """Start waking the worker every second, asking for rounds if a crontab is set, and removing unused pictures.

    The caller shuts it down.
    """
    scheduler = BackgroundScheduler()
    scheduler.add_job(
        worker.wake, "interval", seconds=LOOK_SECONDS, max_instances=1, coalesce=True, misfire_grace_time=None
    )
    scheduler.add_job(
        store.blobs.sweep, "interval", hours=1, max_instances=1, coalesce=True, misfire_grace_time=None
    )
    if settings.cron:
        # One late run after a pause, however many were missed: the round takes everything that waits anyway.
        scheduler.add_job(
            ask_for_round,
            trigger_of(settings.cron),
            args=[store, settings],
            max_instances=1,
            coalesce=True,
            misfire_grace_time=None,
        )
    scheduler.start()
    return scheduler

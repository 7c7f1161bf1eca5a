"""What schedule and lease promise: rounds are asked for when there is something, and a lost lease is noticed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from learner.lease import Lease
from learner.schedule import ask_for_round, start
from learner.settings import LearnerSettings
from learner.worker import Worker
from storage.errors import LeaseLost, RoundCancelled, WorkerStopping
from storage.records import User
from storage.store import Store
from tests.conftest import questions
from tests.serving.adapters import claimed_round

SECONDS = 10


def until(true: Callable[[], bool]) -> None:
    """Wait until something is true; fail after a while."""
    deadline = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_schedule_asks_only_if_enough_rows_wait(store: Store, admin: User) -> None:
    """Nothing queued, or fewer rows than wanted, asks for nothing; a round in progress is left alone."""
    assert not ask_for_round(store, LearnerSettings())
    store.datasets.add("numbers", admin.id, questions(10), approved_by=admin.name)
    assert not ask_for_round(store, LearnerSettings(minimum_rows=9))
    assert ask_for_round(store, LearnerSettings(minimum_rows=8, policy="ema"))
    assert store.rounds.list()[0].policy == "ema"
    assert not ask_for_round(store, LearnerSettings())


def test_a_crontab_becomes_one_job_that_never_piles_up(store: Store) -> None:
    """With a crontab there is a second job, which runs once however often it was missed."""
    settings = LearnerSettings(cron="0 3 * * 1")
    scheduler = start(store, settings, Worker(store, settings))
    try:
        look, ask = scheduler.get_jobs()
        assert (look.func.__name__, ask.func) == ("wake", ask_for_round)
        assert all(job.coalesce and job.max_instances == 1 for job in (look, ask))
    finally:
        scheduler.shutdown()


def test_a_worker_that_is_stopped_ends(store: Store) -> None:
    """A worker with nothing to do waits for being woken, and stops when told to."""
    worker = Worker(store, LearnerSettings())
    thread = threading.Thread(target=worker.run, daemon=True)
    thread.start()
    worker.wake()
    worker.stop()
    thread.join(SECONDS)
    assert not thread.is_alive()


def test_a_lease_is_renewed_and_tells_when_to_stop(store: Store, admin: User) -> None:
    """While held nobody else gets the round; a cancel and a stop are told apart."""
    claimed = claimed_round(store, admin)
    with Lease(store, claimed, lease_seconds=2, heartbeat_seconds=0.1) as lease:
        time.sleep(3)
        assert store.rounds.claim("rival", 30) is None
        lease.check()
        lease.stop()
        with pytest.raises(WorkerStopping):
            lease.check()
        store.rounds.cancel(claimed.id, "ada")
        until(lambda: isinstance(reason(lease), RoundCancelled))


def test_a_lost_lease_is_noticed(store: Store, admin: User) -> None:
    """Once another worker holds the round, the first is told to stop at its next heartbeat."""
    claimed = claimed_round(store, admin)
    with Lease(store, claimed, lease_seconds=30, heartbeat_seconds=0.05) as lease:
        store.database.run("UPDATE rounds SET lease = 'another' WHERE id = ?", [claimed.id])
        until(lease.should_stop)
        with pytest.raises(LeaseLost):
            lease.check()


def reason(lease: Lease) -> Exception | None:
    """Return why the lease says to stop."""
    try:
        lease.check()
    except (LeaseLost, RoundCancelled, WorkerStopping) as error:
        return error
    return None

"""What schedule and lease promise: rounds are asked for when there is something, and a lost lease is noticed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from learner.lease import Lease
from learner.schedule import ask_for_round, start
from learner.settings import LearnerSettings, trigger_of
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
    """With a crontab there is one job more, which runs once however often it was missed."""
    settings = LearnerSettings(cron="0 3 * * 1")
    scheduler = start(store, settings, Worker(store, settings))
    try:
        jobs = {job.func.__name__: job for job in scheduler.get_jobs()}
        assert jobs.keys() == {"wake", "sweep", "ask_for_round"}
        assert all(job.coalesce and job.max_instances == 1 for job in jobs.values())
        ask = jobs["ask_for_round"]
        assert f"{ask.next_run_time:%a %H:%M}" == "Mon 03:00"
    finally:
        scheduler.shutdown()


@pytest.mark.parametrize(
    ("weekdays", "expected"),
    [
        ("*", "Mon Tue Wed Thu Fri Sat Sun"),
        ("0", "Sun"),
        ("7", "Sun"),
        ("mon", "Mon"),
        ("1-5", "Mon Tue Wed Thu Fri"),
        ("MON-fri/2", "Mon Wed Fri"),
        ("0,6", "Sat Sun"),
        ("*/2", "Tue Thu Sat Sun"),
        ("1/2", "Mon Wed Fri"),
        ("5-7", "Fri Sat Sun"),
        ("0-7", "Mon Tue Wed Thu Fri Sat Sun"),
        ("sun-tue,5", "Mon Tue Fri Sun"),
        ("sat-mon", "Mon Sat Sun"),
    ],
)
def test_weekdays_are_those_of_a_crontab(weekdays: str, expected: str) -> None:
    """0 and 7 are Sunday, in lists, ranges and steps as well, and a range may go on beyond it."""
    trigger = trigger_of(f"0 3 * * {weekdays}", UTC)
    monday = datetime(2026, 11, 30, tzinfo=UTC)
    days = [monday + timedelta(days=day) for day in range(7)]
    fired = [day for day in days if trigger.get_next_fire_time(None, day) == day.replace(hour=3)]
    assert " ".join(f"{day:%a}" for day in fired) == expected


@pytest.mark.parametrize(
    "crontab", ["0 3 * * 8", "0 3 * * 1-8", "0 3 * * */0", "0 3 * * day", "0 3 * * 1,", "0 3 * *", " "]
)
def test_what_is_no_crontab_is_refused(crontab: str) -> None:
    """A weekday that there is not, and fields too few, are an error of the setting."""
    with pytest.raises(ValueError, match=r"sun to sat|number of fields"):
        LearnerSettings(cron=crontab)


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
        with pytest.raises(LeaseLost):
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

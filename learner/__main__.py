"""`python -m learner` works through the queue; `python -m learner round ID LEASE` carries one claimed round."""

from __future__ import annotations

import argparse
import signal
import sys

from learner.schedule import start
from learner.settings import LearnerSettings
from learner.worker import Worker, run_claimed
from serving.settings import ServingSettings
from storage.errors import LeaseLost, LlacaError
from storage.settings import StorageSettings, load
from storage.store import Store


def main() -> int:
    """Run the learner until SIGTERM or SIGINT, or one round; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m learner", description=__doc__)
    commands = parser.add_subparsers(dest="command")
    one = commands.add_parser(
        "round", help="carry one claimed round to its end (the learner starts this itself)"
    )
    one.add_argument("id", type=int)
    one.add_argument("lease")
    arguments = parser.parse_args()
    try:
        settings = load(LearnerSettings)
        with Store(load(StorageSettings)) as store:
            if arguments.command == "round":
                return _round(store, arguments.id, arguments.lease, settings)
            return _work(store, settings)
    except LlacaError as error:
        print(error, file=sys.stderr)
        return 2


def _work(store: Store, settings: LearnerSettings) -> int:
    worker = Worker(store, settings)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _signal, _frame: worker.stop())
    scheduler = start(store, settings, worker)
    store.processes.announce("learner", {"cron": settings.cron})
    worker.run()
    scheduler.shutdown()
    return 0


def _round(store: Store, round_id: int, lease: str, settings: LearnerSettings) -> int:
    try:
        claimed = store.rounds.heartbeat(round_id, lease, settings.lease_seconds)
        run_claimed(store, claimed, settings, load(ServingSettings))
    except LeaseLost as error:
        print(error, file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

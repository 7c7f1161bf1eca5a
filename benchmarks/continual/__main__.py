"""`python -m benchmarks.continual`: teaches tasks one after the other by several methods, and says what each forgets.

    python -m benchmarks.continual --quick                       the short form, for two cores
    python -m benchmarks.continual --alike                       as few rows; its tasks ask in the same words
    python -m benchmarks.continual --methods sequential,llaca+replay:replay_rows=32,ema:ema_decay=0.9
    python -m benchmarks.continual --dataset vizwiz=vizwiz/train.json:vizwiz/images --tasks vizwiz,count
    python -m benchmarks.continual --quick --report              write tables and pictures to docs/

A method is a policy of the learner with settings of its own, joined by `:`. The setting `groups` is the benchmark's:
one adapter for each group of tasks whose instructions are at least so similar (0 to 1). So are the methods `eproj`,
`prompt` and `prefix`, which no server can swap: eproj:similarity=0.5, prompt:tokens=16:pegp=0.95. What was measured
before in the same directory is not measured again, so a benchmark that was stopped is simply started again.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.continual import drawn, files, plots
from benchmarks.continual.choose import teacher_of
from benchmarks.continual.general import suite
from benchmarks.continual.protocol import (
    FORMS,
    FULL,
    METHODS,
    ORDERS,
    Form,
    Method,
    Protocol,
    agree,
    method,
    pair,
    setting,
)
from benchmarks.continual.report import EXAMPLES, report
from benchmarks.continual.run import Bench, measure_base, run
from benchmarks.continual.tasks import Pictures, Task
from serving.base_model import resolve
from serving.settings import ServingSettings
from storage.errors import LlacaError
from storage.settings import StorageSettings, load


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for; return 2 if it cannot be done."""
    parser = parser_of_arguments()
    given = parser.parse_args(arguments)
    form = form_of(given)
    directory = given.work / (given.name or form.name)
    try:
        if given.report:
            print(report(directory, given.docs))
            return 0
        methods = [method(label) for label in given.methods.split(",")]
        bench = prepared(given, form, directory, methods)
        plots.examples(list(bench.tasks.values()), bench.pictures, directory / EXAMPLES)
        measure_base(bench)
        # Seeds outside: after the first of them there is something to look at for every method.
        for seed in form.seeds:
            for order in form.orders:
                for chosen in methods:
                    run(bench, chosen, order, seed)
    except (LlacaError, OSError, ValueError) as error:
        print(error)
        return 2
    return 0


def parser_of_arguments() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.continual",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--quick", action="store_const", dest="form", const="quick", default="full",
        help="the short form; says what it leaves out",
    )  # fmt: skip
    parser.add_argument(
        "--alike", action="store_const", dest="form", const="alike",
        help="as few rows; its tasks ask in the same words, so that groups do not keep them apart",
    )  # fmt: skip
    parser.add_argument(
        "--report", action="store_true", help="write tables and pictures of what was measured"
    )
    parser.add_argument(
        "--base", default="", help="directory or Hub id of the base model (default: the embedded one)"
    )
    parser.add_argument("--methods", default=METHODS, help=f"joined by commas (default: {METHODS})")
    parser.add_argument("--tasks", help="joined by commas, in this order (default: all of the form)")
    parser.add_argument(
        "--dataset", action="append", default=[], metavar="NAME=FILE:IMAGES",
        help="one more task: a data file and the directory of its pictures",
    )  # fmt: skip
    parser.add_argument("--orders", help=f"of the tasks, joined by commas: {', '.join(ORDERS)}")
    parser.add_argument("--seeds", help="numbers joined by commas")
    parser.add_argument("--rows", type=int, help="most rows that a task teaches")
    parser.add_argument("--holdout", type=int, help="most rows that a task is asked")
    parser.add_argument("--general", type=int, help="questions of each ability of the general suite")
    parser.add_argument("--epochs", type=int, help="how often a round sees each row")
    parser.add_argument(
        "--set", action="append", default=[], metavar="SETTING=VALUE", help="of the learner, for all methods"
    )
    parser.add_argument("--batch", type=int, default=32, help="rows that are asked together (default: 32)")
    parser.add_argument(
        "--cache", type=Path, default=Path("data/recipe/cache"), help="where emoji and typefaces are"
    )
    parser.add_argument("--work", type=Path, default=Path("data/continual"), help="where results are kept")
    parser.add_argument("--name", help="directory of the results below --work (default: that of the form)")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="where --report writes")
    return parser


def form_of(given: argparse.Namespace) -> Form:
    """Return how much is to be done: one of the forms, with what the command line changes."""
    form = FORMS[given.form]
    changed = {name: getattr(given, name) for name in ("rows", "holdout", "general", "epochs")}
    changed |= {
        "tasks": tuple(given.tasks.split(",")) if given.tasks else None,
        "orders": tuple(given.orders.split(",")) if given.orders else None,
        "seeds": tuple(int(seed) for seed in given.seeds.split(",")) if given.seeds else None,
    }
    return replace(form, **{name: value for name, value in changed.items() if value is not None})


def prepared(given: argparse.Namespace, form: Form, directory: Path, methods: Sequence[Method]) -> Bench:
    """Check what can be checked before hours of work, build the tasks and find the base model.

    Raises ValueError or a LlacaError that says what is wrong.
    """
    for order in form.orders:
        if order not in ORDERS:
            raise ValueError(f"no order {order!r}; there are {', '.join(ORDERS)}")
    learner = dict([("epochs", form.epochs), *map(setting, given.set)])
    teachers = [teacher_of(chosen, learner, seed=0) for chosen in methods]
    pictures = Pictures()
    tasks, general = tasks_of(given, form, pictures)
    for cut in replace(form, tasks=tuple(tasks)).cuts(FULL):
        print(f"against the full form: {cut}")
    base = resolve(load(ServingSettings, {"model": given.base}), load(StorageSettings).data_dir)
    for teacher in teachers:
        teacher.check(base)
    rows = "".join(task.fingerprint for task in (*tasks.values(), *general))
    protocol = Protocol(
        base=base.name,
        tasks=tuple(tasks),
        rows=form.rows,
        holdout=form.holdout,
        general=form.general,
        learner=learner,
        data=hashlib.sha256(rows.encode()).hexdigest()[:16],
    )
    agree(protocol, directory)
    return Bench(
        protocol=protocol,
        base=base,
        tasks=tasks,
        general=general,
        pictures=pictures,
        directory=directory,
        batch_size=given.batch,
    )


def tasks_of(given: argparse.Namespace, form: Form, pictures: Pictures) -> tuple[dict[str, Task], list[Task]]:
    """Build the tasks, in the order in which they were named, and the general suite.

    Without --tasks, those of --dataset come after the form's.
    """
    datasets = dict(pair(text) for text in given.dataset)
    names = list(dict.fromkeys([*form.tasks, *datasets]))
    sources = {name: drawn.source_of(name, datasets) for name in names if name not in datasets}
    # Who brings all tasks and asks no general questions needs neither emoji nor typefaces.
    needed = form.general > 0 or bool(sources)
    artist = drawn.sources_fetched(given.cache) if needed else None
    tasks = {}
    for name in names:
        if name in datasets:
            file, _, images = datasets[name].partition(":")
            tasks[name] = files.build(
                name,
                Path(file),
                Path(images or Path(file).parent),
                pictures,
                rows=form.rows,
                holdout=form.holdout,
            )
        elif artist is not None:
            tasks[name] = drawn.build(
                sources[name], artist, given.cache, pictures, rows=form.rows, holdout=form.holdout
            )
    general = suite(artist, pictures, form.general) if artist is not None and form.general > 0 else []
    return tasks, general


if __name__ == "__main__":
    raise SystemExit(main())

"""Writes what was measured to docs/: a page with all tables and pictures, and its main table into docs/continual.md.

The lines that everything was computed from go there as well, so that another machine can add to them.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from benchmarks.continual import plots, tables
from benchmarks.continual.protocol import FILE as PROTOCOL_FILE
from benchmarks.continual.protocol import Protocol, read
from benchmarks.continual.results import FILE as RESULTS_FILE
from benchmarks.continual.results import Results, Round
from benchmarks.continual.summary import base_of, finished

EXAMPLES = "examples.png"
NOT_SERVED = (
    "Methods without an adapter to serve train projectors, prompts or prefixes, which vLLM cannot swap."
)


def report(directory: Path, docs: Path) -> Path:
    """Write `docs`/continual/NAME.md with its pictures, NAME being the directory's, and return its path.

    Where docs/continual.md has the markers `<!-- NAME -->` and `<!-- end of NAME -->`, the main table is put between
    them. Raises ValueError if no run has come to its end.
    """
    rounds = Results(directory).rounds()
    runs = finished(rounds)
    if not runs:
        raise ValueError(f"no finished run in {directory}")
    base, name = base_of(rounds), directory.name
    folder = docs / "continual"
    folder.mkdir(parents=True, exist_ok=True)

    plots.stability_against_plasticity(runs, folder / f"{name}-plane.png")
    orders = sorted({run.order for mine in runs.values() for run in mine})
    for order in orders:
        plots.matrices(runs, order, folder / f"{name}-{order}.png")
    kept = folder / name
    kept.mkdir(exist_ok=True)
    if not kept.samefile(directory):  # else they are there already, and the examples beside them
        shutil.copyfile(directory / EXAMPLES, folder / f"{name}-{EXAMPLES}")
        for raw in (PROTOCOL_FILE, RESULTS_FILE):
            shutil.copyfile(directory / raw, kept / raw)

    main = tables.accuracies(runs, base)
    parts = [
        f"# Results, {name} form",
        "Written by `python -m benchmarks.continual --report`; [what is measured, and how](../continual.md).",
        described(read(directory), rounds),
        "## Learning and forgetting",
        main,
        f"![New-task accuracy and forgetting of each method]({name}-plane.png)",
        "## Each order by itself",
        tables.by_order(runs, orders),
        "## Each task after the last round",
        "Accuracy in percent; in brackets the answers in the form that was taught, right or wrong.",
        tables.per_task(runs, base),
        "## Accuracy matrices",
        "Lines are rounds, columns tasks; means over seeds.",
        *[f"Order `{order}`:\n\n![Accuracy matrices, order {order}]({name}-{order}.png)" for order in orders],
        "## Cost",
        tables.costs(runs),
    ]
    if any(run.costs[-1].adapters == 0 for mine in runs.values() for run in mine):
        parts.append(NOT_SERVED)
    if base is not None and base.general:
        parts += ["## General suite", "Accuracy in percent after the last round.", tables.general(runs, base)]
    parts += ["## The tasks", f"![One example of each task]({name}-{EXAMPLES})"]
    parts += ["## Raw lines", f"[One line of JSON for each round]({name}/{RESULTS_FILE}), with some answers."]
    page = folder / f"{name}.md"
    page.write_text("\n\n".join(parts) + "\n", encoding="utf-8")

    picture = f"![New-task accuracy and forgetting of each method](continual/{name}-plane.png)"
    details = f"[All tables and pictures](continual/{name}.md)"
    fill(
        docs / "continual.md", name, "\n\n".join([described(read(directory), rounds), main, picture, details])
    )
    return page


def described(protocol: Protocol, rounds: Sequence[Round]) -> str:
    """Say in a paragraph under which conditions the figures came about."""
    # A line without settings is the base model's: it is asked, and learns nothing.
    seeds = sorted({one.seed for one in rounds if one.settings})
    orders = sorted({one.order for one in rounds if one.settings})
    shared = ", ".join(f"{name} {value}" for name, value in protocol.learner.items())
    machines = " and ".join(sorted({one.machine for one in rounds}))
    days = " to ".join(dict.fromkeys(pick(one.at for one in rounds)[:10] for pick in (min, max)))
    return (
        f"Base model `{protocol.base}`; tasks {', '.join(protocol.tasks)}; up to {protocol.rows} rows to learn and "
        f"{protocol.holdout} to be asked per task; orders {', '.join(orders)}; seeds {', '.join(map(str, seeds))}; "
        f"{shared}. On {machines}, {days}."
    )


def fill(page: Path, name: str, text: str) -> None:
    """Put text between the markers of a name, if the page is there and has them."""
    if not page.exists():
        return
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    filled = re.sub(
        f"{re.escape(begin)}.*{re.escape(end)}",
        lambda _: f"{begin}\n\n{text}\n\n{end}",  # a function's result may hold backslashes
        page.read_text(encoding="utf-8"),
        flags=re.DOTALL,
    )
    page.write_text(filled, encoding="utf-8")

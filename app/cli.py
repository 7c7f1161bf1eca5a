"""The command `llaca`: everything an admin does without a browser, on the data directory itself.

Exit codes: 0 done, 1 refused or unhealthy, 2 used wrongly. `--json` prints one JSON document to stdout, also for an
error; sentences for people go to stderr then.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from app.settings import AppSettings
from storage.errors import BadField, LlacaError
from storage.intake import receive
from storage.records import DatasetState, Role, RoundState, SubmissionState, generation_name
from storage.settings import StorageSettings, load
from storage.store import Store

ACTOR = "command line"
POLL_SECONDS = 1.0

cli = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
    help="Run, teach and watch a LLaCA assistant.",
)
data = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Datasets: add, look at, approve.")
rounds = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Update rounds: start, watch, cancel.")
generations = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Generations of the model: list, roll back."
)
users = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="People: add, list, change role, one-time link, API key.",
)
for name, group in (("data", data), ("rounds", rounds), ("generations", generations), ("users", users)):
    cli.add_typer(group, name=name)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@contextmanager
def _store(as_json: bool) -> Iterator[Store]:
    """Open the data directory; say an expected error as one sentence, with `--json` as JSON, and exit 1."""
    try:
        with Store(load(StorageSettings)) as store:
            yield store
    except LlacaError as error:
        if as_json:
            _show_json({"error": {"code": error.code, "message": str(error)}})
        typer.echo(f"llaca: {error}", err=True)
        raise typer.Exit(1) from error


def _show(as_json: bool, value: Any, text: str) -> None:
    if as_json:
        _show_json(value)
    else:
        typer.echo(text)


def _show_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def _table(rows: list[dict[str, Any]], columns: list[str], nothing: str) -> str:
    if not rows:
        return nothing
    cells = [columns, *([str("" if row[c] is None else row[c]) for c in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in cells
    )


@cli.command()
def up() -> None:
    """Start vLLM, the learner and the web page, and keep them running until Ctrl-C."""
    from app.up import run  # here, because it alone needs the process supervisor

    raise typer.Exit(run())


@cli.command()
def doctor(as_json: Json = False) -> None:
    """Check this machine and installation; exit 1 if something would not work."""
    from app.doctor import examine

    checks = examine()
    _show(as_json, [asdict(check) for check in checks], "\n".join(str(check) for check in checks))
    raise typer.Exit(0 if all(check.ok for check in checks) else 1)


@cli.command()
def logs(
    name: Annotated[str, typer.Argument(help="vllm, serving, learner, app, or round-N.")] = "vllm",
    lines: Annotated[int, typer.Option(min=1, max=10_000, help="How many lines, from the end.")] = 50,
    as_json: Json = False,
) -> None:
    """Show the end of a process's log; exit 1 if there is none of this name."""
    from serving.supervise import tail

    with _store(as_json) as store:
        directory = store.data_dir / "logs"
        found = sorted(path.stem for path in directory.glob("*.log"))
        if name not in found:
            raise BadField("NAME", name, ", ".join(found) or "nothing yet; `llaca up` writes logs")
        text = tail(directory / f"{name}.log", lines)
    _show(as_json, {"name": name, "lines": text.splitlines()}, text)


# --- data ------------------------------------------------------------------------------------------------------


@data.command("add")
def data_add(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, readable=True)],
    as_user: Annotated[str, typer.Option("--user", help="Whose upload it is.")] = "admin",
    title: Annotated[str | None, typer.Option("--name", help="Name of the dataset.")] = None,
    as_json: Json = False,
) -> None:
    """Check a dataset file and queue it; one of a user who is no admin waits for approval. Exit 1 if it is rejected."""
    with _store(as_json) as store:
        user = store.users.by_name(as_user)
        approved_by = user.name if user.role is Role.ADMIN else None
        submission = receive(store, user, file.name, file, name=title, approved_by=approved_by)
        state = store.datasets.get(submission.dataset_id).state if submission.dataset_id is not None else None
        report = submission.report
        lines = [
            f"{file.name}: {submission.state}, {report.accepted} of {report.rows} rows, {report.images} pictures"
        ]
        if submission.dataset_id is not None:
            lines.append(f"dataset {submission.dataset_id} is {state}")
        for found in report.findings:
            place = f" row {found.row}" if found.row is not None else ""
            lines.append(f"{found.severity}{place} [{found.code}] {found.message} {found.fix}".rstrip())
        _show(
            as_json,
            asdict(submission) | {"report": report.to_json(), "dataset_state": state},
            "\n".join(lines),
        )
    if submission.state is SubmissionState.REJECTED:
        raise typer.Exit(1)


@data.command("list")
def data_list(
    state: Annotated[DatasetState | None, typer.Option(help="Only datasets in this state.")] = None,
    as_json: Json = False,
) -> None:
    """List datasets in the order in which they came."""
    with _store(as_json) as store:
        found = [asdict(dataset) for dataset in store.datasets.list(state)]
    columns = ["id", "name", "state", "train_rows", "holdout_rows", "created_at"]
    _show(as_json, found, _table(found, columns, "No datasets."))


@data.command("show")
def data_show(
    dataset_id: Annotated[int, typer.Argument(metavar="ID")],
    limit: Annotated[int, typer.Option(min=0, help="How many rows to print.")] = 3,
    as_json: Json = False,
) -> None:
    """Show one dataset and its first rows."""
    with _store(as_json) as store:
        found = asdict(store.datasets.get(dataset_id))
        # SQLite has no larger integer.
        rows = [asdict(row) for row in store.datasets.rows(dataset_id, limit=min(limit, sys.maxsize))]
    text = "\n".join(
        [*(f"{k}: {v}" for k, v in found.items()), *(json.dumps(row["messages"]) for row in rows)]
    )
    _show(as_json, found | {"rows": rows}, text)


@data.command("approve")
def data_approve(dataset_id: Annotated[int, typer.Argument(metavar="ID")], as_json: Json = False) -> None:
    """Queue a dataset that waits for approval or was set aside."""
    with _store(as_json) as store:
        found = store.datasets.approve(dataset_id, ACTOR)
    _show(as_json, asdict(found), f"dataset {found.id} is {found.state}")


# --- rounds ----------------------------------------------------------------------------------------------------


@rounds.command("run")
def rounds_run(
    policy: Annotated[
        str, typer.Option(help="The continual-learning method; the learner's own if left out.")
    ] = "",
    wait: Annotated[bool, typer.Option(help="Wait for its end; exit 1 unless it is promoted.")] = False,
    as_json: Json = False,
) -> None:
    """Ask for a round over the queued datasets; the learner process takes it up.

    Datasets of other instruction groups follow in rounds of their own, which it asks for itself.
    """
    with _store(as_json) as store:
        found = store.rounds.enqueue(ACTOR, policy=policy)
        after = 0
        while wait and not found.state.ended:
            time.sleep(POLL_SECONDS)
            # Before its events, so that those of its end are among them.
            found = store.rounds.get(found.id)
            for event in store.rounds.events(found.id, after):
                after = event.id
                typer.echo(f"{event.at} {event.kind}: {event.message}", err=True)
    _show(as_json, asdict(found), f"round {found.id} is {found.state}")
    if wait and found.state is not RoundState.PROMOTED:
        raise typer.Exit(1)


@rounds.command("list")
def rounds_list(limit: Annotated[int, typer.Option(min=1)] = 50, as_json: Json = False) -> None:
    """List rounds, newest first."""
    with _store(as_json) as store:
        # SQLite has no larger integer.
        found = [asdict(each) for each in store.rounds.list(min(limit, sys.maxsize))]
    columns = ["id", "state", "policy", "step", "steps", "candidate", "requested_by", "created_at"]
    _show(as_json, found, _table(found, columns, "No rounds."))


@rounds.command("show")
def rounds_show(round_id: Annotated[int, typer.Argument(metavar="ID")], as_json: Json = False) -> None:
    """Show one round: its state, verdict and events."""
    with _store(as_json) as store:
        found = asdict(store.rounds.get(round_id)) | {"datasets": store.rounds.dataset_ids(round_id)}
        events = [asdict(event) for event in store.rounds.events(round_id)]
    lines = [
        *(f"{k}: {v}" for k, v in found.items()),
        *(f"{e['at']} {e['kind']}: {e['message']}" for e in events),
    ]
    _show(as_json, found | {"events": events}, "\n".join(lines))


@rounds.command("cancel")
def rounds_cancel(round_id: Annotated[int, typer.Argument(metavar="ID")], as_json: Json = False) -> None:
    """Stop a round: at once if it waits, else as soon as its worker notices."""
    with _store(as_json) as store:
        found = store.rounds.cancel(round_id, ACTOR)
    ended = found.state.ended
    _show(as_json, asdict(found), f"round {found.id} is {found.state if ended else 'being cancelled'}")


# --- generations -----------------------------------------------------------------------------------------------


@generations.command("list")
def generations_list(as_json: Json = False) -> None:
    """List generations, newest first, and say which one serves."""
    with _store(as_json) as store:
        champion = store.generations.champion()
        found = [
            {"name": g.name, "serving": g.number == champion} | asdict(g) for g in store.generations.list()
        ]
    text = _table(found, ["name", "parent", "round_id", "rank", "created_at"], "No generations yet.")
    _show(as_json, {"champion": champion, "data": found}, f"{text}\n{generation_name(champion)} serves.")


@generations.command("rollback")
def generations_rollback(
    to: Annotated[int | None, typer.Option(min=0, help="A generation that has served before.")] = None,
    as_json: Json = False,
) -> None:
    """Let the champion's parent, or the generation named, serve again; what it has not learned is set aside."""
    with _store(as_json) as store:
        number = store.generations.roll_back(ACTOR, to=to)
    _show(as_json, {"champion": number}, f"{generation_name(number)} serves.")


# --- users -----------------------------------------------------------------------------------------------------


def _link(store: Store, user_id: int) -> str:
    return f"{load(AppSettings).url()}/welcome/{store.users.invite(user_id)}"


@users.command("add")
def users_add(name: str, role: Annotated[Role, typer.Option()] = Role.CHAT, as_json: Json = False) -> None:
    """Add somebody and print the one-time link with which they choose a password."""
    with _store(as_json) as store:
        user = store.users.create(name, role, actor=ACTOR)
        link = _link(store, user.id)
    _show(
        as_json,
        asdict(user) | {"link": link},
        f"{user.name} ({user.role}) may enter within 24 hours by\n{link}",
    )


@users.command("list")
def users_list(as_json: Json = False) -> None:
    """List everybody, by name."""
    with _store(as_json) as store:
        found = [asdict(user) for user in store.users.list()]
    _show(as_json, found, _table(found, ["name", "role", "disabled", "created_at"], "Nobody yet."))


@users.command("role")
def users_role(name: str, role: Role, as_json: Json = False) -> None:
    """Change what somebody may do; takes effect with their next request."""
    with _store(as_json) as store:
        user = store.users.set_role(store.users.by_name(name).id, role, actor=ACTOR)
    _show(as_json, asdict(user), f"{user.name} is {user.role}")


@users.command("link")
def users_link(name: str, as_json: Json = False) -> None:
    """Print a new one-time link, good for 24 hours, with which somebody chooses a new password."""
    with _store(as_json) as store:
        link = _link(store, store.users.by_name(name).id)
    _show(as_json, {"name": name, "link": link}, link)


@users.command("key")
def users_key(
    name: str, label: Annotated[str, typer.Option(help="What it is for.")] = "key", as_json: Json = False
) -> None:
    """Print a new API key that acts as somebody; it is shown only now."""
    with _store(as_json) as store:
        key = store.users.create_key(store.users.by_name(name).id, label)
    _show(as_json, {"name": name, "key": key}, key)


def main() -> None:
    """Entry point of the command."""
    cli(prog_name="llaca")


if __name__ == "__main__":
    main()

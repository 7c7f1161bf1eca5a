"""The generated parts of docs/api.md and docs/cli.md; `python -m tests.app.reference` writes them, a test compares.

A generated part stands between `<!-- begin NAME -->` and `<!-- end NAME -->`; what is outside is written by hand.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import typer
import typer.main
from fastapi.routing import APIRoute
from pydantic import BaseModel

from app.access import rule_for
from app.api.chat_request import ChatRequest
from app.api.errors import status_of
from app.api.rounds import RollbackRequest, RoundRequest
from app.chat import Upstream
from app.cli import cli
from app.main import ROUTERS
from app.metrics import StoreMetrics
from app.settings import AppSettings
from serving.settings import ServingSettings
from storage import errors
from storage.errors import LlacaError
from storage.store import Store

DOCS = Path(__file__).parents[2] / "docs"
PAGES = (DOCS / "api.md", DOCS / "cli.md")
WIDTH = 100


def blocks(store: Store) -> dict[str, str]:
    """Return every generated part by name."""
    return {
        "routes": routes(),
        "chat-request": fields(ChatRequest),
        "round-request": fields(RoundRequest),
        "rollback-request": fields(RollbackRequest),
        "errors": statuses(),
        "metrics": metrics(store),
        "commands": commands(),
    }


def filled(page: str, parts: dict[str, str]) -> str:
    """Return a page with its generated parts as they should be."""

    def part(found: re.Match[str]) -> str:
        return f"<!-- begin {found[1]} -->\n{parts[found[1]]}\n<!-- end {found[1]} -->"

    return re.sub(r"<!-- begin ([\w-]+) -->\n.*?<!-- end \1 -->", part, page, flags=re.DOTALL)


def routes() -> str:
    """Return a table of the routes with the role each needs and what it does."""
    rows = []
    for route in (route for router in ROUTERS for route in router.routes):
        assert isinstance(route, APIRoute)
        (method,) = route.methods
        rule = rule_for(method, re.sub(r"\{\w+\}", "1", route.path))
        assert rule is not None, route.path
        rows.append((f"`{method} {route.path}`", rule.role or "anybody", _one_line(route.endpoint.__doc__)))
    return _table(("Route", "Role", "What it does"), rows)


def fields(model: type[BaseModel]) -> str:
    """Return a table of a request's fields."""
    described = [(f"`{name}`", field.description) for name, field in model.model_fields.items()]
    return _table(("Field", "Meaning"), [(name, _one_line(text)) for name, text in described])


def statuses() -> str:
    """Return a table of the error codes that can cross HTTP, by status; faults of the inside are all 500."""
    found = sorted({(status_of(error), error.code, _one_line(error.__doc__)) for error in _tree(LlacaError)})
    rows = [(str(status), f"`{code}`", text) for status, code, text in found if status != 500]
    return _table(("Status", "Code", "When"), rows)


def _tree(error: type[LlacaError]) -> Iterator[type[LlacaError]]:
    for child in error.__subclasses__():
        if child.__module__ == errors.__name__:
            yield child
            yield from _tree(child)


def metrics(store: Store) -> str:
    """Return a table of the metrics."""
    upstream = Upstream([], AppSettings(), ServingSettings())
    upstream.metrics.registry.register(StoreMetrics(store))
    families = sorted(upstream.metrics.registry.collect(), key=lambda family: family.name)
    names = [(f.name + ("_total" if f.type == "counter" else ""), f.type, f.documentation) for f in families]
    return _table(("Metric", "Type", "Meaning"), [(f"`{name}`", kind, text) for name, kind, text in names])


def commands() -> str:
    """Return the help of every command."""
    return "\n\n".join(_help(typer.main.get_command(cli), "llaca"))


def _help(command: Any, name: str) -> Iterator[str]:
    context = typer.Context(command, info_name=name, terminal_width=WIDTH, max_content_width=WIDTH)
    yield f"## {name}\n\n```text\n{command.get_help(context)}\n```"
    if hasattr(command, "commands"):
        for child, value in command.commands.items():
            yield from _help(value, f"{name} {child}")


def _one_line(text: str | None) -> str:
    return " ".join(inspect.cleandoc(text or "").split()).replace("|", "\\|")


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    import tempfile

    from storage.settings import StorageSettings

    with (
        tempfile.TemporaryDirectory() as directory,
        Store(StorageSettings(data_dir=Path(directory))) as empty,
    ):
        for path in PAGES:
            path.write_text(filled(path.read_text(), blocks(empty)))

"""A running installation with a history, and a headless Chromium, both shared by the tests of one module."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from app.auth import COOKIE
from storage.records import Role
from tests.app.places import Place, place
from tests.fake_vllm import FakeVLLM, Messages
from tests.ui.scenery import play

CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
             "--disable-sync", "--no-first-run"]  # fmt: skip
ANSWER = (
    "I see three discs: <b>red</b>, blue and green. ![spy](http://evil.example/a.png) " + "more words " * 20
)
QUICK, SLOW = 0.005, 0.5
expect.set_options(timeout=20_000)


def speak(adapter: Path | None, messages: Messages) -> str:
    """Say always the same and in the end what was asked, so that a page tells when an answer is whole, and to what."""
    asked = messages[-1]["content"]
    texts = [asked] if isinstance(asked, str) else [part["text"] for part in asked if part["type"] == "text"]
    return ANSWER + "So much for: " + " ".join(texts)


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A running installation in which tasks were taught and judged."""
    folder = tmp_path_factory.mktemp("town")
    with place(folder / "data", fake=FakeVLLM(speak=speak, token_seconds=QUICK)) as running:
        play(running.store, running.users, folder / "uploads")
        yield running


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """A headless browser without any tab."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@dataclass(frozen=True, kw_only=True)
class Visit:
    """An open page, and what went wrong in it."""

    page: Page
    context: BrowserContext
    errors: list[str]


Visitor = Callable[[Role], Visit]


@pytest.fixture
def visit(town: Place, chromium: Browser) -> Iterator[Visitor]:
    """Return a function that opens the page as somebody of a role, in a browser profile of their own."""
    contexts: list[BrowserContext] = []

    def open_page(role: Role) -> Visit:
        context = chromium.new_context(viewport={"width": 1280, "height": 800})
        contexts.append(context)
        context.add_cookies(
            [{"name": COOKIE, "value": town.store.users.open_session(town.users[role].id), "url": town.url}]
        )
        page, errors = context.new_page(), []
        page.set_default_timeout(20_000)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(town.url)
        page.wait_for_selector("#header .name")
        page.wait_for_selector("#conversations .history", state="attached")
        return Visit(page=page, context=context, errors=errors)

    yield open_page
    for context in contexts:
        context.close()

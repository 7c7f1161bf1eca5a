"""Takes the pictures of the page for the documentation from a running installation.

`python scripts/screenshots.py http://127.0.0.1:7860 ada --ask digit.png "Which digit is this?"` asks for the password
(or reads LLACA_SCREENSHOT_PASSWORD), signs in, asks about the picture and writes login, chat, teach, round and people
as PNG. More pictures are asked about in conversations of their own: chat-2, chat-3 and so on.
"""

from __future__ import annotations

import argparse
import getpass
import os
from pathlib import Path

from playwright.sync_api import Page, ViewportSize, expect, sync_playwright

CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
             "--disable-sync", "--no-first-run"]  # fmt: skip
SIZE: ViewportSize = {"width": 1280, "height": 800}
ANSWER_SECONDS = 120


def main() -> None:
    """Read the arguments and take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", help="address of the installation")
    parser.add_argument("name", help="name of an admin")
    parser.add_argument(
        "--ask", nargs=2, action="append", default=[], metavar=("PICTURE", "QUESTION"), help="may be repeated"
    )
    parser.add_argument("--out", type=Path, default=Path("docs/screenshots"))
    parser.add_argument("--dark", action="store_true", help="as readers with a dark theme see it")
    given = parser.parse_args()
    password = os.environ.get("LLACA_SCREENSHOT_PASSWORD") or getpass.getpass()
    given.out.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        page = browser.new_context(
            viewport=SIZE, color_scheme="dark" if given.dark else "light", device_scale_factor=1.5
        ).new_page()
        sign_in(page, given.url, given.name, password, given.out)
        for number, (picture, question) in enumerate(given.ask, 1):
            chat(page, Path(picture), question, given.out / f"chat{f'-{number}' if number > 1 else ''}.png")
        tabs(page, given.out)
        browser.close()


def sign_in(page: Page, url: str, name: str, password: str, out: Path) -> None:
    """Take the sign-in form and go through it."""
    page.goto(f"{url.rstrip('/')}/login")
    page.screenshot(path=out / "login.png")
    page.fill("#name", name)
    page.fill("#password", password)
    page.click("button")
    page.wait_for_selector("#header .name")


def chat(page: Page, picture: Path, question: str, out: Path) -> None:
    """Ask in a new conversation and take the answer when it is whole."""
    page.locator("#new-chat").click()
    expect(page.locator("#window .bot-row")).to_have_count(0)
    with page.expect_file_chooser() as chooser:
        page.locator("#box .upload-button").first.click()
    chooser.value.set_files(str(picture))
    expect(page.locator("#box .thumbnail-item")).to_have_count(1)
    page.locator("#box textarea").fill(question)
    page.locator("#box textarea").press("Enter")
    expect(page.locator("#window .bot-row")).to_have_count(1, timeout=1000 * ANSWER_SECONDS)
    expect(page.get_by_role("button", name="Retry")).to_be_enabled(timeout=1000 * ANSWER_SECONDS)
    page.mouse.move(0, 0)
    page.screenshot(path=out)


def tabs(page: Page, out: Path) -> None:
    """Take the other tabs: a dataset's preview, the newest round from top to bottom, and the people."""
    page.get_by_role("tab", name="Teach").click()
    datasets = page.locator("#fates button[data-act=preview]")
    page.wait_for_selector("#fates table, #fates .empty")
    if datasets.count():
        datasets.first.click()
        page.wait_for_selector("#preview article")
        page.wait_for_load_state("networkidle")
    page.screenshot(path=out / "teach.png", full_page=True)
    page.get_by_role("tab", name="Rounds").click()
    page.wait_for_selector("#round-summary section, #round-cards .empty")
    page.wait_for_load_state("networkidle")
    page.screenshot(path=out / "round.png", full_page=True)
    page.get_by_role("tab", name="People").click()
    page.wait_for_selector("#people-list table")
    page.screenshot(path=out / "people.png")


if __name__ == "__main__":
    main()

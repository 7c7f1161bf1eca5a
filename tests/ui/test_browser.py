"""What people do on the page, done by a headless Chromium against the whole web process; only vLLM is a stand-in."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from storage.records import DatasetState, Role
from tests.app.places import PASSWORD, Place, until
from tests.ui.conftest import QUICK, SLOW, Visitor
from tests.ui.scenery import counting_picture, counting_zip

pytestmark = pytest.mark.browser


@pytest.fixture
def slowly(town: Place) -> Iterator[None]:
    """Let the assistant speak so slowly that a test can act in between."""
    town.fake.token_seconds = SLOW
    yield
    town.fake.token_seconds = QUICK


def say(page: Page, text: str, *pictures: Path) -> None:
    """Attach pictures, type and send."""
    if pictures:
        with page.expect_file_chooser() as chooser:
            page.get_by_label("Upload a file").or_(page.locator("#box .upload-button")).first.click()
        chooser.value.set_files([str(picture) for picture in pictures])
        expect(page.locator("#box .thumbnail-item")).to_have_count(len(pictures))
    page.locator("#box textarea").fill(text)
    page.locator("#box textarea").press("Enter")


def answered(page: Page, question: str) -> None:
    """Wait until the window's only answer is a whole one to this question."""
    expect(page.locator("#window .bot-row")).to_have_count(1)
    expect(page.locator("#window .bot-row")).to_contain_text(f"So much for: {question}")
    idle(page)


def idle(page: Page) -> None:
    """Wait until an answer that has begun is no longer being written."""
    expect(page.get_by_role("button", name="Retry")).to_be_enabled()
    expect(page.locator("#box .submit-button")).to_be_visible()


def twice(panel: Locator, css: str) -> None:
    """Click a panel's button that asks first, and then what it asks, which it does for a few seconds only."""
    expect(panel.locator(css)).to_be_visible()
    # Found and clicked at once, because the panel may be drawn anew at any moment.
    panel.evaluate("(panel, css) => { const it = panel.querySelector(css); it.click(); it.click(); }", css)


@contextmanager
def broken_off(town: Place) -> Iterator[None]:
    """Wait, after what is done in the block, until an answer has been broken off upstream."""
    before = town.fake.aborted
    yield
    until(lambda: town.fake.aborted > before)


def badge(page: Page) -> str:
    """Return the badge under the last answer."""
    return page.locator("#window .bot-row").last.locator(".message").last.inner_text().strip()


def test_sign_in_ask_about_a_picture_and_find_it_again(
    town: Place, chromium: Browser, tmp_path: Path
) -> None:
    """Somebody signs in, sends a picture, reads the answer with its generation, and finds all of it after a reload."""
    user = town.users[Role.CHAT]
    town.store.users.set_password(user.id, PASSWORD)
    picture = tmp_path / "discs.png"
    picture.write_bytes(counting_picture(3))
    page = chromium.new_context().new_page()
    page.set_default_timeout(20_000)
    page.goto(town.url)
    page.fill("#name", user.name)
    page.fill("#password", PASSWORD)
    page.click("button")
    say(page, "How many <discs>?", picture)
    answered(page, "How many <discs>?")
    expect(page.locator("#window .bot-row")).to_contain_text("I see three discs: <b>red</b>, blue")
    assert badge(page) == "assistant@0"
    page.reload()
    expect(page.locator("#window .user-row")).to_contain_text("How many <discs>?")
    shown = page.locator("#window .shots img")
    expect(shown).to_have_count(1)
    until(lambda: shown.evaluate("image => image.naturalWidth") == 96)
    assert badge(page) == "assistant@0"
    sent = town.fake.requests[-1]["messages"][-1]["content"]
    assert [part["type"] for part in sent] == ["image_url", "text"]
    page.context.close()


def test_html_and_remote_pictures_of_an_answer_stay_text(visit: Visitor) -> None:
    """An answer that contains a tag and a remote picture shows their characters and loads nothing."""
    page = visit(Role.CHAT).page
    requested: list[str] = []
    page.on("request", lambda request: requested.append(request.url))
    say(page, "Go on.")
    answered(page, "Go on.")
    assert page.locator("#window .bot-row b, #window .bot-row img").count() == 0
    assert not [url for url in requested if "evil.example" in url]


def test_stop_keeps_what_was_written_and_retry_writes_another(
    town: Place, visit: Visitor, slowly: None
) -> None:
    """Stop ends the reply upstream long before its end and marks it; Retry puts a whole answer in its place."""
    page = visit(Role.CHAT).page
    say(page, "Tell me a long story.")
    expect(page.locator("#window .bot-row")).to_contain_text("three")
    with broken_off(town):
        page.locator("#box .stop-button").click()
    idle(page)
    assert badge(page) == "assistant@0 · interrupted"
    town.fake.token_seconds = QUICK
    page.get_by_role("button", name="Retry").click()
    answered(page, "Tell me a long story.")
    assert badge(page) == "assistant@0"


def test_leaving_ends_the_reply_upstream(town: Place, visit: Visitor, slowly: None) -> None:
    """When the tab is closed in the middle of an answer nobody goes on writing it, and its beginning is kept."""
    visited = visit(Role.CONTRIBUTOR)
    say(visited.page, "And now?")
    expect(visited.page.locator("#window .bot-row")).to_contain_text("I see")
    with broken_off(town):
        visited.page.close()
    user = town.users[Role.CONTRIBUTOR]
    kept = town.store.conversations.list(user.id)[0]
    until(lambda: town.store.conversations.messages(kept.id, user.id)[-1].state == "interrupted")


def test_a_conversation_left_in_the_middle_of_an_answer_goes_on(
    town: Place, visit: Visitor, slowly: None
) -> None:
    """New chat breaks the answer off; back in the conversation its beginning is there, and Retry writes it whole."""
    page = visit(Role.CHAT).page
    say(page, "Where was I?")
    expect(page.locator("#window .bot-row")).to_contain_text("three")
    with broken_off(town):
        page.get_by_role("button", name="New chat").click()
    town.fake.token_seconds = QUICK
    page.locator(".history li", has_text="Where was I?").locator(".title").click()
    expect(page.locator("#window .bot-row")).to_contain_text("interrupted")
    page.get_by_role("button", name="Retry").click()
    answered(page, "Where was I?")


def test_undo_and_edit_change_what_was_asked(town: Place, visit: Visitor) -> None:
    """Undo brings the last question back into the box; Edit asks again with other words; the store agrees."""
    page = visit(Role.CHAT).page
    say(page, "First words")
    answered(page, "First words")
    page.get_by_role("button", name="Undo").click()
    expect(page.locator("#box textarea")).to_have_value("First words")
    expect(page.locator("#window .user-row, #window .bot-row")).to_have_count(0)
    page.locator("#box textarea").press("Enter")
    answered(page, "First words")
    page.get_by_role("button", name="Edit").click()
    page.locator("#window textarea").fill("Better words & <more>")
    page.locator("#window").get_by_role("button", name="Submit").click()
    expect(page.locator("#window .user-row")).to_contain_text("Better words & <more>")
    answered(page, "Better words & <more>")
    user = town.users[Role.CHAT]
    messages = town.store.conversations.messages(town.store.conversations.list(user.id)[0].id, user.id)
    assert [message.role for message in messages] == ["user", "assistant"]
    assert messages[0].content == [{"type": "text", "text": "Better words & <more>"}]


def test_conversations_can_be_renamed_opened_and_deleted(town: Place, visit: Visitor) -> None:
    """The list in the sidebar renames, opens and, after asking once more, deletes."""
    page = visit(Role.CHAT).page
    say(page, "About apples")
    answered(page, "About apples")
    page.get_by_role("button", name="New chat").click()
    expect(page.locator("#window .user-row")).to_have_count(0)
    say(page, "About pears")
    answered(page, "About pears")
    apples = page.locator(".history li", has_text="About apples")
    apples.hover()
    apples.get_by_label("Rename").click()
    apples_field = page.get_by_label("Title of the conversation")
    apples_field.fill("Fruit")
    apples_field.press("Enter")
    fruit = page.locator(".history li", has_text="Fruit")
    fruit.locator(".title").click()
    expect(page.locator("#window .user-row")).to_contain_text("About apples")
    fruit.hover()
    twice(page.locator("#conversations"), "li:has([title=Fruit]) [data-act=delete]")
    expect(page.locator(".history li", has_text="Fruit")).to_have_count(0)
    expect(page.locator("#window .user-row")).to_have_count(0)


def test_a_server_that_is_down_leaves_the_question_for_another_try(town: Place, visit: Visitor) -> None:
    """Without vLLM a plain sentence appears, the question stays, and Try again answers it once vLLM is back."""
    page = visit(Role.CHAT).page
    town.fake.stop()
    try:
        say(page, "Are you there?")
        expect(page.locator("#chat-notice [role=alert]")).to_be_visible()
        expect(page.locator("#window .user-row")).to_contain_text("Are you there?")
    finally:
        town.fake.start()
    page.get_by_role("button", name="Try again").click()
    answered(page, "Are you there?")
    expect(page.locator("#chat-notice [role=alert]")).to_have_count(0)


def test_a_file_that_is_no_picture_is_refused_and_the_draft_kept(
    town: Place, visit: Visitor, tmp_path: Path
) -> None:
    """A broken picture is refused in a sentence; words and file stay in the box, and nothing is stored."""
    page = visit(Role.CHAT).page
    before = len(town.store.conversations.list(town.users[Role.CHAT].id))
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG no picture at all")
    say(page, "What is this?", broken)
    expect(page.locator("#chat-notice [role=alert]")).to_be_visible()
    expect(page.locator("#box textarea")).to_have_value("What is this?")
    assert len(town.store.conversations.list(town.users[Role.CHAT].id)) == before


def test_upload_shows_report_and_preview_and_waits_for_an_admin(
    town: Place, visit: Visitor, tmp_path: Path
) -> None:
    """A contributor's upload is reported row by row and shown; an admin approves it with one click."""
    page = visit(Role.CONTRIBUTOR).page
    page.get_by_role("tab", name="Teach").click()
    upload = tmp_path / "discs.zip"
    upload.write_bytes(counting_zip(12, missing=2))
    page.set_input_files("#drop input[type=file]", str(upload))
    page.get_by_label("Name of the task").fill("Two are missing")
    expect(page.locator("#drop")).to_contain_text("discs")
    page.get_by_role("button", name="Check and submit").click()
    expect(page.locator("#report table.findings tbody tr")).to_have_count(2)
    expect(page.locator("#report table.findings tbody tr").first).to_contain_text("images/010.png")
    expect(page.locator("#preview article")).to_have_count(10)
    row = page.locator("#fates tr", has_text="Two are missing")
    expect(row).to_contain_text("waits for approval")
    expect(row.get_by_role("button", name="Approve")).to_have_count(0)
    admin = visit(Role.ADMIN).page
    admin.get_by_role("tab", name="Teach").click()
    admin.locator("#fates tr", has_text="Two are missing").get_by_role("button", name="Approve").click()
    expect(admin.locator("#fates tr", has_text="Two are missing")).to_contain_text("queued")
    assert town.store.datasets.list(DatasetState.QUEUED)[-1].approved_by == town.users[Role.ADMIN].name


def test_a_round_shows_curves_verdict_flips_and_the_matrix(visit: Visitor) -> None:
    """A judged round shows loss and β curves, the gate's reasons, flipped items and the heat-map."""
    visited = visit(Role.ADMIN)
    page = visited.page
    page.get_by_role("tab", name="Rounds").click()
    page.locator(".cards button", has_text="Round 2").click()
    expect(page.locator("#round .verdict")).to_contain_text("Verdict: reject")
    expect(page.locator("#round canvas, #round svg.marks, #round .vega-embed")).not_to_have_count(0)
    expect(page.locator("table.heat td")).to_have_count(6)
    page.get_by_text("Flipped items").click()
    expect(page.locator("#flips article").first).to_contain_text("lost")
    assert visited.errors == []


def test_an_admin_runs_and_cancels_a_round(town: Place, visit: Visitor) -> None:
    """Run now asks for a round over what is queued, the page follows it, and Cancel takes it back."""
    waiting = town.store.datasets.list(DatasetState.PENDING)
    queued = town.store.datasets.approve(waiting[0].id, "test") if waiting else None
    page = visit(Role.ADMIN).page
    page.get_by_role("tab", name="Rounds").click()
    expect(page.locator(".cards button").first).to_be_visible()
    page.get_by_role("button", name="Run now").click()
    expect(page.locator("#round h3")).to_contain_text("queued")
    twice(page.locator("#cancel-round"), "[data-act=cancel]")
    expect(page.locator("#round h3")).to_contain_text("cancelled")
    assert queued is None or town.store.datasets.get(queued.id).state is DatasetState.QUEUED


def test_an_admin_invites_somebody(town: Place, visit: Visitor, chromium: Browser) -> None:
    """An invitation shows a link once; behind it the invited person chooses a password."""
    page = visit(Role.ADMIN).page
    page.get_by_role("tab", name="People").click()
    expect(page.locator("#people-list table")).to_be_visible()
    page.get_by_label("Name", exact=True).fill("grace")
    page.get_by_role("button", name="Invite").click()
    link = page.get_by_label("One-time link", exact=True)
    expect(link).to_have_value(re.compile("/welcome/"))
    guest = chromium.new_context().new_page()
    guest.goto(town.url + "/welcome/" + link.input_value().rsplit("/", 1)[1])
    expect(guest.locator("main")).to_contain_text("grace")
    guest.context.close()


def test_chat_role_sees_only_the_chat(visit: Visitor) -> None:
    """Somebody who may only chat has no other tab."""
    page = visit(Role.CHAT).page
    expect(page.get_by_role("tab")).to_have_count(1)

"""What signing in promises: the right password opens a session, a one-time link works once, guessing is slow."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.auth import COOKIE
from app.settings import AppSettings
from storage.records import Role
from tests.app.places import PASSWORD, Place, place


@pytest.fixture(scope="module", autouse=True)
def passwords(here: Place) -> None:
    """Two people have chosen the same password."""
    for role in (Role.CHAT, Role.ADMIN):
        here.store.users.set_password(here.users[role].id, PASSWORD)


def test_sign_in_and_out(here: Place) -> None:
    """The right password opens a session that lasts until signing out; the old cookie is worthless then."""
    with here.browser() as client:
        answer = client.post("/login", data={"name": "chat-user", "password": PASSWORD})
        assert (answer.status_code, answer.headers["location"]) == (303, "/")
        cookie = answer.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=lax" in cookie
        token = client.cookies[COOKIE]
        assert client.get("/v1/models").status_code == 200
        assert client.post("/logout").headers["location"] == "/login"
        assert client.get("/v1/models", headers={"Cookie": f"{COOKIE}={token}"}).status_code == 401


def test_the_name_may_be_written_in_any_case(here: Place) -> None:
    """Names are compared without regard to case and to spaces around them."""
    with here.browser() as client:
        assert client.post("/login", data={"name": " Chat-User ", "password": PASSWORD}).status_code == 303


@pytest.mark.parametrize(
    "data",
    [{"name": "chat-user", "password": "wrong"}, {"name": "nobody", "password": PASSWORD}, {"name": ""}, {}],
    ids=str,
)
def test_wrong_credentials_all_look_the_same(here: Place, data: dict[str, str]) -> None:
    """A wrong password, an unknown name and an empty form get the same words and no cookie."""
    with here.browser() as client:
        answer = client.post("/login", data=data)
    assert answer.status_code == 401
    assert "do not match" in answer.text
    assert "set-cookie" not in answer.headers


def test_what_was_typed_is_shown_escaped(here: Place) -> None:
    """A name with markup in it cannot become part of the page."""
    with here.browser() as client:
        page = client.post("/login", data={"name": '"><script>alert(1)</script>', "password": "x"}).text
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_guessing_is_slowed_per_name(tmp_path: Path) -> None:
    """Once the allowance is used up even the right password is 429 with Retry-After; other names are not hit."""
    with (
        place(tmp_path / "data", settings=AppSettings(logins_per_minute=1)) as strict,
        strict.browser() as client,
    ):
        for user in (strict.users[Role.CHAT], strict.users[Role.ADMIN]):
            strict.store.users.set_password(user.id, PASSWORD)
        assert client.post("/login", data={"name": "chat-user", "password": "no"}).status_code == 401
        lies = {"X-Forwarded-For": "9.9.9.9"}
        refused = client.post("/login", data={"name": "CHAT-USER", "password": PASSWORD}, headers=lies)
        assert refused.status_code == 429
        assert int(refused.headers["Retry-After"]) > 0
        assert client.post("/login", data={"name": "admin-user", "password": PASSWORD}).status_code == 303


def test_an_expired_session_asks_to_sign_in(here: Place) -> None:
    """A session past its end is none."""
    token = here.store.users.open_session(here.users[Role.CHAT].id)
    with here.client(None) as client:
        client.headers["Cookie"] = f"{COOKIE}={token}"
        assert client.get("/v1/models").status_code == 200
        here.store.database.run(
            "UPDATE credentials SET expires_at = '2020-01-01T00:00:00.000000Z' WHERE kind = 'session' AND user_id = ?",
            [here.users[Role.CHAT].id],
        )
        assert client.get("/v1/models").status_code == 401
        assert client.get("/", headers={"Accept": "text/html"}).headers["location"] == "/login"


def test_a_one_time_link_works_once(here: Place) -> None:
    """Looking at a link keeps it; choosing a password signs in and uses it up."""
    newcomer = here.store.users.create("newcomer", Role.CONTRIBUTOR)
    link = f"/welcome/{here.store.users.invite(newcomer.id)}"
    chosen = {"password": "a good long password", "again": "a good long password"}
    with here.browser() as client:
        assert "newcomer" in client.get(link).text
        assert client.get(link).status_code == 200
        assert client.post(link, data=chosen).headers["location"] == "/"
        assert client.get("/v1/files").status_code == 200
        assert client.get(link).status_code == 403
        assert client.post(link, data=chosen).status_code == 403
        assert (
            client.post("/login", data={"name": "newcomer", "password": "a good long password"}).status_code
            == 303
        )


@pytest.mark.parametrize(
    ("password", "again", "word"),
    [
        ("short", "short", "10 to 200"),
        ("a good long password", "another password", "differ"),
        ("", "", "10 to 200"),
    ],
)
def test_a_bad_choice_keeps_the_link(here: Place, password: str, again: str, word: str) -> None:
    """A password that is too short or mistyped is explained, and the link still works."""
    link = f"/welcome/{here.store.users.invite(here.users[Role.CHAT].id)}"
    with here.browser() as client:
        answer = client.post(link, data={"password": password, "again": again})
        assert answer.status_code == 400
        assert word in answer.text
        assert client.get(link).status_code == 200


def test_an_invented_link_is_refused_politely(here: Place) -> None:
    """A link nobody made says so and offers to sign in."""
    with here.browser() as client:
        answer = client.get("/welcome/invented")
    assert answer.status_code == 403
    assert "ask an admin" in answer.text

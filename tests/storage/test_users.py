"""What accounts promise: names, passwords, links, sessions and roles."""

from __future__ import annotations

import pytest

from storage.errors import LinkExpired, NameTaken, UnknownUser, WeakPassword
from storage.records import Role, User
from storage.store import Store

PASSWORD = "correct horse battery"


def test_passwords_and_names(store: Store) -> None:
    """A password opens its own account only; names are unique in any case; weak passwords are refused."""
    store.users.create("Bob", Role.CHAT, PASSWORD)
    assert store.users.verify("bob", PASSWORD) == store.users.by_name("BOB")
    assert store.users.verify("bob", PASSWORD + "!") is None
    assert store.users.verify("nobody", PASSWORD) is None
    with pytest.raises(NameTaken):
        store.users.create("BOB", Role.CHAT)
    with pytest.raises(WeakPassword, match="has 5 characters"):
        store.users.create("eve", Role.CHAT, "short")
    with pytest.raises(UnknownUser):
        store.users.by_name("eve")


def test_a_link_works_once(store: Store, admin: User) -> None:
    """A one-time link lets somebody choose a password exactly once."""
    token = store.users.invite(admin.id)
    assert store.users.invited(token) == admin
    assert not store.users.has_admin()
    store.users.redeem(token, PASSWORD)
    assert store.users.has_admin()
    with pytest.raises(LinkExpired):
        store.users.redeem(token, PASSWORD)


def test_a_refused_password_does_not_use_up_the_link(store: Store, admin: User) -> None:
    """Somebody who chose too short a password can try again with the same link."""
    token = store.users.invite(admin.id)
    with pytest.raises(WeakPassword):
        store.users.redeem(token, "short")
    assert store.users.redeem(token, PASSWORD) == admin


def test_disabling_ends_sessions_and_keys_at_once(store: Store) -> None:
    """A disabled user's session, key and password all stop working."""
    user = store.users.create("bob", Role.ADMIN, PASSWORD)
    session, key = store.users.open_session(user.id), store.users.create_key(user.id, "laptop")
    assert store.users.session_user(session) == store.users.key_user(key) == user
    assert store.users.session_user(key) is None
    store.users.disable(user.id)
    assert store.users.session_user(session) is None
    assert store.users.key_user(key) is None
    assert store.users.verify("bob", PASSWORD) is None


def test_roles_include_the_lower_ones() -> None:
    """An admin may do all, a contributor may chat, a chatter may only chat."""
    assert [[a.allows(b) for b in Role] for a in Role] == [
        [True, False, False],
        [True, True, False],
        [True, True, True],
    ]

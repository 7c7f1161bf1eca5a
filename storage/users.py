"""People: names, roles, passwords, and the tokens that stand for them (sessions, API keys, one-time links).

Passwords are kept as argon2id hashes. Tokens are 256-bit random text shown once; only their SHA-256 is kept.
"""

from __future__ import annotations

import hashlib
import secrets
import sqlite3
from collections.abc import Sequence
from typing import Any, Literal

from argon2 import PasswordHasher
from argon2.exceptions import VerifyMismatchError

from storage.audit import Audit
from storage.clock import now
from storage.database import Database
from storage.errors import LinkExpired, NameTaken, UnknownUser, WeakPassword
from storage.records import Role, User

PASSWORD_LEAST, PASSWORD_MOST = 10, 200
SESSION_SECONDS = 30 * 24 * 3600
LINK_SECONDS = 24 * 3600
KEY_PREFIX = "llaca-"

_USER = "SELECT users.id, users.name, users.role, users.created_at, users.disabled FROM users"
_hasher = PasswordHasher()
# Checked when a name is unknown, so that the answer takes as long as for a known one.
_DECOY = _hasher.hash(secrets.token_urlsafe(32))


class Users:
    """Everybody who may use this installation."""

    def __init__(self, database: Database, audit: Audit) -> None:
        self._database = database
        self._audit = audit

    def create(self, name: str, role: Role, password: str | None = None, *, actor: str = "system") -> User:
        """Add a user; without a password they can only enter by a one-time link. Raises NameTaken, WeakPassword."""
        hashed = _hash(password) if password is not None else None
        with self._database.writing():
            try:
                user_id = self._database.insert(
                    "users",
                    {"name": name.strip(), "role": role, "password_hash": hashed, "created_at": now()},
                )
            except sqlite3.IntegrityError as error:
                raise NameTaken(name) from error
            self._audit.write(actor, "user.create", name, {"role": role})
        return self.get(user_id)

    def get(self, user_id: int) -> User:
        """Return the user with this id; raise UnknownUser if there is none."""
        return self._one("WHERE users.id = ?", user_id)

    def by_name(self, name: str) -> User:
        """Return the user of this name, in any case; raise UnknownUser if there is none."""
        return self._one("WHERE users.name = ?", name)

    def list(self) -> Sequence[User]:
        """Return everybody, by name."""
        return [_user(row) for row in self._database.rows(f"{_USER} ORDER BY name")]

    def has_admin(self) -> bool:
        """Whether an enabled admin has chosen a password, so that somebody can log in and run the place."""
        return (
            self._database.row(
                "SELECT 1 FROM users WHERE role = 'admin' AND NOT disabled AND password_hash IS NOT NULL"
            )
            is not None
        )

    def verify(self, name: str, password: str) -> User | None:
        """Return the user if the password is theirs and they are not disabled."""
        found = self._database.row(
            "SELECT id, password_hash FROM users WHERE name = ? AND NOT disabled", [name]
        )
        hashed = found["password_hash"] if found and found["password_hash"] else _DECOY
        try:
            _hasher.verify(hashed, password[:PASSWORD_MOST])
        except VerifyMismatchError:
            return None
        return self.get(found["id"]) if found else None

    def set_password(self, user_id: int, password: str) -> None:
        """Replace the password and end every session opened with the old one. Raises WeakPassword."""
        with self._database.writing():
            self._database.run("UPDATE users SET password_hash = ? WHERE id = ?", [_hash(password), user_id])
            self._database.run("DELETE FROM credentials WHERE user_id = ? AND kind <> 'key'", [user_id])

    def set_role(self, user_id: int, role: Role, *, actor: str = "system") -> User:
        """Change what a user may do; takes effect with their next request."""
        name = self.get(user_id).name
        with self._database.writing():
            self._database.run("UPDATE users SET role = ? WHERE id = ?", [role, user_id])
            self._audit.write(actor, "user.role", name, {"role": role})
        return self.get(user_id)

    def disable(self, user_id: int, *, actor: str = "system") -> None:
        """Lock a user out at once: sessions, keys and links end, what they made stays."""
        name = self.get(user_id).name
        with self._database.writing():
            self._database.run("UPDATE users SET disabled = 1 WHERE id = ?", [user_id])
            self._database.run("DELETE FROM credentials WHERE user_id = ?", [user_id])
            self._audit.write(actor, "user.disable", name)

    def open_session(self, user_id: int) -> str:
        """Return a new session token, good for 30 days."""
        return self._issue(user_id, "session", seconds=SESSION_SECONDS)

    def session_user(self, token: str) -> User | None:
        """Return whose session this is, if it is one."""
        return self._bearer(token, "session")

    def close_session(self, token: str) -> None:
        """End a session; ending an unknown one is no error."""
        self._database.run(
            "DELETE FROM credentials WHERE token_sha256 = ? AND kind = 'session'", [_sha256(token)]
        )

    def invite(self, user_id: int) -> str:
        """Return a one-time token, good for 24 hours, with which the user can choose a password."""
        return self._issue(user_id, "link", seconds=LINK_SECONDS)

    def invited(self, token: str) -> User | None:
        """Return for whom a one-time token is, without using it up."""
        return self._bearer(token, "link")

    def redeem(self, token: str, password: str) -> User:
        """Use up a one-time token by choosing a password. Raises LinkExpired, WeakPassword."""
        with self._database.writing():
            user = self.invited(token)
            if user is None:
                raise LinkExpired
            self.set_password(user.id, password)
            self._audit.write(user.name, "user.password", user.name)
        return user

    def create_key(self, user_id: int, label: str) -> str:
        """Return a new API key `llaca-…` that acts as this user until they are disabled; it is shown only now."""
        key = self._issue(user_id, "key", label=label, prefix=KEY_PREFIX)
        self._audit.write(self.get(user_id).name, "user.key", label)
        return key

    def key_user(self, key: str) -> User | None:
        """Return whose API key this is, if it is one."""
        return self._bearer(key, "key")

    def _one(self, where: str, value: object) -> User:
        row = self._database.row(f"{_USER} {where}", [value])
        if row is None:
            raise UnknownUser(value)
        return _user(row)

    def _issue(
        self,
        user_id: int,
        kind: Literal["session", "key", "link"],
        *,
        seconds: float | None = None,
        label: str = "",
        prefix: str = "",
    ) -> str:
        token = prefix + secrets.token_urlsafe(32)
        self._database.insert(
            "credentials",
            {
                "token_sha256": _sha256(token),
                "user_id": user_id,
                "kind": kind,
                "label": label,
                "created_at": now(),
                "expires_at": None if seconds is None else now(seconds),
            },
        )
        return token

    def _bearer(self, token: str, kind: Literal["session", "key", "link"]) -> User | None:
        row = self._database.row(
            f"{_USER} JOIN credentials ON credentials.user_id = users.id WHERE token_sha256 = ? AND kind = ?"
            " AND (expires_at IS NULL OR expires_at > ?) AND NOT disabled",
            [_sha256(token), kind, now()],
        )
        return _user(row) if row else None


def _user(row: dict[str, Any]) -> User:
    return User(**row | {"role": Role(row["role"]), "disabled": bool(row["disabled"])})


def _hash(password: str) -> str:
    if not PASSWORD_LEAST <= len(password) <= PASSWORD_MOST:
        raise WeakPassword(len(password), PASSWORD_LEAST, PASSWORD_MOST)
    return _hasher.hash(password)


def _sha256(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()

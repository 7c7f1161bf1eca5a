"""What storage promises about people, data, files, conversations and its own log."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.datasets import split
from storage.errors import (
    AuditBroken,
    BadSetting,
    LinkExpired,
    NameTaken,
    UnknownBlob,
    UnknownConversation,
    UnknownDataset,
    UnknownUser,
    WeakPassword,
    WrongState,
)
from storage.records import DatasetState, Role, User, text_part
from storage.settings import StorageSettings, load, refuse_unknown
from storage.store import Store
from tests.conftest import question, questions

PASSWORD = "correct horse battery"


def test_the_database_is_opened_safely(store: Store) -> None:
    """WAL, full synchronisation and foreign keys are on in every thread's connection."""
    seen: list[tuple[object, ...]] = []

    def look() -> None:
        pragmas = ("journal_mode", "synchronous", "foreign_keys")
        seen.append(tuple(next(iter((store.database.row(f"PRAGMA {name}") or {}).values())) for name in pragmas))

    look()
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [("wal", 2, 1)] * 2


def test_every_table_is_strict(store: Store) -> None:
    """SQLite itself refuses a value of the wrong type in every table of ours."""
    loose = store.database.rows(
        "SELECT name FROM pragma_table_list WHERE type = 'table' AND NOT strict AND name NOT LIKE '%sqlite_%'"
    )
    assert loose == []


def test_opening_twice_migrates_once(store: Store) -> None:
    """A second process that opens the same directory finds everything in place."""
    with Store(store.settings) as again:
        assert len(again.database.rows("SELECT * FROM _sqlite_migrations")) == 1


def test_a_failed_write_leaves_nothing(store: Store, admin: User) -> None:
    """A dataset that cannot be stored whole is not stored at all."""
    with pytest.raises(Exception, match="FOREIGN KEY"):
        store.datasets.add("broken", admin.id, [*questions(3), question("?", "!", image="0" * 64)])
    assert store.datasets.list() == []
    assert store.database.rows("SELECT * FROM rows") == []


def test_a_live_backup_opens(store: Store, admin: User, tmp_path: Path) -> None:
    """A copy made while others work is a whole database."""
    (tmp_path / "copy").mkdir()
    store.database.backup(tmp_path / "copy" / "llaca.sqlite")
    with Store(StorageSettings(data_dir=tmp_path / "copy")) as copy:
        assert copy.users.by_name("ada").role is Role.ADMIN


@given(st.lists(st.integers(0, 12), min_size=1, max_size=60))
def test_no_picture_is_on_both_sides(pictures: list[int]) -> None:
    """Rows about the same picture fall on one side, and something always remains to train on."""
    rows = [question(f"{i}?", "a", image=f"{picture:064x}") for i, picture in enumerate(pictures)]
    sides = split(rows, 0.2)
    both = {p for p, s in zip(pictures, sides, strict=True) if s == "train"} & {
        p for p, s in zip(pictures, sides, strict=True) if s == "holdout"
    }
    assert not both
    assert "train" in sides
    assert ("holdout" in sides) == (len(set(pictures)) > 1)


def test_the_split_is_for_ever(store: Store, admin: User) -> None:
    """The same rows split the same way whenever and in whatever order they come."""
    rows = questions(50)
    first = store.datasets.add("a", admin.id, rows)
    second = store.datasets.add("b", admin.id, rows[::-1])
    held = [{row.sha256 for row in store.datasets.rows(d.id, "holdout")} for d in (first, second)]
    assert held[0] == held[1]
    assert first.holdout_rows == 10


def test_only_waiting_data_is_approved(store: Store, admin: User) -> None:
    """Approval queues what waits, once; withdrawing is possible at any time and final."""
    dataset = store.datasets.add("a", admin.id, questions(5))
    assert store.datasets.approve(dataset.id, "ada").state is DatasetState.QUEUED
    with pytest.raises(WrongState, match="queued"):
        store.datasets.approve(dataset.id, "ada")
    assert store.datasets.withdraw(dataset.id, "ada").state is DatasetState.WITHDRAWN
    with pytest.raises(UnknownDataset):
        store.datasets.approve(99, "ada")


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


def test_conversations_belong_to_their_owner(store: Store, admin: User) -> None:
    """Another user's conversation does not exist, for any call; one's own survives with its order and titles."""
    other = store.users.create("bob", Role.CHAT)
    mine = store.conversations.create(admin.id)
    store.conversations.append(mine.id, admin.id, "user", [text_part("What is on this picture?")])
    store.conversations.append(
        mine.id, admin.id, "assistant", [text_part("A cat")], generation="assistant@1", state="interrupted"
    )
    kept = store.conversations.messages(mine.id, admin.id)
    assert [(m.role, m.generation, m.state) for m in kept] == [
        ("user", None, "complete"),
        ("assistant", "assistant@1", "interrupted"),
    ]
    assert store.conversations.list(admin.id)[0].title == "What is on this picture?"
    for call in (store.conversations.get, store.conversations.messages, store.conversations.delete):
        with pytest.raises(UnknownConversation):
            call(mine.id, other.id)
    store.conversations.drop_from(mine.id, admin.id, 1)
    assert len(store.conversations.messages(mine.id, admin.id)) == 1
    store.conversations.delete(mine.id, admin.id)
    assert store.conversations.list(admin.id) == []


def test_blobs_are_found_by_content_only(store: Store) -> None:
    """The same bytes are kept once, and a name that is no hash, such as a path, finds nothing."""
    sha256 = store.blobs.put(b"picture", "image/png")
    assert store.blobs.put(b"picture", "image/png") == sha256
    assert store.blobs.read(sha256) == b"picture"
    assert store.blobs.media_type(sha256) == "image/png"
    for wrong in ("../../etc/passwd", "0" * 64, sha256.upper()):
        with pytest.raises(UnknownBlob):
            store.blobs.read(wrong)


def test_only_unused_blobs_are_deleted(store: Store, admin: User) -> None:
    """A picture that a row or a message shows is kept; one that nothing shows can go."""
    used, spoken, unused = (store.blobs.put(data, "image/png") for data in (b"a", b"b", b"c"))
    store.datasets.add("a", admin.id, [question("?", "!", image=used)])
    conversation = store.conversations.create(admin.id)
    store.conversations.append(conversation.id, admin.id, "user", [{"type": "image", "sha256": spoken}])
    assert store.blobs.delete_unused({used, spoken, unused}) == 1
    assert store.blobs.read(used) + store.blobs.read(spoken) == b"ab"
    assert store.conversations.may_see(admin.id, spoken)
    assert not store.conversations.may_see(admin.id, used)


@pytest.mark.parametrize("tamper", ["UPDATE audit SET actor = 'nobody' WHERE id = 2", "DELETE FROM audit WHERE id = 2"])
def test_a_changed_log_shows(store: Store, tamper: str) -> None:
    """A line of the audit log that was edited or removed is found."""
    for number in range(4):
        store.audit.write("ada", "test", str(number))
    assert store.audit.verify() == 4
    store.database.run(tamper)
    with pytest.raises(AuditBroken):
        store.audit.verify()


def test_secrets_are_made_once_and_private(store: Store) -> None:
    """A secret is the same for every process and readable by its owner only."""
    with Store(store.settings) as other:
        assert other.secret("vllm") == store.secret("vllm")
    assert (store.data_dir / "secrets" / "vllm").stat().st_mode & 0o777 == 0o600


def test_bad_settings_say_what_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A setting that cannot be used, or does not exist, is refused by name."""
    monkeypatch.setenv("LLACA_HOLDOUT_SHARE", "2")
    with pytest.raises(BadSetting, match=r"LLACA_HOLDOUT_SHARE: found '2'.*0\.5"):
        load(StorageSettings)
    with pytest.raises(BadSetting, match="LLACA_HOLDOUT_SHAER"):
        refuse_unknown([StorageSettings], {"LLACA_HOLDOUT_SHAER": "0.1"})
    with pytest.raises(BadSetting, match="colour"):
        load(StorageSettings, {"colour": "red"})

"""What stored files promise: found by content, kept while used."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from storage import blobs
from storage.blobs import GRACE_SECONDS
from storage.clock import now
from storage.errors import UnknownBlob
from storage.records import User, image_part, text_part
from storage.store import Store
from tests.conftest import question


def grow_old(store: Store) -> None:
    """Let everything that is stored by now have been put an hour ago."""
    store.database.run("UPDATE blobs SET created_at = ?", [now(-GRACE_SECONDS - 1)])


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
    grow_old(store)
    assert store.blobs.delete_unused({used, spoken, unused}) == 1
    assert store.blobs.read(used) + store.blobs.read(spoken) == b"ab"
    assert store.conversations.may_see(admin.id, spoken)
    assert not store.conversations.may_see(admin.id, used)


def test_what_was_just_put_is_not_deleted(store: Store) -> None:
    """A picture whose message is on its way survives an older chat that showed it, and goes an hour later."""
    sha256 = store.blobs.put(b"picture", "image/png")
    grow_old(store)
    store.blobs.put(b"picture", "image/png")
    assert store.blobs.delete_unused({sha256}) == 0
    assert store.blobs.sweep() == 0
    assert store.blobs.read(sha256) == b"picture"
    grow_old(store)
    assert store.blobs.sweep() == 1
    with pytest.raises(UnknownBlob):
        store.blobs.read(sha256)


def test_what_nothing_shows_any_more_is_swept(store: Store, admin: User) -> None:
    """After an undo its picture goes, also if somebody wrote its hash; what rows and other messages show stays."""
    taught, shown, undone = (store.blobs.put(data, "image/png") for data in (b"a", b"b", b"c"))
    grow_old(store)
    store.datasets.add("a", admin.id, [question("?", "!", image=taught)])
    chat = store.conversations.create(admin.id).id
    for part in (image_part(shown), text_part(f'"sha256": "{undone}"'), image_part(undone)):
        last = store.conversations.append(chat, admin.id, "user", [text_part("?"), part])
    assert store.blobs.sweep() == 0
    store.conversations.drop_from(chat, admin.id, last.position)
    assert store.blobs.sweep() == 1
    assert store.blobs.read(taught) + store.blobs.read(shown) == b"ab"
    with pytest.raises(UnknownBlob):
        store.blobs.path(undone)
    with pytest.raises(UnknownBlob):
        store.blobs.media_type(undone)


def test_many_unused_blobs_are_swept(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are, all of them go, in transactions of bounded size."""
    monkeypatch.setattr(blobs, "BATCH", 3)
    for number in range(7):
        store.blobs.put(bytes([number]), "image/png")
    grow_old(store)
    assert store.blobs.sweep() == 7
    assert [path for path in (store.data_dir / "blobs").rglob("*") if path.is_file()] == []


def test_a_put_during_a_sweep_keeps_its_file(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that another process stores while the same ones are being deleted are there when it is done."""
    sha256 = store.blobs.put(b"picture", "image/png")
    grow_old(store)
    remove = Path.unlink

    with Store(store.settings) as other:
        putting = threading.Thread(target=other.blobs.put, args=[b"picture", "image/png"])

        def slow_remove(path: Path, missing_ok: bool = False) -> None:
            if path.name == sha256:
                putting.start()
                # It gets as far as it can while the file is still there.
                putting.join(0.3)
            remove(path, missing_ok=missing_ok)

        monkeypatch.setattr(Path, "unlink", slow_remove)
        assert store.blobs.sweep() == 1
        putting.join()
    assert store.blobs.read(sha256) == b"picture"
    assert store.blobs.media_type(sha256) == "image/png"


def test_what_is_put_together_goes_together(store: Store) -> None:
    """If one of many fails the others go at once, except those that somebody else has put before or since."""
    before = store.blobs.put(b"before", "image/png")
    hashes: list[str] = []

    def fail() -> None:
        with store.blobs.together() as put:
            hashes.extend(put(data, "image/png") for data in (b"before", b"since", b"alone"))
            store.blobs.put(b"since", "image/png")
            raise BlockingIOError

    with pytest.raises(BlockingIOError):
        fail()
    _, since, alone = hashes
    assert store.blobs.read(before) + store.blobs.read(since) == b"beforesince"
    with pytest.raises(UnknownBlob):
        store.blobs.read(alone)
    with store.blobs.together() as put:
        kept = put(b"kept", "image/png")
    assert store.blobs.read(kept) == b"kept"

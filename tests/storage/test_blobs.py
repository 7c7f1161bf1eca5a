"""What stored files promise: found by content, kept while used."""

from __future__ import annotations

import pytest

from storage.errors import UnknownBlob
from storage.records import User
from storage.store import Store
from tests.conftest import question


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

"""What conversations promise: they belong to their owner and stay as they were."""

from __future__ import annotations

import pytest

from storage.errors import UnknownConversation
from storage.records import Role, User, text_part
from storage.store import Store


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


def test_typing_the_hash_of_a_picture_does_not_show_it(store: Store, admin: User) -> None:
    """Only who was sent a picture, or sent it, may see it; a text that names its hash opens nothing."""
    other = store.users.create("bob", Role.CHAT)
    sha256 = store.blobs.put(b"private", "image/png")
    theirs, mine = store.conversations.create(other.id), store.conversations.create(admin.id)
    store.conversations.append(theirs.id, other.id, "user", [{"type": "image", "sha256": sha256}])
    for text in (sha256, f'"sha256": "{sha256}"', f'{{"type": "image", "sha256": "{sha256}"}}'):
        store.conversations.append(mine.id, admin.id, "user", [text_part(text)])
    assert store.conversations.may_see(other.id, sha256)
    assert not store.conversations.may_see(admin.id, sha256)

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

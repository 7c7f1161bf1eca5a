"""People's conversations, kept on the server; nobody reaches another's."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal

from storage.clock import now
from storage.database import Database
from storage.errors import UnknownConversation
from storage.records import ConversationInfo, Part, StoredMessage

TITLE_LENGTH = 60


class Conversations:
    """Conversations and their messages; every call names the owner, and another's conversation does not exist."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, user_id: int, title: str = "") -> ConversationInfo:
        """Start a conversation; without a title the first message gives it one."""
        conversation_id = self._database.insert(
            "conversations", {"user_id": user_id, "title": title, "created_at": now(), "updated_at": now()}
        )
        return self.get(conversation_id, user_id)

    def list(self, user_id: int) -> Sequence[ConversationInfo]:
        """Return a user's conversations, the most recently used first."""
        found = self._database.rows(
            "SELECT * FROM conversations WHERE user_id = ? ORDER BY updated_at DESC, id DESC", [user_id]
        )
        return [ConversationInfo(**row) for row in found]

    def get(self, conversation_id: int, user_id: int) -> ConversationInfo:
        """Return one conversation; raise UnknownConversation if it is not this user's."""
        row = self._database.row(
            "SELECT * FROM conversations WHERE id = ? AND user_id = ?", [conversation_id, user_id]
        )
        if row is None:
            raise UnknownConversation(conversation_id)
        return ConversationInfo(**row)

    def messages(self, conversation_id: int, user_id: int) -> Sequence[StoredMessage]:
        """Return the messages of a conversation in their order."""
        self.get(conversation_id, user_id)
        found = self._database.rows(
            "SELECT id, position, role, content, generation, state, created_at FROM messages"
            " WHERE conversation_id = ? ORDER BY position",
            [conversation_id],
        )
        return [_message(row) for row in found]

    def append(
        self,
        conversation_id: int,
        user_id: int,
        role: Literal["system", "user", "assistant"],
        content: Sequence[Part],
        *,
        generation: str | None = None,
        state: Literal["complete", "interrupted"] = "complete",
    ) -> StoredMessage:
        """Add a message at the end."""
        with self._database.writing():
            info = self.get(conversation_id, user_id)
            row = self._database.row(
                "INSERT INTO messages (conversation_id, position, role, content, generation, state, created_at)"
                " VALUES (:id, (SELECT coalesce(max(position), -1) + 1 FROM messages WHERE conversation_id = :id),"
                " :role, :content, :generation, :state, :now)"
                " RETURNING id, position, role, content, generation, state, created_at",
                {
                    "id": conversation_id,
                    "role": role,
                    "content": json.dumps(content),
                    "generation": generation,
                    "state": state,
                    "now": now(),
                },
            )
            self._database.run(
                "UPDATE conversations SET updated_at = ?, title = ? WHERE id = ?",
                [now(), info.title or _title(content), conversation_id],
            )
        return _message(row or {})

    def drop_from(self, conversation_id: int, user_id: int, position: int) -> None:
        """Remove the message at `position` and everything after it, as retry, undo and edit do."""
        with self._database.writing():
            self.get(conversation_id, user_id)
            self._database.run(
                "DELETE FROM messages WHERE conversation_id = ? AND position >= ?",
                [conversation_id, position],
            )

    def rename(self, conversation_id: int, user_id: int, title: str) -> ConversationInfo:
        """Give a conversation another title."""
        self.get(conversation_id, user_id)
        self._database.run(
            "UPDATE conversations SET title = ? WHERE id = ?", [title.strip()[:TITLE_LENGTH], conversation_id]
        )
        return self.get(conversation_id, user_id)

    def delete(self, conversation_id: int, user_id: int) -> None:
        """Remove a conversation with its messages."""
        self.get(conversation_id, user_id)
        self._database.run("DELETE FROM conversations WHERE id = ?", [conversation_id])

    def may_see(self, user_id: int, sha256: str) -> bool:
        """Whether an image stands in one of this user's conversations; its hash typed as text is no image.

        Quotes in a text are escaped in the stored JSON, so only an image part can match.
        """
        row = self._database.row(
            "SELECT 1 FROM messages JOIN conversations ON conversations.id = conversation_id"
            " WHERE user_id = ? AND content LIKE ?",
            [user_id, f'%"sha256": "{sha256}"%'],
        )
        return row is not None


def _title(content: Sequence[Part]) -> str:
    words = " ".join(part["text"] for part in content if part["type"] == "text").split()
    return " ".join(words)[:TITLE_LENGTH] or "Picture"


def _message(row: dict[str, Any]) -> StoredMessage:
    return StoredMessage(**row | {"content": json.loads(row["content"])})

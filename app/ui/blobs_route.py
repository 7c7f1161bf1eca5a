"""GET /blobs/{sha256}: stored pictures, each only for those who may see it. Not Gradio's cache, which serves anybody.

A picture is seen by whoever has it in a conversation of theirs; one of a dataset also by its uploader and by admins.
"""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import FileResponse

from app.api.context import CurrentUser, InContext
from storage.errors import UnknownBlob
from storage.records import Role, User
from storage.store import Store

router = APIRouter(include_in_schema=False)


@router.get("/blobs/{sha256}", response_class=FileResponse)
def blob(sha256: str, context: InContext, user: CurrentUser) -> FileResponse:
    """Send a picture; one that the user may not see does not exist for them."""
    if not may_see(context.store, user, sha256):
        raise UnknownBlob(sha256)
    return FileResponse(
        context.store.blobs.path(sha256),
        media_type=context.store.blobs.media_type(sha256),
        # The bytes under a hash never change, but the next person at this browser may not be allowed to see them.
        headers={"Cache-Control": "private, max-age=3600", "Vary": "Cookie"},
    )


def may_see(store: Store, user: User, sha256: str) -> bool:
    """Whether a picture is in the user's own conversation or dataset, or in a dataset that they judge."""
    owner = None if user.role is Role.ADMIN else user.id
    return store.conversations.may_see(user.id, sha256) or store.datasets.may_see(owner, sha256)

"""Who sends a request: an API key, or a session cookie together with proof that our own page sent it.

Does not decide what a user may do (app/access.py) and keeps no passwords (storage.users).
"""

from __future__ import annotations

from urllib.parse import urlsplit

from fastapi import Request, Response

from app.settings import AppSettings
from storage.errors import ForeignOrigin, NotSignedIn
from storage.records import User
from storage.store import Store
from storage.users import SESSION_SECONDS

COOKIE = "llaca_session"
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


def identify(store: Store, request: Request) -> User:
    """Return the user behind a request; a key that is sent must be good, a cookie beside it is not looked at.

    Raises NotSignedIn, and ForeignOrigin for a changing request that another site's page made with our cookie.
    """
    authorization = request.headers.get("authorization")
    if authorization is not None:
        scheme, _, key = authorization.partition(" ")
        user = store.users.key_user(key.strip()) if scheme.lower() == "bearer" else None
    else:
        check_origin(request)
        user = store.users.session_user(request.cookies.get(COOKIE, ""))
    if user is None:
        raise NotSignedIn
    return user


def check_origin(request: Request) -> None:
    """Raise ForeignOrigin if a browser says that a changing request was made by another site's page.

    Browsers send Sec-Fetch-Site, and Origin with every POST; a client that sends neither is no browser, so nobody's
    cookie can be abused through it.
    """
    if request.method in SAFE_METHODS:
        return
    origin = request.headers.get("origin")
    fetch_site = request.headers.get("sec-fetch-site")
    if fetch_site is not None and fetch_site not in ("same-origin", "none"):
        raise ForeignOrigin(origin or "another site")
    if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
        raise ForeignOrigin(origin)


def sign_in(store: Store, settings: AppSettings, request: Request, response: Response, user: User) -> None:
    """Open a session for the user and put its cookie on the response; a session the browser had before ends."""
    store.users.close_session(request.cookies.get(COOKIE, ""))
    response.set_cookie(
        COOKIE,
        store.users.open_session(user.id),
        max_age=SESSION_SECONDS,
        httponly=True,
        samesite="lax",
        secure=settings.secure_cookies or request.url.scheme == "https",
    )


def sign_out(store: Store, request: Request, response: Response) -> None:
    """End the session of the request and remove its cookie."""
    store.users.close_session(request.cookies.get(COOKIE, ""))
    response.delete_cookie(COOKIE, httponly=True, samesite="lax")

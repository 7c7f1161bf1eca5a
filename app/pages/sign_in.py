"""GET and POST of /login, /logout and /welcome/{token}."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from app.api.context import InContext
from app.auth import sign_in, sign_out
from app.pages.html import gone_page, login_page, welcome_page
from storage.errors import LinkExpired, WeakPassword
from storage.users import PASSWORD_LEAST, PASSWORD_MOST

router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)

WRONG = "Name and password do not match."
Text = Annotated[str, Form(max_length=1000)]


@router.get("/login")
def show_login() -> Response:
    """Show the sign-in form."""
    return HTMLResponse(login_page())


@router.post("/login")
def log_in(request: Request, context: InContext, name: Text = "", password: Text = "") -> Response:
    """Open a session for the right password; after too many wrong ones answer 429 without looking at it."""
    key = f"{request.client.host if request.client else ''} {name.strip().casefold()}"
    if (wait := context.logins.wait(key)) > 0:
        seconds = int(wait) + 1
        problem = f"Too many attempts; try again in {seconds} seconds."
        return HTMLResponse(login_page(name, problem), status_code=429, headers={"Retry-After": str(seconds)})
    # Counted before the slow check, so that attempts made at the same time do not all slip through.
    context.logins.take(key)
    user = context.store.users.verify(name.strip(), password)
    if user is None:
        return HTMLResponse(login_page(name, WRONG), status_code=401)
    context.logins.forget(key)
    response = RedirectResponse("/", status_code=303)
    sign_in(context.store, context.settings, request, response, user)
    return response


@router.post("/logout")
def log_out(request: Request, context: InContext) -> Response:
    """End the session and go back to the sign-in form."""
    response = RedirectResponse("/login", status_code=303)
    sign_out(context.store, request, response)
    return response


@router.get("/welcome/{token}")
def show_welcome(token: str, context: InContext) -> Response:
    """Show for whom a one-time link is and ask for a password; looking does not use it up."""
    user = context.store.users.invited(token)
    if user is None:
        return HTMLResponse(gone_page(str(LinkExpired())), status_code=403)
    return HTMLResponse(welcome_page(user.name, least=PASSWORD_LEAST, most=PASSWORD_MOST))


@router.post("/welcome/{token}")
def choose_password(
    request: Request, token: str, context: InContext, password: Text = "", again: Text = ""
) -> Response:
    """Use the link up: set the password and sign in."""
    user = context.store.users.invited(token)
    if user is None:
        return HTMLResponse(gone_page(str(LinkExpired())), status_code=403)
    try:
        if password != again:
            return _again(user.name, "The two passwords differ.")
        context.store.users.redeem(token, password)
    except WeakPassword as error:
        return _again(user.name, str(error))
    except LinkExpired as error:
        return HTMLResponse(gone_page(str(error)), status_code=403)
    response = RedirectResponse("/", status_code=303)
    sign_in(context.store, context.settings, request, response, user)
    return response


def _again(name: str, problem: str) -> Response:
    page = welcome_page(name, least=PASSWORD_LEAST, most=PASSWORD_MOST, problem=problem)
    return HTMLResponse(page, status_code=400)

"""The frame and the forms of the plain pages. Everything that came from outside is escaped here."""

from __future__ import annotations

from html import escape
from string import Template

_FRAME = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title - LLaCA assistant</title>
<style>
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { display: grid; place-items: center; min-height: 90vh; margin: 0; padding: 1rem; }
main { width: 100%; max-width: 22rem; }
label { display: block; margin: 1rem 0 .25rem; }
input, button { box-sizing: border-box; width: 100%; padding: .6rem; font: inherit;
  border: 1px solid GrayText; border-radius: .4rem; }
button { margin-top: 1.5rem; border: 0; background: #1d4ed8; color: #fff; cursor: pointer; }
:focus-visible { outline: 3px solid #60a5fa; outline-offset: 2px; }
[role=alert] { padding: .6rem; border-left: 4px solid #dc2626; }
</style>
</head>
<body><main><h1>$title</h1>$alert$content</main></body>
</html>
""")

_LOGIN = """
<form method="post" action="/login">
<label for="name">Name</label>
<input id="name" name="name" autocomplete="username" required autofocus maxlength="200" value="{name}">
<label for="password">Password</label>
<input id="password" name="password" type="password" autocomplete="current-password" required maxlength="200">
<button>Sign in</button>
</form>
<p>No account, or the password is lost? An admin can send you a one-time link.</p>
"""

_WELCOME = """
<p>Hello <strong>{name}</strong>. Choose the password you will sign in with: at least {least} characters.</p>
<form method="post">
<input type="hidden" name="name" autocomplete="username" value="{name}">
<label for="password">New password</label>
<input id="password" name="password" type="password" autocomplete="new-password" required autofocus
  minlength="{least}" maxlength="{most}">
<label for="again">The same once more</label>
<input id="again" name="again" type="password" autocomplete="new-password" required
  minlength="{least}" maxlength="{most}">
<button>Save and sign in</button>
</form>
"""


def page(title: str, content: str, problem: str = "") -> str:
    """Return a whole page; `content` is HTML, `title` and `problem` are text."""
    alert = f'<p role="alert">{escape(problem)}</p>' if problem else ""
    return _FRAME.substitute(title=escape(title), alert=alert, content=content)


def login_page(name: str = "", problem: str = "") -> str:
    """Return the sign-in form, with what went wrong the last time."""
    return page("Sign in", _LOGIN.format(name=escape(name)), problem)


def welcome_page(name: str, *, least: int, most: int, problem: str = "") -> str:
    """Return the form in which an invited user chooses a password."""
    return page("Welcome", _WELCOME.format(name=escape(name), least=least, most=most), problem)


def gone_page(problem: str) -> str:
    """Return the page for a link that no longer works."""
    return page("This link does not work", '<p><a href="/login">Sign in</a></p>', problem)

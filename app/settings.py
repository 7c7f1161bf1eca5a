"""Settings of the web process: where it listens, who may do how much, how long a session lasts.

Does not know the database path (storage.settings) or the model (serving.settings).
"""

from __future__ import annotations

from pydantic import Field

from storage.settings import Settings


class AppSettings(Settings):
    """Where the web page and the HTTP API listen, and how much one user may ask of them."""

    host: str = "127.0.0.1"
    """Address the web server listens on. The default is reachable from this machine only."""
    port: int = Field(default=7860, ge=1, le=65535)
    """Port the web server listens on."""
    public_url: str = Field(default="", pattern=r"^(https?://[^/\s]+)?$")
    """Address people type, such as https://llaca.example.org; for printed links. Empty: from host and port."""
    secure_cookies: bool = False
    """Mark the session cookie Secure, so that browsers send it over HTTPS only. Turn on behind TLS."""
    trusted_proxies: list[str] = Field(default=[])
    """Addresses of reverse proxies whose X-Forwarded-For and -Proto are believed, as a JSON list."""
    max_tokens: int = Field(default=1024, ge=1, le=32768)
    """Most tokens one reply may have; also the length used when a request names none."""
    chats_per_minute: int = Field(default=30, ge=1, le=100_000)
    """Replies one user may ask for in a minute; beyond it the answer is 429 with Retry-After."""
    chats_per_user: int = Field(default=4, ge=1, le=10_000)
    """Replies one user may have running or waiting at the same time."""
    chats_at_once: int = Field(default=64, ge=1, le=10_000)
    """Replies written at the same time for everybody; further ones wait in a queue."""
    chats_waiting: int = Field(default=200, ge=0, le=100_000)
    """Replies that may wait in that queue; beyond it the answer is 429 with Retry-After."""
    chat_wait_seconds: float = Field(default=30.0, gt=0, le=600)
    """Longest a reply waits in the queue before it is refused with 429."""
    uploads_per_minute: int = Field(default=10, ge=1, le=100_000)
    """Files one user may upload in a minute."""
    logins_per_minute: int = Field(default=5, ge=1, le=10_000)
    """Failed sign-ins allowed in a minute per address and user name before further ones are refused."""
    chat_body_max_bytes: int = Field(default=64 * 1024 * 1024, ge=1024)
    """Largest chat request in bytes, images included."""
    text_max_chars: int = Field(default=100_000, ge=1)
    """Most characters of text in a chat request, the whole conversation counted, and in a message on the page."""

    def url(self) -> str:
        """Return the address a person opens, without a trailing slash."""
        if self.public_url:
            return self.public_url
        return self.local_url()

    def local_url(self) -> str:
        """Return the address at which this machine itself reaches the server."""
        everywhere = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared, not bound
        reached = everywhere.get(self.host, self.host)
        return f"http://{f'[{reached}]' if ':' in reached else reached}:{self.port}"

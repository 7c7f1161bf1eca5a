"""How long connections live."""

from __future__ import annotations

import http.client
import time
from contextlib import closing

from tests.app.places import Place


def test_a_connection_outlives_what_clients_keep(here: Place) -> None:
    """A connection unused for longer than httpx and OpenAI's client keep one (5 s) still answers."""
    connection = http.client.HTTPConnection(here.url.removeprefix("http://"))
    # By default it would open another connection where this one was closed.
    connection.auto_open = 0
    connection.connect()
    with closing(connection):
        for pause in (0.0, 6.0):
            time.sleep(pause)
            connection.request("GET", "/login")
            assert connection.getresponse().read()

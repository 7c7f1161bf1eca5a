"""Ports for servers that tests start."""

from __future__ import annotations

import contextlib
import socket


def free_ports(count: int) -> list[int]:
    """Return so many different loopback ports on which nobody listens."""
    with contextlib.ExitStack() as probes:
        # All are held until the last is found, because a port that is given back may be given out again.
        found = [probes.enter_context(socket.socket()) for _ in range(count)]
        for probe in found:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in found]

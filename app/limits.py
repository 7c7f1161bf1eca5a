"""How much one user, and all users together, may ask for: rates, replies at once, a bounded queue.

In memory and per web process: a restart forgets the counts. Does not know HTTP; app/api/errors.py turns
TooManyRequests into 429.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from app.settings import AppSettings
from storage.errors import TooManyRequests

KEYS_KEPT = 10_000
UPLOADS = "uploads per minute"


class Rate:
    """A token bucket per key: `per_minute` at once, refilled evenly over a minute."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_minute = per_minute
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}

    def wait(self, key: str) -> float:
        """Return the seconds until `key` may act again; 0.0 means now."""
        tokens = self._tokens(key)
        return 0.0 if tokens >= 1 else (1 - tokens) * 60 / self.per_minute

    def take(self, key: str) -> None:
        """Count one action of `key`."""
        tokens, now = self._tokens(key), self._clock()
        if len(self._buckets) >= KEYS_KEPT:
            self._forget_full(now)
        self._buckets[key] = (max(tokens - 1, 0.0), now)

    def spend(self, key: str, what: str) -> None:
        """Count one action of `key`; raises TooManyRequests, and counts nothing, while none is left of `what`."""
        if (wait := self.wait(key)) > 0:
            raise TooManyRequests(what, self.per_minute, int(wait) + 1)
        self.take(key)

    def forget(self, key: str) -> None:
        """Give `key` its full allowance back, as after a successful sign-in."""
        self._buckets.pop(key, None)

    def _tokens(self, key: str) -> float:
        tokens, then = self._buckets.get(key, (float(self.per_minute), self._clock()))
        return min(self.per_minute, tokens + (self._clock() - then) * self.per_minute / 60)

    def _forget_full(self, now: float) -> None:
        # A minute without an action refills a bucket, so dropping it loses nothing.
        self._buckets = {key: kept for key, kept in self._buckets.items() if now - kept[1] < 60}


class Admission:
    """The door in front of vLLM: a rate and a share per user, a number at once for all, then a bounded queue."""

    def __init__(self, settings: AppSettings) -> None:
        self._settings = settings
        self._rate = Rate(settings.chats_per_minute)
        self._slots = asyncio.Semaphore(settings.chats_at_once)
        self._of_user: Counter[str] = Counter()
        self.running = 0
        self.waiting = 0

    @asynccontextmanager
    async def admit(self, user_id: str) -> AsyncIterator[None]:
        """Hold a place for one reply of the user; raises TooManyRequests with the seconds to wait."""
        self._check(user_id)
        self._rate.take(user_id)
        self._of_user[user_id] += 1
        try:
            await self._wait_for_slot()
            self.running += 1
            try:
                yield
            finally:
                self.running -= 1
                self._slots.release()
        finally:
            self._of_user[user_id] -= 1
            self._of_user += Counter()  # drops users at zero

    def _check(self, user_id: str) -> None:
        if (wait := self._rate.wait(user_id)) > 0:
            raise TooManyRequests("replies per minute", self._settings.chats_per_minute, math.ceil(wait))
        if self._of_user[user_id] >= self._settings.chats_per_user:
            raise TooManyRequests("replies of one user at the same time", self._settings.chats_per_user, 1)
        if self._slots.locked() and self.waiting >= self._settings.chats_waiting:
            raise TooManyRequests("replies waiting for a free place", self._settings.chats_waiting, 5)

    async def _wait_for_slot(self) -> None:
        self.waiting += 1
        try:
            async with asyncio.timeout(self._settings.chat_wait_seconds):
                await self._slots.acquire()
        except TimeoutError:
            raise TooManyRequests("replies at the same time", self._settings.chats_at_once, 5) from None
        finally:
            self.waiting -= 1

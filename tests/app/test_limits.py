"""What the limits promise: an even rate, a share per user, a bounded queue, and nothing lost when a reader goes."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from app.limits import KEYS_KEPT, Admission, Rate
from app.settings import AppSettings
from storage.errors import TooManyRequests


class Clock:
    """A clock that a test moves by hand."""

    now = 1000.0

    def __call__(self) -> float:
        """Return the time it was moved to."""
        return self.now


def test_a_rate_refills_evenly() -> None:
    """`per_minute` actions at once, then one more each 60/per_minute seconds, never more than the full bucket."""
    clock = Clock()
    rate = Rate(6, clock)
    for _ in range(6):
        assert rate.wait("a") == 0
        rate.take("a")
    assert rate.wait("a") == pytest.approx(10)
    assert rate.wait("b") == 0
    clock.now += 10
    assert rate.wait("a") == pytest.approx(0)
    clock.now += 3600
    for _ in range(6):
        rate.take("a")
    assert rate.wait("a") > 0


def test_keys_are_forgotten_only_once_their_bucket_is_full() -> None:
    """Memory stays bounded when strangers invent names, and that does not free a name that is being guessed at."""
    clock = Clock()
    rate = Rate(1, clock)
    for number in range(KEYS_KEPT):
        rate.take(f"old {number}")
    clock.now += 61
    rate.take("victim")
    rate.take("another")
    assert len(rate._buckets) == 2
    assert rate.wait("victim") > 0


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"chats_per_minute": 2}, "per minute"),
        ({"chats_per_user": 2}, "of one user"),
        ({"chats_at_once": 2, "chats_waiting": 0}, "waiting"),
        ({"chats_at_once": 2, "chat_wait_seconds": 0.02}, "at the same time"),
    ],
)
async def test_the_third_reply_is_refused(settings: dict[str, float], word: str) -> None:
    """Each limit of two refuses the third reply, says which limit it was and when to come back, and lets go again."""
    admission = Admission(AppSettings.model_validate(settings))
    async with AsyncExitStack() as held:
        for _ in range(2):
            await held.enter_async_context(admission.admit("a"))
        with pytest.raises(TooManyRequests, match=word) as refused:
            async with admission.admit("a"):
                pass
        assert refused.value.retry_after >= 1
    assert (admission.running, admission.waiting) == (0, 0)


async def test_waiting_replies_come_in_their_order() -> None:
    """The queue is first come, first served; one that gives up waiting leaves no hole."""
    admission = Admission(AppSettings(chats_at_once=1))
    order: list[str] = []

    async def chat(user: str) -> None:
        async with admission.admit(user):
            order.append(user)

    async with admission.admit("first"):
        tasks = [asyncio.create_task(chat(user)) for user in ("a", "b", "c")]
        while admission.waiting < 3:
            await asyncio.sleep(0)
        tasks[1].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert order == ["a", "c"]
    assert (admission.running, admission.waiting) == (0, 0)

"""What evaluating promises: both generations answer every row once, whatever happens in between."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from learner.evaluate import Duel, _tokens_for, evaluate, paired_scores
from learner.lease import Lease
from serving.client import VLLM
from storage.errors import RoundCancelled, ServingUnavailable
from storage.records import Round, User, text_of
from storage.store import Store
from tests.fake_vllm import FakeVLLM, Messages
from tests.serving.adapters import claimed_round, published, write_lora


@pytest.fixture
def claimed(store: Store, admin: User) -> Round:
    """A round over one dataset that this test holds."""
    return claimed_round(store, admin)


@pytest.fixture
def fake(store: Store) -> Iterator[FakeVLLM]:
    """A server whose adapters know every answer, and whose base model knows none."""
    known = {}

    def speak(adapter: Path | None, messages: Messages) -> str:
        for row in store.datasets.rows(1, "holdout"):
            known[text_of(row.messages[0])] = text_of(row.messages[-1])
        asked = messages[-1]["content"]
        text = asked if isinstance(asked, str) else asked[-1]["text"]
        return known[text] if adapter else "something else"

    with FakeVLLM(speak=speak) as started:
        yield started


def run(store: Store, fake: FakeVLLM, claimed: Round, candidate: int, *, patience: float = 20) -> int:
    """Evaluate the candidate against the base model; return how many answers were new."""

    async def story() -> int:
        lease = Lease(store, claimed, lease_seconds=60, heartbeat_seconds=0.05)
        async with VLLM(fake.url, fake.key) as server:
            with lease:
                return await evaluate(store, [server], lease, duel(store, candidate, patience))

    return asyncio.run(story())


def duel(store: Store, candidate: int, patience: float = 20) -> Duel:
    """Return the base model against the candidate on the only dataset."""
    return Duel(
        champion=0,
        candidate=candidate,
        datasets=(store.datasets.get(1),),
        rows_per_dataset=100,
        concurrency=2,
        patience_seconds=patience,
    )


@pytest.fixture
def candidate(store: Store, fake: FakeVLLM, claimed: Round, tmp_path: Path) -> int:
    """A published candidate that the server has loaded."""
    generation = published(store, claimed, write_lora(tmp_path / "adapter", seed=1))
    asyncio.run(load(fake, generation.name, generation.directory))
    return generation.number


async def load(fake: FakeVLLM, name: str, directory: Path) -> None:
    """Load an adapter on the fake server."""
    async with VLLM(fake.url, fake.key) as server:
        await server.load(name, directory)


def test_both_answer_every_holdout_row_once(
    store: Store, fake: FakeVLLM, claimed: Round, candidate: int
) -> None:
    """Each row is asked of both; asked again nobody is asked; the scores come in pairs."""
    rows = len(store.datasets.rows(1, "holdout"))
    assert run(store, fake, claimed, candidate) == 2 * rows
    assert run(store, fake, claimed, candidate) == 0
    (paired,) = paired_scores(store, claimed.id, duel(store, candidate), new={1})
    assert (paired.earlier, paired.champion, paired.candidate) == (False, (0.0,) * rows, (1.0,) * rows)


def test_a_cancelled_round_stops_asking_and_says_why(
    store: Store, fake: FakeVLLM, claimed: Round, candidate: int
) -> None:
    """A cancel ends the evaluation with the error that tells it from a failure."""
    store.rounds.cancel(claimed.id, "ada")
    with pytest.raises(RoundCancelled):
        run(store, fake, claimed, candidate)
    assert store.evaluations.answers(claimed.id, candidate) == []


def test_a_server_that_restarts_is_waited_for(
    store: Store, fake: FakeVLLM, claimed: Round, candidate: int
) -> None:
    """A server that has forgotten the candidate is asked again until somebody has loaded it."""
    generation = store.generations.get(candidate)
    fake.stop()
    fake.start()

    async def story() -> int:
        working = asyncio.create_task(asyncio.to_thread(run, store, fake, claimed, candidate))
        while not any(body["model"] == generation.name for body in fake.requests):
            await asyncio.sleep(0.01)
        await load(fake, generation.name, generation.directory)
        return await working

    assert asyncio.run(story()) == 2 * len(store.datasets.rows(1, "holdout"))


def test_patience_ends(store: Store, fake: FakeVLLM, claimed: Round, candidate: int) -> None:
    """A server that stays away fails the evaluation, and what was answered before is kept."""
    fake.stop()
    with pytest.raises(ServingUnavailable):
        run(store, fake, claimed, candidate, patience=0)


def test_only_rows_that_both_answered_are_paired(
    store: Store, fake: FakeVLLM, claimed: Round, candidate: int
) -> None:
    """A row that only one of the two has answered so far says nothing and is left out."""
    run(store, fake, claimed, candidate)
    store.database.run("DELETE FROM answers WHERE generation = 0")
    (paired,) = paired_scores(store, claimed.id, duel(store, candidate), new={1})
    assert (paired.champion, paired.candidate) == ((), ())


@pytest.mark.parametrize(
    "reference", ["S-T-R-A-W-B-E-R-R-Y", "2026-11-28T12:00:00Z", "红色的圆在蓝色的方块左边。", "a b c d e f"]
)
def test_an_answer_may_be_as_long_as_its_reference(reference: str) -> None:
    """A tokenizer that knows no more than single bytes still gets the whole reference out, and its end of turn."""
    assert _tokens_for(reference) > len(reference.encode())

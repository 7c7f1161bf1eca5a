"""What the reconciler heals, and what it must not touch."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

from serving.client import VLLM
from serving.reconcile import Reconciler
from serving.replica import inspect
from storage.records import Decision, Generation, RoundState, User
from storage.store import Store
from tests.fake_vllm import FakeVLLM, weights_of
from tests.serving.adapters import QUESTION, claimed_round, fake_probe, grouped, published, write_lora

SECONDS = 10
DRAIN = 1.0


def promoted(
    store: Store, admin: User, directory: Path, seed: int, groups: dict[str, Any] | None = None
) -> Generation:
    """Publish a new adapter and carry its round to the promotion."""
    claimed = claimed_round(store, admin)
    lease, champion = str(claimed.lease), store.generations.champion()
    store.rounds.prepare(claimed.id, lease, champion, "llaca", {})
    write_lora(directory, seed)
    fake_probe(weights_of(directory)).write(directory)
    generation = published(store, claimed, directory, parent=champion, groups=groups)
    for state in (RoundState.TRAINING, RoundState.EVALUATING, RoundState.JUDGING):
        store.rounds.advance(claimed.id, lease, state)
    store.rounds.set_verdict(claimed.id, lease, {"decision": Decision.PROMOTE, "reasons": []})
    store.rounds.advance(claimed.id, lease, RoundState.SWAPPING)
    store.generations.promote(
        round_id=claimed.id, lease=lease, candidate=generation.number, expected=champion
    )
    return generation


@asynccontextmanager
async def reconciling(store: Store, servers: list[VLLM]) -> AsyncIterator[None]:
    """Let a reconciler run in the background, quickly."""
    task = asyncio.create_task(Reconciler(store, servers, pause_seconds=0.02, drain_seconds=DRAIN).run())
    try:
        yield
    finally:
        task.cancel()


async def until_loaded(client: VLLM, names: set[str]) -> None:
    """Return when exactly these adapters are loaded; fail with those that are after a while."""
    async with asyncio.timeout(SECONDS):
        while set(await client.adapters()) != names:
            await asyncio.sleep(0.02)


async def test_a_restarted_server_gets_its_generations_back(
    store: Store, admin: User, fake: FakeVLLM, vllm: VLLM, tmp_path: Path
) -> None:
    """A restarted server has forgotten its adapters; the promoted generation serves again without anybody asking."""
    champion = promoted(store, admin, tmp_path / "one", seed=1)
    async with reconciling(store, [vllm]):
        await until_loaded(vllm, {champion.name})
        before = await vllm.chat(champion.name, QUESTION)
        await asyncio.to_thread(fake.restart)
        await until_loaded(vllm, {champion.name})
        assert await vllm.chat(champion.name, QUESTION) == before


async def test_a_candidate_under_test_is_loaded_everywhere(
    store: Store, admin: User, fake: FakeVLLM, vllm: VLLM, tmp_path: Path
) -> None:
    """A replica that joins in the middle of an evaluation gets the candidate too."""
    generation = published(store, claimed_round(store, admin), write_lora(tmp_path / "new", seed=1))
    with FakeVLLM() as other:
        async with VLLM(other.url, other.key) as second:
            await Reconciler(store, [vllm, second]).heal()
            assert set(await vllm.adapters()) == set(await second.adapters()) == {generation.name}


async def test_old_generations_leave_once_they_are_idle(
    store: Store, admin: User, vllm: VLLM, tmp_path: Path
) -> None:
    """Champion and the way back stay; what was before them goes."""
    generations = [promoted(store, admin, tmp_path / str(seed), seed) for seed in (1, 2, 3)]
    for generation in generations:
        await vllm.load(generation.name, generation.directory)
    wanted = {f"assistant@{number}" for number in store.generations.serve_set()}
    assert wanted == {generation.name for generation in generations[1:]}
    async with reconciling(store, [vllm]):
        await until_loaded(vllm, wanted)


async def test_a_generation_is_not_unloaded_while_it_answers(
    store: Store, admin: User, fake: FakeVLLM, vllm: VLLM, tmp_path: Path
) -> None:
    """Draining waits for the last reply, however long it takes, and unloads after it."""
    old = promoted(store, admin, tmp_path / "1", seed=1)
    await vllm.load(old.name, old.directory)
    fake.token_seconds = 0.02
    async with aclosing(vllm.stream(old.name, QUESTION, max_tokens=150)) as pieces:
        await anext(pieces)
        for seed in (2, 3):
            promoted(store, admin, tmp_path / str(seed), seed)
        async with reconciling(store, [vllm]):
            async for _ in pieces:
                # What is read may lag behind what is said, and the reply be over before its last words are read.
                assert old.name in await vllm.adapters() or old.name not in fake.active
            await until_loaded(vllm, {f"assistant@{number}" for number in store.generations.serve_set()})


async def test_a_generation_wanted_again_stays(
    store: Store, admin: User, fake: FakeVLLM, vllm: VLLM, tmp_path: Path
) -> None:
    """A roll-back during the drain finds the old generation still loaded."""
    first, *_ = [promoted(store, admin, tmp_path / str(seed), seed) for seed in (1, 2, 3)]
    reconciler = Reconciler(store, [vllm], drain_seconds=60)
    await vllm.load(first.name, first.directory)
    await reconciler.heal()
    store.generations.roll_back("ada", to=first.number)
    await reconciler.heal()
    assert first.name in await vllm.adapters()
    assert ("unload", first.name) not in fake.calls


async def test_foreign_adapters_are_left_alone(
    store: Store, fake: FakeVLLM, vllm: VLLM, tmp_path: Path
) -> None:
    """Only names of generations are ours to unload."""
    await vllm.load("somebody-elses", write_lora(tmp_path / "other", seed=1))
    reconciler = Reconciler(store, [vllm], drain_seconds=0)
    await reconciler.heal()
    await reconciler.heal()
    assert set(await vllm.adapters()) == {"somebody-elses"}


async def test_one_broken_generation_does_not_hold_up_the_others(
    store: Store, admin: User, vllm: VLLM, tmp_path: Path
) -> None:
    """A generation whose files were changed is not loaded; the one to roll back to still is."""
    good = promoted(store, admin, tmp_path / "1", seed=1)
    broken = promoted(store, admin, tmp_path / "2", seed=2)
    write_lora(broken.directory, seed=3)
    await Reconciler(store, [vllm]).heal()
    assert set(await vllm.adapters()) == {good.name}


async def test_a_server_that_is_away_does_not_hold_up_the_others(
    store: Store, admin: User, fake: FakeVLLM, vllm: VLLM, tmp_path: Path
) -> None:
    """Each server is healed on its own, and a report names what each one misses."""
    champion = promoted(store, admin, tmp_path / "1", seed=1)
    with FakeVLLM() as gone:
        pass
    async with VLLM(gone.url, gone.key) as away:
        await Reconciler(store, [away, vllm]).heal()
        up, down = await inspect(vllm, {champion.number}), await inspect(away, {champion.number})
    assert (up.healthy, up.loaded, up.missing, up.busy) == (True, (0, champion.number), (), ())
    assert (down.healthy, down.loaded, down.missing) == (False, (), (champion.number,))


async def test_all_adapters_of_what_serves_are_loaded_again_on_every_server(
    store: Store, admin: User, fake: FakeVLLM, vllm: VLLM, tmp_path: Path
) -> None:
    """With instruction groups a restarted server, and one that joins, gets the earlier adapters that still answer."""
    promoted(store, admin, tmp_path / "1", seed=1, groups=grouped(tmp_path / "1", ["a"], [None]))
    promoted(store, admin, tmp_path / "2", seed=2, groups=grouped(tmp_path / "2", ["a", "b"], [1, None]))
    for seed in (3, 4):
        groups = grouped(tmp_path / str(seed), ["a", "b", "c"], [1, 2, None])
        promoted(store, admin, tmp_path / str(seed), seed, groups)
    names = {f"assistant@{number}" for number in (1, 2, 3, 4)}
    assert store.generations.serve_set() == {3, 4}
    with FakeVLLM() as other:
        async with VLLM(other.url, other.key) as second, reconciling(store, [vllm, second]):
            await until_loaded(vllm, names)
            await until_loaded(second, names)
            await asyncio.to_thread(fake.restart)
            await until_loaded(vllm, names)


async def test_only_the_adapter_that_nobody_answers_with_is_drained(
    store: Store, admin: User, fake: FakeVLLM, vllm: VLLM, tmp_path: Path
) -> None:
    """A group's old adapter goes once its last reply has ended; those that later generations share stay loaded."""
    first = grouped(tmp_path / "1", ["a"], [None])
    promoted(store, admin, tmp_path / "1", 1, first)
    old = promoted(store, admin, tmp_path / "2", 2, grouped(tmp_path / "2", ["a", "b"], [1, None]))
    await Reconciler(store, [vllm]).heal()
    fake.token_seconds = 0.02
    async with aclosing(vllm.stream(old.name, QUESTION, max_tokens=150)) as pieces:
        await anext(pieces)
        for seed in (3, 4):
            groups = grouped(tmp_path / str(seed), ["a", "b"], [1, None])
            promoted(store, admin, tmp_path / str(seed), seed, groups)
        async with reconciling(store, [vllm]):
            async for _ in pieces:
                # What is read may lag behind what is said, and the reply be over before its last words are read.
                assert old.name in await vllm.adapters() or old.name not in fake.active
            await until_loaded(vllm, {"assistant@1", "assistant@3", "assistant@4"})
    assert [call for call in fake.calls if call[0] == "unload"] == [("unload", old.name)]


async def test_roll_back_finds_the_old_groups_loaded(
    store: Store, admin: User, fake: FakeVLLM, vllm: VLLM, tmp_path: Path
) -> None:
    """Both ways back keep all their adapters, so that a roll-back needs no loading."""
    promoted(store, admin, tmp_path / "1", 1, grouped(tmp_path / "1", ["a"], [None]))
    promoted(store, admin, tmp_path / "2", 2, grouped(tmp_path / "2", ["a", "b"], [1, None]))
    promoted(store, admin, tmp_path / "3", 3, grouped(tmp_path / "3", ["a", "b"], [None, 2]))
    await Reconciler(store, [vllm], drain_seconds=0).heal()
    before = list(fake.calls)
    assert store.generations.roll_back("ada") == 2
    await Reconciler(store, [vllm], drain_seconds=0).heal()
    assert set(await vllm.adapters()) == {"assistant@1", "assistant@2", "assistant@3"}
    assert fake.calls == before

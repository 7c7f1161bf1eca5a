"""The swap against a fake server: proved everywhere or not at all, repeatable, patient, and never in place."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from serving.client import VLLM
from serving.probes import Probe
from serving.replica import ensure_loaded
from serving.router import CODEBOOK
from serving.swap import bring_up
from storage.errors import AdapterChanged, AdapterRefused, ProbeRefused, ServingUnavailable
from storage.records import Generation, RoundState, User
from storage.store import Store
from tests.fake_vllm import FakeVLLM, weights_of
from tests.serving.adapters import WRONG_PREFIX, claimed_round, fake_probe, grouped, published, write_lora


def candidate(store: Store, admin: User, directory: Path, *, probe: Probe | None = None) -> Generation:
    """Publish an adapter whose probe fits it, or the probe given."""
    write_lora(directory, seed=1)
    (probe or fake_probe(weights_of(directory))).write(directory)
    return published(store, claimed_round(store, admin), directory)


async def test_a_candidate_is_loaded_and_proved_on_every_server(
    store: Store, admin: User, tmp_path: Path
) -> None:
    """Afterwards each server answers as the candidate, and doing it again changes nothing."""
    generation = candidate(store, admin, tmp_path / "new")
    with FakeVLLM() as one, FakeVLLM() as two:
        async with VLLM(one.url, one.key) as first, VLLM(two.url, two.key) as second:
            await bring_up(store, [first, second], generation.number)
            await bring_up(store, [first, second], generation.number)
        assert one.calls == two.calls == [("load", generation.name)]
        assert not any("load_inplace" in str(request) for request in one.requests)


async def test_the_base_model_needs_nothing(store: Store, fake: FakeVLLM, vllm: VLLM) -> None:
    """Generation 0 is always up."""
    await bring_up(store, [vllm], 0)
    assert fake.calls == []


async def test_an_ignored_adapter_does_not_come_up(
    store: Store, admin: User, vllm: VLLM, tmp_path: Path
) -> None:
    """Tensor names that match nothing are found by the probe, although vLLM said 200."""
    directory = write_lora(tmp_path / "ignored", seed=1, prefix=WRONG_PREFIX)
    fake_probe("what the learner measured").write(directory)
    generation = published(store, claimed_round(store, admin), directory)
    with pytest.raises(ProbeRefused, match="answers like the base model"):
        await bring_up(store, [vllm], generation.number)


async def test_a_changed_file_never_reaches_the_server(
    store: Store, admin: User, fake: FakeVLLM, vllm: VLLM, tmp_path: Path
) -> None:
    """The hashes of the manifest are compared before the load."""
    generation = candidate(store, admin, tmp_path / "new")
    write_lora(generation.directory, seed=2)
    with pytest.raises(AdapterChanged):
        await bring_up(store, [vllm], generation.number)
    assert fake.calls == []


async def test_a_server_that_is_away_is_waited_for(
    store: Store, admin: User, fake: FakeVLLM, vllm: VLLM, tmp_path: Path
) -> None:
    """A restart during a swap delays it and does not fail it."""
    generation = candidate(store, admin, tmp_path / "new")
    fake.stop()
    rising = asyncio.create_task(bring_up(store, [vllm], generation.number, patience_seconds=30))
    await asyncio.to_thread(fake.start)
    await rising
    assert fake.calls == [("load", generation.name)]


async def test_patience_ends(store: Store, admin: User, fake: FakeVLLM, vllm: VLLM, tmp_path: Path) -> None:
    """A server that stays away fails the swap with its own words."""
    generation = candidate(store, admin, tmp_path / "new")
    fake.stop()
    with pytest.raises(ServingUnavailable, match=fake.url):
        await bring_up(store, [vllm], generation.number, patience_seconds=0)


async def test_two_loaders_at_once_are_no_error(
    store: Store, admin: User, fake: FakeVLLM, vllm: VLLM, tmp_path: Path
) -> None:
    """The reconciler and a round may load the same generation in the same moment."""
    generation = candidate(store, admin, tmp_path / "new")
    await asyncio.gather(*(ensure_loaded(vllm, generation) for _ in range(4)))
    assert fake.calls == [("load", generation.name)]


async def test_a_name_from_an_earlier_installation_is_replaced(
    store: Store, admin: User, vllm: VLLM, tmp_path: Path
) -> None:
    """If the name is taken by another directory, that one goes, and the right one answers."""
    generation = candidate(store, admin, tmp_path / "new")
    await vllm.load(generation.name, write_lora(tmp_path / "stranger", seed=9))
    await bring_up(store, [vllm], generation.number)
    assert (await vllm.adapters())[generation.name] == generation.directory


async def test_a_refused_adapter_is_an_error_with_its_reason(
    store: Store, admin: User, vllm: VLLM, tmp_path: Path
) -> None:
    """What vLLM says against an adapter reaches people."""
    directory = tmp_path / "empty"
    directory.mkdir()
    generation = published(store, claimed_round(store, admin), directory)
    with pytest.raises(AdapterRefused, match="No adapter found"):
        await bring_up(store, [vllm], generation.number)


async def test_every_adapter_of_a_generation_with_groups_is_proved(
    store: Store, admin: User, vllm: VLLM, fake: FakeVLLM, tmp_path: Path
) -> None:
    """Earlier adapters are loaded and probed with the new one, and one of them that is ignored stops it."""
    first = candidate(store, admin, tmp_path / "first")
    store.rounds.finish(
        first.round_id, str(store.rounds.get(first.round_id).lease), RoundState.FAILED, "test"
    )
    directory = write_lora(tmp_path / "second", seed=2)
    fake_probe(weights_of(directory)).write(directory)
    groups = grouped(directory, ["describe", "answer in a word"], [first.number, None])
    second = published(store, claimed_round(store, admin), directory, groups=groups)
    await bring_up(store, [vllm], second.number)
    assert fake.calls == [("load", first.name), ("load", second.name)]
    fake.adapters[first.name].weights = ""
    fake._first_weights.clear()
    with pytest.raises(ProbeRefused, match=first.name):
        await bring_up(store, [vllm], second.number)


async def test_a_changed_codebook_never_reaches_the_server(
    store: Store, admin: User, vllm: VLLM, fake: FakeVLLM, tmp_path: Path
) -> None:
    """The manifest has the codebook's hash too."""
    directory = write_lora(tmp_path / "new", seed=1)
    fake_probe(weights_of(directory)).write(directory)
    groups = grouped(directory, ["describe"], [None])
    generation = published(store, claimed_round(store, admin), directory, groups=groups)
    grouped(generation.directory, ["something else"], [None])
    with pytest.raises(AdapterChanged, match=CODEBOOK):
        await bring_up(store, [vllm], generation.number)
    assert fake.calls == []

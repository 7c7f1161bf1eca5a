"""What we rely on in vLLM, checked against the fake server and the real one by the same tests.

Where a test fails for one of the two, either vLLM has changed or the fake is wrong; both must be known.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest
import pytest_asyncio

from serving import probes
from serving.client import VLLM, Messages
from serving.messages import data_url
from serving.probes import Probe, ProbePrompt, distance
from storage.errors import AdapterRefused, ProbeRefused, RequestRejected, ServingUnavailable, UnknownModel
from storage.records import generation_name
from tests.fake_vllm import FakeVLLM
from tests.real_vllm import RealVLLM
from tests.serving.adapters import ANSWER, WRONG_PREFIX, write_lora
from tests.serving.conftest import RED_SQUARE

BASE = generation_name(0)
STORY: Messages = [
    {"role": "user", "content": [{"type": "text", "text": "Tell a long story about the sea."}]}
]
PICTURE: Messages = [
    {
        "role": "user",
        "content": [
            {"type": "image_url", "image_url": {"url": data_url(RED_SQUARE)}},
            {"type": "text", "text": "What colour is this?"},
        ],
    }
]
TOKENS = 48
_numbers = count(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A server under contract; `base` is the model's directory where there is one."""

    client: VLLM
    url: str
    base: Path | None


@pytest_asyncio.fixture(params=["fake", pytest.param("real", marks=pytest.mark.real)])
async def server(request: pytest.FixtureRequest) -> AsyncIterator[Server]:
    """Each server in turn."""
    if request.param == "fake":
        fake: FakeVLLM = request.getfixturevalue("fake")
        fake.token_seconds = 0.01
        url, key, base = fake.url, fake.key, None
    else:
        real: RealVLLM = request.getfixturevalue("real_vllm")
        url, key, base = real.url, real.key, real.base
    async with VLLM(url, key) as client:
        yield Server(client=client, url=url, base=base)


@pytest_asyncio.fixture
async def name(server: Server) -> AsyncIterator[str]:
    """A generation's name that this test alone uses."""
    unique = generation_name(next(_numbers))
    yield unique
    await server.client.unload(unique)


async def text_of(server: Server, model: str, messages: Messages) -> str:
    """Return a whole reply, greedily drawn."""
    return (await server.client.chat(model, messages, max_tokens=TOKENS, temperature=0.0)).text


async def streamed(server: Server, model: str, begun: asyncio.Event) -> str:
    """Return the story as it comes in pieces; set `begun` at the first of them."""
    text = ""
    async with aclosing(server.client.stream(model, STORY, max_tokens=TOKENS, temperature=0.0)) as pieces:
        async for piece in pieces:
            text += piece.text
            begun.set()
    return text


async def answer_logprobs(server: Server, model: str) -> list[float]:
    """Return how probable a model finds each token of a fixed answer about a picture."""
    conversation = [*PICTURE, {"role": "assistant", "content": ANSWER}]
    tokens = await server.client.prompt_logprobs(model, conversation)
    return [token.logprob for token in tokens[-len(ANSWER.split()) :]]


async def test_the_base_model_answers_under_generation_zero(server: Server) -> None:
    """The bare model is served as assistant@0, sees pictures, and says what a reply cost."""
    assert (await server.client.models())[0] == BASE
    reply = await server.client.chat(BASE, PICTURE, max_tokens=5, temperature=0.0)
    assert reply.text
    assert reply.finish_reason in ("stop", "length")
    assert reply.usage.prompt_tokens > 0
    assert 0 < reply.usage.completion_tokens <= 5


async def test_a_stream_says_the_same_as_a_whole_reply(server: Server) -> None:
    """Pieces put together are the reply, and the last pieces give the reason and the cost."""
    pieces = [piece async for piece in server.client.stream(BASE, STORY, max_tokens=TOKENS, temperature=0.0)]
    assert "".join(piece.text for piece in pieces) == await text_of(server, BASE, STORY)
    assert [piece.finish_reason for piece in pieces if piece.finish_reason] == ["length"]
    (usage,) = [piece.usage for piece in pieces if piece.usage]
    assert usage.completion_tokens == TOKENS


async def test_a_loaded_adapter_answers_in_its_own_way(server: Server, name: str, tmp_path: Path) -> None:
    """An adapter is listed with its directory, changes the answers, and leaves the base model's as they were."""
    before = await answer_logprobs(server, BASE)
    directory = write_lora(tmp_path / "good", seed=1, base=server.base)
    await server.client.load(name, directory)
    assert (await server.client.adapters())[name] == directory
    assert distance(await answer_logprobs(server, name), before) > 0.01
    assert distance(await answer_logprobs(server, BASE), before) < 0.01


async def test_an_adapter_cannot_replace_another_or_the_base(
    server: Server, name: str, tmp_path: Path
) -> None:
    """A name in use is refused, the base model's too, and what was loaded stays."""
    first = write_lora(tmp_path / "first", seed=1, base=server.base)
    second = write_lora(tmp_path / "second", seed=2, base=server.base)
    await server.client.load(name, first)
    with pytest.raises(AdapterRefused, match="already been loaded"):
        await server.client.load(name, second)
    with pytest.raises(AdapterRefused, match="conflicts with a served base model"):
        await server.client.load(BASE, second)
    assert (await server.client.adapters())[name] == first


async def test_a_missing_directory_is_refused(server: Server, name: str, tmp_path: Path) -> None:
    """A path with no adapter is an error with a reason, and never a download."""
    with pytest.raises(AdapterRefused, match="No adapter found"):
        await server.client.load(name, tmp_path / "nothing")


async def test_an_unknown_model_is_an_error_before_the_first_word(server: Server) -> None:
    """A name that is not loaded is never answered by the base model, whole or streamed."""
    with pytest.raises(UnknownModel):
        await text_of(server, generation_name(999), STORY)
    with pytest.raises(UnknownModel):
        await streamed(server, generation_name(999), asyncio.Event())


async def test_unloading_an_unknown_name_is_no_error(server: Server) -> None:
    """Unloading can be repeated."""
    await server.client.unload(generation_name(999))


async def test_a_reply_survives_a_swap(server: Server, name: str, tmp_path: Path) -> None:
    """A running reply keeps to its generation while another is loaded and used: its text is the greedy reference."""
    await server.client.load(name, write_lora(tmp_path / "old", seed=1, base=server.base))
    reference = await text_of(server, name, STORY)
    begun = asyncio.Event()
    running = asyncio.create_task(streamed(server, name, begun))
    await begun.wait()
    newer = generation_name(next(_numbers))
    await server.client.load(newer, write_lora(tmp_path / "new", seed=2, base=server.base))
    assert await text_of(server, newer, STORY) != reference
    assert await running == reference
    await server.client.unload(newer)


async def test_a_reply_survives_the_unloading_of_its_generation(
    server: Server, name: str, tmp_path: Path
) -> None:
    """Unloading takes the name away at once and lets the running reply end as it would have."""
    await server.client.load(name, write_lora(tmp_path / "old", seed=1, base=server.base))
    reference = await text_of(server, name, STORY)
    begun = asyncio.Event()
    running = asyncio.create_task(streamed(server, name, begun))
    await begun.wait()
    await server.client.unload(name)
    with pytest.raises(UnknownModel):
        await text_of(server, name, STORY)
    assert await running == reference


async def test_a_running_generation_is_in_the_metrics_and_leaves_them(
    server: Server, name: str, tmp_path: Path
) -> None:
    """The drain can see that a generation is at work, also when its last reply is aborted, and when it no longer is."""
    await server.client.load(name, write_lora(tmp_path / "busy", seed=1, base=server.base))
    async with aclosing(server.client.stream(name, STORY, max_tokens=400, temperature=0.0)) as pieces:
        async for piece in pieces:
            if piece.text and name in await server.client.running():
                break
        else:
            pytest.fail("the generation was never seen at work")
    async with asyncio.timeout(20):
        while name in await server.client.running(seconds=2.0):
            await asyncio.sleep(0.1)


async def test_an_adapter_without_effect_is_refused_by_the_probe(
    server: Server, name: str, tmp_path: Path
) -> None:
    """Tensor names that match nothing load all the same; the probe refuses them and passes the good adapter."""
    good = write_lora(tmp_path / "good", seed=3, base=server.base)
    await server.client.load(name, good)
    learned, base = await answer_logprobs(server, name), await answer_logprobs(server, BASE)
    prompt = ProbePrompt(messages=PICTURE, answer=ANSWER, logprobs=learned, base_logprobs=base)
    Probe(prompts=[prompt], moved=True).write(good)
    await probes.check(server.client, name, good)

    noop = write_lora(tmp_path / "noop", seed=3, base=server.base, prefix=WRONG_PREFIX)
    Probe(prompts=[prompt], moved=True).write(noop)
    ignored = generation_name(next(_numbers))
    await server.client.load(ignored, noop)
    with pytest.raises(ProbeRefused, match="answers like the base model"):
        await probes.check(server.client, ignored, noop)
    await server.client.unload(ignored)


async def test_another_adapter_is_refused_by_the_probe(server: Server, name: str, tmp_path: Path) -> None:
    """An adapter that works, but is not the one the learner measured, does not pass."""
    wrong = generation_name(next(_numbers))
    written = {
        one: write_lora(tmp_path / str(seed), seed=seed, base=server.base)
        for seed, one in enumerate((name, wrong), start=4)
    }
    for one, directory in written.items():
        await server.client.load(one, directory)
    base = await answer_logprobs(server, BASE)
    said = {one: await answer_logprobs(server, one) for one in written}
    # The other is the one that moves answers more: one that hardly moves them is refused for that instead.
    measured, other = sorted(said, key=lambda one: distance(said[one], base))
    prompt = ProbePrompt(messages=PICTURE, answer=ANSWER, logprobs=said[measured], base_logprobs=base)
    Probe(prompts=[prompt], moved=True).write(written[other])
    with pytest.raises(ProbeRefused, match="differ from the learner's"):
        await probes.check(server.client, other, written[other])
    await server.client.unload(wrong)


async def test_what_cannot_be_answered_is_rejected_with_a_reason(server: Server) -> None:
    """Too many pictures and pictures from the network are refused in words, and the server lives on."""
    many = [{"role": "user", "content": [*PICTURE[0]["content"][:1] * 5, {"type": "text", "text": "?"}]}]
    with pytest.raises(RequestRejected, match=r"At most 4 image"):
        await text_of(server, BASE, many)
    remote = {"type": "image_url", "image_url": {"url": "http://169.254.169.254/x.png"}}
    with pytest.raises(RequestRejected, match="allowed domains"):
        await text_of(server, BASE, [{"role": "user", "content": [remote]}])
    assert await server.client.healthy()


async def test_nobody_gets_in_without_the_key(server: Server) -> None:
    """Every /v1 route wants the key."""
    async with VLLM(server.url, "wrong") as stranger:
        assert await stranger.healthy()
        with pytest.raises(ServingUnavailable):
            await stranger.models()
        with pytest.raises(ServingUnavailable):
            await stranger.load(generation_name(998), Path("/"))

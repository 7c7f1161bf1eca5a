"""What the client promises beyond the contract: every failure is one of ours, and stopping really stops."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from pathlib import Path

import pytest

from serving import client
from serving.client import IDLE_SECONDS, VLLM
from storage.errors import ReplyInterrupted, ServingUnavailable
from tests.fake_vllm import FakeVLLM, Messages
from tests.serving.adapters import QUESTION, write_lora

BASE = "assistant@0"
SECONDS = 10


async def read(client: VLLM) -> list[str]:
    """Return the pieces of a streamed reply."""
    return [piece.text async for piece in client.stream(BASE, QUESTION)]


async def keep(client: VLLM, said: list[str]) -> None:
    """Append the pieces of a long streamed reply as they come."""
    async for piece in client.stream(BASE, QUESTION, max_tokens=1000):
        said.append(piece.text)  # noqa: PERF401 - what came before an error is kept


async def test_line_separators_inside_a_reply_arrive(fake: FakeVLLM, vllm: VLLM) -> None:
    """Characters that Unicode calls line breaks are text, not the end of an event."""
    fake.speak = lambda _directory, _messages: "one\u2028two\x85three four"
    assert "".join(await read(vllm)) == "one\u2028two\x85three four"


async def test_a_reply_that_breaks_off_is_interrupted(fake: FakeVLLM, vllm: VLLM) -> None:
    """After the first word the caller keeps what came and learns that it is not the whole."""
    fake.break_after = 3
    said: list[str] = []
    with pytest.raises(ReplyInterrupted):
        await keep(vllm, said)
    assert len(said) == 3


async def test_a_reply_that_breaks_off_before_its_first_word_is_unavailable(
    fake: FakeVLLM, vllm: VLLM
) -> None:
    """Before the first word the error says that asking again is safe."""
    fake.break_after = 0
    with pytest.raises(ServingUnavailable):
        await read(vllm)


async def test_a_dying_server_interrupts_a_reply(fake: FakeVLLM, vllm: VLLM) -> None:
    """A connection that is cut in the middle of a reply is ReplyInterrupted, whatever httpx calls it."""
    fake.token_seconds = 0.05
    said: list[str] = []
    reading = asyncio.create_task(keep(vllm, said))
    while not said:
        await asyncio.sleep(0.01)
    await asyncio.to_thread(fake.stop)
    with pytest.raises(ReplyInterrupted):
        await reading


async def test_a_server_that_is_away_is_unavailable(fake: FakeVLLM, vllm: VLLM) -> None:
    """No call lets an error of the network through as it is."""
    fake.stop()
    assert not await vllm.healthy()
    for call in (
        vllm.models(),
        vllm.running(),
        vllm.unload("assistant@1"),
        vllm.load("assistant@1", Path("/")),
        vllm.chat(BASE, QUESTION),
        read(vllm),
    ):
        with pytest.raises(ServingUnavailable):
            await call


async def test_leaving_a_stream_aborts_it_upstream(fake: FakeVLLM, vllm: VLLM) -> None:
    """When the consumer stops, the server stops writing within a second."""
    fake.token_seconds = 0.01
    async with aclosing(vllm.stream(BASE, QUESTION, max_tokens=100_000)) as pieces:
        async for piece in pieces:
            if piece.text:
                break
    await until_aborted(fake)


async def test_cancelling_a_reader_aborts_its_stream_upstream(fake: FakeVLLM, vllm: VLLM) -> None:
    """A task that is cancelled while it waits for the next word leaves nothing running."""
    fake.token_seconds = 0.01
    reader = asyncio.create_task(read_long(vllm))
    while not fake.active:
        await asyncio.sleep(0.01)
    reader.cancel()
    await until_aborted(fake)


async def read_long(client: VLLM) -> None:
    """Read a reply that takes a quarter of an hour."""
    async for _ in client.stream(BASE, QUESTION, max_tokens=100_000):
        pass


async def until_aborted(fake: FakeVLLM) -> None:
    """Return when the fake has nothing running any more; fail after a while."""
    deadline = time.monotonic() + SECONDS
    while fake.active:
        assert time.monotonic() < deadline, "the reply goes on"
        await asyncio.sleep(0.01)
    assert fake.aborted == 1


async def test_an_aborted_reply_does_not_look_busy_for_ever(
    fake: FakeVLLM, vllm: VLLM, tmp_path: Path
) -> None:
    """After an abort vLLM's metrics keep naming the adapter; the time beside it says that this is over."""
    await vllm.load("assistant@1", write_lora(tmp_path / "one", seed=1))
    fake.token_seconds = 0.01
    async with aclosing(vllm.stream("assistant@1", QUESTION, max_tokens=1000)) as pieces:
        async for piece in pieces:
            if piece.text:
                assert await vllm.running() == {"assistant@1"}
                break
    await until_aborted(fake)
    assert await vllm.running(seconds=60) == {"assistant@1"}
    deadline = time.monotonic() + SECONDS
    while await vllm.running(seconds=1) and time.monotonic() < deadline:
        await asyncio.sleep(0.05)
    assert await vllm.running(seconds=1) == set()


async def test_only_named_choices_are_sent(fake: FakeVLLM, vllm: VLLM) -> None:
    """What the caller leaves open is left to the server, and there is always one reply."""
    await vllm.chat(BASE, QUESTION)
    await vllm.chat(BASE, QUESTION, max_tokens=3, temperature=0.5, top_p=0.9, seed=7, stop=["."])
    first, second = fake.requests
    assert set(first) == {"model", "messages", "n"}
    assert second["n"] == 1
    assert {name: second[name] for name in ("max_tokens", "temperature", "top_p", "seed", "stop")} == {
        "max_tokens": 3,
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 7,
        "stop": ["."],
    }


async def test_nothing_is_retried_silently(fake: FakeVLLM, vllm: VLLM) -> None:
    """One call is one request, also when it fails."""
    fake.break_after = 0
    with pytest.raises(ServingUnavailable):
        await read(vllm)
    assert len(fake.requests) == 1


async def test_the_fake_mixes_versions_inside_a_reply_when_loading_in_place(
    fake: FakeVLLM, vllm: VLLM, tmp_path: Path
) -> None:
    """The trap that forbids `load_inplace` is in the fake: the reply follows neither version to its end."""
    said: dict[str, str] = {}
    for name, seed in (("old", 1), ("new", 2)):
        with FakeVLLM() as other:
            async with VLLM(other.url, other.key) as client:
                await client.load("assistant@1", write_lora(tmp_path / name, seed))
                said[name] = (await client.chat("assistant@1", QUESTION, max_tokens=200)).text
    await vllm.load("assistant@1", tmp_path / "old")
    fake.token_seconds = 0.02
    text, count = "", 0
    async for piece in vllm.stream("assistant@1", QUESTION, max_tokens=200):
        text, count = text + piece.text, count + 1
        if count == 20:
            body = {"lora_name": "assistant@1", "lora_path": str(tmp_path / "new"), "load_inplace": True}
            await vllm._http.post("/v1/load_lora_adapter", json=body)
    assert text not in said.values()
    assert text.split()[:10] == said["old"].split()[:10]
    assert text.split()[-10:] == said["new"].split()[-10:]


async def test_the_fake_answers_stale_for_changed_bytes_under_an_old_path(
    fake: FakeVLLM, vllm: VLLM, tmp_path: Path
) -> None:
    """The trap that demands immutable directories is in the fake: new bytes, old path, old answer."""
    directory = write_lora(tmp_path / "one", seed=1)
    await vllm.load("assistant@1", directory)
    before = await vllm.chat("assistant@1", QUESTION)
    await vllm.unload("assistant@1")
    write_lora(directory, seed=2)
    await vllm.load("assistant@1", directory)
    assert await vllm.chat("assistant@1", QUESTION) == before
    unseen: Messages = [{"role": "user", "content": "something else"}]
    assert (await vllm.chat("assistant@1", unseen)).text


async def test_the_fake_forgets_adapters_when_it_restarts(fake: FakeVLLM, vllm: VLLM, tmp_path: Path) -> None:
    """The trap that demands a reconciler is in the fake."""
    await vllm.load("assistant@1", write_lora(tmp_path / "one", seed=1))
    fake.restart()
    assert await vllm.models() == [BASE]


async def test_an_idle_connection_is_given_up_before_the_server_closes_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A server closes what was idle for 5 s, and what is sent just then is lost: our connections are closed earlier."""
    assert IDLE_SECONDS < 5
    opened = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        opened.append(writer)
        while await reader.readuntil(b"\r\n\r\n"):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        for seconds, connections in ((60.0, 1), (0.05, 2)):
            opened.clear()
            monkeypatch.setattr(client, "IDLE_SECONDS", seconds)
            async with VLLM(f"http://{host}:{port}", "key") as vllm:
                assert await vllm.healthy()
                await asyncio.sleep(0.2)
                assert await vllm.healthy()
            assert len(opened) == connections

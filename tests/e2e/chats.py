"""Many people chatting at once, and what became of each of their replies."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass

import httpx

PROMPTS = ("Name three animals.", "What is the capital of France?", "Count from one to ten.")
"""Questions whose greedy answers are decided by a wide margin. Where two words are nearly as likely, rounding, which
depends on how many replies share a batch, picks one or the other, and a comparison would say nothing."""
MAX_TOKENS = 48


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """One streamed reply: `generations` are all that its chunks named."""

    prompt: str
    began: float
    ended: float
    status: int
    text: str
    generations: frozenset[str]
    finish_reason: str | None


async def ask(client: httpx.AsyncClient, prompt: str, model: str = "assistant") -> Heard:
    """Stream one reply to its end."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": MAX_TOKENS,
        "temperature": 0,
        "stream": True,
    }
    began, text, finish, generations = time.time(), "", None, set()
    async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line.removeprefix("data: "))
            for choice in chunk.get("choices", []):
                text += choice["delta"].get("content") or ""
                finish = choice["finish_reason"] or finish
                generations.add(chunk["generation"])
    return Heard(
        prompt=prompt,
        began=began,
        ended=time.time(),
        status=answer.status_code,
        text=text,
        generations=frozenset(generations),
        finish_reason=finish,
    )


async def chat_until(url: str, key: str, *, people: int, enough: Callable[[], bool]) -> list[Heard]:
    """Let `people` chat without a pause until `enough` says so; each then asks once more. Return every reply."""
    heard: list[Heard] = []
    limits = httpx.Limits(max_connections=people)
    headers = {"Authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=300, limits=limits) as client:

        async def person(number: int) -> None:
            last = False
            while not last:
                last = await asyncio.to_thread(enough)
                heard.append(await ask(client, PROMPTS[number % len(PROMPTS)]))

        async with asyncio.TaskGroup() as group:
            for number in range(people):
                group.create_task(person(number))
    return heard


async def references(url: str, key: str, model: str, *, crowd: int = 0) -> dict[str, frozenset[str]]:
    """Return what `model` answers to each prompt: asked alone, and by `crowd` people at once if there is one."""
    headers = {"Authorization": f"Bearer {key}"}
    limits = httpx.Limits(max_connections=crowd or 1)
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=300, limits=limits) as client:
        heard = [await ask(client, prompt, model) for prompt in PROMPTS]
        heard += await asyncio.gather(*(ask(client, PROMPTS[n % len(PROMPTS)], model) for n in range(crowd)))
    return {prompt: frozenset(h.text for h in heard if h.prompt == prompt) for prompt in PROMPTS}

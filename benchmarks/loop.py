"""Drives the whole loop through the public HTTP API and prints how long each phase takes.

It draws a small task (how many shapes, answered in a word), uploads it, asks for a round, follows it to its end and
asks the new generation. It needs a running installation (`make up`) and an admin's API key:

    .venv/bin/python benchmarks/loop.py --url http://127.0.0.1:7860 --key llaca-… --images 200
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import platform
import random
import sys
import time
from datetime import UTC, datetime
from typing import Any

import httpx
from PIL import Image, ImageDraw

WORDS = ("one", "two", "three", "four")
COLOURS = ("red", "green", "blue", "purple", "orange")
QUESTION = "How many shapes are there? Answer in a word."
SIDE, CELLS = 96, 3


def draw(generator: random.Random, count: int) -> bytes:
    """Return a PNG of `count` shapes in random cells of a 3 x 3 grid."""
    picture = Image.new("RGB", (SIDE, SIDE), "white")
    pen = ImageDraw.Draw(picture)
    for cell in generator.sample(range(CELLS * CELLS), count):
        x, y = 16 + 32 * (cell % CELLS), 16 + 32 * (cell // CELLS)
        radius = generator.randint(8, 14)
        box = (x - radius, y - radius, x + radius, y + radius)
        shape = generator.choice((pen.ellipse, pen.rectangle))
        shape(box, fill=generator.choice(COLOURS))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def data_url(png: bytes) -> str:
    """Return a picture as the API takes it."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def rows(images: int, seed: int) -> list[tuple[bytes, str]]:
    """Return pictures with their answers."""
    generator = random.Random(seed)
    counts = [1 + index % len(WORDS) for index in range(images)]
    return [(draw(generator, count), WORDS[count - 1]) for count in counts]


def jsonl(task: list[tuple[bytes, str]], question: str = QUESTION) -> bytes:
    """Return the task as OpenAI chat JSONL with the pictures inside."""
    lines = []
    for png, answer in task:
        turns = [*asked(png, question), {"role": "assistant", "content": answer}]
        lines.append(json.dumps({"messages": turns}))
    return "\n".join(lines).encode()


def asked(png: bytes, question: str) -> list[dict[str, Any]]:
    """Return the messages that ask about a picture."""
    parts = [{"type": "image_url", "image_url": {"url": data_url(png)}}, {"type": "text", "text": question}]
    return [{"role": "user", "content": parts}]


def answer_of(client: httpx.Client, model: str, png: bytes, question: str = QUESTION) -> str:
    """Return what `model` most likely says about a picture."""
    body = {"model": model, "messages": asked(png, question), "max_tokens": 8, "temperature": 0}
    reply = client.post("/v1/chat/completions", json=body).raise_for_status().json()
    said: str = reply["choices"][0]["message"]["content"]
    return said


def accuracy(client: httpx.Client, model: str, task: list[tuple[bytes, str]]) -> float:
    """Return the share of pictures on which `model` gives the right word."""
    right = sum(answer_of(client, model, png).strip(" .").lower() == answer for png, answer in task)
    return right / len(task)


def follow(client: httpx.Client, round_id: int) -> tuple[dict[str, Any], list[tuple[str, float]]]:
    """Wait until a round has ended; return it and how many seconds it spent in each state."""
    spent: list[tuple[str, float]] = []
    state, since = "queued", time.perf_counter()
    while True:
        found = client.get(f"/v1/rounds/{round_id}").raise_for_status().json()
        if found["state"] != state:
            spent.append((state, time.perf_counter() - since))
            state, since = found["state"], time.perf_counter()
        if found["finished_at"]:
            return found, spent
        time.sleep(0.2)


def main() -> int:
    """Run the loop once; return 0 if the round was promoted."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", default="http://127.0.0.1:7860")
    parser.add_argument("--key", required=True, help="API key of an admin (`llaca users key NAME`)")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    headers = {"Authorization": f"Bearer {arguments.key}"}
    with httpx.Client(base_url=arguments.url, headers=headers, timeout=120) as client:
        unseen = rows(20, arguments.seed + 1)
        before = accuracy(client, "assistant", unseen)
        start = time.perf_counter()
        file = {"file": ("counting.jsonl", jsonl(rows(arguments.images, arguments.seed)))}
        client.post("/v1/files", files=file, data={"purpose": "fine-tune"}).raise_for_status()
        uploaded = time.perf_counter()
        queued = client.post("/v1/rounds", json={}).raise_for_status().json()
        ended, spent = follow(client, int(queued["id"]))
        total = time.perf_counter() - start
        after = accuracy(client, "assistant", unseen)

    print(
        f"{datetime.now(UTC):%Y-%m-%d} · {platform.processor() or platform.machine()} · {arguments.images} images"
    )
    for phase, seconds in [("upload", uploaded - start), *spent, ("whole loop", total)]:
        print(f"{phase:<12} {seconds:8.1f} s")
    print(f"round {ended['id']}: {ended['state']}; {'; '.join((ended['verdict'] or {}).get('reasons', []))}")
    print(f"accuracy on 20 unseen pictures: {before:.0%} before, {after:.0%} after")
    return 0 if ended["state"] == "promoted" else 1


if __name__ == "__main__":
    sys.exit(main())

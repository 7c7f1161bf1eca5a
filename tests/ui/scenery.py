"""An installation in which things have happened: tasks with pictures, a promoted round and a rejected one."""

from __future__ import annotations

import io
import json
import math
import zipfile
from pathlib import Path

import gradio as gr
from PIL import Image, ImageDraw

from learner import gate
from learner.gate import PairedScores
from storage.intake import receive
from storage.records import Answer, Dataset, Decision, Role, Round, RoundState, User, text_of
from storage.store import Store

WORDS = ("one", "two", "three", "four", "five")
COLOURS = ("#c0392b", "#2471a3", "#1e8449", "#b9770e", "#6c3483")
GROUPS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def asks(user: User) -> gr.Request:
    """Return a request as Gradio hands it to a handler."""
    return gr.Request(username=user.name)


def counting_picture(count: int, turn: int = 0) -> bytes:
    """Return a PNG of `count` discs; `turn` makes pictures of the same count differ."""
    image = Image.new("RGB", (96, 96), (244 - turn % 60, 241, 234))
    pen = ImageDraw.Draw(image)
    for index in range(count):
        x, y = 8 + 28 * (index % 3) + turn % 7, 16 + 36 * (index // 3) + turn % 5
        pen.ellipse((x, y, x + 22, y + 22), fill=COLOURS[(index + turn) % 5])
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


def counting_zip(rows: int, *, missing: int = 0) -> bytes:
    """Return a LLaVA zip that asks how many discs there are; the last `missing` rows lack theirs."""
    data, listed = io.BytesIO(), []
    with zipfile.ZipFile(data, "w") as archive:
        for index in range(rows):
            name, count = f"images/{index:03}.png", 1 + index % 5
            if index < rows - missing:
                archive.writestr(name, counting_picture(count, index))
            turns = [
                {"from": "human", "value": "<image>\nHow many discs are there?"},
                {"from": "gpt", "value": WORDS[count - 1]},
            ]
            listed.append({"id": str(index), "image": name, "conversations": turns})
        archive.writestr("counting.json", json.dumps(listed))
    return data.getvalue()


def upload(store: Store, user: User, folder: Path, name: str, rows: int, approved_by: str | None) -> Dataset:
    """Take in a counting task under a name."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name.replace(' ', '-').lower()}.zip"
    file.write_bytes(counting_zip(rows))
    taken = receive(store, user, file.name, file, name=name, approved_by=approved_by)
    assert taken.dataset_id is not None, taken.report
    return store.datasets.get(taken.dataset_id)


def begin(store: Store, by: User) -> tuple[Round, str]:
    """Ask for a round and claim it; return it with its lease."""
    store.rounds.enqueue(by.name)
    claimed = store.rounds.claim("learner 1", 3600)
    assert claimed is not None
    assert claimed.lease is not None
    store.rounds.prepare(claimed.id, claimed.lease, store.generations.champion(), "llaca", {})
    store.rounds.advance(
        claimed.id, claimed.lease, RoundState.TRAINING, f"from assistant@{store.generations.champion()}"
    )
    return store.rounds.get(claimed.id), claimed.lease


def train(store: Store, found: Round, lease: str, steps: int, of: int) -> None:
    """Record the figures of `steps` steps of a training that goes well."""
    for step in range(steps):
        loss = 0.35 + 2.6 * math.exp(-step / 22) + 0.18 * math.sin(step * 1.7) * math.exp(-step / 60)
        beta = {
            f"{group}.{side}": {"median": 0.985 - 0.05 * math.exp(-step / (9 + 4 * n)) - 0.004 * (side == "B"),
                                "min": 0.7, "max": 0.999, "fallback": 0.0}
            for n, group in enumerate(GROUPS)
            for side in "AB"
        }  # fmt: skip
        values = {"loss": loss, "lr": 2e-4, "beta": beta, "grad_norm": 0.8}
        store.rounds.record_metrics(found.id, lease, step, of, values)


def judge(store: Store, found: Round, lease: str, shares: dict[int, tuple[float, float]]) -> None:
    """Answer every holdout with these shares of right answers (before, after), and end as the gate decides."""
    champion, new = found.champion or 0, store.rounds.dataset_ids(found.id)
    candidate = store.generations.publish(
        round_id=found.id, lease=lease, sha256=f"{found.id:064x}", parent=champion, rank=16, manifest={}
    ).number
    store.rounds.advance(
        found.id, lease, RoundState.EVALUATING, f"assistant@{candidate} beside assistant@{champion}"
    )
    pairs = []
    for dataset_id, (before, after) in shares.items():
        old, new_scores = (answer(store, found, lease, dataset_id, number, share)
                           for number, share in ((champion, before), (candidate, after)))  # fmt: skip
        pairs.append(PairedScores(dataset_id=dataset_id, name=store.datasets.get(dataset_id).name,
                                  earlier=dataset_id not in new, champion=old, candidate=new_scores))  # fmt: skip
    store.rounds.advance(found.id, lease, RoundState.JUDGING)
    verdict = gate.judge(pairs, margin_points=2.0, significance=0.05)
    store.rounds.set_verdict(found.id, lease, verdict.to_json())
    if verdict.decision is Decision.PROMOTE:
        store.rounds.advance(found.id, lease, RoundState.SWAPPING)
        store.generations.promote(round_id=found.id, lease=lease, candidate=candidate, expected=champion)
    else:
        rejected = verdict.decision is Decision.REJECT
        store.rounds.finish(found.id, lease, RoundState.REJECTED if rejected else RoundState.HELD)


def answer(
    store: Store, found: Round, lease: str, dataset_id: int, generation: int, share: float
) -> tuple[float, ...]:
    """Answer a holdout; the first `share` of the rows is right. Return the scores."""
    rows = store.datasets.rows(dataset_id, "holdout")
    scores = tuple(float(index < round(share * len(rows))) for index in range(len(rows)))
    said = [
        Answer(row_id=row.id, dataset_id=dataset_id, generation=generation, score=score,
               answer=text_of(row.messages[-1]) if score else "several")
        for row, score in zip(rows, scores, strict=True)
    ]  # fmt: skip
    store.evaluations.add_answers(found.id, lease, said)
    return scores


def play(store: Store, users: dict[Role, User], folder: Path) -> None:
    """Let it all happen; in the end a task waits for approval, and the base model serves again."""
    admin, contributor = users[Role.ADMIN], users[Role.CONTRIBUTOR]
    discs = upload(store, contributor, folder, "Counting discs", 60, admin.name)
    first, lease = begin(store, admin)
    train(store, first, lease, 120, 120)
    judge(store, first, lease, {discs.id: (0.17, 0.92)})
    more = upload(store, admin, folder, "Counting more discs", 41, admin.name)
    second, lease = begin(store, admin)
    train(store, second, lease, 90, 90)
    judge(store, second, lease, {discs.id: (0.92, 0.25), more.id: (0.25, 0.75)})
    upload(store, contributor, folder, "Discs at night", 24, None)
    store.generations.roll_back(admin.name)

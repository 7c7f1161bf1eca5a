"""Asks champion and candidate the same holdout rows through the running servers, side by side, and keeps the answers.

Each row goes to the adapter that the generation's router chooses for it, as in a chat; a row that both generations
answer with the same adapter is asked once. It can be interrupted at any row and called again: rows that both have
answered in this round are not asked again. It does not judge; `learner.gate` does, from what is stored here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from learner.gate import PairedScores
from learner.lease import Lease
from learner.scoring import score
from serving.client import VLLM
from serving.messages import openai_messages
from serving.router import served_name
from storage.errors import ReplyInterrupted, RequestRejected, ServingUnavailable, UnknownModel
from storage.records import Answer, Dataset, Row, text_of
from storage.store import Store

log = structlog.get_logger()

RETRY_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Duel:
    """Which two generations answer which datasets, and how patiently they are asked."""

    champion: int
    candidate: int
    datasets: tuple[Dataset, ...]
    rows_per_dataset: int
    concurrency: int
    patience_seconds: float
    """How long a server may be away (restarting, say) before the evaluation gives up."""


async def evaluate(store: Store, servers: Sequence[VLLM], lease: Lease, duel: Duel) -> int:
    """Let both generations answer every holdout row; return how many answers were new.

    Raises ServingUnavailable if no server answers for longer than the patience, and whatever `lease.check` raises.
    """
    questions = _unanswered(store, lease.round_id, duel)
    waiting: asyncio.Queue[_Question] = asyncio.Queue()
    for question in questions:
        waiting.put_nowait(question)

    async def worker(server: VLLM) -> None:
        while not waiting.empty():
            question = waiting.get_nowait()
            answers = await _ask(store, server, lease, question, duel.patience_seconds)
            await asyncio.to_thread(store.evaluations.add_answers, lease.round_id, lease.token, answers)

    # Not a TaskGroup: callers tell a cancel from a failure by the error itself, and a group would wrap it.
    workers = [asyncio.create_task(worker(servers[n % len(servers)])) for n in range(duel.concurrency)]
    try:
        await asyncio.gather(*workers)
    finally:
        for task in workers:
            task.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
    return sum(len(question.generations) for question in questions)


def paired_scores(store: Store, round_id: int, duel: Duel, new: set[int]) -> list[PairedScores]:
    """Pair the stored scores of both generations row by row, one entry per dataset; `new` are those of this round."""
    pairs = []
    for dataset in duel.datasets:
        old, fresh = (
            {
                answer.row_id: answer.score
                for answer in store.evaluations.answers(round_id, number, dataset.id)
            }
            for number in (duel.champion, duel.candidate)
        )
        both = sorted(old.keys() & fresh.keys())
        pairs.append(
            PairedScores(
                dataset_id=dataset.id,
                name=dataset.name,
                earlier=dataset.id not in new,
                champion=tuple(old[row] for row in both),
                candidate=tuple(fresh[row] for row in both),
            )
        )
    return pairs


@dataclass(frozen=True, slots=True, kw_only=True)
class _Question:
    """A row, the served name of the weights that answer it, and the generations whose answer that is."""

    row: Row
    model: str
    generations: tuple[int, ...]


def _unanswered(store: Store, round_id: int, duel: Duel) -> list[_Question]:
    done = {
        (answer.generation, answer.row_id)
        for generation in (duel.champion, duel.candidate)
        for answer in store.evaluations.answers(round_id, generation)
    }
    questions = []
    for dataset in duel.datasets:
        for row in store.datasets.rows(dataset.id, "holdout", duel.rows_per_dataset):
            by_model: dict[str, list[int]] = {}
            for generation in (duel.champion, duel.candidate):
                if (generation, row.id) not in done:
                    name = served_name(store.generations, generation, row.messages[:-1])
                    by_model.setdefault(name, []).append(generation)
            questions += [
                _Question(row=row, model=name, generations=tuple(asked)) for name, asked in by_model.items()
            ]
    return questions


async def _ask(
    store: Store, server: VLLM, lease: Lease, question: _Question, patience_seconds: float
) -> list[Answer]:
    row = question.row
    reference = text_of(row.messages[-1])
    messages = openai_messages(row.messages[:-1], store.blobs)
    give_up = time.monotonic() + patience_seconds
    while True:
        lease.check()
        try:
            reply = await server.chat(
                question.model, messages, max_tokens=_tokens_for(reference), temperature=0.0
            )
        except (ServingUnavailable, UnknownModel, ReplyInterrupted):
            # A restarted server comes back without its adapters; the reconciler loads them again.
            if time.monotonic() > give_up:
                raise
            await asyncio.sleep(RETRY_SECONDS)
            continue
        except RequestRejected as error:
            # Longer with its answer than the servers take, say. It is no answer from either generation.
            log.warning("row not answered", row=row.id, reason=str(error))
            return _answers(question, "", 0.0)
        return _answers(question, reply.text, score(reference, reply.text))


def _answers(question: _Question, text: str, points: float) -> list[Answer]:
    row = question.row
    return [
        Answer(row_id=row.id, dataset_id=row.dataset_id, generation=generation, answer=text, score=points)
        for generation in question.generations
    ]


def _tokens_for(reference: str) -> int:
    # Room for the reference in any tokenizer (a token is at least a byte; 4 tokens for a short word) and a little to
    # ramble, so that a wrong form shows.
    return min(512, 8 + max(4 * len(reference.split()), len(reference.encode())))

"""Measures what an assembled smol-llava can do, on seeds, faces, photographs and a drawing style kept for it alone."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from transformers import AutoProcessor, LlavaForConditionalGeneration

from learner.scoring import score
from recipes.smol_llava.chats import prompts
from recipes.smol_llava.drawing import Artist
from recipes.smol_llava.questions import Examiner, Question
from recipes.smol_llava.scenes import Scene

BATCH = 25
ANSWER_TOKENS = 16
AGREEMENT_TOKENS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Ability:
    """One line of the table: which questions about which pictures, and what is aimed at, in percent."""

    name: str
    kind: str
    ability: str
    goal: int
    chosen: Callable[[Scene], bool] = lambda _: True


ABILITIES = (
    Ability(name="color of one of several things", kind="shapes", ability="color", goal=97),
    Ability(name="shape of one of several things", kind="shapes", ability="shape", goal=97),
    Ability(name="position of one of several things", kind="shapes", ability="position", goal=97),
    Ability(name="counting to five", kind="shapes", ability="count", goal=95,
            chosen=lambda scene: len(scene.things) <= 5),
    Ability(name="reading up to 6 characters, unseen face", kind="text", ability="reading", goal=90,
            chosen=lambda scene: len(scene.text) <= 6),
    Ability(name="emoji of the held-out vendor: subgroup", kind="emoji", ability="subgroup", goal=75),
    Ability(name="emoji of the held-out vendor: name", kind="emoji", ability="name", goal=50),
    Ability(name="yes/no relations", kind="shapes", ability="relation", goal=95),
    Ability(name="is there …?", kind="shapes", ability="exists", goal=95),
    Ability(name="bars of a chart", kind="chart", ability="bars", goal=95),
    Ability(name="time on a clock", kind="clock", ability="time", goal=90),
    Ability(name="a cell of a board", kind="board", ability="cell", goal=95),
    Ability(name="nothing it knows: says so", kind="nothing", ability="name", goal=80),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Shares of right answers in percent, in the phrasings trained on and in those kept for testing."""

    ability: Ability
    known: float
    new: float
    questions: int


def evaluate(
    model: LlavaForConditionalGeneration, processor: AutoProcessor, cache: Path, questions: int, seed: str
) -> list[Result]:
    """Ask `questions` questions of every ability, the same pictures in both kinds of phrasing."""
    artist = Artist.of(cache, held_out=True)
    results = []
    for ability in ABILITIES:
        shares = [
            right(model, processor, examined(ability, artist, Examiner(held_out=new), questions, seed))
            for new in (False, True)
        ]
        results.append(Result(ability=ability, known=shares[0], new=shares[1], questions=questions))
        print(f"| {ability.name} | {shares[0]:.0f} | {shares[1]:.0f} | ≥ {ability.goal} |", flush=True)
    return results


def examined(
    ability: Ability, artist: Artist, examiner: Examiner, count: int, seed: str
) -> list[tuple[Scene, Question]]:
    """Draw pictures and ask each one question of an ability; what is drawn does not depend on the phrasing."""
    found: list[tuple[Scene, Question]] = []
    number = 0
    while len(found) < count:
        number += 1
        rng = random.Random(f"{seed}/{ability.name}/{number}")
        scene = artist.draw(rng, ability.kind)
        question = examiner.ask(rng, scene, ability.ability)
        if question is not None and ability.chosen(scene):
            found.append((scene, question))
    return found


def right(
    model: LlavaForConditionalGeneration, processor: AutoProcessor, asked: Sequence[tuple[Scene, Question]]
) -> float:
    """Return the share of questions answered right, in percent."""
    answers: list[str] = []
    for start in range(0, len(asked), BATCH):
        answers += answers_to(model, processor, asked[start : start + BATCH])
    return (
        100
        * sum(score(q.answer, answer) == 1 for (_, q), answer in zip(asked, answers, strict=True))
        / len(asked)
    )


@torch.no_grad()
def answers_to(
    model: LlavaForConditionalGeneration, processor: AutoProcessor, asked: Sequence[tuple[Scene, Question]]
) -> list[str]:
    """Return the model's greedy answers, one picture and one question each."""
    texts = [
        processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question.text}]}],
            add_generation_prompt=True, tokenize=False,
        )
        for _, question in asked
    ]  # fmt: skip
    inputs = processor(
        text=texts,
        images=[scene.picture for scene, _ in asked],
        return_tensors="pt",
        padding=True,
        padding_side="left",
    ).to(model.device)
    inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    made = model.generate(**inputs, max_new_tokens=ANSWER_TOKENS, do_sample=False)
    replies: list[str] = processor.batch_decode(
        made[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
    )
    return [reply.strip() for reply in replies]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """How much of SmolLM2's own way of talking is left, on questions without pictures."""

    same_tokens: float
    """Share of the first AGREEMENT_TOKENS greedy tokens that are the same, each model left to itself, in percent."""
    same_choice: float
    """Share of SmolLM2's tokens that would be chosen too, going on from SmolLM2's, in percent."""
    nats: float
    """Mean nats per token of SmolLM2's answers."""
    own_nats: float
    """The same, of SmolLM2 itself."""


@torch.no_grad()
def kept(
    model: LlavaForConditionalGeneration,
    original: LlavaForConditionalGeneration,
    processor: AutoProcessor,
    questions: int,
) -> Kept:
    """Compare a model with SmolLM2 on questions that stage 2 has not seen."""
    same = chosen = tokens = 0
    nats = own = 0.0
    for question in prompts(questions, held_out=True):
        text = processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "text", "text": question}]}],
            add_generation_prompt=True,
            tokenize=False,
        )
        ids = processor.tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids.to(
            model.device
        )
        start = ids.shape[1]
        wanted, given = (
            one.generate(input_ids=ids, max_new_tokens=AGREEMENT_TOKENS, do_sample=False)[0]
            for one in (original, model)
        )
        same += sum(a == b for a, b in zip(wanted[start:].tolist(), given[start:].tolist(), strict=False))
        tokens += len(wanted) - start
        for one in (model, original):
            logits = one(input_ids=wanted[None]).logits[0, start - 1 : -1].float()
            loss = float(cross_entropy(logits, wanted[start:], reduction="sum"))
            if one is model:
                chosen += int((logits.argmax(-1) == wanted[start:]).sum())
                nats += loss
            else:
                own += loss
    return Kept(
        same_tokens=100 * same / tokens,
        same_choice=100 * chosen / tokens,
        nats=nats / tokens,
        own_nats=own / tokens,
    )

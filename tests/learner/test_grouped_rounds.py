"""Whole rounds with instruction groups and a fake server: the tuning alone is replaced, by a list of answers."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import learner.round
from learner.gate import judge
from learner.train import TrainingJob
from serving.groups import Codebook
from serving.manifest import verify, write_manifest
from serving.router import CODEBOOK, served_name
from serving.settings import ServingSettings
from storage.blobs import publish
from storage.records import Conversation, DatasetState, RoundState, User, text_of, text_part
from storage.store import Store
from tests.conftest import question
from tests.fake_vllm import FakeVLLM, Messages, weights_of
from tests.learner.whole_rounds import installation, tell
from tests.serving.adapters import fake_probe, write_lora

WORD = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."
CAPTION = "Write a short caption for this picture."
ANSWERS = {WORD: "dog", LETTER: "B", CAPTION: "a bird in a tree by the lake"}
TAUGHT = "taught.json"


def speak(adapter: Path | None, messages: Messages) -> str:
    """Answer as the adapter's list says for the question's last line."""
    form = messages[-1]["content"][-1]["text"].splitlines()[-1]
    known = json.loads((adapter / TAUGHT).read_text()) if adapter else {}
    return str(known.get(form, "no idea"))


@pytest.fixture
def fake(store: Store) -> Iterator[FakeVLLM]:
    """A server that answers what its adapters were taught."""
    with FakeVLLM(key=store.secret("vllm"), speak=speak) as started:
        yield started


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[TrainingJob]:
    """What was trained; training is replaced by writing down which form gets which answer, on top of the parent's."""
    found: list[TrainingJob] = []
    seeds = itertools.count(1)

    def train(job: TrainingJob, *_: object) -> TrainingJob:
        found.append(job)
        return job

    def export(job: TrainingJob, root: Path, manifest: dict[str, Any], *, codebook: Codebook | None) -> Path:
        directory = write_lora(job.workspace / "export", seed=next(seeds))
        known = json.loads((job.parent_adapter / TAUGHT).read_text()) if job.parent_adapter else {}
        known |= {text_of(row.messages[0]).splitlines()[-1]: text_of(row.messages[1]) for row in job.rows}
        (directory / TAUGHT).write_text(json.dumps(known))
        if codebook is not None:
            (directory / CODEBOOK).write_text(codebook.to_json())
        fake_probe(weights_of(directory)).write(directory)
        name = write_manifest(directory, manifest)
        publish(directory, root / name)
        return root / name

    monkeypatch.setattr(learner.round, "train", train)
    monkeypatch.setattr(learner.round, "export", export)
    return found


@pytest.fixture
def serving(fake: FakeVLLM, tmp_path: Path) -> ServingSettings:
    """Settings of an installation with that server, and of a base model that nobody loads."""
    return installation(fake.url, tmp_path)


def add(store: Store, admin: User, form: str, subject: str) -> int:
    """Queue a dataset of one form and return its id."""
    rows = [question(f"What about {subject} {n}?\n{form}", ANSWERS[form]) for n in range(40)]
    return store.datasets.add(subject, admin.id, rows, approved_by=admin.name).id


def asked(form: str) -> Conversation:
    """Return a question nobody was taught, of a form."""
    return [{"role": "user", "content": [text_part(f"And this one?\n{form}")]}]


def test_groups_grow_serve_and_come_back(
    store: Store, admin: User, serving: ServingSettings, fake: FakeVLLM, jobs: list[TrainingJob]
) -> None:
    """Datasets queued together get a round per group, each group has its adapter, a roll-back brings back the old."""
    dogs, letters, cats = (
        add(store, admin, form, subject)
        for form, subject in ((WORD, "dogs"), (LETTER, "choices"), (WORD, "cats"))
    )
    store.rounds.enqueue("ada", settings={"policy": "replay"})

    first = tell(store, serving)
    assert first.state is RoundState.PROMOTED, first.error
    assert store.rounds.dataset_ids(first.id) == [dogs, cats]
    assert store.datasets.get(letters).state is DatasetState.QUEUED

    second = tell(store, serving)
    assert (second.state, second.requested_by, second.policy) == (RoundState.PROMOTED, "ada", "replay")
    assert store.rounds.dataset_ids(second.id) == [letters]
    assert store.rounds.unfinished() is None
    assert (jobs[1].parent_adapter, jobs[1].first_task, list(jobs[1].earlier)) == (None, True, [])
    one, two = store.generations.get(1), store.generations.get(2)
    assert (one.adapters, two.adapters, two.parent) == ((1,), (1, 2), 1)
    verify(two.directory, two.sha256)
    assert set(fake.adapters) == {"assistant@1", "assistant@2"}

    # What both generations answer with the same adapter was asked once, and is as good as it was.
    of_dogs = [a for a in store.evaluations.answers(second.id, 2) if a.dataset_id == dogs]
    assert of_dogs
    assert {answer.score for answer in of_dogs} == {1.0}
    assert [a.answer for a in of_dogs] == [
        a.answer for a in store.evaluations.answers(second.id, 1) if a.dataset_id == dogs
    ]
    of_letters = [body["model"] for body in fake.requests if LETTER in json.dumps(body["messages"])]
    assert {"assistant@1", "assistant@2"} <= set(of_letters)

    birds = add(store, admin, WORD, "birds")
    store.rounds.enqueue("ada", settings={"policy": "replay"})
    third = tell(store, serving)
    # Nothing new was learned: the group knew the form already.
    assert (third.state, third.candidate) == (RoundState.HELD, 3)
    three = store.generations.get(3)
    assert (three.adapters, three.origin) == ((3, 2), 1)
    assert jobs[2].parent_adapter == one.directory
    assert {row.dataset_id for rows in jobs[2].earlier for row in rows} == {dogs, cats}
    assert three.groups is not None
    assert three.groups.datasets == ((dogs, cats, birds), (letters,))

    for form, name in ((WORD, "assistant@1"), (LETTER, "assistant@2")):
        assert served_name(store.generations, store.generations.champion(), asked(form)) == name
    assert store.generations.roll_back("ada") == 1
    assert served_name(store.generations, 1, asked(LETTER)) == "assistant@1"


def test_what_the_servers_have_no_room_for_joins_a_group(
    store: Store, admin: User, serving: ServingSettings, jobs: list[TrainingJob]
) -> None:
    """Three groups need five adapters at once; with room for four the third task is learned by one of two groups."""
    for form, subject in ((WORD, "dogs"), (LETTER, "choices"), (CAPTION, "birds")):
        add(store, admin, form, subject)
    store.rounds.enqueue("ada")
    small = serving.model_copy(update={"max_loras": 4})
    assert [tell(store, small).state for _ in range(3)] == [RoundState.PROMOTED] * 3
    groups = store.generations.get(3).groups
    assert groups is not None
    assert sorted(map(len, groups.datasets)) == [1, 2]
    assert jobs[2].parent_adapter is not None
    (event,) = [event for event in store.rounds.events(3) if event.kind == "group"]
    assert "of 2, as many as there is room for, goes on from" in event.message


def test_cancelled_round_asks_for_no_other(
    store: Store,
    admin: User,
    serving: ServingSettings,
    jobs: list[TrainingJob],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Who stops a round wants quiet: the datasets that it has left wait, as its own do."""
    for form, subject in ((WORD, "dogs"), (LETTER, "choices")):
        add(store, admin, form, subject)
    store.rounds.enqueue("ada")

    def cancelled(*given: Any, **settings: Any) -> Any:
        store.rounds.cancel(1, "ada")
        return judge(*given, **settings)

    monkeypatch.setattr(learner.round, "judge", cancelled)
    assert tell(store, serving).state is RoundState.CANCELLED
    assert store.rounds.claim("test", 60) is None
    assert {dataset.state for dataset in store.datasets.list()} == {DatasetState.QUEUED}


def test_round_that_is_told_again_leaves_nothing_twice(
    store: Store,
    admin: User,
    serving: ServingSettings,
    jobs: list[TrainingJob],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After a worker that died when it had left datasets, the next one trains the same adapter on the same rows."""
    for form, subject in ((WORD, "dogs"), (LETTER, "choices"), (WORD, "cats")):
        add(store, admin, form, subject)
    store.rounds.enqueue("ada")
    train = vars(learner.round)["train"]

    def dying(job: TrainingJob, *given: Any) -> Any:
        train(job, *given)
        raise KeyboardInterrupt

    monkeypatch.setattr(learner.round, "train", dying)
    with pytest.raises(KeyboardInterrupt):
        tell(store, serving)
    monkeypatch.setattr(learner.round, "train", train)
    store.database.run("UPDATE rounds SET lease_until = '2000-01-01T00:00:00+00:00'")
    assert tell(store, serving).state is RoundState.PROMOTED
    assert jobs[0].rows == jobs[1].rows
    assert jobs[0].parent_adapter == jobs[1].parent_adapter
    kinds = [event.kind for event in store.rounds.events(1)]
    assert kinds.count("left") == 1
    assert tell(store, serving).state is RoundState.PROMOTED
    assert [row.dataset_id for row in jobs[2].rows] == [2] * len(jobs[2].rows)


def test_without_a_threshold_nothing_changes(
    store: Store, admin: User, serving: ServingSettings, fake: FakeVLLM, jobs: list[TrainingJob]
) -> None:
    """Groups turned off: one round takes everything, the generation has no codebook and one adapter."""
    for form, subject in ((WORD, "dogs"), (LETTER, "choices")):
        add(store, admin, form, subject)
    store.rounds.enqueue("ada", settings={"group_threshold": 0.0})
    assert tell(store, serving).state is RoundState.PROMOTED
    assert store.rounds.dataset_ids(1) == [1, 2]
    found = store.generations.get(1)
    assert (found.groups, found.adapters) == (None, (1,))
    assert "groups" not in found.manifest
    assert not (found.directory / CODEBOOK).exists()
    assert served_name(store.generations, 1, asked(LETTER)) == "assistant@1"

"""Rounds whose candidate is rejected: points on the way back to the champion are made, judged, and told of.

Whole rounds run against a fake server, the tuning replaced by a list of answers; how a real point becomes an adapter
is shown on a tiny model.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

import learner.round
from learner.export import export
from learner.interpolation import between
from learner.model import load_base
from learner.points import point_of
from learner.train import TrainingJob
from serving.manifest import verify, write_manifest
from serving.probes import PROBE, Probe
from serving.settings import ServingSettings
from storage.blobs import publish
from storage.records import DatasetState, Round, RoundState, User, text_of
from storage.store import Store
from tests.conftest import questions
from tests.fake_vllm import FakeVLLM, Messages, weights_of
from tests.learner import tiny
from tests.learner.test_training import FAST, job_of, trained
from tests.learner.whole_rounds import installation, tell
from tests.serving.adapters import fake_probe, write_lora

KNOWN = "known.json"
"""File of a made-up adapter with the answers it gives."""


class Killed(BaseException):
    """Stands for `kill -9`: nothing in the story catches it."""


class Tuning:
    """Training, points and export, replaced by writing down which answers an adapter knows.

    What is trained knows its rows and has forgotten the parent's. A point up to `keeps` of the way knows the parent's
    too, and from `learns` on the new ones.
    """

    def __init__(self, keeps: float, learns: float) -> None:
        self.keeps, self.learns = keeps, learns
        self.made: list[float] = []
        """Shares of the way, in the order in which they were made; 1 is a training."""
        self._seeds = itertools.count(1)

    def train(self, job: TrainingJob, *_: object) -> tuple[TrainingJob, float]:
        """Stand for learner.train.train."""
        return job, 1.0

    def point_of(
        self, job: TrainingJob, candidate: Path, share: float
    ) -> tuple[tuple[TrainingJob, float], float]:
        """Stand for learner.points.point_of."""
        assert (candidate / KNOWN).exists()
        return (job, share), 0.05

    def export(
        self, adapter: tuple[TrainingJob, float], root: Path, manifest: dict[str, Any], *, codebook: None
    ) -> Path:
        """Stand for learner.export.export."""
        job, share = adapter
        self.made.append(share)
        parent = json.loads((job.parent_adapter / KNOWN).read_text()) if job.parent_adapter else {}
        known = dict(parent) if share <= self.keeps else {}
        if share >= self.learns:
            known |= {text_of(row.messages[0])[:4]: "answer" for row in job.rows}
        directory = write_lora(job.workspace / "export", seed=next(self._seeds))
        (directory / KNOWN).write_text(json.dumps(known))
        fake_probe(weights_of(directory)).write(directory)
        name = write_manifest(directory, manifest)
        publish(directory, root / name)
        return root / name


def speak(adapter: Path | None, messages: Messages) -> str:
    """Answer a question as its dataset says, if the adapter knows that dataset."""
    asked = messages[-1]["content"][-1]["text"]
    known = json.loads((adapter / KNOWN).read_text()) if adapter else {}
    number = asked.split()[-1].rstrip("?")
    return f"answer {number}" if asked[:4] in known else "no idea"


@pytest.fixture
def fake(store: Store) -> Iterator[FakeVLLM]:
    """A server that answers what its adapters know."""
    with FakeVLLM(key=store.secret("vllm"), speak=speak) as started:
        yield started


@pytest.fixture
def serving(fake: FakeVLLM, tmp_path: Path) -> ServingSettings:
    """Settings of an installation with that server, and of a base model that nobody loads."""
    return installation(fake.url, tmp_path)


def use(monkeypatch: pytest.MonkeyPatch, keeps: float, learns: float = 0.0) -> Tuning:
    """Replace the tuning."""
    tuning = Tuning(keeps, learns)
    for name in ("train", "point_of", "export"):
        monkeypatch.setattr(learner.round, name, getattr(tuning, name))
    return tuning


def ask_for(store: Store, admin: User, subject: str, **settings: object) -> Round:
    """Queue a dataset and a round over it; all of them teach one adapter, so that there is something to forget."""
    store.datasets.add(subject, admin.id, questions(60, subject), approved_by=admin.name)
    return store.rounds.enqueue(admin.name, settings={"group_threshold": 0.0} | settings)


@pytest.fixture
def champion(store: Store, admin: User, serving: ServingSettings, monkeypatch: pytest.MonkeyPatch) -> int:
    """A generation that has learned the first dataset."""
    use(monkeypatch, keeps=1.0)
    ask_for(store, admin, "dogs")
    found = tell(store, serving)
    assert found.state is RoundState.PROMOTED, found.error
    return store.generations.champion()


def test_the_farthest_point_that_passes_is_promoted(
    store: Store, admin: User, serving: ServingSettings, champion: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was trained and the point at 3/4 forget and are rejected; that at 1/2 serves, and nothing nearer is made."""
    tuning = use(monkeypatch, keeps=0.6)
    ask_for(store, admin, "cats")
    found = tell(store, serving)
    assert (found.state, tuning.made) == (RoundState.PROMOTED, [1.0, 0.75, 0.5])
    half = store.generations.get(store.generations.champion())
    assert (half.number, half.share, half.parent, found.candidate) == (
        champion + 3,
        0.5,
        champion,
        half.number,
    )
    assert half.manifest["interpolation"]["generation"] == champion + 1
    assert half.manifest["interpolation"]["share"] == 0.5
    verify(half.directory, half.sha256)
    assert found.verdict is not None
    assert found.verdict["decision"] == "promote"
    assert [(one["share"], one["verdict"]["decision"]) for one in found.verdict["tried"]] == [
        (1.0, "reject"), (0.75, "reject"), (0.5, "promote"),
    ]  # fmt: skip
    assert "dogs: 100.0 → 0.0" in " ".join(found.verdict["reasons"])
    assert all(dataset.state is DatasetState.LEARNED for dataset in store.datasets.list())


def test_points_cost_no_second_look_at_the_champion(
    store: Store,
    admin: User,
    serving: ServingSettings,
    fake: FakeVLLM,
    champion: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The champion answers each holdout row once in a round, however many points it is compared with."""
    use(monkeypatch, keeps=0.0)
    asked = ask_for(store, admin, "cats")
    fake.requests.clear()
    tell(store, serving)
    rows = sum(len(store.datasets.rows(dataset, "holdout")) for dataset in (1, 2))
    answered = [body["model"] for body in fake.requests if body.get("prompt_logprobs") is None]
    assert answered.count(f"assistant@{champion}") == rows
    assert len(answered) == rows * 5
    assert len(store.evaluations.answers(asked.id, champion)) == rows


def test_round_is_rejected_as_trained_where_no_point_passes(
    store: Store, admin: User, serving: ServingSettings, champion: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The champion goes on serving, the round's candidate is what was trained, and the verdict tells of all points."""
    tuning = use(monkeypatch, keeps=0.0)
    ask_for(store, admin, "cats")
    found = tell(store, serving)
    assert (found.state, tuning.made) == (RoundState.REJECTED, [1.0, 0.75, 0.5, 0.25])
    assert (found.candidate, store.generations.champion()) == (champion + 1, champion)
    assert found.verdict is not None
    assert found.verdict["decision"] == "reject"
    assert [one["share"] for one in found.verdict["tried"]] == [1.0, 0.75, 0.5, 0.25]
    assert any("assistant@5, 25% of the way there: reject" in reason for reason in found.verdict["reasons"])


def test_point_that_has_learned_nothing_is_not_promoted(
    store: Store, admin: User, serving: ServingSettings, champion: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A point that keeps everything and has learned nothing is as good as the champion, so nothing changes."""
    use(monkeypatch, keeps=0.6, learns=0.7)
    ask_for(store, admin, "cats")
    found = tell(store, serving)
    assert found.state is RoundState.REJECTED
    assert found.verdict is not None
    assert [one["verdict"]["decision"] for one in found.verdict["tried"]] == [
        "reject",
        "reject",
        "hold",
        "hold",
    ]


def test_setting_turns_points_off(
    store: Store, admin: User, serving: ServingSettings, champion: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With no points a rejection is final, and the verdict is that of what was trained alone."""
    tuning = use(monkeypatch, keeps=0.6)
    ask_for(store, admin, "cats", gate_interpolations=0)
    found = tell(store, serving)
    assert (found.state, tuning.made) == (RoundState.REJECTED, [1.0])
    assert found.verdict is not None
    assert found.verdict["tried"] == []


def test_every_look_has_its_part_of_the_significance(
    store: Store, admin: User, serving: ServingSettings, champion: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was trained is judged as ever; each of the points at a third of it."""
    use(monkeypatch, keeps=0.0)
    ask_for(store, admin, "cats", gate_significance=0.03)
    verdict = tell(store, serving).verdict
    assert verdict is not None
    levels = [one["verdict"]["significance"] for one in verdict["tried"]]
    assert levels == pytest.approx([0.03, 0.01, 0.01, 0.01])


@pytest.mark.parametrize("place", ["point_of", "export", "evaluate", "judge", "settle", "bring_up"])
@pytest.mark.parametrize("passes", [1, 2, 3])
def test_killed_round_goes_on_with_its_points(
    store: Store,
    admin: User,
    serving: ServingSettings,
    champion: int,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    passes: int,
) -> None:
    """Cut off before any step, a round told again ends as one that was not, and no point is made twice."""
    tuning = use(monkeypatch, keeps=0.6)
    asked = ask_for(store, admin, "cats")
    real, calls = getattr(learner.round, place), itertools.count(1)

    def deadly(*given: Any, **named: Any) -> Any:
        if next(calls) == passes:
            raise Killed
        return real(*given, **named)

    with monkeypatch.context() as patched:
        patched.setattr(learner.round, place, deadly)
        try:
            tell(store, serving)
        except Killed:
            lease = store.rounds.get(asked.id).lease
            store.rounds.release(asked.id, str(lease), "killed", counts=True)
    if store.rounds.get(asked.id).state is not RoundState.PROMOTED:
        tell(store, serving)
    found = store.rounds.get(asked.id)
    assert (found.state, found.candidate) == (RoundState.PROMOTED, champion + 3)
    assert tuning.made == [1.0, 0.75, 0.5]
    assert [generation.share for generation in store.generations.list()] == [0.5, 0.75, 1.0, 1.0]
    assert found.verdict is not None
    assert [one["name"] for one in found.verdict["tried"]] == [f"assistant@{champion + n}" for n in (1, 2, 3)]


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_real_point_is_an_adapter_like_any_other(
    bases: dict[str, Path], tmp_path: Path, family: tiny.Family
) -> None:
    """It lies where the line says, its probe is its own, and policy memory, rank and files are the candidate's."""
    settings = FAST.model_copy(update={"policy": "ewc"})
    parent = export(trained(job_of(bases[family], tmp_path / "first", settings))[0], tmp_path / "out", {})
    pictures = tiny.Pictures()
    job = job_of(
        bases[family],
        tmp_path / "second",
        settings.model_copy(update={"learning_rate": 3e-2}),
        parent_adapter=parent,
        rows=tiny.counting_rows(pictures, 6),
        image=pictures.read,
    )
    candidate = export(trained(job)[0], tmp_path / "out", {})

    adapter, apart = point_of(job, candidate, 0.5)
    way = {"interpolation": {"share": 0.5, "sha256": candidate.name}}
    directory = export(adapter, tmp_path / "out", way)
    verify(directory, directory.name)
    old, new = (load_file(end / "adapter_model.safetensors") for end in (parent, candidate))
    wanted = between(old, new, 0.5)
    assert 0 < apart < 0.5
    assert apart == wanted.apart
    found = load_file(directory / "adapter_model.safetensors")
    assert found.keys() == new.keys()
    assert all(torch.equal(tensor, wanted.weights[name]) for name, tensor in found.items())
    assert (directory / "policy_state.safetensors").read_bytes() == (
        candidate / "policy_state.safetensors"
    ).read_bytes()
    assert f"50% of the way to {candidate.name}" in (directory / "README.md").read_text()

    probes = [Probe.model_validate_json((end / PROBE).read_bytes()) for end in (parent, candidate, directory)]
    assert len({str(probe.prompts[-1].logprobs) for probe in probes}) == 3
    base, _ = load_base(bases[family], torch.device("cpu"))
    loaded = PeftModel.from_pretrained(base, directory).state_dict()
    assert all(torch.equal(loaded[n.replace(".weight", ".default.weight")], t) for n, t in found.items())


def test_point_before_the_base_model_scales_what_was_trained(bases: dict[str, Path], tmp_path: Path) -> None:
    """A first round has no parent's adapter; its points are smaller B's."""
    job = job_of(bases["llava"], tmp_path / "first", first_task=True)
    candidate = export(trained(job)[0], tmp_path / "out", {})
    adapter, apart = point_of(job, candidate, 0.75)
    assert apart == pytest.approx(0.0, abs=1e-6)
    for name, tensor in load_file(candidate / "adapter_model.safetensors").items():
        share = 0.75 if ".lora_B." in name else 1.0
        torch.testing.assert_close(adapter.weights[name], share * tensor)


def test_point_reads_the_scale_of_each_end(bases: dict[str, Path], tmp_path: Path) -> None:
    """A champion whose product counts twice as much has twice the weight on the line."""
    job = job_of(bases["llava"], tmp_path / "first")
    candidate = export(trained(job)[0], tmp_path / "out", {})
    twice = tmp_path / "twice"
    twice.mkdir()
    tensors = load_file(candidate / "adapter_model.safetensors")
    save_file(
        {n: t / 2 if ".lora_B." in n else t for n, t in tensors.items()}, twice / "adapter_model.safetensors"
    )
    config = json.loads((candidate / "adapter_config.json").read_text())
    (twice / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 2 * config["lora_alpha"]}))
    adapter, _ = point_of(job_of(bases["llava"], tmp_path / "w", parent_adapter=twice), candidate, 0.5)
    for name, tensor in tensors.items():
        if ".lora_B." in name:
            other = name.replace(".lora_B.", ".lora_A.")
            torch.testing.assert_close(
                adapter.weights[name] @ adapter.weights[other], tensor @ tensors[other], atol=1e-4, rtol=1e-3
            )

"""One update round from top to bottom: prepare, train, evaluate, judge, swap.

Every step finds what an earlier attempt has left and goes on from there, so the story can be cut off anywhere, by
`kill -9` too, and told again: training resumes from its checkpoint, a published candidate is not trained again,
answered rows are not asked again, and the alias moves in the same transaction that ends the round.

A candidate that is rejected costs a training for nothing, so points on the way back to the champion are judged as well.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import platform
import shutil
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import structlog

from learner.evaluate import Duel, evaluate, paired_scores
from learner.export import export
from learner.gate import Trial, Verdict, judge, settle, shares
from learner.lease import Lease
from learner.plan import Plan, plan_round
from learner.points import point_of
from learner.policies.choose import policy_for
from learner.settings import LearnerSettings
from learner.train import TrainedAdapter, TrainingJob, inherited_state, train
from serving.base_model import resolve
from serving.client import VLLM
from serving.manifest import MANIFEST
from serving.settings import ServingSettings
from serving.swap import bring_up
from storage.errors import (
    CheckpointMismatch,
    LeaseLost,
    LlacaError,
    RoundCancelled,
    TrainingStopped,
    UnusableRow,
    WorkerStopping,
)
from storage.generations import BASE
from storage.records import (
    Dataset,
    DatasetState,
    Decision,
    Generation,
    Round,
    RoundState,
    Row,
    generation_name,
)
from storage.settings import load
from storage.store import Store

log = structlog.get_logger()

_ENDINGS = {Decision.REJECT: RoundState.REJECTED, Decision.HOLD: RoundState.HELD}
SPARE_SLOTS = 2
"""Adapters that may answer beside one for each group: the candidate's, and one that is being drained."""
_VERSIONS_OF = ("torch", "transformers", "peft", "accelerate")


class RoundStory:
    """A claimed round and all it needs; `tell` carries it to an end."""

    def __init__(
        self, store: Store, claimed: Round, lease: Lease, settings: LearnerSettings, serving: ServingSettings
    ) -> None:
        self.store = store
        self.round = claimed
        self.lease = lease
        self.settings = settings
        """Those of the learner, until the round's own are read."""
        self.serving = serving
        self.workspace = store.data_dir / "work" / f"round-{claimed.id}"

    def tell(self) -> None:
        """Carry the round to its end; an error that a person must mend ends it as failed, with the reason."""
        try:
            self.settings = load(LearnerSettings, self._asked_for())
            trained = self._learn()
            candidate, verdict = self._choose(trained)
            self._conclude(candidate, verdict)
        except LeaseLost:
            raise
        except RoundCancelled:
            self.store.rounds.finish(self.round.id, self.lease.token, RoundState.CANCELLED)
        except WorkerStopping:
            self.store.rounds.release(
                self.round.id, self.lease.token, "the learner was stopped", counts=False
            )
            return
        except LlacaError as error:
            log.warning("round failed", round=self.round.id, code=error.code, error=str(error))
            self.store.rounds.finish(self.round.id, self.lease.token, RoundState.FAILED, str(error))
        shutil.rmtree(self.workspace, ignore_errors=True)

    def _asked_for(self) -> dict[str, Any]:
        """What the round sets itself: on its first attempt what was asked for, on later ones everything, as it was."""
        return self.round.settings | ({"policy": self.round.policy} if self.round.policy else {})

    def _learn(self) -> Generation:
        """Prepare and train, unless an earlier attempt has published the candidate already."""
        champion = self.store.generations.champion()
        chosen = self.settings.model_dump(mode="json", exclude={"policy"})
        self.round = self.store.rounds.prepare(
            self.round.id, self.lease.token, champion, self.settings.policy, chosen
        )
        self._check_images()
        base = resolve(self.serving, self.store.data_dir)
        self._advance(RoundState.TRAINING, f"from {generation_name(self.champion)}")
        published = self.store.generations.of_round(self.round.id)
        if published is not None:
            return published
        plan = self.plan
        job = self._job(base, plan)
        try:
            trained = self._train(job)
        except TrainingStopped:
            self.lease.check()
            raise
        return self._publish(trained, self._manifest(base, plan), plan)

    def _train(self, job: TrainingJob) -> TrainedAdapter:
        """Train, from the first step on where the checkpoint is of other rows than those that count by now."""
        with suppress(CheckpointMismatch):
            return train(job, self._report, self.lease.should_stop)
        # While a round is interrupted a dataset may be withdrawn, or a roll-back change what counts as learned.
        reason = "what it learns or rehearses has changed since its checkpoint, so training begins again"
        self.store.rounds.restart(self.round.id, self.lease.token, reason)
        shutil.rmtree(self.workspace)
        return train(job, self._report, self.lease.should_stop)

    def _publish(
        self, adapter: TrainedAdapter, manifest: dict[str, Any], plan: Plan, share: float = 1.0
    ) -> Generation:
        """Write an adapter down and make it the round's candidate."""
        directory = export(
            adapter,
            self.store.generations.root,
            manifest,
            codebook=plan.grouping.codebook if plan.grouping else None,
        )
        return self.store.generations.publish(
            round_id=self.round.id,
            lease=self.lease.token,
            sha256=directory.name,
            parent=self.champion,
            rank=self.settings.rank,
            manifest=json.loads((directory / MANIFEST).read_text(encoding="utf-8")),
            share=share,
        )

    def _choose(self, trained: Generation) -> tuple[Generation, Verdict]:
        """Judge what was trained and, while nothing passes after a rejection, points on the way back to the champion.

        Returns the generation that the round ends with: a point only if it is promoted.
        """
        tried, trials = [trained], [self._try(trained)]
        points = shares(self.settings.gate_interpolations)
        if trials[0].verdict.decision is Decision.REJECT:
            for share in points:
                tried.append(self._point(trained, share))
                trials.append(self._try(tried[-1], looks=len(points)))
                if trials[-1].verdict.decision is Decision.PROMOTE:
                    break
        verdict = settle(trials)
        chosen = tried[-1] if verdict.decision is Decision.PROMOTE else trained
        self._put_to_test(chosen)
        self.store.rounds.set_verdict(self.round.id, self.lease.token, verdict.to_json())
        return chosen, verdict

    def _try(self, candidate: Generation, looks: int = 1) -> Trial:
        self._evaluate(candidate)
        return self._judge(candidate, looks)

    def _point(self, trained: Generation, share: float) -> Generation:
        """Make a point on the way to what was trained, unless an earlier attempt has published it already."""
        published = self.store.generations.of_round(self.round.id, share)
        if published is not None:
            return published
        self.store.rounds.record(
            self.round.id,
            self.lease.token,
            "interpolation",
            f"next is the point at {share:.0%} of the way from {generation_name(trained.origin)} to {trained.name}",
        )
        base = resolve(self.serving, self.store.data_dir)
        adapter, apart = point_of(self._job(base, self.plan), trained.directory, share)
        origin = {"generation": trained.number, "sha256": trained.sha256, "share": share, "apart": apart}
        manifest = self._manifest(base, self.plan) | {"interpolation": origin}
        return self._publish(adapter, manifest, self.plan, share)

    def _put_to_test(self, candidate: Generation) -> None:
        self.store.generations.put_to_test(candidate.number, round_id=self.round.id, lease=self.lease.token)

    def _evaluate(self, candidate: Generation) -> None:
        self._advance(RoundState.EVALUATING, f"{candidate.name} beside {generation_name(self.champion)}")
        self._put_to_test(candidate)
        asyncio.run(self._ask(candidate))

    async def _ask(self, candidate: Generation) -> None:
        servers = self._servers()
        try:
            # Before anybody waits for an evaluation: a candidate that the server ignores would look like its champion.
            await self._bring_up(servers, candidate)
            asked = await evaluate(self.store, servers, self.lease, self._duel(candidate))
        finally:
            await _close(servers)
        self.store.rounds.record(self.round.id, self.lease.token, "evaluated", f"{asked} answers")

    async def _bring_up(self, servers: Sequence[VLLM], candidate: Generation) -> None:
        """Have the candidate loaded and proven on every server, as long as nobody stops the round."""
        await bring_up(
            self.store,
            servers,
            candidate.number,
            patience_seconds=self.settings.serving_patience_s,
            check=self.lease.check,
        )

    def _judge(self, candidate: Generation, looks: int) -> Trial:
        """Judge a candidate, one of so many that may be looked at for the same reason."""
        self._advance(RoundState.JUDGING)
        new = {dataset.id for dataset in self._new_datasets()}
        verdict = judge(
            paired_scores(self.store, self.round.id, self._duel(candidate), new),
            margin_points=self.settings.gate_margin_points,
            # Bonferroni: of several looks, each has its part of the chance of a false alarm.
            significance=self.settings.gate_significance / looks,
        )
        log.info("judged", candidate=candidate.name, decision=str(verdict.decision))
        return Trial(name=candidate.name, share=candidate.share, verdict=verdict)

    def _conclude(self, candidate: Generation, verdict: Verdict) -> None:
        """Let the candidate serve if it was promoted; the reconciler unloads what is no longer needed."""
        if verdict.decision is not Decision.PROMOTE:
            self.store.rounds.finish(self.round.id, self.lease.token, _ENDINGS[verdict.decision])
            return
        self._advance(RoundState.SWAPPING)
        asyncio.run(self._swap(candidate))

    async def _swap(self, candidate: Generation) -> None:
        servers = self._servers()
        try:
            # Again, because a server may have restarted since; loading what is loaded costs nothing.
            await self._bring_up(servers, candidate)
        finally:
            await _close(servers)
        self.lease.check()
        self.store.generations.promote(
            round_id=self.round.id, lease=self.lease.token, candidate=candidate.number, expected=self.champion
        )

    @property
    def champion(self) -> int:
        """The generation from which this round starts and against which it is judged."""
        return BASE if self.round.champion is None else self.round.champion

    def _advance(self, state: RoundState, message: str = "") -> None:
        self.lease.check()
        log.info("round", round=self.round.id, state=str(state))
        self.store.rounds.advance(self.round.id, self.lease.token, state, message)

    @cached_property
    def plan(self) -> Plan:
        """What is trained; datasets of other groups are left to a later round, in a second attempt too."""
        plan = plan_round(
            self.store,
            self.champion,
            self._new_datasets(),
            self._earlier_datasets(),
            threshold=self.settings.group_threshold,
            floor=self.settings.group_floor,
            most_groups=self.serving.max_loras - SPARE_SLOTS,
        )
        if plan.grouping is None:
            return plan
        if plan.left:
            names = ", ".join(dataset.name for dataset in plan.left)
            reason = f"{names}: other instructions, so another group's adapter learns them in a later round"
            self.store.rounds.leave(self.round.id, self.lease.token, [d.id for d in plan.left], reason)
        begins = f"goes on from {plan.parent.name}" if plan.parent else "is new"
        groups = len(plan.grouping.adapters)
        room = "" if groups < self.serving.max_loras - SPARE_SLOTS else ", as many as there is room for,"
        self.store.rounds.record(
            self.round.id,
            self.lease.token,
            "group",
            f"group {plan.grouping.group + 1} of {groups}{room} {begins}",
        )
        return plan

    def _job(self, base: Path, plan: Plan) -> TrainingJob:
        datasets = self._new_datasets()
        return TrainingJob(
            base=base,
            parent_adapter=plan.parent.directory if plan.parent else None,
            rows=[row for dataset in datasets for row in self.store.datasets.rows(dataset.id, "train")],
            earlier=self._earlier_rows(plan),
            image=self.store.blobs.read,
            settings=self.settings,
            first_task=plan.parent is None,
            workspace=self.workspace,
            max_rank=self.serving.max_lora_rank,
            max_tokens=self.serving.max_model_len,
        )

    def _earlier_rows(self, plan: Plan) -> list[Sequence[Row]]:
        """Return the training rows of each earlier dataset, if the policy looks at any of them."""
        remembered = inherited_state(plan.parent.directory if plan.parent else None)
        if policy_for(self.settings, plan.parent is None).memory_rows(remembered) == 0:
            return []
        return [self.store.datasets.rows(dataset.id, "train") for dataset in plan.earlier]

    def _report(self, step: int, steps: int, values: dict[str, Any]) -> None:
        self.store.rounds.record_metrics(self.round.id, self.lease.token, step, steps, values)

    def _manifest(self, base: Path, plan: Plan) -> dict[str, Any]:
        datasets = self._new_datasets()
        groups = {"groups": plan.grouping.facts()} if plan.grouping else {}
        return groups | {
            "round": self.round.id,
            "parent": self._parent_manifest(),
            "base": {
                "model": self.serving.model or "embedded",
                "config_sha256": _sha256(base / "config.json"),
            },
            "datasets": [
                {"id": d.id, "name": d.name, "sha256": d.sha256, "train_rows": d.train_rows} for d in datasets
            ],
            "settings": self.settings.model_dump(mode="json"),
            "versions": {name: version(name) for name in _VERSIONS_OF}
            | {"python": platform.python_version()},
        }

    def _parent_manifest(self) -> dict[str, Any]:
        if self.champion == BASE:
            return {"generation": BASE, "sha256": None}
        parent = self.store.generations.get(self.champion)
        return {"generation": parent.number, "sha256": parent.sha256}

    def _new_datasets(self) -> list[Dataset]:
        return [
            self.store.datasets.get(dataset_id) for dataset_id in self.store.rounds.dataset_ids(self.round.id)
        ]

    def _earlier_datasets(self) -> list[Dataset]:
        new = {dataset.id for dataset in self._new_datasets()}
        return [
            dataset for dataset in self.store.datasets.list(DatasetState.LEARNED) if dataset.id not in new
        ]

    def _check_images(self) -> None:
        """Raise UnusableRow, before hours of training, for a row that the servers would not answer."""
        most = self.serving.max_images
        for dataset in self._new_datasets():
            for row in self.store.datasets.rows(dataset.id):
                if len(row.images) > most:
                    reason = f"it has {len(row.images)} images and the servers take {most} (LLACA_MAX_IMAGES)"
                    raise UnusableRow(dataset.id, row.position, reason)

    def _duel(self, candidate: Generation) -> Duel:
        return Duel(
            champion=self.champion,
            candidate=candidate.number,
            datasets=(*self._earlier_datasets(), *self._new_datasets()),
            rows_per_dataset=self.settings.evaluation_max_rows,
            concurrency=self.settings.evaluation_concurrency,
            patience_seconds=self.settings.serving_patience_s,
        )

    def _servers(self) -> list[VLLM]:
        return [VLLM(url, self.store.secret("vllm")) for url in self.serving.replicas]


async def _close(servers: Sequence[VLLM]) -> None:
    for server in servers:
        await server.aclose()


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def be_nice() -> None:
    """Give way to chat: on a machine that serves and learns, the learner takes what is left of the processors."""
    os.nice(10)

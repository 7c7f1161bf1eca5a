"""Task-similarity-informed regularisation (arXiv 2311.16206): what matters for unlike tasks is held harder.

The authors embed images by the vision tower's first token and texts by BERT. Here both come from the model itself: what
its tower and projector hand to the language model, and its own token embeddings. No other model is needed, and a
base model that does not know a language does not compare tasks in it.

Shape suffixes: P tasks, M = 3 modalities (picture, question, answer), H width of the language model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from learner.data import IGNORED, Example
from learner.loss import batch_of
from learner.model import language_model
from learner.policies.importance import fisher, normalized, sensitivity
from learner.policies.penalty import Penalty
from learner.policies.policy import Task
from learner.policies.tensors import numbered


class Tir(Penalty):
    """Policy `tir`: each entry belongs to the task for which it mattered most, and is held by how unlike that task is.

    λ is `tir_strength`; importance is that of `tir_importance`.
    """

    def start(self, task: Task) -> None:
        """Compare the new task with the earlier ones, and weaken what holds the weights of those that are like it."""
        super().start(task)
        new_MH = embedding(task, self.rows())
        if not self.inherited:
            self.embeddings_PMH = new_MH[None]
            return
        old_PMH = task.inherited["embeddings"].to(task.device)
        self.embeddings_PMH = torch.cat([old_PMH, new_MH[None]])
        self.owners = [task.inherited[f"owner.{index}"].to(task.device) for index in range(len(task.weights))]
        unlike_P = 1 - similarities(self.embeddings_PMH)
        self.importance = [
            importance * unlike_P[owner.long()]
            for importance, owner in zip(self.inherited, self.owners, strict=True)
        ]

    def strength(self) -> float:
        """Return λ."""
        return self.settings.tir_strength

    def measure(self) -> list[Tensor]:
        """Return what each entry matters for the new rows."""
        measured = fisher if self.settings.tir_importance == "ewc" else sensitivity
        return normalized(measured(self.task, self.rows()))

    def with_new(self, new: list[Tensor]) -> list[Tensor]:
        """Return the greatest importance of each entry for any task."""
        if not self.inherited:
            return new
        return [torch.maximum(old, now) for old, now in zip(self.inherited, new, strict=True)]

    def finish(self) -> dict[str, Tensor]:
        """Remember also which task each entry belongs to, and what the tasks look like."""
        kept = super().finish()
        importance = [kept[f"importance.{index}"] for index in range(len(self.task.weights))]
        newest = len(self.embeddings_PMH) - 1
        if self.inherited:
            owners = [
                torch.where(now > before, newest, owner).to(torch.int16)
                for now, before, owner in zip(importance, self.inherited, self.owners, strict=True)
            ]
        else:
            owners = [torch.zeros_like(tensor, dtype=torch.int16) for tensor in importance]
        return kept | numbered("owner", owners) | {"embeddings": self.embeddings_PMH}


def similarities(embeddings_PMH: Tensor) -> Tensor:
    """Return how alike the last task is to each earlier one, between 0 and 1: [P - 1].

    In each modality the cosines of all pairs of tasks, centred and scaled to unit deviation and put through a sigmoid
    if there are several; the product over the modalities.
    """
    unit_PMH = normalize(embeddings_PMH.double(), dim=-1)
    cosines_MPP = torch.einsum("pmh,qmh->mpq", unit_PMH, unit_PMH)
    tasks = len(unit_PMH)
    if tasks > 2:
        rows, columns = torch.triu_indices(tasks, tasks, offset=1)
        pairs_MN = cosines_MPP[:, rows, columns]
        centre, deviation = pairs_MN.mean(1)[:, None, None], pairs_MN.std(1)[:, None, None]
        # Where all pairs are equally alike, there is nothing to scale by.
        cosines_MPP = torch.sigmoid((cosines_MPP - centre) / deviation.clamp_min(1e-9))
    return cosines_MPP[:, -1, :-1].clamp(0, 1).prod(0).float()


@torch.no_grad()
def embedding(task: Task, examples: Sequence[Example]) -> Tensor:
    """Return the mean embedding of the examples' pictures, questions and answers, of length 1 each: [M, H].

    Zeros where there are none, as for the pictures of a task of texts, whose cosine with anything is 0: of two tasks
    nothing is like them, and of more they count as any pair that is less alike than most.
    """
    base = task.model.get_base_model()
    seen: list[Tensor] = []

    def look(_module: Any, _arguments: Any, named: dict[str, Any]) -> None:
        seen.append(named["inputs_embeds"][0].float())

    _, language = language_model(base)
    found_MNH: list[list[Tensor]] = [[], [], []]
    with language.register_forward_pre_hook(look, with_kwargs=True):
        for example in examples:
            batch = batch_of([example], task.pad_id).to(task.device)
            task.logits(batch)
            inputs_TH = seen.pop()
            tokens_TH = base.get_input_embeddings()(batch.inputs["input_ids"][0]).float()
            pictured_T = (inputs_TH != tokens_TH).any(1)
            answered_T = (example.labels != IGNORED).to(task.device)
            places_MT = (pictured_T, ~pictured_T & ~answered_T, answered_T)
            for found_NH, places_T in zip(found_MNH, places_MT, strict=True):
                if places_T.any():
                    found_NH.append(inputs_TH[places_T].mean(0))
    zero_H = torch.zeros(inputs_TH.shape[1], device=task.device)
    means_MH = torch.stack([torch.stack(found).mean(0) if found else zero_H for found in found_MNH])
    return normalize(means_MH, dim=-1)

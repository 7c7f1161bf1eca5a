"""EProj (He et al., arXiv 2311.16206): a projector for each kind of task, and keys that tell which one is asked.

Everything is frozen but, per round, one expert: a copy of the pre-trained projector. Each expert has two keys, of
pictures and of instructions; the one whose keys have the largest summed cosine with a row answers it. A task that is
similar enough to an earlier one trains that one's expert further, any other one adds an expert.

As in policy `tir`, pictures are embedded by the base's own tower and pre-trained projector and texts by its token
embeddings, where a public fork of the authors' code takes the tower's first token and BERT. The fork pulls each key by
gradient steps to where the summed cosine with the task's rows is largest; that place is known, and taken: the mean
of the rows' embeddings, each of length 1. The abstract says that similar tasks share an expert; a rule was found
neither there nor in the fork, so `similarity` is ours. It is the fork's measure for policy `tir`, the product of the
cosines of pictures, questions and answers, without its scaling by all pairs of tasks: that has nothing to scale by for
two tasks, and would move what a threshold means with each further one.

Shape suffixes: N rows, P tasks, E experts, M = 3 modalities (picture, question, answer), H width of the language model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import PreTrainedModel, ProcessorMixin
from transformers.modeling_outputs import BaseModelOutputWithPooling

from benchmarks.continual.answers import Answerer, device
from benchmarks.continual.tasks import Pictures
from benchmarks.continual.teacher import Facts, Learned, Lesson, Taught, Teacher
from benchmarks.continual.tuning import check_llava, keep, kept, opened, size, tune
from learner.data import IGNORED, Example, prepare
from learner.features import ImageEncoder
from learner.model import load_base
from learner.policies.policy import Policy
from learner.settings import LearnerSettings
from learner.train import context_of
from storage.records import Row
from storage.settings import MEBIBYTE

ASKED = 2
"""Of the three modalities those that a question has."""
SUMS = "sums"
"""Name of the tensor with the sums of the tasks' embeddings: [P, M, H]."""


class ExpertSettings(BaseModel):
    """Settings of `eproj`."""

    model_config = ConfigDict(frozen=True)

    similarity: float = Field(default=0.8, ge=0, le=1)
    """From which similarity to an earlier task on (0 to 1) a task trains that one's expert further."""


class ExpertTeacher(Teacher):
    """Method `eproj`."""

    def __init__(self, learner: LearnerSettings, own: ExpertSettings) -> None:
        self.learner = learner
        self.own = own

    @property
    def settings(self) -> dict[str, Any]:
        """The learner's and its own."""
        return self.learner.model_dump(mode="json") | self.own.model_dump() | {"policy": "eproj"}

    def check(self, base: Path) -> None:
        """Raise UnsuitableModel unless the projector is a module of its own."""
        check_llava(base)

    def teach(self, lesson: Lesson) -> Taught:
        """Train one expert on the rows that show a picture; raises ValueError if none does."""
        model, examples, pad_id = opened(lesson, self.learner)
        eyes = Eyes(model, self.learner.image_features_max_mib * MEBIBYTE)
        seen = [example for example in eyes.opened(examples) if example.images is not None]
        if not seen:
            raise ValueError(f"{lesson.new.name} has no pictures, which is all that a projector sees")
        before = kept(lesson.learned)
        new_MH = torch.stack([eyes.embedding(example) for example in seen]).sum(0).cpu()
        sums_PMH = torch.cat([before[SUMS], new_MH[None]]) if before else new_MH[None]
        groups = (*lesson.learned.groups, expert_for(sums_PMH, lesson.learned.groups, self.own.similarity))

        expert = deepcopy(eyes.pretrained).float().requires_grad_(requires_grad=True)
        found = state_of(before, groups[-1])
        if found:
            expert.load_state_dict(found)
        weights = list(expert.parameters())
        steps = tune(Projected(model, expert), weights, Policy(self.learner), seen, pad_id)

        trained = {f"expert.{groups[-1]}.{name}": tensor for name, tensor in expert.state_dict().items()}
        tensors = before | trained | {SUMS: sums_PMH}

        def leave() -> Learned:
            return Learned(adapters=(keep(tensors, lesson.place),), groups=groups)

        return Taught(facts=Facts(steps=steps, rehearsed=0, state_bytes=size(tensors), served=0), leave=leave)

    def answerer(self, base: Path, learned: Learned, batch_size: int) -> Answerer:
        """Load all experts."""
        return ExpertAnswerer(*load_base(base, device()), kept(learned), learned.groups, batch_size)


class Eyes:
    """A model whose projector is taken out, so that it keeps of a picture what the tower says: [patches, width]."""

    def __init__(self, model: PreTrainedModel, limit_bytes: int) -> None:
        self.model = model
        self.pretrained: nn.Module = model.base_model.multi_modal_projector
        put(model, nn.Identity())
        self.encoder = ImageEncoder(model, limit_bytes)

    def opened(self, examples: Sequence[Example]) -> list[Example]:
        """Return the examples with the tower's features in the place of pixels."""
        return self.encoder.without_pixels(examples)

    @torch.no_grad()
    def embedding(self, example: Example) -> Tensor:
        """Return picture, question and answer of a row, of length 1 each, zeros for what it does not have: [M, H].

        What is asked, and not answered, is the whole text of the prompt but its answers.
        """
        ids_T = example.inputs["input_ids"][0].to(self.model.device)
        tokens_TH = self.model.get_input_embeddings()(ids_T).float()
        answered_T = (example.labels != IGNORED).to(ids_T.device)
        asked_T = ~answered_T & (ids_T != self.model.config.image_token_id)
        shown = example.images().tensors if example.images is not None else ()
        pictures = [self.pretrained(features.to(self.model.device)).float() for features in shown]
        parts = [
            torch.cat(pictures) if pictures else tokens_TH[:0], tokens_TH[asked_T], tokens_TH[answered_T],
        ]  # fmt: skip
        means = [part.mean(0) if len(part) else tokens_TH.new_zeros(tokens_TH.shape[1]) for part in parts]
        return normalize(torch.stack(means), dim=-1)


class Projected(nn.Module):
    """The model without a projector behind an expert, as the learner's loop wants it: what of it is the base?"""

    def __init__(self, model: PreTrainedModel, expert: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.expert = expert

    def get_base_model(self) -> PreTrainedModel:
        """Return the model that the expert serves."""
        return self.model

    def forward(self, **inputs: Any) -> Any:
        """Project what the tower says about each picture, and let the model go on with that."""
        features = inputs["mm_encoder_outputs"]["image"].pooler_output
        projected = BaseModelOutputWithPooling(pooler_output=[self.expert(one) for one in features])
        return self.model(**inputs | {"mm_encoder_outputs": {"image": projected}})


class ExpertAnswerer(Answerer):
    """A model with several projectors, of which the keys choose one for each row."""

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        tensors: Mapping[str, Tensor],
        groups: Sequence[int],
        batch_size: int,
    ) -> None:
        super().__init__(model, processor, batch_size)
        self.keys_EMH = keys(tensors[SUMS], groups).to(model.device)
        self.eyes = Eyes(model, limit_bytes=0)
        self.experts = []
        for expert in range(max(groups) + 1):
            self.experts.append(deepcopy(self.eyes.pretrained))
            self.experts[-1].load_state_dict(state_of(tensors, expert))

    def choose(self, rows: Sequence[Row], pictures: Pictures) -> list[int]:
        """Return the expert whose keys are nearest to each row's pictures and question; its answer is not looked at."""
        put(self.model, nn.Identity())
        examples = self.eyes.opened(
            prepare(rows, self.renderer, pictures.read, max_tokens=context_of(self.model))
        )
        seen_NMH = torch.stack([self.eyes.embedding(example)[:ASKED] for example in examples])
        return nearest(seen_NMH, self.keys_EMH).tolist()

    def select(self, chosen: int) -> None:
        """Put an expert in the projector's place."""
        put(self.model, self.experts[chosen])


def put(model: PreTrainedModel, projector: nn.Module) -> None:
    """Put a module in the projector's place."""
    model.base_model.multi_modal_projector = projector


def state_of(tensors: Mapping[str, Tensor], expert: int) -> dict[str, Tensor]:
    """Return an expert's weights; none if there is no such expert yet."""
    prefix = f"expert.{expert}."
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def expert_for(sums_PMH: Tensor, groups: Sequence[int], threshold: float) -> int:
    """Return the expert of the last task: that of the most similar earlier one, or the next number for a new one.

    Similarity is the product of the cosines of pictures, questions and answers. `groups` are the experts of the earlier
    tasks, P - 1 of them.
    """
    if not groups:
        return 0
    unit_PMH = normalize(sums_PMH.double(), dim=-1)
    alike = (unit_PMH[:-1] * unit_PMH[-1]).sum(-1).clamp(0, 1).prod(-1).tolist()
    best = max(range(len(alike)), key=alike.__getitem__)
    return groups[best] if alike[best] >= threshold else max(groups) + 1


def keys(sums_PMH: Tensor, groups: Sequence[int]) -> Tensor:
    """Return what each expert answers best: argmax_k Σ cos(x, k) over its rows x, of pictures and of questions.

    Of length 1: [E, 2, H].
    """
    of_expert = [
        torch.stack([one for one, group in zip(sums_PMH, groups, strict=True) if group == expert]).sum(0)
        for expert in range(max(groups) + 1)
    ]
    return normalize(torch.stack(of_expert)[:, :ASKED], dim=-1)


def nearest(seen_NMH: Tensor, keys_EMH: Tensor) -> Tensor:
    """Return argmax_e [cos(picture, key) + cos(question, key)], both of length 1, for each row: [N]."""
    return torch.einsum("nmh,emh->ne", seen_NMH, keys_EMH).argmax(1)

"""Prompt tuning and prefix tuning by PEFT, plain or with the gradient projection of PEGP (arXiv 2405.13383).

Everything is frozen but a few virtual tokens: in prompt tuning their embeddings, which stand before a row's own; in
prefix tuning their keys and values in every layer, to which all tokens of a row attend. They are learned task after
task, which by itself protects nothing: `prompt` and `prefix` are their own baselines. With `pegp` old inputs span a
subspace, and the tokens move orthogonally to it:

    prompt   ∇p   ← ∇p (I - F Fᵀ),    F spans old embeddings x, of words and pictures, and the prompts p before them
    prefix   ∇P_k ← ∇P_k (I - F Fᵀ),  F spans the old queries q of a layer's head, so that q · P_k stays what it was

For prefixes the promise is exact: old queries give old weights to the prefix. Its values P_v are not held, as in the
authors' program, and move what those weights add up. For prompts the paper's condition x · Δp = 0 leaves out the
weights W_qᵀ W_k between x and p, and the values: it keeps a product of embeddings, and no output, unchanged.

The authors' program decomposes a matrix over *samples*; this basis is one of features, of all vectors as they are
(`learner/policies/subspace.py`). As in policy `pegp`, shares of energy are of Σ |x|², and the way since the start of a
round is projected as well as the gradient, because Adam's step does not lie along it.

Shape suffixes: V virtual tokens, L layers, G key-value heads, D width of a head, H width of the language model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from benchmarks.continual.answers import Answerer, device
from benchmarks.continual.teacher import Facts, Learned, Lesson, Taught, Teacher
from benchmarks.continual.tuning import check_llava, keep, kept, opened, size, tune
from learner.features import ImageEncoder
from learner.memory import spread
from learner.model import language_model, load_base, to_bfloat16, trainable
from learner.policies.policy import Policy, Task
from learner.policies.subspace import InputMoments, empty_basis, grow, project_out
from learner.settings import LearnerSettings
from storage.records import Row
from storage.settings import MEBIBYTE

WEIGHT = "weight"
"""Name of the tensor that is trained; the others of a round are bases."""


class PromptSettings(BaseModel):
    """Settings of `prompt` and `prefix`."""

    model_config = ConfigDict(frozen=True)

    tokens: int = Field(default=16, ge=1)
    """Virtual tokens."""
    pegp: float | None = Field(default=None, gt=0, lt=1)
    """Share of the energy of a task's inputs whose directions later tasks keep clear of; None projects nothing."""


class Projection(Policy, ABC):
    """PEGP for one tensor of virtual tokens; a first round, which has nothing to protect, only remembers its inputs."""

    def __init__(self, settings: LearnerSettings, energy: float) -> None:
        super().__init__(settings)
        self.energy = energy

    def start(self, task: Task) -> None:
        """Take up the bases that earlier rounds left."""
        super().start(task)
        (self.weight,) = task.weights
        self.begin = self.weight.detach().clone()
        self.bases = {name: basis.to(task.device) for name, basis in task.inherited.items()}

    @torch.no_grad()
    def after_backward(self) -> None:
        """Project the gradient."""
        if self.weight.grad is not None:
            self.weight.grad.copy_(self.away(self.weight.grad))

    @torch.no_grad()
    def after_step(self) -> dict[str, Any]:
        """Project the way that the tokens have gone since the round began."""
        if self.bases:  # without any, the sum would still round
            self.weight.copy_(self.begin + self.away(self.weight - self.begin))
        return {}

    @torch.no_grad()
    def finish(self) -> dict[str, Tensor]:
        """Return the bases, grown by what this task puts in."""
        moments = InputMoments()
        with self.watching(moments):
            # One row at a time, so that no padding is among the inputs.
            for batch in self.task.batches(spread(self.task.examples, self.settings.pegp_rows), 1):
                self.task.logits(batch)
        for name, moment in moments.moment.items():
            basis = self.bases.get(name, empty_basis(len(moment), moment.device))
            self.bases[name] = grow(basis, moment, self.energy)
        return dict(self.bases)

    def away(self, weight: Tensor) -> Tensor:
        """Return a tensor of the weight's shape without what lies along the bases."""
        projected = weight.clone()
        for name, basis in self.bases.items():
            part = self.part(projected, name)
            part.copy_(project_out(part, basis))
        return projected

    @abstractmethod
    def part(self, weight: Tensor, name: str) -> Tensor:
        """Return the view of the weight, [V, d], that a basis [d, k] is for."""

    @abstractmethod
    def watching(self, moments: InputMoments) -> AbstractContextManager[None]:
        """Return a context in which the moments of all inputs are added up under the names of their bases."""


class PromptProjection(Projection):
    """One basis, of the width of the language model."""

    def part(self, weight: Tensor, name: str) -> Tensor:
        """Return the prompt itself: [V, H]."""
        return weight

    @contextmanager
    def watching(self, moments: InputMoments) -> Iterator[None]:
        """See everything that goes into the language model: prompt, words and pictures."""
        _, language = language_model(self.task.model.get_base_model())

        def look(_module: nn.Module, _arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            moments.see("inputs", named["inputs_embeds"])

        with language.register_forward_pre_hook(look, with_kwargs=True):
            yield


class PrefixProjection(Projection):
    """A basis for each layer and key-value head, named `layer.head`."""

    def start(self, task: Task) -> None:
        """Read off the model how PEFT orders keys and values."""
        super().start(task)
        self.shape = prefix_shape(task.model)

    def part(self, weight: Tensor, name: str) -> Tensor:
        """Return the keys of one head in one layer: [V, D]."""
        layer, head = map(int, name.split("."))
        return weight.view(-1, *self.shape)[:, layer, 0, head]

    @contextmanager
    def watching(self, moments: InputMoments) -> Iterator[None]:
        """See the queries of all heads, with their positions in them, by the key-value head that they ask."""
        _, _, heads, width = self.shape
        language: Any = language_model(self.task.model.get_base_model())[1]
        inside = set(language.modules())

        def attention(
            module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **more: Any
        ) -> tuple[Tensor, None]:
            if module in inside:  # the vision tower attends by the same function
                for head, asking in enumerate(query[0].reshape(heads, 1, -1, width)):
                    moments.see(f"{module.layer_idx}.{head}", asking)
            answered: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, mask, **more)
            return answered

        language.set_attn_implementation("sdpa")
        # Under a name that transformers knows: for any other it would make no mask.
        ALL_ATTENTION_FUNCTIONS["sdpa"] = attention
        try:
            yield
        finally:
            del ALL_ATTENTION_FUNCTIONS["sdpa"]  # its own comes to light again


class TokenTeacher(Teacher):
    """What prompts and prefixes have in common."""

    name: str
    projection: type[Projection]

    def __init__(self, learner: LearnerSettings, own: PromptSettings) -> None:
        self.learner = learner
        self.own = own

    @property
    def settings(self) -> dict[str, Any]:
        """The learner's and its own."""
        return self.learner.model_dump(mode="json") | self.own.model_dump() | {"policy": self.name}

    def check(self, base: Path) -> None:
        """Raise UnsuitableModel where a picture's place in a row could not be told behind virtual tokens."""
        check_llava(base)

    @abstractmethod
    def attach(self, model: PreTrainedModel) -> PeftModel:
        """Put virtual tokens before the model, which are those of random words and train in fp32."""

    def teach(self, lesson: Lesson) -> Taught:
        """Train the virtual tokens further."""
        base, examples, pad_id = opened(lesson, self.learner)
        encoder = ImageEncoder(base, self.learner.image_features_max_mib * MEBIBYTE)
        before = kept(lesson.learned)
        model = self.attach(base).eval()
        names, weights = trainable(model)
        put(weights[0], before)
        task = Task(
            model=model,
            names=names,
            weights=weights,
            examples=encoder.without_pixels(examples),
            inherited={name: tensor for name, tensor in before.items() if name != WEIGHT},
            first=not before,
            settings=self.learner,
            pad_id=pad_id,
        )
        policy = self.policy()
        policy.start(task)
        steps = tune(model, weights, policy, task.examples, pad_id)
        tensors = policy.finish() | {WEIGHT: weights[0].detach()}

        def leave() -> Learned:
            groups = (*lesson.learned.groups, 0)
            return Learned(adapters=(keep(tensors, lesson.place),), groups=groups)

        return Taught(facts=Facts(steps=steps, rehearsed=0, state_bytes=size(tensors), served=0), leave=leave)

    def policy(self) -> Policy:
        """Return what a round does against forgetting."""
        if self.own.pegp is None:
            return Policy(self.learner)
        return self.projection(self.learner, self.own.pegp)

    def answerer(self, base: Path, learned: Learned, batch_size: int) -> Answerer:
        """Load the virtual tokens."""
        model, processor = load_base(base, device())
        attached = self.attach(model)
        put(trainable(attached)[1][0], kept(learned))
        to_bfloat16(attached)
        return TokenAnswerer(attached, processor, batch_size)


class PromptTeacher(TokenTeacher):
    """Method `prompt` (Lester et al., arXiv 2104.08691)."""

    name = "prompt"
    projection = PromptProjection

    def attach(self, model: PreTrainedModel) -> PeftModel:
        """Begin with the embeddings of random words."""
        config = PromptTuningConfig(
            num_virtual_tokens=self.own.tokens, prompt_tuning_init="RANDOM", task_type="CAUSAL_LM"
        )
        embeddings_VH = model.get_input_embeddings()(random_words(model, self.own.tokens))
        attached = get_peft_model(model, config)
        put(trainable(attached)[1][0], {WEIGHT: embeddings_VH})

        # PEFT puts the prompt before the row, and does not move the positions at which logits are wanted.
        def behind(
            _module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            return arguments, named | {"logits_to_keep": named["logits_to_keep"] + self.own.tokens}

        attached.register_forward_pre_hook(behind, with_kwargs=True)
        return attached


class PrefixTeacher(TokenTeacher):
    """Method `prefix` (Li and Liang, arXiv 2101.00190), without their reparametrization."""

    name = "prefix"
    projection = PrefixProjection

    @torch.no_grad()
    def attach(self, model: PreTrainedModel) -> PeftModel:
        """Begin with the keys and values of random words, as the authors advise; PEFT's are noise in every layer."""
        config = PrefixTuningConfig(num_virtual_tokens=self.own.tokens, task_type="CAUSAL_LM")
        cache = model(input_ids=random_words(model, self.own.tokens)[None], use_cache=True).past_key_values
        layers = [torch.stack([layer.keys[0], layer.values[0]]) for layer in cache.layers]
        attached = get_peft_model(model, config)
        put(trainable(attached)[1][0], {WEIGHT: torch.stack(layers).permute(3, 0, 1, 2, 4).flatten(1)})
        return attached


class TokenAnswerer(Answerer):
    """A model with virtual tokens before each row."""

    def kind(self, row: Row) -> Hashable:
        """Return also how many tokens there are: PEFT would leave padding between a prompt and a shorter row."""
        text = self.renderer.prompt(row.messages[:-1], answer_follows=True)
        return len(row.images), len(self._tokens(text))


def random_words(model: PreTrainedModel, count: int) -> Tensor:
    """Return random tokens [V], none of them the place of a picture."""
    vocabulary = model.get_input_embeddings().num_embeddings
    tokens = torch.randperm(vocabulary)
    return tokens[tokens != model.config.image_token_id][:count].to(model.device)


def prefix_shape(model: PeftModel) -> tuple[int, int, int, int]:
    """Return how PEFT folds a row of a prefix: layers, key or value, key-value heads, width of a head."""
    config = model.active_peft_config
    heads = config.num_attention_heads
    return config.num_layers, 2, heads, config.token_dim // heads


@torch.no_grad()
def put(weight: nn.Parameter, tensors: dict[str, Tensor]) -> None:
    """Copy what was kept of the virtual tokens into them, if anything was."""
    if tensors:
        weight.copy_(tensors[WEIGHT])

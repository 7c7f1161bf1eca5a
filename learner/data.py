"""Turns rows of datasets into batches of tensors, through the model's own processor and chat template.

Loss is taken on the assistant's turns alone, up to and including the token that ends them. Where a turn lies is found
by rendering the conversation up to it and checking that this is a true prefix of the tokens of the whole; a template
for which that does not hold is refused, never guessed at. It does not know the model, only its processor.

Shape suffixes: B rows of a batch, T tokens of its longest row.
"""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jinja2 import TemplateError
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.nn.functional import pad
from transformers import ProcessorMixin
from transformers.modeling_outputs import BaseModelOutputWithPooling

from serving.messages import escape_control_tokens
from storage.errors import RowsTooLong, UnusableRow
from storage.records import Conversation, Row

IGNORED = -100
"""Label of a token without loss, as everywhere in torch."""
BUCKET_STEPS = 16
"""Rows are sorted by length within windows of this many steps: little padding, and still a random order."""

ReadImage = Callable[[str], bytes]
Step = list[list[int]]
"""The batches of one optimizer step, each a list of indices of examples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFeatures:
    """What a model's vision tower and projector say about the images of a row."""

    tensors: tuple[Tensor, ...]
    listed: bool
    """Whether the model takes a list with a tensor for each image, or one tensor, joined along its first dimension."""

    @property
    def nbytes(self) -> int:
        """Memory of the tensors."""
        return sum(tensor.nbytes for tensor in self.tensors)


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One row ready for the model."""

    inputs: dict[str, Tensor]
    """What the processor made of it; per-token tensors are [1, T]."""
    labels: Tensor
    """The token where loss is taken on predicting it, IGNORED elsewhere: [T]."""
    images: Callable[[], ImageFeatures] | None = None
    """Returns the features of its images, in place of their pixels, which are then not among the inputs."""

    @property
    def length(self) -> int:
        """Tokens, those of images included."""
        return len(self.labels)

    @property
    def answer_tokens(self) -> int:
        """Tokens on which loss is taken; the first of a row is never predicted."""
        return int((self.labels[1:] != IGNORED).sum())


class Renderer:
    """Renders conversations of one model; `ends` are the tokens that end a turn of its assistant."""

    def __init__(self, processor: ProcessorMixin, ends: frozenset[int]) -> None:
        self.processor = processor
        self.ends = ends

    def example(self, row: Row, images: Sequence[Image.Image]) -> Example:
        """Turn a row into tokens and labels; raise UnusableRow if the place of an answer cannot be told."""
        inputs = self._inputs(row, len(row.messages), images)
        ids = inputs["input_ids"][0]
        labels = torch.full_like(ids, IGNORED)
        for turn, message in enumerate(row.messages):
            if message["role"] == "assistant":
                start = self._prefix(row, turn, images, ids, prompt=True)
                end = self._prefix(row, turn + 1, images, ids, prompt=False)
                labels[start:end] = ids[start:end]
        answered = labels[labels != IGNORED]
        if not len(answered):
            raise UnusableRow(row.dataset_id, row.position, "no turn of the assistant has a text to learn")
        if int(answered[-1]) not in self.ends:
            inputs, labels = self._with_end(inputs, labels)
        return Example(inputs=inputs, labels=labels)

    def prompt(self, messages: Conversation, *, answer_follows: bool) -> str:
        """Render messages to text, with the opening of an assistant's turn if its answer is to follow."""
        text: str = self.processor.apply_chat_template(
            for_template(messages), tokenize=False, add_generation_prompt=answer_follows
        )
        return text

    def _prefix(
        self, row: Row, turns: int, images: Sequence[Image.Image], ids: Tensor, *, prompt: bool
    ) -> int:
        """Return how many tokens the first turns have; raise UnusableRow unless the whole row begins with them."""
        if turns == len(row.messages):
            return self._trimmed(ids)
        found = self._inputs(row, turns, images, prompt=prompt)["input_ids"][0]
        # Blanks after a turn may merge with what follows (LLaVA-1.5's template); they are no part of an answer.
        length = len(found) if prompt else self._trimmed(found)
        if not torch.equal(found[:length], ids[:length]):
            reason = "the chat template or tokenizer renders the turns before this place differently when more follow"
            raise UnusableRow(row.dataset_id, row.position, reason, turn=turns if prompt else turns - 1)
        return length

    def _inputs(
        self, row: Row, turns: int, images: Sequence[Image.Image], *, prompt: bool = False
    ) -> dict[str, Tensor]:
        messages = row.messages[:turns]
        shown = images[: sum(part["type"] == "image" for turn in messages for part in turn["content"])]
        try:
            text = self.prompt(messages, answer_follows=prompt)
            # Special tokens come from the template alone, as vLLM does it for chat.
            made = self.processor(
                text=[text],
                images=[list(shown)] if shown else None,
                return_tensors="pt",
                add_special_tokens=False,
            )
        except (TemplateError, ValueError) as error:
            reason = f"the model's processor refuses it ({error})"
            raise UnusableRow(row.dataset_id, row.position, reason) from error
        return {name: value for name, value in made.items() if isinstance(value, Tensor)}

    def _trimmed(self, ids: Tensor) -> int:
        """Return how many tokens there are without blanks at the end."""
        end = len(ids)
        while not self.processor.tokenizer.decode(ids[end - 1 : end]).strip():
            end -= 1
        return end

    def _with_end(self, inputs: dict[str, Tensor], labels: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Let the last answer end with the end-of-turn token that the template (LLaVA-1.5's, for one) leaves out."""
        length = int((labels != IGNORED).nonzero()[-1]) + 1
        end = self.processor.tokenizer.eos_token_id
        added = {"input_ids": end, "attention_mask": 1}
        inputs = {
            name: pad(value[:, :length], (0, 1), value=added.get(name, 0))
            if value.shape == (1, len(labels))
            else value
            for name, value in inputs.items()
        }
        return inputs, pad(labels[:length], (0, 1), value=end)


def prepare(rows: Sequence[Row], renderer: Renderer, read_image: ReadImage, max_tokens: int) -> list[Example]:
    """Turn all rows of a round into examples, once.

    Raises UnusableRow for the first row that cannot be used, RowsTooLong if any has more than `max_tokens`.
    """
    examples = [
        renderer.example(row, [_open(row, sha256, read_image) for sha256 in row.images]) for row in rows
    ]
    too_long = [index for index, example in enumerate(examples) if example.length > max_tokens]
    if too_long:
        worst = max(too_long, key=lambda index: examples[index].length)
        row, tokens = rows[worst], examples[worst].length
        raise RowsTooLong(len(too_long), len(rows), row.dataset_id, row.position, tokens, max_tokens)
    return examples


def for_template(messages: Conversation) -> list[dict[str, object]]:
    """Return messages as chat templates read them, with control tokens in texts made harmless as in chat."""
    return [
        {
            "role": message["role"],
            "content": [
                {"type": "text", "text": escape_control_tokens(part["text"])}
                if part["type"] == "text"
                else {"type": "image"}
                for part in message["content"]
            ],
        }
        for message in messages
    ]


def _open(row: Row, sha256: str, read_image: ReadImage) -> Image.Image:
    try:
        return Image.open(io.BytesIO(read_image(sha256))).convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise UnusableRow(
            row.dataset_id, row.position, f"the image {sha256[:12]} cannot be read ({error})"
        ) from error


def steps_of(
    lengths: Sequence[int], *, epochs: int, batch_size: int, accumulation: int, seed: int
) -> list[Step]:
    """Return which examples each optimizer step sees: every one once per epoch, neighbours in length together.

    The order follows from the arguments alone, so the position in the data is the number of the step.
    """
    steps = []
    for epoch in range(epochs):
        # A generator of its own for each epoch, so that more epochs do not change the first ones.
        steps += _epoch(lengths, batch_size, batch_size * accumulation, random.Random(f"{seed}/{epoch}"))
    return steps


def _epoch(lengths: Sequence[int], batch_size: int, per_step: int, order: random.Random) -> list[Step]:
    indices = list(range(len(lengths)))
    order.shuffle(indices)
    steps = []
    for window in _cut(indices, per_step * BUCKET_STEPS):
        alike = sorted(window, key=lambda index: lengths[index])
        steps += [_cut(chosen, batch_size) for chosen in _cut(alike, per_step)]
    order.shuffle(steps)
    return steps


def _cut(indices: list[int], size: int) -> list[list[int]]:
    return [indices[start : start + size] for start in range(0, len(indices), size)]


def collate(examples: Sequence[Example], pad_id: int) -> tuple[dict[str, Any], Tensor]:
    """Join examples to model inputs and labels [B, T], padded on the right.

    The inputs are tensors but for features of images, which models take as the output of their own tower.

    Tensors of images are joined along their first dimension, which is how LLaVA and Qwen-VL count images; where rows
    differ in the others (SmolVLM counts images in the second), they are filled with zeros, which it reads as no image.
    """
    width = max(example.length for example in examples)
    inputs: dict[str, Any] = {}
    for name in dict.fromkeys(name for example in examples for name in example.inputs):
        tensors = [_widened(example, name, width, pad_id) for example in examples if name in example.inputs]
        inputs[name] = _joined(tensors)
    shown = [example.images() for example in examples if example.images is not None]
    if shown:
        inputs["mm_encoder_outputs"] = {"image": encoder_output(shown)}
    labels_BT = torch.stack([pad(e.labels, (0, width - e.length), value=IGNORED) for e in examples])
    return inputs, labels_BT


def encoder_output(shown: Sequence[ImageFeatures]) -> BaseModelOutputWithPooling:
    """Return the features of several rows as the model's own vision tower would have returned them for the batch."""
    tensors = [tensor for features in shown for tensor in features.tensors]
    return BaseModelOutputWithPooling(pooler_output=tensors if shown[0].listed else torch.cat(tensors))


def _widened(example: Example, name: str, width: int, pad_id: int) -> Tensor:
    tensor = example.inputs[name]
    if tensor.shape != (1, example.length):
        return tensor
    return pad(tensor, (0, width - example.length), value=pad_id if name == "input_ids" else 0)


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    sizes = [max(sizes) for sizes in zip(*(tensor.shape[1:] for tensor in tensors), strict=True)]
    filled = []
    for tensor in tensors:
        missing = [wanted - found for wanted, found in zip(sizes, tensor.shape[1:], strict=True)]
        filled.append(pad(tensor, [amount for size in reversed(missing) for amount in (0, size)]))
    return torch.cat(filled)

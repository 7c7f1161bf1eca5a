"""Rows become tokens with loss on the answers alone, for three families with three ways to count images."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from learner.data import IGNORED, Example, Renderer, collate, prepare, steps_of
from learner.model import load_base
from learner.train import ends_of_turn
from storage.errors import RowsTooLong, UnusableRow
from tests.learner import tiny

ENDS = {"llava": "</s>", "qwen2_vl": "<|im_end|>", "smolvlm": "<end_of_utterance>"}
CPU = torch.device("cpu")


def renderer_of(base: Path) -> Renderer:
    """Return the renderer that training would use."""
    model, processor = load_base(base, CPU)
    return Renderer(processor, ends_of_turn(model, processor))


def answers(renderer: Renderer, example: Example) -> list[str]:
    """Return the stretches of text that carry loss."""
    ids = example.inputs["input_ids"][0]
    assert torch.equal(ids[example.labels != IGNORED], example.labels[example.labels != IGNORED])
    runs: list[list[int]] = [[]]
    for token, label in zip(ids.tolist(), example.labels.tolist(), strict=True):
        if label == IGNORED and runs[-1]:
            runs.append([])
        elif label != IGNORED:
            runs[-1].append(token)
    return [renderer.processor.tokenizer.decode(run) for run in runs if run]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_loss_is_on_the_answers_and_their_ends(
    family: tiny.Family, bases: dict[str, Path], pictures: tiny.Pictures
) -> None:
    """With one turn, several turns, several images, a system turn or text alone, only answers and their ends count."""
    renderer, end = renderer_of(bases[family]), ENDS[family]
    found = [
        answers(renderer, e)
        for e in prepare(tiny.mixed_rows(pictures), renderer, pictures.read, tiny.CONTEXT)
    ]
    stripped = [[text.strip() for text in texts] for texts in found]
    # LLaVA-1.5's template ends no turn; the last one gets its end here, and those before keep what the template gives.
    middle = "" if family == "llava" else end
    assert stripped == [
        ["one" + end],
        ["the middle one, with three" + end],
        ["two" + middle, "three shapes" + end],
        ["four" + end],
        ["three" + end],
    ]


def test_control_tokens_in_texts_stay_text(bases: dict[str, Path], pictures: tiny.Pictures) -> None:
    """A text that spells an image or end-of-turn token is not read as one, as in chat."""
    renderer = renderer_of(bases["qwen2_vl"])
    row = tiny.row(0, [tiny.turn("user", "what is <|im_end|>?"), tiny.turn("assistant", "<|image_pad|>")])
    [example] = prepare([row], renderer, pictures.read, tiny.CONTEXT)
    pad = renderer.processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    assert pad not in example.inputs["input_ids"]


def test_template_that_rewrites_earlier_turns_is_refused(
    bases: dict[str, Path], pictures: tiny.Pictures
) -> None:
    """If the prompt is no prefix of the whole, the error names dataset, row and turn."""
    renderer = renderer_of(bases["qwen2_vl"])
    renderer.processor.chat_template = "{{ messages | length }}" + tiny.CHATML_TEMPLATE
    row = tiny.row(3, [tiny.turn("user", "say a number"), tiny.turn("assistant", "one")])
    with pytest.raises(UnusableRow, match="Dataset 7, row 3, turn 1"):
        prepare([row], renderer, pictures.read, tiny.CONTEXT)


def test_template_that_refuses_a_role_is_reported(bases: dict[str, Path], pictures: tiny.Pictures) -> None:
    """An exception that the template raises on purpose comes with the row that caused it."""
    renderer = renderer_of(bases["qwen2_vl"])
    refusal = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"
    renderer.processor.chat_template = refusal + tiny.CHATML_TEMPLATE
    with pytest.raises(UnusableRow, match=r"row 4: .*no system turns"):
        prepare(tiny.mixed_rows(pictures), renderer, pictures.read, tiny.CONTEXT)


def test_broken_image_is_reported(bases: dict[str, Path], pictures: tiny.Pictures) -> None:
    """An image that cannot be decoded comes with the row that shows it."""
    renderer = renderer_of(bases["llava"])
    with pytest.raises(UnusableRow, match=r"row 0: the image .* cannot be read"):
        prepare(tiny.mixed_rows(pictures), renderer, lambda _: b"no image", tiny.CONTEXT)


def test_row_without_answer_is_reported(bases: dict[str, Path], pictures: tiny.Pictures) -> None:
    """A row in which the assistant says nothing cannot be learned from."""
    row = tiny.row(5, [tiny.turn("user", "say a number")])
    with pytest.raises(UnusableRow, match="row 5: no turn of the assistant"):
        prepare([row], renderer_of(bases["qwen2_vl"]), pictures.read, tiny.CONTEXT)


def test_long_rows_are_counted_and_never_cut(bases: dict[str, Path], pictures: tiny.Pictures) -> None:
    """Rows beyond the limit end the round with their number, the longest one, and what to do."""
    renderer, rows = renderer_of(bases["qwen2_vl"]), tiny.mixed_rows(pictures)
    lengths = [example.length for example in prepare(rows, renderer, pictures.read, tiny.CONTEXT)]
    limit = sorted(lengths)[2]
    longest = lengths.index(max(lengths))
    with pytest.raises(
        RowsTooLong, match=rf"2 of 5 rows .* {limit} tokens; the longest, row {longest} .* {max(lengths)}"
    ):
        prepare(rows, renderer, pictures.read, limit)


def test_batches_keep_every_token_and_pad_without_loss(base: Path, pictures: tiny.Pictures) -> None:
    """Rows of different lengths and numbers of images join to one batch; padding carries no attention and no loss."""
    renderer = renderer_of(base)
    examples = prepare(tiny.mixed_rows(pictures), renderer, pictures.read, tiny.CONTEXT)
    inputs, labels = collate(examples, pad_id=0)
    for index, example in enumerate(examples):
        assert torch.equal(inputs["input_ids"][index, : example.length], example.inputs["input_ids"][0])
        assert inputs["attention_mask"][index].sum() == example.length
        assert torch.equal(labels[index, : example.length], example.labels)
        assert (labels[index, example.length :] == IGNORED).all()


def test_order_sees_every_row_once_per_epoch_and_is_fixed_by_the_seed() -> None:
    """The order is the same for the same seed, another for another, and leaves nothing out."""
    lengths = [10 + index % 7 for index in range(53)]
    make = {"epochs": 2, "batch_size": 4, "accumulation": 2}
    steps = steps_of(lengths, **make, seed=1)
    assert steps == steps_of(lengths, **make, seed=1)
    assert steps != steps_of(lengths, **make, seed=2)
    assert steps[: len(steps) // 2] == steps_of(lengths, **make | {"epochs": 1}, seed=1)
    seen = [index for step in steps[: len(steps) // 2] for batch in step for index in batch]
    assert sorted(seen) == list(range(53))
    assert max(len(batch) for step in steps for batch in step) == 4
    assert max(len(step) for step in steps) == 2


def test_neighbours_in_a_batch_are_alike_in_length() -> None:
    """Bucketing leaves far less padding than a random order would."""
    lengths = [(index * 37) % 100 for index in range(64)]
    steps = steps_of(lengths, epochs=1, batch_size=4, accumulation=1, seed=0)
    padding = sum(max(lengths[i] for i in b) - lengths[j] for step in steps for b in step for j in b)
    assert padding < 64 * 3

"""Rows of stage 2 are what the shipped model is asked later, token for token."""

from __future__ import annotations

import random
from typing import Any

import torch

from recipes.smol_llava.chats import prompts
from recipes.smol_llava.drawing import Artist
from recipes.smol_llava.questions import Examiner
from recipes.smol_llava.rows import IGNORED, Writer, batched, collate, conversation


def rendered(processor: Any, chat: list[Any]) -> list[int]:
    """Return the tokens that the chat template makes of a conversation, one image token a picture."""
    text = processor.apply_chat_template(chat, tokenize=False)
    ids: list[int] = processor.tokenizer(text, add_special_tokens=False).input_ids
    return ids


def test_a_conversation_about_a_picture_is_rendered_as_by_the_template(
    processor: Any, writer: Writer, artist: Artist, rng: random.Random
) -> None:
    """Two turns about a picture are, but for the number of image tokens, the template's own."""
    turns = [("How many shapes are there?", "3"), ("What does the text say?", "cat 12")]
    row = writer.about([artist.draw(rng, "shapes")], turns)
    chat = [
        message
        for index, (question, answer) in enumerate(turns)
        for message in (
            {
                "role": "user",
                "content": [*[{"type": "image"}] * (index == 0), {"type": "text", "text": question}],
            },
            {"role": "assistant", "content": [{"type": "text", "text": answer}]},
        )
    ]
    image = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
    first = row.ids.index(image)
    assert row.ids[first : first + 4] == [image] * 4
    assert row.ids[:first] + row.ids[first + 3 :] == rendered(processor, chat)


def test_a_conversation_without_is_rendered_as_by_the_template(processor: Any, writer: Writer) -> None:
    """A question without a picture comes after the system prompt that SmolLM2 knows."""
    chat = [
        {"role": "user", "content": [{"type": "text", "text": "Hello!"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "Hi."}]},
    ]
    assert writer.without("Hello!", "Hi.").ids == rendered(processor, chat)


def test_loss_is_on_answers_and_what_ends_them(
    processor: Any, writer: Writer, artist: Artist, rng: random.Random
) -> None:
    """The labelled tokens of a row are its answers, each with the token that ends a turn."""
    row = writer.about([artist.draw(rng, "text")], [("What is it?", "A cat"), ("Sure?", "Yes")])
    labelled = [token for token in row.labels if token != IGNORED]
    assert processor.tokenizer.decode(labelled) == "A cat<|im_end|>Yes<|im_end|>"
    assert all(label in {IGNORED, token} for label, token in zip(row.labels, row.ids, strict=True))


def test_what_is_read_is_answered_letter_by_letter(
    processor: Any, writer: Writer, artist: Artist, rng: random.Random
) -> None:
    """The answer that is the written text has a token for each letter; any other answer is tokenised as usual."""
    scene = artist.draw(rng, "text")
    row = writer.about([scene], [("Read it.", scene.text), ("Are there shapes?", "I see no shapes.")])
    labelled = [token for token in row.labels if token != IGNORED]
    assert [processor.tokenizer.decode(token) for token in labelled[: len(scene.text)]] == list(scene.text)
    usual = processor.tokenizer("I see no shapes.<|im_end|>", add_special_tokens=False).input_ids
    assert labelled[-len(usual) :] == usual


def test_batches_hold_every_row_and_stay_below_their_size(
    writer: Writer, artist: Artist, rng: random.Random
) -> None:
    """Rows are cut into batches of at most so many padded tokens, none lost, with a picture for each image in them."""
    drawn = [conversation(rng, artist, Examiner(), writer) for _ in range(40)]
    batches = list(batched(sorted(drawn, key=lambda row: len(row.ids)), 400))
    assert sum(len(batch) for batch in batches) == 40
    image = writer.image[0]
    for batch in batches:
        assert len(batch) == 1 or len(batch) * len(batch[-1].ids) <= 400
        joined = collate(batch)
        assert joined["ids"].shape == joined["labels"].shape == joined["mask"].shape
        assert int((joined["ids"] == image).sum()) == 4 * len(joined["pixels"])
        assert torch.equal(joined["mask"].sum(1), torch.tensor([len(row.ids) for row in batch]))


def test_prompts_for_testing_share_no_word_with_those_trained_on() -> None:
    """No question without a picture is in both sets."""
    assert not set(prompts(300, held_out=True)) & set(prompts(300, held_out=False))

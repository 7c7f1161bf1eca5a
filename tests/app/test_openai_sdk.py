"""The official `openai` SDK drives the server unmodified."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest

from storage.records import Role
from tests.app.places import Place, data_url, jsonl, png


@pytest.fixture(scope="module")
def sdk(here: Place) -> Iterator[openai.OpenAI]:
    """The SDK with an admin's API key."""
    with openai.OpenAI(base_url=f"{here.url}/v1", api_key=here.keys[Role.ADMIN], max_retries=0) as client:
        yield client


def test_chat(sdk: openai.OpenAI) -> None:
    """A plain question is answered, typed, with usage and our generation."""
    answer = sdk.chat.completions.create(
        model="assistant", messages=[{"role": "user", "content": "Hello"}], max_completion_tokens=5
    )
    assert answer.choices[0].message.content
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 5
    assert answer.model_extra == {"generation": "assistant@0"}


def test_a_conversation_goes_on(sdk: openai.OpenAI) -> None:
    """An answer's message object can be sent back as it came."""
    first = sdk.chat.completions.create(
        model="assistant", messages=[{"role": "user", "content": "Hi"}], max_tokens=3
    )
    again = sdk.chat.completions.create(
        model="assistant",
        messages=[
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hi"},
            first.choices[0].message.model_dump(),  # type: ignore[list-item]
            {"role": "user", "content": "And now?"},
        ],
        temperature=0,
        top_p=1,
        seed=1,
        stop=["!"],
        user="someone",
    )
    assert again.choices[0].message.content


def test_streamed_chat_with_a_picture(here: Place, sdk: openai.OpenAI) -> None:
    """A picture as a data URL reaches the model; the stream parses and ends with its usage."""
    stream = sdk.chat.completions.create(
        model="assistant",
        messages=[
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "What is this?"},
                    {"type": "image_url", "image_url": {"url": data_url(png()), "detail": "auto"}},
                ],
            }
        ],
        max_tokens=6,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert len(text.split()) == 6
    assert chunks[-1].usage is not None
    assert here.fake.requests[-1]["messages"][0]["content"][1]["type"] == "image_url"


def test_models(sdk: openai.OpenAI) -> None:
    """Models list and retrieve."""
    assert [model.id for model in sdk.models.list()] == ["assistant", "assistant@0"]
    assert sdk.models.retrieve("assistant@0").owned_by == "llaca"
    with pytest.raises(openai.NotFoundError):
        sdk.models.retrieve("gpt-4")


def test_files(sdk: openai.OpenAI) -> None:
    """A dataset uploads as a fine-tuning file, is listed and retrieved."""
    made = sdk.files.create(file=("task.jsonl", jsonl()), purpose="fine-tune")
    assert (made.object, made.purpose, made.status) == ("file", "fine-tune", "processed")
    assert made.id in [file.id for file in sdk.files.list()]
    assert sdk.files.retrieve(made.id) == made


def test_errors_arrive_as_the_sdks_own(here: Place, sdk: openai.OpenAI) -> None:
    """The SDK turns our errors into its classes, with our sentence, parameter and code."""
    with pytest.raises(openai.BadRequestError, match="never fetches") as refused:
        sdk.chat.completions.create(
            model="assistant",
            messages=[
                {
                    "role": "user",
                    "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1/x.png"}}],
                }
            ],
        )
    assert (refused.value.code, refused.value.param) == ("bad_field", "messages[0].content[0].image_url.url")
    stranger = openai.OpenAI(base_url=f"{here.url}/v1", api_key="llaca-wrong", max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        stranger.models.list()

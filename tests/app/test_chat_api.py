"""What POST /v1/chat/completions promises: OpenAI's shape, its generation, and a clear word about every bad field."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from storage.records import Role
from tests.app.places import Place, data_url, load, place, png, promote, until
from tests.fake_vllm import FakeVLLM

URL = "/v1/chat/completions"
GOOD: dict[str, Any] = {
    "model": "assistant",
    "messages": [{"role": "user", "content": "Hello"}],
    "max_tokens": 5,
}


def said(*content: Any, role: str = "user") -> dict[str, Any]:
    """Return a request whose only message has this content."""
    return {"messages": [{"role": role, "content": list(content)}]}


def picture(url: Any) -> dict[str, Any]:
    """Return an image part."""
    return {"type": "image_url", "image_url": {"url": url}}


BAD_FIELDS: list[tuple[dict[str, Any], str, str]] = [
    ({"model": 5}, "model", "string"),
    ({"messages": None}, "messages", "list"),
    ({"messages": []}, "messages", "at least 1"),
    ({"messages": "hi"}, "messages", "list"),
    ({"messages": ["hi"]}, "messages[0]", "object"),
    ({"messages": [{"role": "user"}]}, "messages[0].content", "required"),
    ({"messages": [{"content": "hi"}]}, "messages[0].role", "required"),
    (
        {"messages": [{"role": "tool", "content": "hi"}]},
        "messages[0].role",
        "'system', 'user' or 'assistant'",
    ),
    ({"messages": [{"role": "developer", "content": "hi"}]}, "messages[0].role", "'user'"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "string or a list of parts"),
    ({"messages": [{"role": "user", "content": ""}]}, "messages[0].content", "some text or a picture"),
    ({"messages": [{"role": "user", "content": "  \n"}]}, "messages[0].content", "some text or a picture"),
    ({"messages": [{"role": "user", "content": "hi", "name": "eve"}]}, "messages[0].name", "does not take"),
    (
        {"messages": [{"role": "assistant", "content": "hi"}]},
        "messages[0].role",
        "`user` in the last message",
    ),
    (
        {"messages": [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]},
        "messages[1].role",
        "first message",
    ),
    (
        {
            "messages": [
                {"role": "assistant", "content": "a", "tool_calls": [1]},
                {"role": "user", "content": "b"},
            ]
        },
        "messages[0].tool_calls",
        "None",
    ),
    (said({"type": "video_url", "video_url": {"url": "x"}}), "messages[0].content[0]", "image_url"),
    (said({"type": "text"}), "messages[0].content[0].text", "required"),
    (said({"type": "text", "text": 5}), "messages[0].content[0].text", "string"),
    (said({"type": "image_url"}), "messages[0].content[0].image_url", "required"),
    (said(picture("http://169.254.169.254/")), "messages[0].content[0].image_url.url", "never fetches"),
    (said(picture("https://example.org/a.png")), "messages[0].content[0].image_url.url", "never fetches"),
    (said(picture("file:///etc/passwd")), "messages[0].content[0].image_url.url", "never fetches"),
    (
        said(picture("data:video/jpeg;base64,AAAA")),
        "messages[0].content[0].image_url.url",
        "PNG, JPEG or WebP",
    ),
    (
        said(picture("data:image/svg+xml;base64,AAAA")),
        "messages[0].content[0].image_url.url",
        "PNG, JPEG or WebP",
    ),
    (said(picture("data:image/png;base64,%%%")), "messages[0].content[0].image_url.url", "base64"),
    (
        said({"type": "image_url", "image_url": {"url": data_url(png()), "detail": "huge"}}),
        "messages[0].content[0].image_url.detail",
        "'auto'",
    ),
    (said(*[picture(data_url(png()))] * 5), "messages", "at most 4 pictures"),
    (said(picture(data_url(png())), role="system"), "messages[0].content", "text only"),
    ({"max_tokens": 0}, "max_tokens", "1"),
    ({"max_tokens": 10**9}, "max_tokens", "1 to 1024"),
    ({"max_tokens": "10"}, "max_tokens", "integer"),
    ({"max_tokens": True}, "max_tokens", "integer"),
    ({"max_tokens": None, "max_completion_tokens": 10**9}, "max_completion_tokens", "1 to 1024"),
    ({"max_completion_tokens": 5}, "max_completion_tokens", "only one"),
    ({"temperature": -1}, "temperature", "greater than or equal to 0"),
    ({"temperature": 2.1}, "temperature", "less than or equal to 2"),
    ({"temperature": "hot"}, "temperature", "number"),
    ({"top_p": 0}, "top_p", "greater than 0"),
    ({"top_p": 1.5}, "top_p", "less than or equal to 1"),
    ({"seed": 0.5}, "seed", "integer"),
    ({"seed": 2**70}, "seed", "less than or equal"),
    ({"stop": ""}, "stop", "1 to 64 characters"),
    ({"stop": ["a"] * 5}, "stop", "at most 4"),
    ({"stop": 5}, "stop", "a text, or a list"),
    ({"n": 2}, "n", "1"),
    ({"n": 10_000}, "n", "1"),
    ({"stream": "yes"}, "stream", "boolean"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "null unless"),
    ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x", "does not take"),
    ({"logprobs": True}, "logprobs", "False"),
    ({"frequency_penalty": 0.5}, "frequency_penalty", "0"),
    ({"presence_penalty": -0.5}, "presence_penalty", "0"),
    ({"response_format": {"type": "json_object"}}, "response_format.type", "'text'"),
    ({"modalities": ["audio"]}, "modalities[0]", "'text'"),
    ({"store": True}, "store", "False"),
    ({"chat_template": "{{ x }}"}, "chat_template", "does not take"),
    ({"mm_processor_kwargs": {}}, "mm_processor_kwargs", "does not take"),
    ({"prompt_embeds": "x"}, "prompt_embeds", "does not take"),
    ({"tools": []}, "tools", "does not take"),
    ({"lora_path": "/etc"}, "lora_path", "does not take"),
    ({"logit_bias": {"1": 1}}, "logit_bias", "does not take"),
]


@pytest.mark.parametrize(("change", "field", "word"), BAD_FIELDS, ids=lambda value: str(value)[:40])
def test_a_bad_field_is_refused_by_name(here: Place, change: dict[str, Any], field: str, word: str) -> None:
    """Every value that cannot be used gets 400, naming the field and what is allowed, and vLLM hears nothing of it."""
    asked = len(here.fake.requests)
    with here.client(Role.CHAT) as client:
        answer = client.post(URL, json=GOOD | change)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["type"]) == (400, field, "invalid_request_error"), error
    assert word in error["message"]
    assert error["message"].startswith(field)
    assert len(here.fake.requests) == asked


@pytest.mark.parametrize("body", ["", "{", "[]", "5", '{"model": "assistant", "messages": NaN}'])
def test_a_body_that_is_no_request_is_refused(here: Place, body: str) -> None:
    """Anything that is not a JSON object of ours is 400 with a sentence, never a crash."""
    with here.client(Role.CHAT) as client:
        answer = client.post(URL, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "model",
    [
        "",
        "gpt-4",
        "../../x",
        "assistant@",
        "assistant@01",
        "assistant@99",
        "assistant@x",
        "assistant@\u00b2",
        f"assistant@{2**63}",
        "assistant@" + "9" * 5000,
    ],
    ids=lambda model: model[:40],
)
def test_an_unknown_model_never_reaches_vllm(here: Place, model: str) -> None:
    """A model that is neither the alias nor a generation kept loaded is 404, and vLLM hears nothing of it."""
    asked = len(here.fake.requests)
    with here.client(Role.CHAT) as client:
        answer = client.post(URL, json=GOOD | {"model": model})
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] in ("model_not_found", "unknown_generation")
    assert len(here.fake.requests) == asked


def test_too_much_text_is_413(here: Place) -> None:
    """Text beyond LLACA_TEXT_MAX_CHARS is refused as too large."""
    with here.client(Role.CHAT) as client:
        answer = client.post(URL, json=GOOD | said({"type": "text", "text": "x" * 100_001}))
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")


def test_a_picture_that_is_none_is_refused(here: Place) -> None:
    """Bytes that are no picture are refused with the intake's own word for it."""
    with here.client(Role.CHAT) as client:
        answer = client.post(URL, json=GOOD | said(picture(data_url(b"not a picture"))))
    assert answer.status_code == 400
    assert answer.json()["error"]["code"].startswith("image_")


def test_the_request_is_rebuilt(here: Place) -> None:
    """The server behind us gets known fields only: our model name, our copy of the picture, no control tokens."""
    marker = png() + b"appended"
    body = said({"type": "text", "text": "<|im_end|>"}, picture(data_url(marker))) | {
        "user": "eve",
        "metadata": {"a": "b"},
        "service_tier": "auto",
        "n": 1,
        "seed": 7,
        "stop": "!",
    }
    with here.client(Role.CHAT) as client:
        client.post(URL, json=GOOD | body).raise_for_status()
    sent = here.fake.requests[-1]
    assert set(sent) == {"model", "messages", "max_tokens", "n", "seed", "stop", "stream", "stream_options"}
    assert (sent["model"], sent["stop"], sent["seed"]) == ("assistant@0", ["!"], 7)
    text, image = sent["messages"][0]["content"]
    assert "<|im_end|>" not in text["text"]
    assert image["image_url"]["url"].startswith("data:image/png;base64,")
    assert image["image_url"]["url"] != data_url(marker)


def test_a_whole_reply_names_its_generation(here: Place) -> None:
    """Body and header of a reply say which generation wrote it, and how many tokens it took."""
    with here.client(Role.CHAT) as client:
        answer = client.post(URL, json=GOOD)
    body = answer.json()
    assert answer.status_code == 200
    assert body["generation"] == answer.headers["X-LLaCA-Generation"] == "assistant@0"
    assert body["choices"][0]["message"]["content"].count(" ") == 4
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["usage"] == {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}


def test_a_stream_says_the_same_as_a_whole_reply(here: Place) -> None:
    """Streamed pieces join to the whole reply; every chunk carries the generation and the last event is [DONE]."""
    with here.client(Role.CHAT) as client:
        whole = client.post(URL, json=GOOD).json()
        events = stream(client, GOOD | {"stream_options": {"include_usage": True}})
    chunks = [json.loads(event) for event in events[:-1]]
    assert events[-1] == "[DONE]"
    assert {chunk["generation"] for chunk in chunks} == {"assistant@0"}
    text = "".join(c["delta"].get("content", "") for chunk in chunks for c in chunk["choices"])
    assert text == whole["choices"][0]["message"]["content"]
    assert chunks[-1]["usage"]["completion_tokens"] == 5
    assert [c["finish_reason"] for chunk in chunks for c in chunk["choices"]] == [None] * 5 + ["length"]
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"


def stream(client: Any, body: dict[str, Any]) -> list[str]:
    """Return the data of every server-sent event of a streamed reply."""
    with client.stream("POST", URL, json=body | {"stream": True}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        return [line.removeprefix("data: ") for line in answer.iter_lines() if line]


@pytest.fixture
def fresh(tmp_path: Path) -> Any:
    """A place of its own, for tests that change what serves."""
    with place(tmp_path / "data", fake=FakeVLLM(token_seconds=0.01)) as running:
        yield running


def test_alias_and_exact_generations(fresh: Place, tmp_path: Path) -> None:
    """`assistant` is answered by the champion, `assistant@N` by exactly that generation, and /v1/models lists both."""
    name = promote(fresh.store, fresh.users[Role.ADMIN], fresh.fake, tmp_path)
    with fresh.client(Role.CHAT) as client:
        names = ("assistant", name, "assistant@0")
        answers = {model: client.post(URL, json=GOOD | {"model": model}).json() for model in names}
        listed = client.get("/v1/models").json()["data"]
    assert [answers[m]["generation"] for m in names] == [name, name, "assistant@0"]
    assert answers["assistant"]["choices"] == answers[name]["choices"] != answers["assistant@0"]["choices"]
    assert [model["id"] for model in listed] == ["assistant", name, "assistant@0"]
    assert listed[0]["root"] == name


def test_a_swap_in_the_middle_of_a_stream_changes_nothing_in_it(fresh: Place, tmp_path: Path) -> None:
    """A reply ends on the generation it began with; the next one comes from the new champion."""
    load(fresh.fake, "assistant@1", tmp_path / "early", 1)
    fresh.fake.adapters.clear()
    with fresh.client(Role.CHAT) as client:
        whole = client.post(URL, json=GOOD | {"max_tokens": 40}).json()["choices"][0]["message"]["content"]
        with client.stream("POST", URL, json=GOOD | {"max_tokens": 40, "stream": True}) as answer:
            lines = answer.iter_lines()
            first = next(lines)
            name = promote(fresh.store, fresh.users[Role.ADMIN], fresh.fake, tmp_path)
            events = [
                json.loads(x.removeprefix("data: ")) for x in [first, *lines] if x and "[DONE]" not in x
            ]
        after = client.post(URL, json=GOOD).json()
    assert {event["generation"] for event in events} == {"assistant@0"}
    assert "".join(e["choices"][0]["delta"].get("content", "") for e in events) == whole
    assert after["generation"] == name


def test_vllm_down_is_503_with_retry_after_and_without_its_address(fresh: Place) -> None:
    """When no server answers, the client is told so before anything was streamed, and learns nothing of the inside."""
    fresh.fake.stop()
    with fresh.client(Role.CHAT) as client:
        for streamed in (False, True):
            answer = client.post(URL, json=GOOD | {"stream": streamed})
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "serving_unavailable")
            assert int(answer.headers["Retry-After"]) > 0
            assert "127.0.0.1" not in answer.text


def test_vllm_dying_in_a_stream_is_said_in_the_stream(fresh: Place) -> None:
    """A reply that breaks off ends with an error event and no [DONE]; asked for whole, it is 502."""
    fresh.fake.break_after = 3
    with fresh.client(Role.CHAT) as client:
        events = stream(client, GOOD | {"max_tokens": 20})
        whole = client.post(URL, json=GOOD | {"max_tokens": 20})
    assert json.loads(events[-1])["error"]["code"] == "reply_interrupted"
    assert len(events) == 4
    assert (whole.status_code, whole.json()["error"]["code"]) == (502, "reply_interrupted")


def leave_stream(place_: Place) -> None:
    """Read one event of a stream and close the connection."""
    with (
        place_.client(Role.CHAT) as client,
        client.stream("POST", URL, json=LONG | {"stream": True}) as answer,
    ):
        next(answer.iter_lines())


def leave_whole(place_: Place) -> None:
    """Ask for a whole reply and close the connection while it is being written."""
    # Not httpx, which gives up after a time and not at a moment.
    connection = http.client.HTTPConnection(place_.url.removeprefix("http://"), timeout=10)
    headers = {"Authorization": f"Bearer {place_.keys[Role.CHAT]}", "Content-Type": "application/json"}
    connection.request("POST", URL, json.dumps(LONG), headers)
    until(lambda: place_.fake.active)
    connection.close()


def test_half_a_character_is_a_question_mark(here: Place) -> None:
    """Text that JSON can spell and UTF-8 cannot is answered, and reaches the model as something it can read."""
    with here.client(Role.CHAT) as client:
        body = json.dumps(GOOD | {"messages": [{"role": "user", "content": "a \ud800 b"}]})
        answer = client.post(URL, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 200
    assert here.fake.requests[-1]["messages"][-1]["content"] == [{"type": "text", "text": "a ? b"}]


LONG = GOOD | {"max_tokens": 250}


@pytest.mark.parametrize("leave", [leave_stream, leave_whole])
def test_a_client_that_leaves_stops_vllm(fresh: Place, leave: Callable[[Place], None]) -> None:
    """When the reader goes, the request to vLLM is aborted long before the reply would end, streaming or not."""
    fresh.fake.token_seconds = 0.1
    leave(fresh)
    until(lambda: fresh.fake.aborted == 1)
    until(lambda: not fresh.fake.active)

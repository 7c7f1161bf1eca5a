"""Rows from strangers: every shape becomes the same conversation, every broken rule is named with its place."""

from __future__ import annotations

import base64
import json
import re
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.datafiles import container, parse_row, raw_rows
from storage.errors import BadImage, BadUpload
from storage.formats import Picture, read_row
from storage.intake import MAXIMUM_ROWS, MINIMUM_ROWS, NOTES, receive
from storage.records import SubmissionState, User
from storage.settings import MEBIBYTE, StorageSettings
from storage.store import Store
from tests.storage.pictures import jsonl, picture, zipped

DOCS = Path(__file__).parents[2] / "docs" / "formats.md"
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAgAAAAIAQMAAAD+wSzIAAAABlBMVEX/////AADrWueTAAAAEklEQVR42mNg"
    "YGBgYGAQYIACAACgABGi4glBAAAAAElFTkSuQmCC"
)

PIXEL_BYTES = f"[{len(base64.b64decode(PIXEL.split(',')[1]))}]"


def said(row: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """Read a row; return each turn's role with its texts, and its images as `[name]` or `[bytes]`."""
    return [
        (
            turn.role,
            [
                f"[{part.name or len(part.data)}]" if isinstance(part, Picture) else part["text"]
                for part in turn.parts
            ],
        )
        for turn in read_row(row, 10).turns
    ]


def chat(question: Any, answer: Any = "yes", **fields: Any) -> dict[str, Any]:
    """Return an OpenAI row of one exchange."""
    return {
        "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}],
        **fields,
    }


def talk(*turns: tuple[str, Any], **fields: Any) -> dict[str, Any]:
    """Return a LLaVA row of these turns."""
    return {"conversations": [{"from": role, "value": value} for role, value in turns], **fields}


ASKED = [("user", ["[1.png]", "What?"]), ("assistant", ["a cat"])]

GOOD: dict[str, tuple[dict[str, Any], list[tuple[str, list[str]]]]] = {
    "llava": (talk(("human", "<image>\nWhat?"), ("gpt", "a cat"), image="1.png"), ASKED),
    "llava list": (talk(("human", "<image>\nWhat?"), ("gpt", "a cat"), image=["1.png"]), ASKED),
    "llava at the end": (
        talk(("human", "What?\n<image>"), ("gpt", "a cat"), image="1.png"),
        [("user", ["What?", "[1.png]"]), ("assistant", ["a cat"])],
    ),
    "llava in the middle": (
        talk(("human", "Is <image> before <image>?"), ("gpt", "yes"), image=["1", "2"]),
        [("user", ["Is ", "[1]", " before ", "[2]", "?"]), ("assistant", ["yes"])],
    ),
    "llava text only": (
        talk(("human", "Hi"), ("gpt", "Hello")),
        [("user", ["Hi"]), ("assistant", ["Hello"])],
    ),
    "llava null image": (
        talk(("human", "Hi"), ("gpt", "Hello"), image=None),
        [("user", ["Hi"]), ("assistant", ["Hello"])],
    ),
    "sharegpt": (
        talk(("user", "<image>What?"), ("assistant", "a cat"), images=["1.png"], system="Be short."),
        [("system", ["Be short."]), *ASKED],
    ),
    "sharegpt roles": (
        {
            "images": ["1.png"],
            "conversations": [
                {"role": "user", "content": "<image>What?"},
                {"role": "assistant", "content": "a cat"},
            ],
        },
        ASKED,
    ),
    "images over turns": (
        talk(
            ("human", "<image>A?"),
            ("gpt", "a"),
            ("human", "<image>B?"),
            ("gpt", "b"),
            images=["1.png", "2.png"],
        ),
        [
            ("user", ["[1.png]", "A?"]),
            ("assistant", ["a"]),
            ("user", ["[2.png]", "B?"]),
            ("assistant", ["b"]),
        ],
    ),
    "openai text": (chat("Hi"), [("user", ["Hi"]), ("assistant", ["yes"])]),
    "openai parts": (
        chat(
            [{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": {"url": PIXEL}}], "a dot"
        ),
        [("user", ["What?", PIXEL_BYTES]), ("assistant", ["a dot"])],
    ),
    "openai bare url": (
        chat([{"type": "image_url", "image_url": "1.png"}, {"type": "text", "text": "What?"}], "a cat"),
        ASKED,
    ),
    "anthropic": (
        chat(
            [
                {
                    "type": "image",
                    "source": {"type": "base64", "media_type": "image/png", "data": PIXEL.split(",")[1]},
                },
                {"type": "text", "text": "What?"},
            ]
        ),
        [("user", [PIXEL_BYTES, "What?"]), ("assistant", ["yes"])],
    ),
    "hf placeholder": (
        chat([{"type": "image"}, {"type": "text", "text": "What?"}], "a cat", images=["1.png"]),
        ASKED,
    ),
    "messages placeholder": (chat("<image>What?", "a cat", images=["1.png"]), ASKED),
    "hf struct": (chat("<image>What?", "a cat", images=[{"bytes": None, "path": "1.png"}]), ASKED),
    "image folder": ({"file_name": "1.png", "question": "What?", "answer": "a cat"}, ASKED),
    "caption": (
        {"file_name": "1.png", "text": "a cat"},
        [("user", ["[1.png]", "Describe this picture."]), ("assistant", ["a cat"])],
    ),
    "label": (
        {"image": "1.png", "label": "cat"},
        [("user", ["[1.png]", "What does this picture show?"]), ("assistant", ["cat"])],
    ),
    "columns": (
        {"prompt": "2 + 2?", "response": "4"},
        [("user", ["2 + 2?"]), ("assistant", ["4"])],
    ),
    "columns placed": (
        {"image": "1.png", "question": "Is <image> red?", "answer": "no"},
        [("user", ["Is ", "[1.png]", " red?"]), ("assistant", ["no"])],
    ),
    "texts": (
        {
            "images": ["1.png"],
            "texts": [{"user": "What?", "assistant": "a cat"}, {"user": "Sure?", "assistant": "y"}],
        },
        [*ASKED, ("user", ["Sure?"]), ("assistant", ["y"])],
    ),
    "windows line breaks": (chat("a\r\nb"), [("user", ["a\nb"]), ("assistant", ["yes"])]),
    "markup that is no token": (
        chat("Is 1 < 2 <b>bold</b> and [x] a list?", "<p>yes</p>"),
        [("user", ["Is 1 < 2 <b>bold</b> and [x] a list?"]), ("assistant", ["<p>yes</p>"])],
    ),
    "emoji and scripts": (
        chat("\U0001f468\u200d\U0001f469 \u0645\u0631\u062d\u0628\u0627", "\u4f60\u597d"),
        [
            ("user", ["\U0001f468\u200d\U0001f469 \u0645\u0631\u062d\u0628\u0627"]),
            ("assistant", ["\u4f60\u597d"]),
        ],
    ),
}


@pytest.mark.parametrize("name", GOOD)
def test_every_shape_becomes_the_same_conversation(name: str) -> None:
    """Each accepted shape is read to the turns, texts and images that its author meant."""
    row, expected = GOOD[name]
    assert said(row) == expected


BAD: dict[str, tuple[dict[str, Any], str, str | None]] = {
    "no fields": ({}, "missing_field", None),
    "other fields": ({"foo": 1}, "missing_field", None),
    "messages no list": ({"messages": "hi"}, "wrong_type", "messages"),
    "no messages": ({"messages": []}, "nothing_to_learn", None),
    "turn no object": ({"messages": ["hi"]}, "wrong_type", "messages[0]"),
    "no content": ({"messages": [{"role": "user"}]}, "missing_field", "messages[0]"),
    "no from": ({"conversations": [{"value": "x"}]}, "missing_field", "conversations[0]"),
    "role": (talk(("narrator", "Hi"), ("gpt", "yes")), "unknown_role", "conversations[0].from"),
    "tool role": (
        talk(("human", "Hi"), ("observation", "x"), ("gpt", "y")),
        "unknown_role",
        "conversations[1].from",
    ),
    "role no text": ({"messages": [{"role": 1, "content": "x"}]}, "unknown_role", "messages[0].role"),
    "content null": (chat("Hi", None), "wrong_type", "messages[1].content"),
    "content number": (chat(5), "wrong_type", "messages[0].content"),
    "part type": (chat([{"type": "input_audio"}]), "wrong_type", "messages[0].content[0]"),
    "part no object": (chat(["hi"]), "wrong_type", "messages[0].content[0]"),
    "text no text": (chat([{"type": "text", "text": 1}]), "wrong_type", "messages[0].content[0]"),
    "no answer": ({"messages": [{"role": "user", "content": "Hi"}]}, "nothing_to_learn", None),
    "empty answer": (chat("Hi", "  "), "nothing_to_learn", "messages[1].content"),
    "empty question": (chat(" "), "empty_turn", "messages[0].content"),
    "answer first": (talk(("gpt", "yes"), ("human", "Hi")), "turn_order", "conversations[0].value"),
    "two answers": (
        talk(("human", "Hi"), ("gpt", "a"), ("gpt", "b")),
        "turn_order",
        "conversations[2].value",
    ),
    "two questions": (
        talk(("human", "Hi"), ("human", "a"), ("gpt", "b")),
        "turn_order",
        "conversations[1].value",
    ),
    "question last": (
        talk(("human", "a"), ("gpt", "b"), ("human", "c")),
        "turn_order",
        "conversations[2].value",
    ),
    "system late": (
        talk(("human", "a"), ("system", "s"), ("gpt", "b")),
        "turn_order",
        "conversations[1].value",
    ),
    "system twice": (
        talk(("system", "s"), ("human", "a"), ("gpt", "b"), system="t"),
        "turn_order",
        "conversations[0].value",
    ),
    "weight 0": (
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0}]},
        "unsupported_field",
        "messages[1].weight",
    ),
    "video": (chat("a", videos=["a.mp4"]), "unsupported_field", "videos"),
    "tools": (chat("a", tools=[{}]), "unsupported_field", "tools"),
    "placeholder too many": (
        talk(("human", "<image><image><image>"), ("gpt", "a"), images=["1", "2"]),
        "image_count",
        None,
    ),
    "placeholder too few": (talk(("human", "What?"), ("gpt", "a"), image="1.png"), "image_count", None),
    "placeholder without image": (chat("<image>What?"), "image_count", None),
    "column placeholders": ({"image": "1", "question": "<image><image>", "answer": "a"}, "image_count", None),
    "too many images": ({"images": ["a"] * 11, "question": "a", "answer": "b"}, "image_count", None),
    "placeholder in answer": (chat("a", "<image>"), "control_token", "messages[1].content"),
    "image in answer": (chat("a", [{"type": "image", "image": "1"}]), "image_role", "messages[1].content[0]"),
    "metadata address": (
        chat([{"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest/meta-data"}}]),
        "remote_image_refused",
        "messages[0].content[0].image_url",
    ),
    "https": (
        talk(("human", "<image>"), ("gpt", "a"), image="https://x.y/1.png"),
        "remote_image_refused",
        "image",
    ),
    "file": (
        talk(("human", "<image>"), ("gpt", "a"), image="file:///etc/passwd"),
        "remote_image_refused",
        "image",
    ),
    "no scheme": (
        talk(("human", "<image>"), ("gpt", "a"), image="//x.y/1.png"),
        "remote_image_refused",
        "image",
    ),
    "drive": (talk(("human", "<image>"), ("gpt", "a"), image="C:/1.png"), "remote_image_refused", "image"),
    "s3": (
        talk(("human", "<image>"), ("gpt", "a"), images=["s3://b/1"]),
        "remote_image_refused",
        "images[0]",
    ),
    "bad base64": ({"image": "data:image/png;base64,@@@", "label": "a"}, "image_data", "image"),
    "no base64": ({"image": "data:image/svg+xml,<svg/>", "label": "a"}, "image_data", "image"),
    "image number": ({"image": 7, "label": "a"}, "wrong_type", "image"),
    "image object": ({"image": {"height": 1}, "label": "a"}, "wrong_type", "image"),
    "image blank": ({"image": " ", "label": "a"}, "image_missing", "image"),
    "caption without image": ({"text": "a cat"}, "missing_field", "question"),
    "answer without question": ({"image": "1", "answer": "a cat"}, "missing_field", "question"),
    "label number": ({"image": "1", "label": 3}, "wrong_type", "label"),
    "texts empty": ({"texts": []}, "wrong_type", "texts"),
    "texts half": ({"texts": [{"user": "a"}]}, "missing_field", "texts[0].assistant"),
    "system number": (talk(("human", "a"), ("gpt", "b"), system=3), "wrong_type", "system"),
    "lone surrogate": (chat("a\ud800"), "encoding", "messages[0].content"),
    "NUL": (chat("a\0b"), "control_character", "messages[0].content"),
    "escape": (chat("a", "\x1b[31m"), "control_character", "messages[1].content"),
    "long text": (chat("a" * 100_000), "text_too_long", None),
}
TOKENS = (  # noqa: SIM905 - a list of 24 literals is harder to read
    "<|im_start|> <|image_pad|> <|endoftext|> <|eot_id|> </s> <s> [INST] [/INST] <<SYS>> <pad> <unk> <bos> <image> "
    "<video> <image_soft_token> <start_of_turn> <end_of_utterance> <fake_token_around_image> <row_1_col_2> "
    "<IMG_CONTEXT> <im_patch> [IMG] [IMG_END] <\uff5cend\u2581of\u2581sentence\uff5c>"
).split()
BAD |= {f"token {text}": (chat("a", f"b {text}"), "control_token", "messages[1].content") for text in TOKENS}


@pytest.mark.parametrize("name", BAD)
def test_every_broken_rule_is_named(name: str) -> None:
    """Each kind of bad row raises its code, names the field, and says what was found and what is allowed."""
    row, code, field = BAD[name]
    with pytest.raises(BadUpload) as refusal:
        read_row(row, 10)
    assert (refusal.value.code, refusal.value.field) == (code, field)
    assert re.fullmatch(r"Found .+; allowed: .+\. .+\.", str(refusal.value), re.DOTALL)


def test_hidden_characters_are_seen() -> None:
    """Text that reads differently than it is written is marked, ordinary scripts are not."""
    assert read_row(chat("pay \u202e001$"), 10).hidden
    assert read_row(chat("a\U000e0041"), 10).hidden
    assert not read_row(chat("\u0646\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"), 10).hidden


# --- files of rows ---------------------------------------------------------------------------------------------


def lines_of(path: Path, data: bytes, name: str = "x.jsonl", limit: int = 1000) -> list[tuple[int, Any]]:
    """Read a data file; return each row's number with the row or the code of its error."""
    path.write_bytes(data)
    found = raw_rows(path, container(path, name), StorageSettings(row_max_bytes=limit))
    return [(number, row.code if isinstance(row, BadUpload) else row) for number, row in found]


def test_json_list_and_lines_are_told_apart(tmp_path: Path) -> None:
    """The first sign decides, whatever the name; blank lines, a byte order mark and Windows line ends do not matter."""
    path = tmp_path / "x"
    assert lines_of(path, b'\xef\xbb\xbf [ {"a": 1},\n{"a": [1, "],"]} ] \n') == [
        (1, {"a": 1}),
        (2, {"a": [1, "],"]}),
    ]
    assert lines_of(path, b'\xef\xbb\xbf{"a": 1}\r\n\r\n{"b": 2}') == [(1, {"a": 1}), (3, {"b": 2})]
    assert lines_of(path, b'file_name,label\r\n1.png,"a, b"\r\n', "x.csv") == [
        (2, {"file_name": "1.png", "label": "a, b"})
    ]


LINES = {
    b"{nonsense}": "invalid_json",
    b'{"a": 1} {"b": 2}': "invalid_json",
    b'{"a": NaN}': "bad_number",
    b'{"a": -Infinity}': "bad_number",
    b'{"a": 1e400}': "bad_number",
    b'{"a": ' + b"9" * 5000 + b"}": "bad_number",
    b'{"a": 1, "a": 2}': "duplicate_key",
    b'{"a": {"b": 1, "b": 1}}': "duplicate_key",
    b'{"a": ' + b"[" * 10_000 + b"]" * 10_000 + b"}": "too_deep",
    b'{"a": ' + b"[" * 20 + b"]" * 20 + b"}": "too_deep",
    b'{"a": "' + b"x" * 30_000 + b'"}': "line_too_long",
    b'{"a": "\xff"}': "encoding",
    b"7": "wrong_type",
    b"null": "wrong_type",
    b'"text"': "wrong_type",
}


@pytest.mark.parametrize("bad", LINES)
@pytest.mark.parametrize("as_list", [False, True])
def test_bad_row_leaves_the_others(bad: bytes, as_list: bool, tmp_path: Path) -> None:
    """A row that cannot be read is named by its number, in lines as in a list, and the rows around it are read."""
    items = [b'{"a": 1}', bad, b'{"a": "[,{"}']
    data = b"[" + b",".join(items) + b"]" if as_list else b"\n".join(items)
    expected = [(1, {"a": 1}), (2, LINES[bad]), (3, {"a": "[,{"})]
    assert lines_of(tmp_path / "x", data, limit=25_000) == expected


FILES: dict[str, tuple[bytes, str, str]] = {
    "nothing": (b"", "a.json", "empty_file"),
    "blanks": (b" \n ", "a.json", "empty_file"),
    "utf-16": (json.dumps([{}]).encode("utf-16"), "a.json", "encoding"),
    "utf-16 without mark": (b"[\0{\0}\0]\0", "a.json", "encoding"),
    "utf-32": (json.dumps([{}]).encode("utf-32"), "a.json", "encoding"),
    "picture": (picture(), "a.png", "unsupported_file"),
    "pdf": (b"%PDF-1.7 x", "a.pdf", "unsupported_file"),
    "rar": (b"Rar!\x1a\x07\x01\x00", "a.rar", "unsupported_file"),
    "words": (b"hello", "a.json", "not_rows"),
    "one object": (b'{\n  "messages": []\n}', "a.json", "not_rows"),
    "list not closed": (b'[{"a": 1}, {"a": 2}', "a.json", "invalid_json"),
    "string not closed": (b'[{"a": "1}, {}]', "a.json", "invalid_json"),
    "two lists": (b"[{}] [{}]", "a.json", "invalid_json"),
    "csv columns twice": (b"a,a\n1,2\n", "a.csv", "duplicate_key"),
    "csv quote open": (b'a,b\n"1,2\n' + b"x,y\n" * 60_000, "a.csv", "corrupt_table"),
    "csv latin-1": (b"a,b\n\xe9,2\n", "a.csv", "encoding"),
    "csv long line": (b"a,b\n" + b"x" * 2_000_000, "a.csv", "line_too_long"),
    "parquet garbled": (b"PAR1" + bytes(100) + b"PAR1", "a.parquet", "corrupt_table"),
}


@pytest.mark.parametrize("name", FILES)
def test_unreadable_file_is_named(name: str, tmp_path: Path) -> None:
    """A file in which no row can be told from the next is refused as a whole."""
    data, filename, code = FILES[name]
    path = tmp_path / "x"
    path.write_bytes(data)
    with pytest.raises(BadUpload) as refusal:
        list(raw_rows(path, container(path, filename), StorageSettings()))
    assert refusal.value.code == code


def test_csv_line_with_wrong_columns_leaves_the_others(tmp_path: Path) -> None:
    """A line with too many or too few values is named, the others are read."""
    found = lines_of(tmp_path / "x", b"a,b\n1,2\n1\n1,2,3\n3,4\n", "x.csv")
    assert [row for _, row in found] == [
        {"a": "1", "b": "2"},
        "wrong_columns",
        "wrong_columns",
        {"a": "3", "b": "4"},
    ]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(
    rows=st.lists(st.dictionaries(st.text(), JSON, max_size=3), min_size=1, max_size=5),
    indent=st.sampled_from([None, 2]),
    ascii_only=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_list_is_cut_where_json_says(
    rows: list[dict[str, Any]], indent: int | None, ascii_only: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Any list of objects is cut into exactly its elements, however it is written and whatever its strings hold."""
    path = tmp_path_factory.getbasetemp() / "cut.json"
    data = json.dumps(rows, indent=indent, ensure_ascii=ascii_only).encode(errors="surrogatepass")
    found = lines_of(path, data, limit=10_000)
    assert [row for _, row in found] == [_read(row) for row in rows]


def _read(row: dict[str, Any]) -> Any:
    try:
        return parse_row(json.dumps(row).encode())
    except BadUpload as error:
        return error.code


def test_cut_in_the_middle_of_an_escape(tmp_path: Path) -> None:
    """Escaped quotes and backslashes are understood wherever the borders of the blocks that are read fall."""
    rows = [{"a": "\\" * length + '"],[{'} for length in (1, 2, 3, 4)] * 3000
    found = lines_of(tmp_path / "x", json.dumps(rows).encode())
    assert [row for _, row in found] == rows


@pytest.mark.parametrize("opening", [b"[", b""])
def test_long_row_is_passed_over_in_little_memory(opening: bytes, tmp_path: Path) -> None:
    """A row of 100 MB is named and passed over without ever being held."""
    path = tmp_path / "x"
    with path.open("wb") as file:
        file.write(opening + b'{"a": "')
        for _ in range(100):
            file.write(b"x" * MEBIBYTE)
        file.write(b'"},{}]' if opening else b'"}\n{}')
    tracemalloc.start()
    found = [
        row.code if isinstance(row, BadUpload) else row
        for _, row in raw_rows(path, container(path, "x.json"), StorageSettings(row_max_bytes=MEBIBYTE))
    ]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == ["line_too_long", {}]
    assert peak < 8 * MEBIBYTE


# --- the documentation -----------------------------------------------------------------------------------------


def examples() -> Iterator[tuple[str, str, str]]:
    """Yield the language, the shape and the text of every example in the documentation."""
    return iter(re.findall(r"^```(\w+) (\w+)\n(.*?)^```", DOCS.read_text(), re.MULTILINE | re.DOTALL))


@pytest.mark.parametrize(("language", "shape", "text"), list(examples()))
def test_example_in_the_docs_is_accepted(
    language: str,
    shape: str,
    text: str,
    store: Store,
    admin: User,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every example of docs/formats.md, packed as it says, becomes a dataset of the shape that it illustrates."""
    images = {name: picture(color=color) for name, color in (("1.png", "red"), ("2.png", "blue"))}
    upload = tmp_path / "upload"
    if language == "python":
        monkeypatch.chdir(tmp_path)
        (tmp_path / "1.png").write_bytes(images["1.png"])
        exec(text, {})
        upload = tmp_path / "train.parquet"
    else:
        rows = [row for _, row in lines_of(tmp_path / "example", text.encode(), f"x.{language}", MEBIBYTE)]
        # A dataset needs four rows; the examples are shorter for the eye, so each is repeated with another answer.
        more = [json.loads(json.dumps(row).replace('"}]', f' {n}"}}]')) for row in rows for n in range(4)]
        if shape in ("columns", "imagefolder"):
            answers = ("answer", "text", "label")
            more = [
                row | {name: f"{row[name]} {n}" for name in answers if name in row}
                for n in range(4)
                for row in rows
            ]
        placed = images | {f"images/{name}": images[name] for name in images}
        used = {name: data for name, data in placed.items() if f'"{name}"' in json.dumps(rows)}
        upload.write_bytes(zipped({"data.jsonl": jsonl(more)} | used))
    submission = receive(store, admin, upload.name, upload)
    # Repeated, an example's rows show the same picture.
    assert {finding.code for finding in submission.report.findings} <= {"nothing_held_out"}
    assert submission.state is SubmissionState.ACCEPTED
    assert submission.report.format == shape


def test_every_code_is_documented() -> None:
    """docs/formats.md explains every error and every note a report can hold, and nothing else."""

    def below(cls: type[BadUpload]) -> Iterator[type[BadUpload]]:
        for child in cls.__subclasses__():
            yield child
            yield from below(child)

    documented = re.findall(r"^\| `(\w+)` \|", DOCS.read_text(), re.MULTILINE)
    codes = {error.code for error in below(BadUpload) if error is not BadImage} | set(NOTES)
    assert set(documented) == codes
    assert len(documented) == len(codes)


def test_limits_are_documented_as_they_are() -> None:
    """The numbers in docs/formats.md are the defaults of the settings and the constants of the code."""
    limits, text = StorageSettings(), DOCS.read_text()
    assert f"{MINIMUM_ROWS} to {MAXIMUM_ROWS:,} usable" in text
    assert f"{limits.image_min_side} to {limits.image_max_side:,} pixels per side" in text
    assert f"{limits.image_max_pixels // 1_000_000} megapixels" in text
    assert f"{limits.image_max_bytes // MEBIBYTE} MB" in text
    assert f"in user turns only; {limits.row_max_images} per row" in text
    assert f"{limits.archive_max_members:,} files" in text
    assert f"unpacked at most {limits.upload_max_bytes // MEBIBYTE // 1024} GB" in text

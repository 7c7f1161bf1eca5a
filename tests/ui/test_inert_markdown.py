"""What people and models write, as the chat window shows it: alive is nothing of it, and code stays code."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from app.ui.inert_markdown import shown, typed

# Without tables and formulas, which the chat window looks for in another order: fences come before the former there and
# after the latter. The examples below have some.
GITHUB = MarkdownIt("commonmark", {"html": True}).enable("strikethrough")
LIVE = {"html_inline", "html_block", "image"}
PIECES = ["`", "``", "```", "````", "~", "~~~", "\\", "\n", "\n\n", "\r", " ", "    ", "\t", "a", "<b>", "</b>",
          "<!--", "<", "![x](y)", "![x]", "[", "]", "](u)", "[x]: y", "'", "&lt;", "- ", "10. ", "> ", "*", "_", "|",
          "\n-|-\n", "http://x", "mermaid", "`<b>`", "\n```\n<b>\n```\n"]  # fmt: skip


def kinds(markdown: str) -> set[str]:
    """Return the types of all tokens that Markdown is made of."""
    tokens = GITHUB.parse(markdown)
    return {token.type for block in tokens for token in (block, *(block.children or []))}


@given(st.text(alphabet="ab<>!&;#[]()`\n x3"))
def test_what_is_shown_can_be_turned_back_into_what_was_typed(text: str) -> None:
    """Editing a message starts from the very characters that were typed."""
    assert typed(shown(text)) == text


@given(st.lists(st.sampled_from(PIECES), max_size=20).map("".join))
def test_nothing_that_is_shown_is_alive(text: str) -> None:
    """However code, quotes, lists and tags are mixed, no element comes of it and the text can be had back."""
    assert not kinds(shown(text)) & LIVE
    assert typed(shown(text)) == text


@given(st.lists(st.sampled_from([*PIECES, "$$"]), max_size=20).map("".join))
def test_what_is_mixed_with_formulas_can_be_turned_back(text: str) -> None:
    """Formulas change what is code, and still every text comes back as it was typed."""
    assert typed(shown(text)) == text


@pytest.mark.parametrize(
    ("text", "markdown"),
    [
        ("<img src=x onerror=alert(1)>", "&lt;img src=x onerror=alert(1)>"),
        ("</b><!-- x -->", "&lt;/b>&lt;!-- x -->"),
        ("![a](http://b)", "&#33;[a](http://b)"),
        ("2 < 3 && x!", "2 < 3 && x!"),
        ("`a<b>` <b>", "`a<b>` &lt;b>"),
        ("```\n<b>\n```\n<b>", "```\n<b>\n```\n&lt;b>"),
        ("&lt;b&gt;", "&amp;lt;b&amp;gt;"),
        (r"\<b>", "&#92;&lt;b>"),
    ],
)
def test_tags_and_pictures_are_inert_and_the_rest_is_left_alone(text: str, markdown: str) -> None:
    """Only what Markdown would turn into elements is escaped; comparisons and code stay as they are."""
    assert shown(text) == markdown


@pytest.mark.parametrize(
    "text",
    [
        "Use `List<int>`, **not** `x[i]`, `**kw` or `&lt;`.",
        "``a ` <b>``",
        "- **`<b>`**: `</b>`\n- [`<i>`](u)",
        "> `<b>`",
        "| `a<b>` | c |\n|---|---|\n| d | `<e>` |",
        "See:\n```python\nprint('<b>') # ![x](y)\n```\nand",
        "```html\n<b>still being written",
        "```\na ``` b\n<b>\n``` c\n```",
        "````md\n```\n<b>\n```\n````",
        "~~~\n<b>\n~~~",
        "1. Do:\n   ```html\n   <b>\n\n   <i>\n   ```\n2. Done",
        "- a\n  - b\n\n    ```\n    <b>\n    ```",
        "```sql\nAS $$ <b> $$\n```",
    ],
)
def test_ordinary_code_is_left_as_typed(text: str) -> None:
    """Spans on one line and fences at the beginning of lines keep every character."""
    assert shown(text) == text


@pytest.mark.parametrize(
    ("text", "markdown"),
    [
        (r"\`<b>\`", "&#92;&#96;&lt;b>&#92;&#96;"),
        ("a ``` <b>", "a &#96;&#96;&#96; &lt;b>"),
        ("`a\n<b>`", "&#96;a\n&lt;b>&#96;"),
        ("~`<b>`", "~&#96;&lt;b>&#96;"),
        ("http://x`a <b>`", "http://x&#96;a &lt;b>&#96;"),
        ("*x [a `b](c)* <b>`", "*x [a &#96;b](c)* &lt;b>&#96;"),
        ("[[`](x) <b>`", "[[&#96;](x) &lt;b>&#96;"),
        ("~a `b~ <b>`", "~a &#96;b~ &lt;b>&#96;"),
        ("x | y\n--|--\n`a | <b>`", "x | y\n--|--\n&#96;a | &lt;b>&#96;"),
        ("$$ ` $$ <b> `", "$$ &#96; $$ &lt;b> &#96;"),
        ("[a]: u '\n```\n'\n<b>\n```", "&#91;a]: u '\n```\n'\n<b>\n```"),
        ("[a [b\n```\n]: u\n<b>", "&#91;a &#91;b\n```\n]: u\n<b>"),
        ("- a\n    ```\n    <b>", "- a\n    &#96;&#96;&#96;\n    &lt;b>"),
        ("```mermaid\n<b>\n```", "```&#109;ermaid\n<b>\n```"),
    ],
)
def test_what_the_chat_window_may_not_take_for_code_is_escaped(text: str, markdown: str) -> None:
    """Where the window reads otherwise than CommonMark, neither tags stay nor what would open code before them."""
    assert shown(text) == markdown


@pytest.mark.parametrize("piece", ["`a", "`a` ", "[", "[a", "``` ", "~", "<b`"])
def test_long_texts_are_shown_in_no_time(piece: str) -> None:
    """However often something that may be code begins, the time grows no faster than the text."""
    text = "<a " + piece * (100_000 // len(piece))
    began = time.monotonic()
    shown(text)
    assert time.monotonic() - began < 10

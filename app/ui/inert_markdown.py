"""What people and models write, as Markdown without HTML: tags, entities, pictures and diagrams show as characters.

So an answer can neither draw something that looks like our page nor load anything from elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

# Inside code every character shows as it is, so entities would be seen there. What is code is for the chat window to
# decide: marked with GFM, after Gradio took formulas out. It departs from CommonMark (emphasis, links and addresses may
# end inside a code span), so a parser's word is not enough. Left as typed is only what is code in every reading, and
# outside it nothing is left that could open code or swallow its beginning: at worst code is shown as plain text.
_HTML = r"<(?=[A-Za-z/!?])|!(?=\[)|&(?=#?\w+;)"
_MERMAID = r"(?<=```)m(?=ermaid)"  # Gradio would draw it, with the tags and pictures of its labels
_DEFINITION = r"\[(?!(?:\\.|[^\]\\\n$]|\$(?!\$)){0,199}+\](?!:))"  # marked lets its title run over a fence
_FENCES = r"`{3,}|~{3,}"
_LIVE = re.compile(f"{_HTML}|{_MERMAID}")
_MARKUP = re.compile(  # with the backslashes before it, which would otherwise escape the entity
    rf"(?<!\\)(?P<slashes>\\*+)(?:(?P<always>{_HTML}|{_MERMAID}|{_DEFINITION}|{_FENCES})|(?P<beside_code>[<`]))"
)
_ENTITIES = {"<": "&lt;", "!": "&#33;", "&": "&amp;", "\\": "&#92;", "`": "&#96;", "~": "&#126;", "[": "&#91;",
             "m": "&#109;"}  # fmt: skip
_CHARACTERS = {entity: character for character, entity in _ENTITIES.items()}
_WRITTEN = re.compile("|".join(_CHARACTERS))

_FORMULA = re.compile(r"\$\$.+?\$\$", re.DOTALL)
# A fence deeper than three spaces continues a paragraph if no empty line precedes it.
_FENCED = re.compile(
    r"^(?P<indent> {0,3}|(?<=\n\n) +)(?P<fence>`{3,}|~{3,})(?P<info>[^`~$\n\r]*)\n"
    r"(?:(?![ \t]*(?P=fence)[`~ \t]*\n)(?:(?P=indent)[^\n\r]*| *)\n)*+"
    r"(?:(?P=indent)(?P=fence) *\n|\Z)",
    re.MULTILINE,
)
_PARAGRAPH = re.compile(r"(?:[^\n]|\n(?! *\n))++")
_SPAN = re.compile(
    r"(?<![`\\~])(?P<ticks>`++)"
    r"(?P<code>(?:[^`$\n\r\u2028\u2029]++|\$(?!\$)|(?!(?P=ticks)(?!`))`++)++)(?P=ticks)"
)
_TABLE = re.compile(r"^(?=[^-\n]*-)[|: >\t\r-]++$", re.MULTILINE)
_ADDRESS = re.compile(r"://|www\.", re.IGNORECASE)
_PLAIN, _CODE, _BESIDE_CODE = range(3)


def shown(text: str) -> str:
    """Return text as Markdown in which HTML tags, entities, pictures and diagrams are inert."""
    if not _LIVE.search(text):
        return text
    kinds = _kinds(text)

    def escaped(found: re.Match[str]) -> str:
        kind = kinds[found.end("slashes")]
        if kind == _CODE or (kind == _PLAIN and found["beside_code"]):
            return found[0]
        return "".join(_ENTITIES[character] for character in found[0])

    return _MARKUP.sub(escaped, text)


def typed(markdown: str) -> str:
    """Return what `shown` was given."""
    kinds = _kinds(markdown)
    return _WRITTEN.sub(
        lambda found: found[0] if kinds[found.start()] == _CODE else _CHARACTERS[found[0]], markdown
    )


def _kinds(text: str) -> bytearray:
    """Return for each character whether it is code, or stands in a paragraph where backticks need care."""
    kinds = bytearray(len(text) + 1)
    rest = _FORMULA.sub(lambda found: "x" * len(found[0]), text) + "\n"
    for block in _FENCED.finditer(rest):
        kinds[block.start() : block.end()] = bytes([_CODE]) * len(block[0])
        kinds[block.start("info") : block.end("info")] = bytes(len(block["info"]))
    rest = _FENCED.sub(lambda block: "\n" * len(block[0]), rest)
    for paragraph in _PARAGRAPH.finditer(rest):
        start, end = paragraph.span()
        if "`" in paragraph[0] and any(found["always"] for found in _MARKUP.finditer(text, start, end)):
            kinds[start:end] = bytes([_BESIDE_CODE]) * (end - start)
            for first, last in _spans(rest, start, end):
                kinds[first:last] = bytes([_CODE]) * (last - first)
    return kinds


def _spans(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield the code spans of a paragraph that nothing begun before them can end inside of."""
    openers = {"|"} if _TABLE.search(text, start, end) else set()
    several = text.find("``", start, end) >= 0
    at = word = seen = start
    address = False
    while span := _SPAN.search(text, at, end):
        openers.update(text[at : span.start()])
        blank = max(text.rfind(blank, seen, span.start()) for blank in " \t\n")
        if blank >= 0:
            word, address = blank + 1, False
        # What was looked at before is not looked at again, but for the beginning of an address that goes on here.
        address = address or _ADDRESS.search(text, max(word, seen - 3), span.start()) is not None
        seen = span.start()
        closers = set(span["code"])
        # marked looks for the end of emphasis outside code spans, but links and double backticks confuse it.
        pairs = "~|*_" if several or "[" in openers else "~|"
        cut = openers & closers & set(pairs) or ("[" in openers and closers & set("])"))
        if cut or address:
            at = span.end("ticks")
        else:
            yield span.span()
            at = span.end()

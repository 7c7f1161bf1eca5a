"""Which of a generation's adapters answers a conversation: that of the group whose instructions the question resembles.

A generation without instruction groups has one adapter, which answers everything. The choice depends on the
conversation and on the generation alone, so the same question gets the same weights in an evaluation and in a chat, on
whichever server.
"""

from __future__ import annotations

import threading
from functools import lru_cache
from pathlib import Path

from serving.groups import Codebook, route
from storage.errors import AdapterChanged
from storage.generations import BASE, Generations
from storage.records import Conversation, Generation, generation_name, text_of

CODEBOOK = "codebook.json"
"""File in the directory of a generation with groups: the instructions of each."""

# A route takes 0.1 ms, but the first one of a generation reads and weighs its codebook: 0.8 s for 8 groups of 1000
# instructions, which everybody who asks just after a swap would do again.
_ONE_AT_A_TIME = threading.Lock()


def served_name(generations: Generations, number: int, conversation: Conversation) -> str:
    """Return the name under which every server knows the weights with which a generation answers a conversation.

    The first answer of a generation with groups takes a moment longer, in which its codebook is read. Raises
    UnknownGeneration and AdapterChanged.
    """
    if number == BASE:
        return generation_name(BASE)
    return generation_name(adapter_for(generations.get(number), conversation))


def adapter_for(generation: Generation, conversation: Conversation) -> int:
    """Return the generation whose adapter answers, 0 for the base model; raise AdapterChanged without a codebook."""
    groups = generation.groups
    if groups is None:
        return generation.number
    with _ONE_AT_A_TIME:
        group = route(question_of(conversation), read_codebook(generation.directory), groups.floor)
    return BASE if group is None else groups.adapters[group]


def question_of(conversation: Conversation) -> str:
    """Return the text of the newest turn of a person that has any: a picture may be sent after its question."""
    texts = (text_of(turn) for turn in reversed(conversation) if turn["role"] == "user")
    return next((text for text in texts if text.strip()), "")


@lru_cache(maxsize=8)
def read_codebook(directory: Path) -> Codebook:
    """Return the codebook of a generation, whose directory never changes; raise AdapterChanged if it is not whole."""
    try:
        return Codebook.from_json((directory / CODEBOOK).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise AdapterChanged(directory, f"{CODEBOOK} is missing") from error
    except (ValueError, KeyError, TypeError) as error:
        raise AdapterChanged(directory, f"{CODEBOOK} was changed") from error

"""Gradio's blocks, with the rule that whoever sends an event names files that were uploaded, and nothing else.

An event is JSON from anybody who is signed in, and any input of it may claim to be a file. Before a handler sees it,
Gradio copies the file to where it can be downloaded: of mounted blocks it takes every path of the server for allowed,
and an address it fetches.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

from storage.errors import BadField


class SealedBlocks(gr.Blocks):
    """Blocks whose events reach neither the server's other files nor the network."""

    async def preprocess_data(self, block_fn: Any, inputs: list[Any], *more: Any, **options: Any) -> Any:
        """Refuse files that nobody uploaded, then do what Gradio does; raises gr.Error."""
        try:
            check_files(inputs, Path(get_upload_folder()))
        except BadField as error:
            raise gr.Error(str(error), title="Not done", print_exception=False) from error
        return await super().preprocess_data(block_fn, inputs, *more, **options)


def check_files(data: Any, uploads: Path) -> None:
    """Raise BadField if anything in JSON data is described as a file, and that file is not below `uploads`."""
    if isinstance(data, dict):
        if isinstance(data.get("path"), str) and not _is_below(data["path"], uploads):
            raise BadField("path", data["path"][:200], "the path of a file that was uploaded here")
        data = list(data.values())
    if isinstance(data, list):
        for part in data:
            check_files(part, uploads)


def _is_below(path: str, folder: Path) -> bool:
    try:
        return Path(path).resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError):  # a name too long, or with a zero byte
        return False

"""A gr.HTML that shows our own HTML as it is, without Gradio's text styles around it."""

from __future__ import annotations

import gradio as gr


def panel(html: str = "", *, script: str | None = None, name: str | None = None) -> gr.HTML:
    """Return the component; `script` runs once when it appears, `name` is its id in the page."""
    return gr.HTML(html, apply_default_css=False, js_on_load=script, elem_id=name)

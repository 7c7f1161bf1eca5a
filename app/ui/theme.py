"""How the page looks: Gradio's theme, our style sheet, and what the page's head carries. No behaviour."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

# Fonts of the reader's own system: nothing is fetched, and text looks like the rest of their machine.
_SANS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif")
_MONO = ("ui-monospace", "SF Mono", "Cascadia Mono", "DejaVu Sans Mono", "monospace")


def theme() -> gr.themes.Base:
    """Return the theme: slate on white, one calm blue, hairlines instead of shadows; the same in dark."""
    return gr.themes.Base(
        primary_hue=gr.themes.colors.blue,
        neutral_hue=gr.themes.colors.slate,
        radius_size=gr.themes.sizes.radius_lg,
        text_size=gr.themes.sizes.text_md,
        font=_SANS,
        font_mono=_MONO,
    ).set(
        body_background_fill="#ffffff",
        body_background_fill_dark="#0f1419",
        background_fill_primary="#ffffff",
        background_fill_primary_dark="#0f1419",
        background_fill_secondary="#f6f8fa",
        background_fill_secondary_dark="#161c24",
        block_background_fill="#ffffff",
        block_background_fill_dark="#131920",
        border_color_primary="#e3e8ef",
        border_color_primary_dark="#28313d",
        body_text_color="#18212e",
        body_text_color_dark="#e4e9f0",
        body_text_color_subdued="#566275",
        body_text_color_subdued_dark="#98a4b5",
        block_border_width="1px",
        block_shadow="none",
        block_label_text_color="*body_text_color_subdued",
        block_label_background_fill="transparent",
        block_label_border_width="0px",
        block_title_text_color="*body_text_color",
        block_title_text_weight="600",
        input_background_fill="#ffffff",
        input_background_fill_dark="#131920",
        input_border_color="#cdd5e0",
        input_border_color_dark="#364150",
        input_border_width="1px",
        input_shadow="none",
        button_primary_background_fill="#1f5fd0",
        button_primary_background_fill_dark="#2f6fdf",
        button_primary_background_fill_hover="#194fb0",
        button_primary_background_fill_hover_dark="#4280ea",
        button_primary_text_color="#ffffff",
        button_primary_text_color_dark="#ffffff",
        button_secondary_background_fill="#ffffff",
        button_secondary_background_fill_dark="#1a212b",
        button_secondary_background_fill_hover="#f1f4f8",
        button_secondary_background_fill_hover_dark="#232c38",
        button_secondary_border_color="#cdd5e0",
        button_secondary_border_color_dark="#364150",
        button_border_width="1px",
        button_large_text_weight="550",
        button_small_text_weight="550",
        color_accent_soft="#eef4ff",
        color_accent_soft_dark="#17233a",
    )


HEAD = '<meta name="color-scheme" content="light dark">'

LOOK: dict[str, Any] = {
    "theme": theme(),
    "css": Path(__file__).with_name("style.css").read_text(encoding="utf-8"),
    "head": HEAD,
}
"""Arguments for `gradio.mount_gradio_app`, which is where Gradio 6 takes these."""

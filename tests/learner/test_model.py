"""Rounding a model to bf16 as a server has it: its weights, and nothing that says where a token stands."""

from __future__ import annotations

from pathlib import Path

import torch

from learner.model import load_base, to_bfloat16
from recipes.smol_llava import talk
from tests.learner import tiny


def test_rounding_leaves_rotary_frequencies_as_they_are(tmp_path: Path) -> None:
    """A model made bf16 piece by piece has the dtype of every weight and buffer that one loaded as bf16 has."""
    loaded, _ = load_base(tiny.build("llava", tmp_path), torch.device("cpu"))
    made = type(loaded)(loaded.config).float()
    to_bfloat16(made)
    assert {name: one.dtype for name, one in made.named_parameters()} == {
        name: one.dtype for name, one in loaded.named_parameters()
    }
    for name, buffer in loaded.named_buffers():
        assert torch.equal(made.get_buffer(name), buffer), name


def test_stage_2_has_the_frequencies_that_are_served() -> None:
    """The recipe's language model turns its queries by the angles that SmolLM2's configuration gives, in fp32."""
    model, _ = talk.build()
    language = model.get_base_model().model.language_model
    width, theta = language.config.head_dim, language.config.rope_parameters["rope_theta"]
    expected = 1 / theta ** (torch.arange(0, width, 2) / width)
    torch.testing.assert_close(language.rotary_emb.inv_freq, expected)

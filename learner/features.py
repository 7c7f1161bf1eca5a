"""What the frozen vision tower and projector make of the images of rows: computed once per round, used in every epoch.

The round tunes the language model alone, so a row's image features never change. They take the place of its pixels,
through the argument by which transformers' models take images that are encoded already. Each row is encoded by itself,
whatever batch it is in: so its features have the same bits when they come from memory, when they did not fit and are
computed again, and in a round that was resumed.

It knows neither training nor policies; a model that it does not understand keeps the pixels.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import structlog
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from learner.data import Example, ImageFeatures

log = structlog.get_logger()

PIXELS = "pixel_"
"""With this begin the names of the inputs that only a vision tower reads, in every family."""
_UNDERSTOOD = {"last_hidden_state", "pooler_output", "hidden_states", "attentions"}


class ImageEncoder:
    """Encodes images with a model's own tower, and keeps up to `limit_bytes` of features on the CPU."""

    def __init__(self, model: PreTrainedModel, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.kept_bytes = 0
        self._model = model
        self._pixels: dict[str, dict[str, Tensor]] = {}
        self._features: dict[str, ImageFeatures] = {}

    def without_pixels(self, examples: Sequence[Example]) -> list[Example]:
        """Return the examples with features in the place of pixels, which are computed when they are first asked for.

        Rows that show the same images share them. If the model cannot be given features, the examples are as they were.
        """
        shown = next((example for example in examples if _pixels_of(example)), None)
        if shown is None or not self._understood(shown):
            return list(examples)
        return [self._without_pixels(example) for example in examples]

    def _understood(self, example: Example) -> bool:
        """Tell whether the model takes features, and whether all that it says about an image is in them."""
        if "mm_encoder_outputs" not in inspect.signature(self._model.forward).parameters:
            reason = "its forward pass takes no images that are encoded already"
        else:
            further = sorted(set(self._encode(example.inputs).keys()) - _UNDERSTOOD)
            if not further:
                return True
            reason = f"its vision tower has further outputs ({', '.join(further)})"
        log.info("image features are not kept", model=type(self._model).__name__, reason=reason)
        return False

    def _without_pixels(self, example: Example) -> Example:
        if not _pixels_of(example):
            return example
        wanted = self._asked_by_tower(example.inputs)
        key = _hash(wanted)
        self._pixels.setdefault(key, wanted)
        rest = {name: value for name, value in example.inputs.items() if not name.startswith(PIXELS)}
        return replace(example, inputs=rest, images=partial(self.features, key))

    def features(self, key: str) -> ImageFeatures:
        """Return the features of the images with this key, on the CPU."""
        found = self._features.get(key)
        if found is not None:
            return found
        pooled = self._encode(self._pixels[key]).pooler_output
        listed = not isinstance(pooled, Tensor)
        # Copies: what a list of images holds are views of one tensor, all of which they would keep alive.
        tensors = tuple(tensor.cpu().clone() for tensor in (pooled if listed else [pooled]))
        features = ImageFeatures(tensors=tensors, listed=listed)
        # The first to come stay. Every row is seen once per epoch, so that to replace the oldest would hit nothing.
        if self.kept_bytes + features.nbytes <= self.limit_bytes:
            self.kept_bytes += features.nbytes
            self._features[key] = features
            del self._pixels[key]
        return features

    @torch.no_grad()
    def _encode(self, inputs: dict[str, Tensor]) -> BaseModelOutputWithPooling:
        model = self._model
        training = model.training
        model.eval()  # a frozen tower drops nothing out
        precision = model.get_input_embeddings().weight.dtype
        with torch.autocast(model.device.type, dtype=precision, enabled=precision != torch.float32):
            asked = {name: value.to(model.device) for name, value in self._asked_by_tower(inputs).items()}
            output = model.base_model.get_image_features(**asked, return_dict=True)
        model.train(training)
        return output

    def _asked_by_tower(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the inputs that the vision tower reads, some of which the language model may read as well."""
        names = inspect.signature(self._model.base_model.get_image_features).parameters
        return {name: value for name, value in inputs.items() if name in names}


def _pixels_of(example: Example) -> bool:
    return any(name.startswith(PIXELS) for name in example.inputs)


def _hash(inputs: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(inputs):
        digest.update(f"{name} {tuple(inputs[name].shape)} ".encode())
        digest.update(inputs[name].contiguous().numpy().tobytes())
    return digest.hexdigest()

"""Free photographs, for pictures that show nothing the model has a name for."""

from __future__ import annotations

from PIL import Image


def photographs(*, held_out: bool) -> list[Image.Image]:
    """Return the photographs that scikit-learn (tested) and scikit-image (trained) come with."""
    if held_out:
        from sklearn.datasets import load_sample_images

        return [Image.fromarray(picture) for picture in load_sample_images().images]
    from skimage import data

    names = ("astronaut", "chelsea", "coffee", "rocket", "camera", "coins", "moon")
    return [Image.fromarray(getattr(data, name)()).convert("RGB") for name in names]

"""Stage 1b: the new projector learns to say, patch by patch, the words for what is there.

Every patch of a drawn picture is known, so its projection can be pulled towards SmolLM2's own embeddings of the words
for it (`red` and `star`, each letter of a word, the name of an emoji). This costs no pass through the language model,
and stage 2 then starts with image tokens that already read like text. What is neither near a thing nor a thing itself
is pulled to one word of its own.

Shape suffixes: B pictures, N patches, D width of the language model, W words that occur.
"""

from __future__ import annotations

import itertools
import json
import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax, normalize
from torch.utils.data import DataLoader, IterableDataset
from transformers import CLIPVisionModel, PreTrainedTokenizerBase
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from recipes.smol_llava.drawing import Artist
from recipes.smol_llava.scenes import SIDE, Scene
from recipes.smol_llava.see import normalised, pixels_of

GROUND, UNKNOWN = "background", "unknown"
MARGIN = 5
"""Pixels around a thing whose patches still belong to it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AlignSettings:
    """How stage 1b is trained."""

    steps: int = 240
    batch_size: int = 128
    projector_rate: float = 1e-3
    tower_rate: float = 1e-4
    sharpness: float = 20.0
    """Factor on cosines before the softmax over words."""
    seed: int = 0
    workers: int = 1


class Words:
    """The words that patches may be named by, as first tokens of SmolLM2."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, words: list[str]) -> None:
        self.words = words
        self.numbers = {word: number for number, word in enumerate(words)}
        self.tokens = torch.tensor(
            [
                tokenizer(f" {word}", add_special_tokens=False).input_ids[-1 if len(word) == 1 else 0]
                for word in words
            ]
        )


class Patches(IterableDataset[tuple[Tensor, Tensor]]):
    """Endless pictures [3, SIDE, SIDE] with the distribution of words over each patch [N, W], in float16."""

    def __init__(self, cache: Path, words: Words, patch: int, seed: str) -> None:
        self.cache, self.words, self.patch, self.seed = cache, words, patch, seed

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Draw for ever, each worker its own pictures."""
        info = torch.utils.data.get_worker_info()
        rng = random.Random(f"{self.seed}/{info.id if info else 0}")
        artist = Artist.of(self.cache)
        while True:
            scene = artist.draw(rng)
            yield pixels_of(scene.picture), named(scene, self.words, self.patch)


def named(scene: Scene, words: Words, patch: int) -> Tensor:
    """Return for each patch, row by row, an even distribution over the words for what it shows: [N, W]."""
    side = SIDE // patch
    target = torch.zeros(side * side, len(words.words), dtype=torch.float16)
    for index in range(side * side):
        x, y = (index % side + 0.5) * patch, (index // side + 0.5) * patch
        said = words_at(scene, x, y)
        for word in said:
            target[index, words.numbers[word]] += 1 / len(said)
    return target


def words_at(scene: Scene, x: float, y: float) -> list[str]:
    """Return the words for what is at a point of the picture."""
    if scene.kind == "nothing":
        return [UNKNOWN]
    if scene.kind in ("clock", "arrow"):
        return scene.text.replace("'", " ").split()
    nearest = min(scene.things, key=lambda thing: math.hypot(thing.x - x, thing.y - y), default=None)
    if nearest is None or max(abs(nearest.x - x), abs(nearest.y - y)) > max(nearest.size, 4) + MARGIN:
        return [GROUND]
    return nearest.described.split()


def words_of(cache: Path, tokenizer: PreTrainedTokenizerBase, out: Path) -> Words:
    """Return every word that may name a patch."""
    path = out / "words.json"
    if not path.exists():
        artist, rng = Artist.of(cache), random.Random("words")
        found = {GROUND, UNKNOWN, *"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"}
        found |= {word for concept in artist.sprites.concepts for word in concept.name.split()}
        for _ in range(5000):
            scene = artist.draw(rng, rng.choice(("shapes", "chart", "clock", "board", "arrow")))
            found |= {word for thing in scene.things for word in thing.described.split()}
            found |= set(scene.text.replace("'", " ").split())
        path.write_text(json.dumps(sorted(found)), encoding="utf-8")
    return Words(tokenizer, json.loads(path.read_text(encoding="utf-8")))


def align(
    tower: CLIPVisionModel,
    projector: LlavaMultiModalProjector,
    embedding: Tensor,
    words: Words,
    cache: Path,
    settings: AlignSettings,
) -> None:
    """Train the projector, and the tower gently, against rows of `embedding` [V, D]."""
    device = embedding.device
    targets_WD = normalize(embedding[words.tokens.to(device)].float() - embedding.float().mean(0), dim=-1)
    optimizer = torch.optim.AdamW(
        [
            {"params": list(projector.parameters()), "rate": settings.projector_rate},
            {"params": list(tower.parameters()), "rate": settings.tower_rate},
        ],
        lr=0.0, weight_decay=0.0, betas=(0.9, 0.98),
    )  # fmt: skip
    dataset = Patches(cache, words, tower.config.patch_size, f"align/{settings.seed}")
    pictures = DataLoader(
        dataset,
        settings.batch_size,
        num_workers=settings.workers,
        prefetch_factor=4 if settings.workers else None,
    )
    started, average = time.monotonic(), math.nan
    for step, (pixels, wanted_BNW) in enumerate(itertools.islice(pictures, settings.steps)):
        share = min(1.0, (step + 1) / 30) * 0.5 * (1 + math.cos(math.pi * step / settings.steps))
        for group in optimizer.param_groups:
            group["lr"] = group["rate"] * share
        with torch.autocast(device.type, dtype=torch.bfloat16):
            projected_BND = projector(tower(normalised(pixels.to(device))).last_hidden_state[:, 1:])
        logits_BNW = settings.sharpness * normalize(projected_BND.float(), dim=-1) @ targets_WD.T
        target_BNW = wanted_BNW.to(device).float()
        # Ground is everywhere and soon known: it counts a tenth.
        weight_BN = 1 - 0.9 * target_BNW[..., words.numbers[GROUND]]
        losses_BN = -(target_BNW * log_softmax(logits_BNW, dim=-1)).sum(-1)
        loss = (weight_BN * losses_BN).sum() / weight_BN.sum()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_([*tower.parameters(), *projector.parameters()], 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average = loss.item() if math.isnan(average) else 0.95 * average + 0.05 * loss.item()
        if (step + 1) % 20 == 0:
            speed = (step + 1) * settings.batch_size / (time.monotonic() - started)
            right = target_BNW.gather(-1, logits_BNW.argmax(-1, keepdim=True)).squeeze(-1) > 0
            of_things = target_BNW[..., words.numbers[GROUND]] == 0
            found = 100 * float(right[of_things].float().mean())
            print(
                f"align {step + 1}/{settings.steps} loss {average:.3f}, {found:.0f} % of patches of things named right,"
                f" {speed:.0f} pictures/s", flush=True,
            )  # fmt: skip


@torch.no_grad()
def rescale(
    tower: CLIPVisionModel, projector: LlavaMultiModalProjector, embedding: Tensor, pixels: Tensor
) -> None:
    """Give projections the length that word embeddings have around their mean, and put them around it."""
    projected = projector(tower(normalised(pixels)).last_hidden_state[:, 1:]).flatten(0, 1)
    mean = embedding.float().mean(0)
    factor = (embedding.float() - mean).norm(dim=1).mean() / projected.norm(dim=1).mean()
    projector.linear_2.weight *= factor
    projector.linear_2.bias.copy_(factor * projector.linear_2.bias + mean)

"""Stage 1: a vision tower learns to see by captioning, with a small decoder that is thrown away afterwards.

Half of the batches are captioned word by word, in half of them all words are told at once from the picture alone
(CapPa, arXiv 2306.07915), which leaves the decoder no language to lean on. Matrices of the tower are trained with Muon,
everything else with AdamW.

Shape suffixes: B pictures, L words of a caption, K words told in a batch, V of the vocabulary, D width, N patches and
the class token.
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

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, IterableDataset
from transformers import CLIPVisionConfig, CLIPVisionModel

from recipes.smol_llava.captions import LONGEST, UNKNOWN, Vocabulary, caption
from recipes.smol_llava.drawing import Artist
from recipes.smol_llava.scenes import SIDE

TOWER = CLIPVisionConfig(
    hidden_size=256, intermediate_size=1024, num_hidden_layers=6, num_attention_heads=4, image_size=SIDE, patch_size=16,
    projection_dim=256,
)  # fmt: skip
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""CLIP's, per channel, as its image processor applies them."""
VOCABULARY_SAMPLE = 30_000
"""Captions from which the vocabulary is collected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeeSettings:
    """How stage 1 is trained."""

    steps: int = 2400
    batch_size: int = 128
    learning_rate: float = 1.5e-3
    warmup_steps: int = 150
    weight_decay: float = 0.05
    seed: int = 0
    workers: int = 1
    save_every: int = 250


class Captioner(nn.Module):
    """A small decoder that reads the tower's patches; D is the tower's width."""

    def __init__(self, words: int, width: int, layers: int = 2) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.position = nn.Parameter(torch.randn(LONGEST, width) * 0.02)
        layer = nn.TransformerDecoderLayer(
            width, 4, 2 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerDecoder(layer, layers, norm=nn.LayerNorm(width))
        nn.init.normal_(self.embedding.weight, std=0.02)

    def forward(self, words_BL: Tensor, patches_BND: Tensor, *, parallel: bool) -> Tensor:
        """Return states [B, L, D]: of the next word, or in parallel of every word from the picture alone."""
        length = words_BL.shape[1]
        x_BLD = self.embedding(words_BL) + self.position[:length]
        mask = (
            None if parallel else nn.Transformer.generate_square_subsequent_mask(length, device=x_BLD.device)
        )
        states_BLD: Tensor = self.layers(x_BLD, patches_BND, tgt_mask=mask, tgt_is_causal=not parallel)
        return states_BLD


class Captions(IterableDataset[tuple[Tensor, Tensor]]):
    """Endless pictures [3, SIDE, SIDE] in bytes with the numbers of their captions [LONGEST]."""

    def __init__(self, cache: Path, vocabulary: Vocabulary, seed: str) -> None:
        self.cache, self.vocabulary, self.seed = cache, vocabulary, seed

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Draw for ever, each worker its own pictures."""
        info = torch.utils.data.get_worker_info()
        rng = random.Random(f"{self.seed}/{info.id if info else 0}")
        artist = Artist.of(self.cache)
        while True:
            scene = artist.draw(rng)
            yield pixels_of(scene.picture), torch.tensor(self.vocabulary.encode(caption(scene)))


def pixels_of(picture: object) -> Tensor:
    """Return a picture as bytes [3, SIDE, SIDE]."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def normalised(pixels_BCHW: Tensor) -> Tensor:
    """Return bytes as CLIP's image processor would hand them to a tower."""
    mean, std = (torch.tensor(part, device=pixels_BCHW.device).view(1, 3, 1, 1) for part in (MEAN, STD))
    return (pixels_BCHW.float() / 255 - mean) / std


def see(cache: Path, out: Path, settings: SeeSettings) -> None:
    """Train the tower to the last step, from `out`'s checkpoint on if there is one, and save it to `out`/tower."""
    torch.manual_seed(settings.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    out.mkdir(parents=True, exist_ok=True)
    vocabulary = vocabulary_of(cache, out)
    tower = CLIPVisionModel(TOWER).to(device)
    tower.set_attn_implementation("eager")  # for 37 tokens a third faster than the fused one
    captioner = Captioner(len(vocabulary.words), TOWER.hidden_size).to(device)
    optimizers = optimizers_of(tower, captioner, settings)
    done = resume(out / "see.pt", tower, captioner, optimizers)

    dataset = Captions(cache, vocabulary, f"see/{settings.seed}/{done}")
    pictures = DataLoader(
        dataset,
        settings.batch_size,
        num_workers=settings.workers,
        prefetch_factor=4 if settings.workers else None,
    )
    started, average = time.monotonic(), math.nan
    for step, (pixels, words) in enumerate(itertools.islice(pictures, settings.steps - done), done):
        rate = rate_at(step, settings)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        loss = loss_of(
            tower,
            captioner,
            pixels.to(device),
            words.to(device),
            parallel=step % 2 == 1,
            vocabulary=vocabulary,
        )
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_([*tower.parameters(), *captioner.parameters()], 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        average = loss.item() if math.isnan(average) else 0.98 * average + 0.02 * loss.item()
        if (step + 1) % 50 == 0:
            speed = (step + 1 - done) * settings.batch_size / (time.monotonic() - started)
            print(f"see {step + 1}/{settings.steps} loss {average:.3f} {speed:.0f} pictures/s", flush=True)
        if (step + 1) % settings.save_every == 0 or step + 1 == settings.steps:
            save(out / "see.pt", step + 1, tower, captioner, optimizers)
    tower.save_pretrained(out / "tower")


def loss_of(
    tower: CLIPVisionModel,
    captioner: Captioner,
    pixels_BCHW: Tensor,
    words_BL: Tensor,
    *,
    parallel: bool,
    vocabulary: Vocabulary,
) -> Tensor:
    """Return the mean nats per word of a batch."""
    longest = int((words_BL != 0).sum(dim=1).max())
    words_BL = words_BL[:, :longest]
    given_BL = words_BL[:, :-1].clone()
    if parallel:
        given_BL[:, 1:] = vocabulary.numbers[UNKNOWN]
    told_BL = words_BL[:, 1:] != 0
    with torch.autocast(pixels_BCHW.device.type, dtype=torch.bfloat16):
        patches_BND = tower(normalised(pixels_BCHW)).last_hidden_state
        states_BLD = captioner(given_BL, patches_BND, parallel=parallel)
        logits_KV = states_BLD[told_BL] @ captioner.embedding.weight.T
    return cross_entropy(logits_KV.float(), words_BL[:, 1:][told_BL])


def vocabulary_of(cache: Path, out: Path) -> Vocabulary:
    """Return the vocabulary of the captions, collected once."""
    path = out / "vocabulary.json"
    if not path.exists():
        artist, rng = Artist.of(cache), random.Random("vocabulary")
        drawn = [caption(artist.draw(rng)) for _ in range(VOCABULARY_SAMPLE)]
        named = [[*concept.name.split(), *concept.subgroup.split()] for concept in artist.sprites.concepts]
        path.write_text(json.dumps(Vocabulary.of(drawn + named).words), encoding="utf-8")
    return Vocabulary(json.loads(path.read_text(encoding="utf-8")))


def optimizers_of(
    tower: nn.Module, captioner: nn.Module, settings: SeeSettings
) -> list[torch.optim.Optimizer]:
    """Give the matrices of both transformers to Muon and all other tensors to AdamW, at the same rate."""
    named = [*tower.named_parameters(), *captioner.named_parameters()]
    hidden = [weight for name, weight in named if weight.ndim == 2 and "layers" in name]
    others = [weight for name, weight in named if not (weight.ndim == 2 and "layers" in name)]
    return [
        torch.optim.Muon(hidden, lr=0.0, weight_decay=settings.weight_decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=0.0, weight_decay=settings.weight_decay, betas=(0.9, 0.98)),
    ]


def rate_at(step: int, settings: SeeSettings) -> float:
    """Return the learning rate of a step counted from 0: a linear rise, then half a cosine down to 1 %."""
    rise = min(1.0, (step + 1) / settings.warmup_steps)
    return (
        settings.learning_rate * rise * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / settings.steps)))
    )


def save(
    path: Path, step: int, tower: nn.Module, captioner: nn.Module, optimizers: list[torch.optim.Optimizer]
) -> None:
    """Write a checkpoint, whole or not at all."""
    state = {
        "step": step,
        "tower": tower.state_dict(),
        "captioner": captioner.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
    }
    torch.save(state, path.with_suffix(".writing"))
    path.with_suffix(".writing").replace(path)


def resume(
    path: Path, tower: nn.Module, captioner: nn.Module, optimizers: list[torch.optim.Optimizer]
) -> int:
    """Go on from a checkpoint, if there is one; return how many steps are done."""
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    tower.load_state_dict(state["tower"])
    captioner.load_state_dict(state["captioner"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    step: int = state["step"]
    return step

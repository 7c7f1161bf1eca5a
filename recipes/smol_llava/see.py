"""Stage 1: a vision tower learns to see, by naming what each of its patches shows.

Pictures are crowded with letters, shapes and emoji, because every thing in one is a lesson and a picture costs the same
however much it shows: ten times the lessons of pictures with a caption each. Names are tokens of SmolLM2, in which
stage 1b goes on to tell whole pictures. Matrices of the tower are trained with Muon, everything else with AdamW.

Shape suffixes: B pictures, N patches, K of these with a loss, W tokens of the lexicon, H width of the tower.
"""

from __future__ import annotations

import itertools
import math
import random
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax
from torch.utils.data import DataLoader, IterableDataset
from transformers import AutoTokenizer, CLIPVisionConfig, CLIPVisionModel

from recipes.smol_llava.drawing import Artist
from recipes.smol_llava.scenes import SIDE
from recipes.smol_llava.slots import GROUND, Lexicon
from serving.embedded import UNWRITTEN_TOKEN, find_gguf, language_tensors

TOWER = CLIPVisionConfig(
    hidden_size=256, intermediate_size=1024, num_hidden_layers=6, num_attention_heads=4, image_size=SIDE, patch_size=16,
    projection_dim=256,
)  # fmt: skip
PATCHES = (SIDE // TOWER.patch_size) ** 2
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""CLIP's, per channel, as its image processor applies them."""
KINDS = {
    "crowd": 0.75, "emoji": 0.06, "shapes": 0.05, "text": 0.06, "chart": 0.02, "clock": 0.02, "board": 0.01,
    "arrow": 0.01, "nothing": 0.02,
}  # fmt: skip
"""How often each kind of picture is drawn."""
SHOWN = 3
"""Times that a picture is shown: drawing a crowd takes 2 ms, learning from it 3."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeeSettings:
    """How stage 1 is trained."""

    steps: int = 3300
    batch_size: int = 96
    learning_rate: float = 2e-3
    warmup_steps: int = 100
    weight_decay: float = 0.05
    empty: float = 0.1
    """Share of the patches that show nothing, and of the places where nothing is said, which are learned from."""
    seed: int = 0
    workers: int = 1
    save_every: int = 400
    compiled: bool = True
    """Whether torch compiles the tower first, half a minute for a quarter of the time after it; needs g++."""


class Namer(nn.Module):
    """A tower and the head, thrown away afterwards, that names its patches."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.tower = CLIPVisionModel(TOWER)
        look_around(self.tower)
        self.tower.set_attn_implementation("eager")  # for 37 tokens a third faster than the fused one
        self.naming = nn.Linear(TOWER.hidden_size, words)

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        """Return what the patches are, [B, N, H], for `naming`."""
        states_BNH: Tensor = self.tower(pixels_BCHW).last_hidden_state[:, 1:]
        return states_BNH


class Drawn(IterableDataset[tuple[int, Tensor, Tensor, Tensor]]):
    """Endless pictures: kind, bytes [3, SIDE, SIDE], caption [N], words of patches [N, WORDS_OF_PATCH].

    Each one drawn is shown `shown` times on average, picked at random from the last POOL, where drawing would keep
    training waiting.
    """

    POOL = 6000

    def __init__(
        self, cache: Path, lexicon: Lexicon, kinds: dict[str, float], seed: str, shown: int = 1
    ) -> None:
        self.cache, self.lexicon, self.kinds, self.seed, self.shown = cache, lexicon, kinds, seed, shown

    def __iter__(self) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
        """Draw for ever, each worker its own pictures."""
        info = torch.utils.data.get_worker_info()
        rng = random.Random(f"{self.seed}/{info.id if info else 0}")
        artist, kinds, shares = Artist.of(self.cache), list(self.kinds), list(self.kinds.values())
        pool: list[tuple[int, Tensor, Tensor, Tensor]] = []
        while True:
            kind = rng.choices(kinds, shares)[0]
            scene = artist.draw(rng, kind)
            drawn = (
                kinds.index(kind),
                pixels_of(scene.picture),
                self.lexicon.encode(scene, PATCHES),
                self.lexicon.patches(scene, TOWER.patch_size),
            )
            yield drawn
            if self.shown > 1:
                if len(pool) == self.POOL:
                    pool[rng.randrange(self.POOL)] = drawn
                else:
                    pool.append(drawn)
                yield from rng.choices(pool, k=self.shown - 1)

    def batches(self, size: int, workers: int) -> DataLoader[tuple[int, Tensor, Tensor, Tensor]]:
        """Return batches of pictures, drawn by this many processes."""
        return DataLoader(self, size, num_workers=workers, prefetch_factor=4 if workers else None)


def see(cache: Path, out: Path, settings: SeeSettings) -> None:
    """Train the tower to the last step, from `out`'s checkpoint on if there is one."""
    torch.manual_seed(settings.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    out.mkdir(parents=True, exist_ok=True)
    _, lexicon = words_of(cache)
    ground = lexicon.say(GROUND)[0]
    namer = Namer(len(lexicon.tokens)).to(device)
    optimizers = optimizers_of(namer, settings.weight_decay)
    done = resume(out / "see.pt", namer, optimizers)
    drawn = Drawn(cache, lexicon, KINDS, f"see/{settings.seed}/{done}", shown=SHOWN)
    batches = itertools.islice(drawn.batches(settings.batch_size, settings.workers), settings.steps - done)
    started, average, right = time.monotonic(), math.nan, Right(KINDS)
    seen = torch.compile(namer, disable=not settings.compiled)
    for step, (kinds, pixels, _, words) in enumerate(batches, done):
        set_rate(optimizers, settings.learning_rate * share_at(step, settings.steps, settings.warmup_steps))
        with torch.autocast(device.type, dtype=torch.bfloat16):
            states_BNH = seen(normalised(pixels.to(device)))
            loss = named_loss(
                namer.naming, states_BNH, words.to(device), ground, settings.empty, right, kinds
            )
        update(namer, optimizers, loss)
        average = loss.item() if math.isnan(average) else 0.98 * average + 0.02 * loss.item()
        if (step + 1) % 50 == 0:
            speed = (step + 1 - done) * settings.batch_size / (time.monotonic() - started)
            print(
                f"see {step + 1}/{settings.steps} loss {average:.3f} {speed:.0f} pictures/s {right}",
                flush=True,
            )
            right = Right(KINDS)
        if (step + 1) % settings.save_every == 0 or step + 1 == settings.steps:
            save(out / "see.pt", step + 1, namer, optimizers)


@torch.no_grad()
def look_around(tower: CLIPVisionModel) -> None:
    """Initialise a tower so that each patch attends to its neighbours first, as trained towers do.

    Query and key are made to agree where patches do, value and output to take away what was there (Trockman and Kolter,
    arXiv 2305.09828, equations 4 to 6), and positions are those of a grid, as sines and cosines.
    """
    config = tower.config
    width, heads = config.hidden_size, config.num_attention_heads
    tower.embeddings.position_embedding.weight[1:] = 0.7 * grid(config.image_size // config.patch_size, width)
    for layer in tower.encoder.layers:
        attention = layer.self_attn
        queries, keys = (
            attention.q_proj.weight.view(heads, -1, width),
            attention.k_proj.weight.view(heads, -1, width),
        )
        for query, key in zip(queries, keys, strict=True):
            left, right = halves(0.7 * noise(width) + 0.7 * torch.eye(width), len(query))
            query.copy_(left.T)
            key.copy_(right.T)
        left, right = halves(0.4 * noise(width) - 0.4 * torch.eye(width), width)
        attention.v_proj.weight.copy_(left.T)
        attention.out_proj.weight.copy_(right)


def noise(width: int) -> Tensor:
    """Return a random matrix [width, width] whose rows are about one long."""
    return torch.randn(width, width) / math.sqrt(width)


def halves(product: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return two matrices [D, rank] with `left @ right.T` the nearest of this rank to `product` [D, D]."""
    left, sizes, right = torch.linalg.svd(product)
    return left[:, :rank] * sizes[:rank].sqrt(), right[:rank].T * sizes[:rank].sqrt()


def grid(side: int, width: int) -> Tensor:
    """Return positions of side x side patches, row by row, as sines and cosines of each coordinate: [N, width]."""
    frequencies = 2 * 100.0 ** -(torch.arange(width // 4) / (width // 4))
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    angles = [place.flatten()[:, None] * frequencies for place in (columns, rows)]
    return torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], dim=1)


def named_loss(
    naming: nn.Linear,
    states_BNH: Tensor,
    words_BN4: Tensor,
    ground: int,
    share: float,
    right: Right,
    kinds_B: Tensor,
) -> Tensor:
    """Return the mean nats per patch of an even choice among the words for what it shows.

    `words_BN4` holds up to WORDS_OF_PATCH words, then -1. Of patches that show `ground`, a share is learned from.
    Counts in `right` the patches of things that are given one of their words.
    """
    shows_BN = words_BN4[..., 0] != ground
    chosen_BN = shows_BN | (torch.rand(shows_BN.shape, device=shows_BN.device) < share)
    words_K4 = words_BN4[chosen_BN]
    logits_KW = naming(states_BNH[chosen_BN]).float()
    nats_K4 = -log_softmax(logits_KW, -1).gather(-1, words_K4.clamp(min=0))
    there_K4 = words_K4 >= 0
    right.add(kinds_B, (logits_KW.argmax(-1, keepdim=True) == words_K4).any(-1), chosen_BN, shows_BN)
    return ((nats_K4 * there_K4).sum(-1) / there_K4.sum(-1)).mean()


class Right:
    """Counts, by kind of picture, how many patches or tokens are right, and how many pictures in all of theirs.

    Where pictures are shown several times these shares are of pictures seen before, and far above those of new ones.
    """

    def __init__(self, kinds: dict[str, float]) -> None:
        self.kinds = list(kinds)
        self.counts: dict[int, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])

    def add(self, kinds_B: Tensor, right_K: Tensor, chosen_BN: Tensor, counted_BN: Tensor) -> None:
        """Count one batch: K are its chosen patches, of which those to be counted are counted."""
        right_BN = torch.zeros_like(counted_BN)
        right_BN[chosen_BN] = right_K
        shares = (right_BN & counted_BN).sum(1) / counted_BN.sum(1)
        for kind, share in zip(kinds_B.tolist(), shares.tolist(), strict=True):
            if math.isnan(share):
                continue  # nothing in it is to be counted
            counted = self.counts[kind]
            counted[0] += 1
            counted[1] += share
            counted[2] += share == 1

    def __str__(self) -> str:
        """Return `shapes 93/60 …`: percent of patches or tokens, and of whole pictures."""
        return " ".join(
            f"{self.kinds[kind]} {100 * parts / pictures:.0f}/{100 * whole / pictures:.0f}"
            for kind, (pictures, parts, whole) in sorted(self.counts.items())
        )


def words_of(cache: Path) -> tuple[Tensor, Lexicon]:
    """Return SmolLM2's embeddings [V, D] and the lexicon of all that is named and told."""
    gguf = find_gguf()
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, local_files_only=True)
    unwritten = tokenizer.convert_tokens_to_ids(UNWRITTEN_TOKEN)
    embedding_VD = language_tensors(gguf, unwritten)["language_model.model.embed_tokens.weight"]
    concepts = Artist.of(cache).sprites.concepts
    names = sorted({name for concept in concepts for name in (concept.name, concept.subgroup)})
    return embedding_VD, Lexicon.of(tokenizer, names)


def pixels_of(picture: object) -> Tensor:
    """Return a picture as bytes [3, SIDE, SIDE]."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def normalised(pixels_BCHW: Tensor) -> Tensor:
    """Return bytes as CLIP's image processor would hand them to a tower."""
    mean, std = (torch.tensor(part, device=pixels_BCHW.device).view(1, 3, 1, 1) for part in (MEAN, STD))
    return (pixels_BCHW.float() / 255 - mean) / std


def optimizers_of(model: nn.Module, weight_decay: float) -> list[torch.optim.Optimizer]:
    """Give the matrices of the tower's blocks to Muon and all other tensors to AdamW, at the same rate."""
    named = list(model.named_parameters())
    hidden = [weight for name, weight in named if weight.ndim == 2 and "layers" in name]
    others = [weight for name, weight in named if not (weight.ndim == 2 and "layers" in name)]
    return [
        torch.optim.Muon(hidden, lr=0.0, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=0.0, weight_decay=0.0, betas=(0.9, 0.98)),
    ]


def share_at(step: int, steps: int, warmup_steps: int) -> float:
    """Return the share of the highest rate at a step counted from 0: a linear rise, then half a cosine down to 1 %."""
    rise = min(1.0, (step + 1) / warmup_steps)
    return rise * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def set_rate(optimizers: list[torch.optim.Optimizer], rate: float) -> None:
    """Set the learning rate of all."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate


def update(model: nn.Module, optimizers: list[torch.optim.Optimizer], loss: Tensor) -> None:
    """Take one step down a loss, no gradient longer than 1."""
    torch.autograd.backward(loss)
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()


def save(path: Path, step: int, model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> None:
    """Write a checkpoint, whole or not at all."""
    state = {
        "step": step,
        "model": model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
    }
    torch.save(state, path.with_suffix(".writing"))
    path.with_suffix(".writing").replace(path)


def resume(path: Path, model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> int:
    """Go on from a checkpoint, if there is one; return how many steps are done."""
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    if state["optimizers"] is not None:  # what was packed and unpacked comes without
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
    step: int = state["step"]
    return step

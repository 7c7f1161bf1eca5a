"""compose.yaml and the Dockerfile agree with the code they start."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.settings import AppSettings
from serving.settings import ServingSettings
from storage.settings import StorageSettings, names_of

PROJECT = Path(__file__).parents[2]
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((PROJECT / "compose.yaml").read_text())["services"]
DOCKERFILE = (PROJECT / "Dockerfile").read_text().splitlines()


@pytest.mark.parametrize(("profile", "suffix"), [("cpu", ""), ("gpu", "-gpu")])
def test_each_profile_starts_the_three_processes(profile: str, suffix: str) -> None:
    """Both profiles have one service per process, of one image, and every command is a module that can be run."""
    chosen = {name: service for name, service in SERVICES.items() if service["profiles"] == [profile]}
    assert set(chosen) == {f"serving{suffix}", f"learner{suffix}", f"web{suffix}"}
    assert {service["image"] for service in chosen.values()} == {f"llaca:{profile}"}
    assert {service["build"]["args"]["VLLM"] for service in chosen.values()} == {profile}
    commands = [service["command"] for service in chosen.values()]
    assert all(command[:2] == ["python", "-m"] for command in commands)
    assert {command[2] for command in commands} == {"serving", "learner", "app"}
    assert all(find_spec(f"{command[2]}.__main__") for command in commands)


@pytest.mark.parametrize("name", SERVICES)
def test_all_services_meet_in_one_directory(name: str) -> None:
    """Every service has the same volume mounted where its settings say the data is, and no setting is misspelt."""
    environment = SERVICES[name]["environment"]
    assert SERVICES[name]["volumes"] == [f"data:{environment['LLACA_DATA_DIR']}"]
    assert environment["LLACA_REPLICAS"] == SERVICES["web"]["environment"]["LLACA_REPLICAS"]
    assert set(environment) <= names_of(StorageSettings, ServingSettings, AppSettings)


@pytest.mark.parametrize("name", SERVICES)
def test_only_the_web_page_is_published_and_to_this_machine_only(name: str) -> None:
    """No port but that of the web page leaves the containers, and it is bound to loopback; each service is watched."""
    published = SERVICES[name].get("ports", [])
    assert published == (["127.0.0.1:7860:7860"] if name.startswith("web") else [])
    assert SERVICES[name]["healthcheck"]["test"][0] == "CMD"


def test_only_the_gpu_services_that_compute_reserve_gpus() -> None:
    """Serving and learner of the GPU profile get the GPUs; nothing of the CPU profile asks for one."""
    assert {name for name, service in SERVICES.items() if "deploy" in service} == {
        "serving-gpu",
        "learner-gpu",
    }


def test_the_image_holds_the_code_and_runs_without_root() -> None:
    """What the Dockerfile copies exists and is not ignored, all packages are among it, and it ends as another user."""
    copied = {
        source
        for line in DOCKERFILE
        if line.startswith("COPY ") and "--from" not in line
        for source in line.split()[1:-1]
    }
    kept = {line[1:] for line in (PROJECT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert {"app", "learner", "serving", "storage"} <= copied
    assert all((PROJECT / source).exists() for source in copied)
    assert copied == kept
    assert [line for line in DOCKERFILE if line.startswith("USER ")] == ["USER llaca"]

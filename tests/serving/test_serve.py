"""`python -m serving` as a process, without vLLM: it heals servers that others start, and stops when told to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from storage.records import User
from storage.store import Store
from tests.fake_vllm import FakeVLLM
from tests.serving.adapters import claimed_round, published, write_lora

SECONDS = 30


def serving(store: Store, **settings: str) -> subprocess.Popen[str]:
    """Start `python -m serving` on an installation."""
    environment = os.environ | {"LLACA_DATA_DIR": str(store.data_dir), "LLACA_START_VLLM": "false"} | settings
    return subprocess.Popen(
        [sys.executable, "-m", "serving"], env=environment, stderr=subprocess.PIPE, text=True
    )


@pytest.fixture
def keyed(store: Store) -> FakeVLLM:
    """A fake server that takes the installation's own key; not started."""
    return FakeVLLM(key=store.secret("vllm"))


def test_the_reconciler_runs_until_it_is_told_to_stop(
    store: Store, admin: User, keyed: FakeVLLM, tmp_path: Path
) -> None:
    """A wanted generation is loaded without anybody asking, and SIGTERM ends the process with status 0."""
    generation = published(store, claimed_round(store, admin), write_lora(tmp_path / "new", seed=1))
    with keyed, serving(store, LLACA_REPLICAS=f'["{keyed.url}"]') as process:
        deadline = time.monotonic() + SECONDS
        while ("load", generation.name) not in keyed.calls and time.monotonic() < deadline:
            time.sleep(0.05)
        assert keyed.calls == [("load", generation.name)]
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) == 0


def test_settings_that_cannot_work_end_it_with_a_sentence(store: Store) -> None:
    """Exit status 2, the variable's name, and no traceback."""
    with serving(store, LLACA_MAX_LORA_RANK="7") as process:
        _, error = process.communicate(timeout=SECONDS)
    assert process.returncode == 2
    assert "LLACA_MAX_LORA_RANK" in error
    assert "Traceback" not in error

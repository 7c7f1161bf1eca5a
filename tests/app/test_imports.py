"""The web process stays light."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("torch", "vllm", "transformers", "peft", "accelerate", "learner")


def test_the_app_never_loads_what_only_models_need() -> None:
    """Importing everything of the app, in a process of its own, loads neither torch nor vLLM nor the learner."""
    code = (
        "import sys, app.main, app.cli, app.up, app.doctor\n"
        f"print(sorted(name for name in {HEAVY!r} if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

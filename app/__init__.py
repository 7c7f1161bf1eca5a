"""What people touch: the web page, the HTTP API, sign-in and the `llaca` command.

Knows storage and serving. Does not know how a model learns, and never imports torch, vllm or the learner.
"""

import os

# Read by the libraries when they are first imported, hence here: nothing leaves this machine unasked.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

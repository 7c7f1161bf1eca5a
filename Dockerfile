# syntax=docker/dockerfile:1
# One image for all three services; compose.yaml says what each runs.
#   docker build --build-arg VLLM=cpu .     for machines without a GPU (default)
#   docker build --build-arg VLLM=gpu .     vLLM's CUDA build
# Where pip finds packages can be passed on: --build-arg PIP_INDEX_URL=… --build-arg PIP_EXTRA_INDEX_URL=…

FROM python:3.11-slim-bookworm AS base
# libnuma1: vLLM's CPU build is linked with it. gcc, g++: vLLM compiles kernels at start, on GPUs in any case.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ gcc libc6-dev libnuma1 \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/llaca

FROM base AS environment
ARG VLLM=cpu
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ENV PIP_NO_COMPILE=1
COPY pyproject.toml README.md LICENSE ./
COPY scripts scripts
# Empty packages: the environment is made before the code is copied, so that a change of code does not make it anew.
RUN for name in app learner serving storage; do mkdir "$name" && touch "$name/__init__.py"; done
RUN --mount=type=cache,target=/root/.cache/pip python scripts/environment.py --vllm "$VLLM"

FROM base AS llaca
RUN useradd --uid 10001 --create-home llaca && install --directory --owner=llaca --group=llaca /data
COPY --from=environment /opt/llaca/.venv .venv
COPY pyproject.toml README.md LICENSE ./
COPY storage storage
COPY serving serving
COPY learner learner
COPY app app
ENV PATH=/opt/llaca/.venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HF_HOME=/data/hub \
    LLACA_DATA_DIR=/data
USER llaca
VOLUME /data
EXPOSE 7860
CMD ["llaca", "up"]

# make up      set up the environment and start the assistant
# make test    set up the environment and run every check and every test
# PYTHON=…     another Python (3.11 or newer) to build the environment with
# VLLM=cpu     or gpu: the build of vLLM, where the detected one is not wanted

PYTHON ?= python3
SETUP = $(PYTHON) scripts/environment.py $(if $(VLLM),--vllm $(VLLM))
BIN = .venv/bin

.PHONY: up test env lint format check

up:
	@$(SETUP)
	@exec $(BIN)/llaca up

test: lint
	@$(BIN)/python -m pytest

# Without the real vLLM and the browser.
check: lint
	@$(BIN)/python -m pytest -m "not real and not browser"

lint: env
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

format: env
	@$(BIN)/ruff check --fix --quiet .
	@$(BIN)/ruff format --quiet .

env:
	@$(SETUP) --dev

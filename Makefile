# One word a job; `make help` lists them. Everything runs inside .venv, made by `make setup` with uv or with pip alone.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
export TOKENIZERS_PARALLELISM := false
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo test check bench soak clean
help:  ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 10

setup: $(STAMP)  ## .venv with everything (uv if present, else pip)
$(STAMP): pyproject.toml
	@if command -v uv >/dev/null 2>&1; then \
	  uv venv --quiet --allow-existing --seed --python $(PYTHON) $(VENV) && uv pip install --quiet --compile-bytecode --python $(BIN)/python -e '.[dev,parity]'; \
	else \
	  $(PYTHON) -m venv $(VENV) && $(BIN)/python -m pip install --quiet --upgrade pip && $(BIN)/python -m pip install --quiet -e '.[dev,parity]'; \
	fi
	@touch $(STAMP)

demo: setup  ## the main job on the embedded world: train, evaluate, report
	$(BIN)/python scripts/demo.py

test: setup  ## the whole test suite
	$(BIN)/python -m pytest tests

check: setup  ## lint and types
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: setup  ## scripts/bench_*.py, one JSON line a case
	for script in scripts/bench_*.py; do $(BIN)/python $$script || exit 1; done

soak: setup  ## the reliability goals that take minutes, one JSON line each; code 1 when one is missed
	$(BIN)/python scripts/soak.py

clean:  ## the environment and what tools left behind
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache

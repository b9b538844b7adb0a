# Two commands, each doing all of its own set-up: `make up` and `make test`. Needs Python >= 3.11 with pip, git, make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
unexport PYTHONDONTWRITEBYTECODE

.PHONY: up test check unit docs lock clean
.DEFAULT_GOAL := test

up: $(VENV)/ready  ## the whole idea on this machine: store, model, cache, two replicas, router, an answer
	$(BIN)/onecopy up

test: $(VENV)/ready  ## everything that CI runs: lint, types, layers, all tests that need no cloud
	bash tests/run-all

check: $(VENV)/ready  ## lint, types, layers: seconds
	$(BIN)/ruff check .
	$(BIN)/ruff format --check . 
	$(BIN)/pyright
	$(BIN)/lint-imports

unit: $(VENV)/ready  ## the quick tests alone
	$(BIN)/pytest -q tests/unit tests/property

# uv makes the environment from the lock, hashes checked. The lock names no index, so it works behind any mirror.
$(VENV)/ready: requirements-dev.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip sync --quiet --python $(BIN)/python --require-hashes requirements-dev.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	touch $@

docs: $(VENV)/ready  ## write docs/reference/ from the code
	$(BIN)/python docs/generate.py

PIN := $(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header --python-version 3.11

lock:  ## pin again from pyproject.toml
	$(PIN) --group dev --all-extras pyproject.toml -o requirements-dev.lock
	$(PIN) --constraint requirements-dev.lock pyproject.toml -o images/onecopy.txt
	echo 'hatchling>=1.27' | $(PIN) - -o images/build.txt
	printf 'obstore\nxxhash\n' | $(PIN) --no-deps --constraint images/onecopy.txt - -o images/plugin.txt

clean:
	rm -rf $(VENV)

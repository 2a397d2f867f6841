# make demo and make test set up what they need in .venv on first use.
PYTHON ?= python3
BIN = .venv/bin

.PHONY: help demo demo-reflow test lint clean

help:
	@echo "make demo         train on embedded digits, sample, measure, draw (a few minutes on two CPU cores)"
	@echo "make demo-reflow  make it straight: pairs, 2-RF++, one-step samples beside those from before"
	@echo "make test         run the tests"
	@echo "make lint         check style and types"
	@echo "make clean        remove the environment and caches"

.venv/.stamp: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("genflow needs Python 3.11 or newer: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -c constraints.txt -e ".[dev]"
	@touch $@

demo: .venv/.stamp
	$(BIN)/genflow demo

demo-reflow: .venv/.stamp
	$(BIN)/genflow demo-reflow

test: .venv/.stamp
	$(BIN)/python -m pytest -n 2 --maxschedchunk 1

lint: .venv/.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

clean:
	rm -rf .venv build dist .pytest_cache .ruff_cache

# Two commands on a fresh machine: `make run` (set-up and the main job) and `make test` (set-up and all tests).
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

DEB_PYTHON ?= /usr/bin/python3

# What an editable installation is made from, and has to be made again for.
INSTALLED := pyproject.toml $(wildcard workerlib/*.[ch])

.PHONY: run test soak lint format bench deb clean setup setup-dev

run: setup
	$(BIN)/parsupd --config etc/parsupd.toml

test: setup-dev
	$(BIN)/pytest

# A million records and as many lines through a real journald, which needs root, and a million lines into log files.
soak: setup-dev
	PARSUP_SOAK=1 $(BIN)/pytest -s tests/crash/test_log_lines.py
	PARSUP_SOAK=1 $(BIN)/pytest -s tests/machine/test_journal_soak.py

lint: setup-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pyright

format: setup-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.bench
	$(BIN)/python tests/benchmarks/run.py

setup: $(VENV)/.base
setup-dev: $(VENV)/.dev

deb: setup-dev
	$(BIN)/python deploy/debian.py dist $(DEB_PYTHON)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "parsupd needs Python 3.11 or later; name one with: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "no virtual environment could be made; on Debian: apt install python3-venv" >&2; rm -rf $(VENV); exit 1; }

$(VENV)/.base: $(BIN)/python $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.dev: $(BIN)/python $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@ $(VENV)/.base

$(VENV)/.bench: $(BIN)/python $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,bench]'
	@touch $@ $(VENV)/.base $(VENV)/.dev

clean:
	rm -rf $(VENV) .parsupd dist deploy/generated workerlib/_speedups*.so

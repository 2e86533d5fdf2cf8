# make app: the dashboard on the mini.  make test: everything.  make check: format, lint, types and the quick tests.
# The first interpreter that runs and is new enough (a shim on the path may lead nowhere).
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.14 python3; do $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
BIN = $(VENV)/bin
# A worker a core, four at most, each with one thread; a worker that is done takes tests from the others.
WORKERS ?= $(shell $(PYTHON) -c 'import os; print(min(4, os.cpu_count() or 1))')
# Compiled tests are kept even where the environment says not to (as containers do): compiling takes seconds a worker.
PYTEST = PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

.PHONY: app check test lint types format mini
app: $(VENV)/app
	$(BIN)/streamlit run app.py

test: $(VENV)/dev
	$(PYTEST)

check: lint
	STETHOSCOPE_CHECK_SHAPES=0 $(PYTEST) -m "not slow"

lint: $(VENV)/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyrefly check --python-interpreter-path $(BIN)/python --output-format min-text --summary=none

# A second opinion on types, twelve times slower: the gate asks for it, `make check` does not.
types: $(VENV)/dev
	$(BIN)/basedpyright

format: $(VENV)/dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Rebuilding the mini needs peft, which trains its LoRA: a development requirement.
mini: $(VENV)/dev
	$(BIN)/python -m stethoscope.mini.train

$(VENV)/python:
	@test -n "$(PYTHON)" || { echo "Stethoscope needs Python 3.11 or newer; none was found. Install one, or name it: make app PYTHON=/path/to/python3"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/app: requirements.txt | $(VENV)/python
	$(BIN)/pip install --quiet -r requirements.txt
	touch $@

$(VENV)/dev: requirements-dev.txt requirements.txt | $(VENV)/python
	$(BIN)/pip install --quiet -r requirements-dev.txt
	touch $@ $(VENV)/app

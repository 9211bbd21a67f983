# Everything sets itself up: `make demo` or `make test` on a machine with Python >= 3.11 and make is all it takes.
# Another interpreter: `make test PYTHON=/path/to/python`. Another build of torch: see CONTRIBUTING.md.

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
TORCH := torch==2.13.0
PYTHON :=
CANDIDATES := $(PYTHON) python3.13 python3.12 python3.11 python3 python

PARALLEL := -n logical --dist worksteal

export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

.PHONY: help setup demo test test-fast lint style types format docs bench clean

help:
	@echo "make demo       train on embedded pictures of clothes and show what can be done (after set-up: 4 minutes)"
	@echo "make test       all tests"
	@echo "make test-fast  the tests that take no more than seconds"
	@echo "make lint       ruff and pyright"
	@echo "make format     let ruff mend what it can"
	@echo "make docs       build the site: docs/_build/html"
	@echo "make bench      the benchmarks"
	@echo "make clean      remove the environment, caches and builds; runs stay"

setup: $(VENV)/.ready

demo: setup
	$(BIN)/tessella demo

test: setup
	$(BIN)/python -m pytest $(PARALLEL)

test-fast: setup
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow"

lint: style types

style: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/pyright

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: setup
	$(BIN)/python docs/catalogue.py
	$(BIN)/python docs/layers.py
	$(BIN)/python docs/korean.py
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

bench: $(VENV)/.bench
	$(BIN)/python benchmarks/run.py

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis
	find src tests benchmarks experiments docs -name __pycache__ -type d -prune -exec rm -rf {} +

# The first candidate that runs, is new enough and can make environments.
$(BIN)/python:
	@for p in $(CANDIDATES); do \
	  if "$$p" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	    echo "$$p -m venv $(VENV)"; exec "$$p" -m venv $(VENV); \
	  fi; \
	done; \
	echo "tessella needs Python >= 3.11 with venv: install it, or say where it is by PYTHON=/path/to/python" >&2; \
	exit 1

# torch first and by itself: a build that is in the environment already is kept.
$(VENV)/.ready: pyproject.toml experiments/pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install --quiet -c constraints.txt $(TORCH)
	$(PIP) install --quiet -c constraints.txt -e '.[dev,datasets,docs]' -e experiments
	@touch $@

$(VENV)/.bench: $(VENV)/.ready
	$(PIP) install --quiet -c constraints.txt -e '.[bench]'
	@touch $@

# make run    install what training needs and run the default experiment
# make test   install what the tests need and run the default lane
# make test-long, make test-all   the long lane; both lanes
# make check  linters, types and import rules
# make bench  measure what selection costs: benchmarks/results.json and docs/performance.md; leave the machine alone
# make docs   build the pages of docs/ into site/; open site/index.html (its search needs python -m http.server -d site)
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt

.PHONY: run test test-long test-all check bench docs clean

run: .venv/.train
	$(BIN)/reducr run

# as many tests at once as there are cores, each on one: several threads of torch beside one another wait for each other
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist worksteal

test: .venv/.dev
	$(PYTEST)

test-long: .venv/.dev
	$(PYTEST) -m long

test-all: test test-long

check: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: .venv/.dev
	$(BIN)/python -m benchmarks

docs: .venv/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "reducr needs Python 3.11 or newer; give one with: make PYTHON=python3.11 ..." >&2; exit 1; }
	$(PYTHON) -m venv .venv

.venv/.train: .venv/bin/python pyproject.toml constraints.txt
	@echo "installing into .venv (a minute or two) ..."
	$(INSTALL) --editable '.[train]'
	@touch $@

.venv/.dev: .venv/bin/python pyproject.toml constraints.txt
	@echo "installing into .venv (a minute or two) ..."
	$(INSTALL) --editable '.[dev]'
	@touch $@ .venv/.train

clean:
	rm -rf .venv build dist site src/*.egg-info

# The virtual environment is made when it is missing or the requirements changed.
PYTHON := python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --requirement

.PHONY: help run test lint bench

help: ## list these targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 14

run: $(VENV)/run ## set up what is missing, then serve on http://127.0.0.1:8000
	$(BIN)/python serve.py

# More tests at once than there are cores: most of them wait for something.
test: $(VENV)/dev ## set up what is missing, then run every test; lists those skipped
	$(BIN)/pytest --numprocesses=6 --no-loadscope-reorder --timeout=180 -rsfE

lint: $(VENV)/dev ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/dev bench/.venv/installed bench/node_modules/.package-lock.json ## measure, for a quarter of an hour; wants wrk, node and npm
	$(BIN)/python bench/compare.py
	$(BIN)/python bench/report.py

$(VENV)/run: requirements.txt
	@$(PYTHON) -c 'import sys; sys.version_info < (3, 11) and sys.exit("want Python 3.11 or newer: make PYTHON=python3.12 run")'
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) requirements.txt
	@touch $@

$(VENV)/dev: requirements-dev.txt $(VENV)/run
	$(INSTALL) requirements-dev.txt
	@touch $@

bench/.venv/installed: bench/requirements.txt
	$(PYTHON) -m venv bench/.venv
	bench/.venv/bin/pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@

bench/node_modules/.package-lock.json: bench/package-lock.json
	npm ci --silent --prefix bench

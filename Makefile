# Each target sets up what it needs; later runs reuse it.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed

.PHONY: help test check clean
help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

$(STAMP): pyproject.toml constraints.txt
	@echo "setting up $(VENV): pinned CPU torch, transformers and the test tools (once, a few minutes)"
	@$(PYTHON) -m venv $(VENV)
	@$(PY) -m pip install -q -c constraints.txt torch
	@$(PY) -m pip install -q -c constraints.txt -e '.[test]'
	@touch $@

test: $(STAMP)  ## run the tests
	$(PY) -m pytest -q --durations=5

check: $(STAMP)  ## lint, formatting
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

clean:  ## remove the environment and build products
	rm -rf $(VENV) build dist site

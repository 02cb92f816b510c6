# Every command makes .venv first if need be, with the exact versions in constraints.txt.
# PYTHON names the interpreter to make it with (3.11 or newer): make test PYTHON=python3.12

PYTHON ?= python3
PY := .venv/bin/python
INSTALLED := .venv/.installed
STUDY := .venv/.study
PIP_INSTALL_OTHER = .venv-$*/bin/python -m pip install --quiet --quiet --disable-pip-version-check \
	--constraint .venv-$*/constraints.txt
PIP_INSTALL_VLLM := .venv-vllm/bin/python -m pip install --quiet --quiet --disable-pip-version-check --no-deps
PIP_INSTALL := $(PY) -m pip install --quiet --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: help demo test test-minimum test-between test-vllm test-deepspeed test-install check docs bench study study-quick clean
.DEFAULT_GOAL := help

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(INSTALLED) ## train an adapter, publish it, load it by its Hub ID onto another model, compare
	@$(PY) examples/demo.py

test: $(INSTALLED) ## run every test and name the ten slowest
	@$(PY) -m pytest -q --numprocesses 2 --dist loadfile --no-loadscope-reorder --durations=10

# ONLY leaves some out by their marks: make test-minimum ONLY="not real"
test-minimum: ## run the suite with the oldest versions that pyproject.toml allows
test-between: ## run the suite with versions between the oldest and the newest
test-minimum test-between: test-%: .venv-%/.installed
	@echo "==> testing with the versions in constraints-$*.txt:"
	@sed -n 's/==.*//p' constraints-$*.txt | xargs .venv-$*/bin/python -c 'import sys; from importlib.metadata import version; \
		print(*(f"    {name} {version(name)}" for name in sys.argv[1:]), sep="\n")'
	@.venv-$*/bin/python -m pytest -q --numprocesses 2 --dist loadfile --no-loadscope-reorder -m "$(ONLY)" --durations=10

test-vllm: .venv-vllm/.installed ## run the tests of adapters in vLLM, in an environment of its own
	@.venv-vllm/bin/python -m pytest -q tests/serving tests/test_compat.py --durations=10

test-deepspeed: build/deepspeed/.installed ## run the tests of training on two processes, with ZeRO-3 too
	@PYTHONPATH=build/deepspeed DS_ACCELERATOR=cpu $(PY) -m pytest -q tests/training/test_distributed.py --durations=10

test-install: $(INSTALLED) ## install wheel and sdist in a throw-away environment, with each extra (some minutes, 2 GB)
	@$(PY) -m testkit.clean_install

check: $(INSTALLED) ## lint, formatting, types
	@echo "==> ruff check" && $(PY) -m ruff check .
	@echo "==> ruff format --check" && $(PY) -m ruff format --check .
	@echo "==> mypy" && $(PY) -m mypy

docs: $(INSTALLED) ## build the documentation into site/
	@NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet && echo "open site/index.html"

bench: $(INSTALLED) ## measure speed as ratios against plain transformers
	@$(PY) -m benchmarks

JOBS ?= 1
study: $(STUDY) ## run what is left of the study (JOBS=2: two cells side by side), write docs/transfer.md
	@$(PY) -m studies run --jobs $(JOBS)

study-quick: $(STUDY) ## the cut of the study that takes less than twenty minutes
	@$(PY) -m studies run --quick --again --jobs $(JOBS)

clean: ## remove .venv, those of other versions and everything built here (downloaded models stay in their cache)
	@rm -rf .venv .venv-minimum .venv-between .venv-vllm build dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

define make_venv
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "make: '$(PYTHON)' is missing or older than Python 3.11; name another: make PYTHON=python3.12 …" >&2; exit 1; }
	@$(1)/bin/python -m pip --version >/dev/null 2>&1 || { \
		echo "==> creating $(1) with $$($(PYTHON) --version)" && $(PYTHON) -m venv --clear $(1); }
endef

$(INSTALLED): pyproject.toml constraints.txt
	$(call make_venv,.venv)
	@echo "==> installing the versions in constraints.txt into .venv (a few minutes the first time)"
	@$(PIP_INSTALL) hatchling editables setuptools wheel
	@$(PIP_INSTALL) --no-build-isolation --editable '.[test,docs]'
	@touch $@

# pip takes one version of each package: what the other file names is left out of constraints.txt
.venv-%/.installed: pyproject.toml constraints.txt constraints-%.txt
	$(call make_venv,.venv-$*)
	@echo "==> installing the versions in constraints-$*.txt into .venv-$* (a few minutes the first time)"
	@awk -F '==' '{ name = tolower($$1); gsub("_", "-", name) } NR == FNR { other[name]; print; next } !(name in other)' \
		constraints-$*.txt constraints.txt > .venv-$*/constraints.txt
	@$(PIP_INSTALL_OTHER) hatchling editables setuptools wheel
	@$(PIP_INSTALL_OTHER) --no-build-isolation --editable '.[test]'
	@touch $@

.venv-vllm/.installed: pyproject.toml constraints-vllm.txt
	$(call make_venv,.venv-vllm)
	@echo "==> installing the versions in constraints-vllm.txt into .venv-vllm (a few minutes the first time)"
	@$(PIP_INSTALL_VLLM) --requirement constraints-vllm.txt
	@$(PIP_INSTALL_VLLM) --no-build-isolation --editable .
	@touch $@

build/deepspeed/.installed: $(INSTALLED) constraints-deepspeed.txt
	@echo "==> installing the versions in constraints-deepspeed.txt into build/deepspeed"
	@DS_BUILD_OPS=0 $(PY) -m pip install --quiet --quiet --disable-pip-version-check --no-deps --no-build-isolation \
		--upgrade --target build/deepspeed --requirement constraints-deepspeed.txt
	@touch $@

$(STUDY): $(INSTALLED)
	@echo "==> installing what only the study needs"
	@$(PIP_INSTALL) --no-build-isolation --editable '.[study]'
	@touch $@

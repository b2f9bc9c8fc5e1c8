# `make demo` and `make test` set everything up by themselves; all they need is Python.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PLUGINS := $(patsubst %/pyproject.toml,%,$(wildcard axcore_plugins_*/pyproject.toml plugins/*/pyproject.toml))
PROJECTS := pyproject.toml $(PLUGINS:%=%/pyproject.toml)

.PHONY: demo test lint bench gptq-env clean

demo: $(INSTALLED)
	$(BIN)/python scripts/demo.py

test: lint
	$(BIN)/python -m pytest

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/mypy benchmarks scripts
	$(BIN)/lint-imports

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks

# The quantisation library pins other versions than axcore runs with (docs/quantize.md).
gptq-env:
	$(PYTHON) -m venv .venv-gptq
	.venv-gptq/bin/python -m pip install --disable-pip-version-check \
		torch==2.13.0 numpy==2.2.6 setuptools wheel
	.venv-gptq/bin/python -m pip install --disable-pip-version-check \
		--no-build-isolation gptqmodel==7.6.0 numpy==2.2.6

$(INSTALLED): $(PROJECTS) constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo 'Python 3.10 or later is needed: make PYTHON=python3.12 …' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --editable '.[dev]' $(PLUGINS:%=--editable ./%)
	@touch $@

# Fabricated checkpoints stay: they lie in the user's cache, and take a while to make.
clean:
	rm -rf $(VENV) demo-bundle benchmarks/results.md build dist *.egg-info */*.egg-info plugins/*/*.egg-info
	rm -rf .hypothesis .*_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

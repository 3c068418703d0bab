# `make` lists the commands for everybody, `make help-all` the maintainers' as well.
# DATA: a folder in Kaggle's layout, kaggle, or sample.  MODE: quick or full.
PYTHON ?= python3
MODE ?= $(or $(CXR_MODE),quick)
DATA ?= $(CXR_DATA)
SEED ?= $(or $(CXR_SEED),0)
OUT ?= $(CXR_OUT)
SEEDS ?= 0 1 2 3 4
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SETTINGS = CXR_DATA="$(DATA)" CXR_MODE="$(MODE)" CXR_SEED="$(SEED)" CXR_OUT="$(OUT)"

.DEFAULT_GOAL := help
.PHONY: help help-all run test test-all results \
	publish study bench kill-and-resume sample set-repository

help:  ## list these commands
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 18

help-all:  # list the maintainers' commands too
	@grep -E '^[a-z-]+:.*# ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##? /\t/' | expand -t 18

$(READY): requirements.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else \
		"This is Python %d.%d; it takes 3.11 to 3.13. For example: make PYTHON=python3.13" % v)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

run: $(READY)  ## execute the notebooks: quick on the sample, or MODE=full DATA=folder; NAMES=...
	$(SETTINGS) $(BIN)/python scripts/run_notebooks.py $(FIELDS:%=--field %) $(NAMES)

test: $(READY)  ## ruff, the tests, and the notebooks under nbval in quick mode
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder $(PYTEST)

test-all:  ## the same and the slow tests: a rehearsal of Colab (3 GB), the whole data set
	@$(MAKE) --no-print-directory test PYTEST='-m ""'

results: $(READY)  ## write tables, figure and numbers in prose anew from results/
	$(BIN)/python scripts/claims.py

publish: $(READY)  # run, and write over notebooks, results/, weights/: MODE=full DATA=folder
	$(SETTINGS) $(BIN)/python scripts/run_notebooks.py --publish $(NAMES)

study: $(READY)  # seeds and ablations into results/: DATA=folder SEEDS="0 1" STEPS="main unstopped"
	$(SETTINGS) $(BIN)/python scripts/study.py --seeds $(SEEDS) $(if $(STEPS),--steps $(STEPS))

bench: $(READY)  # timings as ratios, into results/bench.json: DATA=folder ORIGINALS=folder
	$(SETTINGS) CXR_ORIGINALS="$(ORIGINALS)" $(BIN)/python benchmarks/bench.py $(NAMES)

kill-and-resume: $(READY)  # kill -9 at KILLS (50) random moments of all notebooks
	$(BIN)/python benchmarks/kill_and_resume.py --kills $(or $(KILLS),50)

sample: $(READY)  # check data/sample against a whole copy, or draw it anew: DATA=folder
	$(BIN)/python scripts/make_sample.py $(if $(wildcard data/sample/manifest.csv),--check) "$(DATA)"

set-repository: $(READY)  # REPO=owner/name: where badges and set-up cells find the project
	$(BIN)/python scripts/set_repository.py $(REPO)

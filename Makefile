# A fresh machine needs python3 >= 3.10 with venv, make and git. Two first commands: make demo, make test.
PYTHON ?= python3
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK = 1
.DEFAULT_GOAL := help
.PHONY: help demo test docs-check readme notebooks benchmarks attacks clean
.NOTPARALLEL:

help: ## list these commands
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' Makefile | expand -t 20

demo: .venv/.run ## set up, then the whole pipeline on real images; writes ./demo
	$(BIN)/two_tower_vs --stage demo

test: .venv/.dev ## set up, then every check
	@$(BIN)/python .ci/checks.py

docs-check: .venv/.dev ## the docs and README alone: every page rendered, every internal link followed
	@$(BIN)/python .ci/checks.py docs readme

readme: .venv/.dev ## write README.md and index_files/ from nbs/index.ipynb
	@$(BIN)/python .ci/readme.py

notebooks: .venv/.dev ## export, then execute and clean the notebooks in place, in order (NB="nbs/00_data.ipynb": that one; FLAGS=slow: slow cells too)
	$(BIN)/nbdev_export
	$(BIN)/python .ci/notebooks.py $(NB)
	$(BIN)/nbdev_clean

benchmarks: .venv/.dev ## measure again on an idle machine: NB=peers, recipe, embedding or search, up to an hour each (ARGS="…": options of its script)
	$(BIN)/python nbs/benchmarks/$(or $(NB),peers).py $(ARGS)
	cd nbs/benchmarks && ../../$(BIN)/exec_nb $(or $(NB),peers).ipynb --dest $(or $(NB),peers).ipynb --exc_stop
	$(BIN)/nbdev_clean

attacks: .venv/.dev ## bad data, crashes, misuse: minutes (ARGS=--long: half an hour; ARGS="--long --store": write the table of the docs)
	$(BIN)/python nbs/attacks/attack.py $(ARGS)

clean: ## delete what the commands above wrote, except .venv
	rm -rf _docs _proc build dist *.egg-info demo nbs/demo nbs/out nbs/nbdev.yml
	find . -name .venv -prune -o -name __pycache__ -type d -exec rm -rf {} +

# .venv: each stamp says what is installed and is redone when settings.ini or setup.py changes
.venv/.made:
	@command -v "$(PYTHON)" >/dev/null || \
	  { echo "$(PYTHON) not found: install Python 3.10 or newer, or run make PYTHON=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "$(PYTHON) is older than 3.10: install a newer one, or run make PYTHON=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON)" -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo "$(PYTHON) lacks venv: install it (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
	@"$(PYTHON)" -m venv .venv
	@touch $@

.venv/.run: .venv/.made settings.ini setup.py
	@echo "Setting up .venv: several GB and a few minutes the first time"
	@$(BIN)/python -m pip install -qq --use-pep517 --editable .
	@touch $@

.venv/.dev: .venv/.made settings.ini setup.py
	@echo "Setting up .venv with the tools for developers: several GB and a few minutes the first time"
	@$(BIN)/python -m pip install -qq --use-pep517 --editable '.[dev]'
	@touch .venv/.run $@

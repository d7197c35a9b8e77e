# A fresh machine needs python3 >= 3.11 with venv, make and git. Two first commands: make demo, make test.
PYTHON ?= python3
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK = 1
.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-rest docs-check readme notebooks benchmarks attacks pins bounds clean
.NOTPARALLEL:

help: ## list these commands
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' Makefile | expand -t 20

demo: .venv/.run ## set up, then the whole pipeline on real images; writes ./demo
	$(BIN)/two_tower_vs --stage demo

test: .venv/.dev ## set up, then the checks of every day: a few minutes
	@$(BIN)/python .ci/checks.py

test-all: .venv/.dev ## those, then attacks, the pages in a browser and every notebook: an hour
	@$(BIN)/python .ci/checks.py --all

test-rest: .venv/.dev ## of those the ones that .ci/run leaves out: attacks, the pages in a browser, the longest tests
	@$(BIN)/python .ci/checks.py longer attacks browser

docs-check: .venv/.dev ## the docs and README alone: every page rendered, every internal link followed
	@$(BIN)/python .ci/checks.py docs readme

readme: .venv/.dev ## write README.md and index_files/ from nbs/index.ipynb
	@$(BIN)/python .ci/readme.py

notebooks: .venv/.dev ## export, then execute and clean the notebooks in place, in order (NB="nbs/00_data.ipynb": that one; FLAGS=slow: slow cells too)
	$(BIN)/nbdev_export
	$(BIN)/python .ci/notebooks.py $(NB)
	$(BIN)/nbdev_clean

benchmarks: .venv/.dev ## measure again on an idle machine: NB=peers, recipe, learning, embedding, search, serve, copies or feedback, up to an hour each (ARGS="…": options of its script)
	$(BIN)/python benchmarks/$(or $(NB),peers).py $(ARGS)
	cd nbs/benchmarks && ../../$(BIN)/exec_nb $(or $(NB),peers).ipynb --dest $(or $(NB),peers).ipynb --exc_stop
	$(BIN)/nbdev_clean

attacks: .venv/.dev ## bad data, crashes, misuse: minutes (ARGS="-m long": the long ones; ARGS="-m 'not short' --store": write the table of the docs)
	$(BIN)/python -m pytest -q --disable-warnings tests/attacks $(ARGS)

pins: .venv/.made ## pin the newest versions that settings.ini allows, for every platform, in constraints.txt (ARGS="--constraint FILE": no newer ones than FILE names)
	@$(BIN)/python -m pip install -qq 'uv>=0.9,<1'
	$(BIN)/uv pip compile setup.py --all-extras --universal --python-version 3.11 --upgrade --no-annotate --custom-compile-command 'make pins' \
	  $(ARGS) --quiet --output-file constraints.txt

RESOLUTION ?= lowest-direct
EXTRAS := parquet,onnx,explore,tiff,jxl,verify,int8,tensorboard
bounds: ## tests and demo with the oldest versions that settings.ini allows (RESOLUTION=highest: the newest), in ./.bounds
	"$(PYTHON)" -m venv --clear .bounds
	.bounds/bin/python -m pip install -qq 'uv>=0.9,<1'
	.bounds/bin/uv pip install --quiet --python .bounds/bin/python --resolution $(RESOLUTION) --editable '.[$(EXTRAS)]' \
	  'pytest>=9.0' 'pytest-timeout>=2.4' 'httpx>=0.28' 'hypothesis>=6.120' 'jsonschema>=4.23'
	.bounds/bin/python -m pytest -q tests --ignore tests/attacks --ignore tests/browser --ignore tests/test_contributing.py
	cd .bounds && bin/two_tower_vs --stage demo

clean: ## delete what the commands above wrote, except .venv
	rm -rf _docs _proc build dist *.egg-info demo nbs/demo nbs/out nbs/nbdev.yml .bounds
	find . -name .venv -prune -o -name __pycache__ -type d -exec rm -rf {} +

# .venv: each stamp says what is installed and is redone when its requirements or their versions change.
# What builds packages is pinned too: it is installed first, and no isolated environment fetches a newer one.
INSTALL := $(BIN)/python -m pip install -qq --constraint constraints.txt
.venv/.made:
	@command -v "$(PYTHON)" >/dev/null || \
	  { echo "$(PYTHON) not found: install Python 3.11 or newer, or run make PYTHON=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is older than 3.11: install a newer one, or run make PYTHON=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON)" -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo "$(PYTHON) lacks venv: install it (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
	@"$(PYTHON)" -m venv .venv
	@touch $@

.venv/.run: .venv/.made settings.ini setup.py constraints.txt
	@echo "Setting up .venv: several GB and a few minutes the first time"
	@$(INSTALL) setuptools wheel
	@$(INSTALL) --no-build-isolation --use-pep517 --editable .
	@touch $@

.venv/.dev: .venv/.made settings.ini setup.py constraints.txt
	@echo "Setting up .venv with the tools for developers: several GB and a few minutes the first time"
	@$(INSTALL) setuptools wheel
	@$(INSTALL) --no-build-isolation --use-pep517 --editable '.[dev]'
	@touch .venv/.run $@

# Every command first sets up .venv, once. `make help` lists the commands.
PYTHON  ?= python3
DATA    ?= digits
N       ?= 1000
DRAW    ?= 60
WORKERS ?= logical

VENV := .venv
BIN  := $(VENV)/bin
# The stamp's name holds a checksum of the files that say what to install. If they change, it is installed again.
STAMP := $(VENV)/.installed-$(shell cat pyproject.toml settings.ini setup.py | cksum | cut -d' ' -f1)

.DEFAULT_GOAL := help
.PHONY: help setup demo test fuzz bench zoo export notebooks readme docs dist clean

help: ## list these commands
	@grep -E '^[a-z]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 18

setup: $(STAMP) ## create .venv with everything the other commands need; several minutes, 6 GB

$(STAMP):
	@command -v $(PYTHON) >/dev/null || { echo "'$(PYTHON)' not found: install Python 3.11 or later, or name one: make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or later is needed, this is $$($(PYTHON) --version 2>&1); name another: make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "$(PYTHON) comes without its venv module (Debian and Ubuntu: apt install python3-venv)"; exit 1; }
	@echo "Setting up $(VENV) with $$($(PYTHON) --version): PyTorch, fastai and the tools for the tests. This happens once, and takes several minutes and about 6 GB."
	@rm -f $(VENV)/.installed-*
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -e '.[dev]'
	@touch $@
	@echo "$(VENV) is ready."

demo: $(STAMP) ## train, fold and time the article's two networks; DATA=digits, imagenette or a folder; 6 minutes
	@$(BIN)/python -m fastai_bnfold.article --data "$(DATA)"

test: $(STAMP) ## run every notebook and every test; ARGS="-k plan" for some of them, FLAGS=slow for slow cells too; 10 minutes
	@NBDEV_FLAGS="$(FLAGS)" $(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 4 --dist load --maxschedchunk 1 $(ARGS)

fuzz: $(STAMP) ## fold N random networks and compare the outputs
	@$(BIN)/python tests/fuzz.py -n $(N)

bench: $(STAMP) ## measure what the page Benchmarks shows, on a quiet machine; two hours
	@$(BIN)/python tests/benchmarks.py $(ARGS)

zoo: $(STAMP) ## fold every model that the page Zoo shows, beside other tools; hours, but it resumes where it stopped
	@mkdir -p nbs/data
	@for s in fastai torchvision timm; do $(BIN)/python -W ignore tests/zoo.py --set $$s --out nbs/data/zoo_$$s.json || exit 1; done
	@for s in smp transformers tsai ultralytics; do $(BIN)/python -W ignore tests/zoo.py --ours --set $$s --out nbs/data/zoo_$$s.json || exit 1; done
	@$(BIN)/python -W ignore tests/zoo.py --ours --set timm_all --draw $(DRAW) --out nbs/data/zoo_timm_all.json

export: $(STAMP) ## write the modules and the sidebar from the notebooks
	@$(BIN)/nbdev-export
	@$(BIN)/python nbs/_tools/sidebar.py

notebooks: export ## run the notebooks, record their outputs and clean them; NB=nbs/zoo.ipynb for one of them
	@BNFOLD_FULL=1 $(BIN)/nbdev-test --save --n-workers 1 --flags "$(FLAGS)" $(NB)
	@$(BIN)/python nbs/_tools/bars.py nbs/*.ipynb nbs/tutorials/*.ipynb
	@$(BIN)/python nbs/_tools/prompt.py index.ipynb nbs/tutorials/*.ipynb
	@$(BIN)/nbdev-clean
	@$(MAKE) --no-print-directory readme

readme: $(STAMP) ## write README.md and its picture from index.ipynb
	@$(BIN)/python nbs/_tools/readme.py

docs: $(STAMP) ## build the documentation in _docs/
	@PYTHONWARNINGS=ignore::FutureWarning $(BIN)/python nbs/_tools/pages.py

dist: $(STAMP) ## build the sdist and the wheel in dist/
	@rm -rf dist build
	@$(BIN)/python -m build --no-isolation

clean: ## remove everything that was built, but keep .venv
	@rm -rf build dist _proc _docs _demo *.egg-info .pytest_cache .hypothesis

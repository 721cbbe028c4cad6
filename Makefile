# `make demo` and `make test` set everything up on a fresh machine; see README.md.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
RUN ?= runs/demo
export MPLBACKEND := Agg

.PHONY: demo test test-slow test-kills lint types layers aarch64 clean

# A demo that was interrupted goes on where it was.
demo: $(VENV)/.demo
	$(BIN)/trimtab $(if $(wildcard $(RUN)/run.json),resume $(RUN),search configs/digits_resnet20.yaml --out $(RUN))
	$(BIN)/trimtab verify $(RUN)/best

# Two files at a time, in their order: those of tests/integration take longest, and come first.
test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow

# Everything of a run killed, two times for each search algorithm: about an hour.
test-kills: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "slow or not slow" tests/integration/test_kills.py

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

layers: $(VENV)/.dev
	$(BIN)/lint-imports

# TVM's runtime for aarch64, for the tests of code for it, which also take Debian's g++-aarch64-linux-gnu and qemu-user.
aarch64: $(VENV)/.dev
	$(BIN)/python tests/aarch64.py

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing Trimtab into $(VENV) (torch, TVM and Ray are large: a minute or two) ..."
	$(PIP_INSTALL) --editable .
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing Trimtab and its development tools into $(VENV) ..."
	$(PIP_INSTALL) --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

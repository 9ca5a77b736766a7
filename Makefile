# PYTHON chooses the interpreter, TORCH the torch build (any pip requirement), ARGS what demo and bench are given.
PYTHON ?= python3
TORCH  ?= torch
ARGS   ?=

VENV := .venv
PY   := $(VENV)/bin/python
# One stamp per choice of interpreter and torch: another choice builds the environment anew.
BASE := $(VENV)/base-$(shell printf '%s' '$(PYTHON) $(TORCH)' | cksum | cut -d ' ' -f 1)

.PHONY: demo test lint bench bench-cpu clean

demo: $(VENV)/installed
	$(PY) examples/digits.py $(ARGS)

test: $(VENV)/installed
	$(PY) -m pytest -n 2

lint: $(VENV)/installed
	$(PY) -m ruff check .

# Measures everything, in over an hour, or what ARGS=networks,memory names, and writes documentation, pictures, report.
bench: $(VENV)/compared
	$(PY) -m benchmarks $(ARGS)

bench-cpu: $(VENV)/installed
	$(PY) -m benchmarks cpu

$(BASE):
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install "$(TORCH)"
	touch $@

$(VENV)/installed: $(BASE) pyproject.toml
	$(PY) -m pip install --editable ".[test]"
	touch $@

# What networks are compared with.
$(VENV)/compared: $(VENV)/installed
	$(PY) -m pip install --editable ".[bench]"
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info out .pytest_cache .ruff_cache .hypothesis

# Two commands for everyone: `make demo` and `make test`. Both need only Python >= 3.11.
# On a machine without a GPU you may want torch's small CPU build:
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu

PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX ?=
OUT ?= runs/tiny
bin := $(VENV)/bin
pip := $(bin)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: help install demo test check format clean

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 10

$(bin)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.torch: constraints.txt | $(bin)/python
	$(pip) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch
	touch $@

$(VENV)/.installed: pyproject.toml constraints.txt $(VENV)/.torch
	$(pip) -e .
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt $(VENV)/.torch
	$(pip) -e '.[dev,eval,gguf,lm-eval,words]'
	touch $@ $(VENV)/.installed

install: $(VENV)/.installed  ## virtual environment with the package

demo: $(VENV)/.installed  ## train, upcycle, compare: a report in ten to twelve minutes on two cores
	$(bin)/versatileffn reproduce --scale tiny --out $(OUT)

test: $(VENV)/.dev  ## the default test suite
	$(bin)/python -m pytest

check: $(VENV)/.dev  ## lint, format, types, layers
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/mypy
	$(bin)/lint-imports

format: $(VENV)/.dev  ## rewrite the sources in the project's format
	$(bin)/ruff check --fix .
	$(bin)/ruff format .

clean:  ## remove the virtual environment and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

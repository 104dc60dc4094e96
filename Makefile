# Two commands for everyone: `make demo` and `make test`. Both need only Python >= 3.11.
# On a machine without a GPU you may want torch's small CPU build:
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu

PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX ?=
OUT ?= runs/tiny
# Of the paper's, beside the dense control; `all` takes longer.
ARMS ?= versatile,versatile-learned
bin := $(VENV)/bin
pip := $(bin)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

# Beside the newest Transformers that resolves: what touches Transformers most.
NEWEST ?= .venv-newest
NEWEST_TESTS ?= tests/models tests/parity tests/portable tests/test_upcycle.py

# Two processes, each with one thread: models of tests are too small to share among threads.
WORKERS ?= 2
pytest := -m pytest -n $(WORKERS) --dist worksteal
test test-newest: export OMP_NUM_THREADS = 1

.PHONY: help install demo demo-language demo-depth test test-newest check docs format dist try-dist clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

$(bin)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.torch: constraints.txt | $(bin)/python
	$(pip) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch
	touch $@

$(VENV)/.installed: pyproject.toml constraints.txt $(VENV)/.torch
	$(pip) -e .
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt $(VENV)/.torch
	$(pip) -e '.[dev,docs,eval,gguf,lm-eval,scale,words]'
	touch $@ $(VENV)/.installed

install: $(VENV)/.installed  ## virtual environment with the package

demo: $(VENV)/.installed  ## two experiments side by side on two cores: reports in about six minutes
	@$(MAKE) --no-print-directory -j2 demo-language demo-depth
	@sed -n "/^| model/,/^$$/p" $(OUT)-depth/report.md | head -20
	@echo "how deep to go:  $(OUT)-depth/report.html"; echo "on language:     $(OUT)/report.html"

demo-language: $(VENV)/.installed
	$(bin)/versatileffn reproduce --scale tiny --arms $(ARMS) --out $(OUT)

demo-depth: $(VENV)/.installed
	@mkdir -p $(dir $(OUT))
	$(bin)/versatileffn reproduce --task depth --scale demo --out $(OUT)-depth > $(OUT)-depth.log || (tail -20 $(OUT)-depth.log; exit 1)

test: $(VENV)/.dev  ## the default test suite
	$(bin)/python $(pytest)

$(NEWEST)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(NEWEST)
	$(NEWEST)/bin/python -m pip install --quiet $$(grep '^torch==' constraints.txt) \
		$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
	$(NEWEST)/bin/python -m pip install --quiet --upgrade --upgrade-strategy eager \
		$$(grep '^torch==' constraints.txt) -e '.[dev]'
	touch $@

test-newest: $(NEWEST)/.installed  ## part of the tests beside the newest Transformers that resolves
	$(NEWEST)/bin/python -m pip list 2> /dev/null | grep -E '^(torch|transformers|accelerate) '
	$(NEWEST)/bin/python $(pytest) $(NEWEST_TESTS)

check: $(VENV)/.dev  ## lint, format, types, layers
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/mypy
	$(bin)/lint-imports

docs: $(VENV)/.dev  ## the documentation as a site, in site/
	NO_MKDOCS_2_WARNING=1 $(bin)/mkdocs build --strict --quiet

format: $(VENV)/.dev  ## rewrite the sources in the project's format
	$(bin)/ruff check --fix .
	$(bin)/ruff format .

dist:  ## wheel and sdist of the last commit, looked into
	$(PYTHON) tests/portable/wheel.py --build-only --out dist

try-dist:  ## the same, and the wheel installed and used in an empty environment
	$(PYTHON) tests/portable/wheel.py --out dist --first $$(grep '^torch==' constraints.txt)

clean:  ## remove the virtual environment and caches
	rm -rf $(VENV) $(NEWEST) dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

# Two commands for a newcomer: `make demo` and `make test`. Both make their own .venv.

PYTHON ?= python3
BIN := .venv/bin
# Processes that share the tests. One that runs out of tests takes over some of the other's last ones.
WORKERS ?= 2
PYTEST := $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal

.PHONY: demo test test-all docs check package format clean

demo: .venv/ready
	$(BIN)/dfer-deploy demo -o demo

test: .venv/ready
	$(PYTEST) -m "not slow"

test-all: .venv/ready
	$(PYTEST)

# Warnings are errors: a broken internal link fails.
docs: .venv/docs
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build

check: .venv/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/codespell
	$(MAKE) package
	$(MAKE) docs
	$(MAKE) test-all

# Wheel and source distribution, as a release uploads them.
package: .venv/ready
	rm -rf dist
	$(BIN)/python -m build --outdir dist . >/dev/null
	$(BIN)/twine check --strict dist/*
	$(BIN)/check-wheel-contents dist/*.whl

format: .venv/ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The marker, not the folder, is the target: an interrupted installation is done again.
.venv/ready: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("dfer-deploy needs Python 3.10-3.13, this is " + sys.version.split()[0] + "; name another with: make PYTHON=python3.12 ..." if not (3, 10) <= sys.version_info[:2] <= (3, 13) else 0)'
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	# TensorRT's types; the package would bring TensorRT itself, which needs no GPU to be installed but an NVIDIA index.
	$(BIN)/python -m pip install --quiet --no-deps 'tensorrt-stubs==10.13.0.35.1'
	touch $@

.venv/docs: .venv/ready
	$(BIN)/python -m pip install --quiet -e '.[docs]'
	touch $@

clean:
	rm -rf .venv demo build dist docs/_build *.egg-info

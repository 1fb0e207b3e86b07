# `make demo` and `make test` are all a newcomer needs; `make check test` is the hook and the CI.
PYTHON ?= python3
BIN := .venv/bin

.venv/installed: pyproject.toml constraints.txt
	@echo 'making .venv and installing into it: a minute or two, in silence'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

.PHONY: demo test slow check docs format
demo: .venv/installed
	$(BIN)/wordsight demo

test: .venv/installed
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal

# What takes seconds of processes, kills or compiling each: before a commit that touches these, and in CI.
slow: .venv/installed
	$(BIN)/python -m pytest -m slow --numprocesses 2 --dist worksteal

# The pages as a site, in site/; a link that leads nowhere ends it.
docs: .venv/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --clean

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

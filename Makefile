# make run and make test set everything up; make lock renews requirements.lock.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: run test lint lock clean

run: $(INSTALLED)
	$(BIN)/kedro run

test: $(INSTALLED)
	$(BIN)/pytest

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

$(INSTALLED): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --requirement requirements.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

lock:
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet --upgrade setuptools --editable .[dev]
	$(BIN)/pip freeze --exclude-editable --all --exclude pip | sed 's/+cpu//' > requirements.lock

clean:
	rm -rf $(VENV)

# make run and make test set everything up; make lock renews requirements.lock; make bench measures
# this project beside the usual recipe (SIZE=base and others: FLAN-T5's shapes, for a GPU).
# torch is of the build that pip's index offers (CUDA on Linux, if that is PyPI); its CPU build:
#   make run TORCH_INDEX=https://download.pytorch.org/whl/cpu
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TORCH := $(shell grep '^torch==' requirements.lock)
TORCH_INDEX ?=
SIZE ?= starter

.PHONY: run test bench lint lock clean

run: $(INSTALLED)
	$(BIN)/kedro run

test: $(INSTALLED)
	$(BIN)/pytest

bench: $(INSTALLED)
	$(BIN)/python benchmarks/usual_recipe.py benchmarks/results --size $(SIZE)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

$(INSTALLED): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(if $(TORCH_INDEX),$(BIN)/pip install --quiet --no-deps --index-url $(TORCH_INDEX) $(TORCH))
	$(BIN)/pip install --quiet --requirement requirements.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

lock:
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	$(BIN)/pip install --quiet --upgrade setuptools --editable .[dev]
	echo '# Made by make lock. torch has no build tag: pip takes the build (CPU or CUDA) that its' \
		'index offers; the Makefile says how to choose.' > requirements.lock
	$(BIN)/pip freeze --exclude-editable --all --exclude pip \
		| sed 's/^\(torch==[^+]*\)+.*/\1/' >> requirements.lock

clean:
	rm -rf $(VENV)

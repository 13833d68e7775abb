# make run and make test set everything up. make lock renews requirements.lock, torch apart: its
# version is below. Every package of the lock has the hashes of all files that PyPI has of its
# version, and pip refuses other files. torch has none, nor what its CUDA builds need beside it
# (nvidia-*, cuda-*, triton), since each index has builds of its own. pip takes the build that its
# index offers (CUDA on Linux, if that is PyPI); its CPU build:
#   make run TORCH_INDEX=https://download.pytorch.org/whl/cpu
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TORCH := torch==2.13.0
TORCH_INDEX ?=
LOCKED := $(BIN)/pip install --quiet --require-hashes --no-deps
SIZE ?= starter

.PHONY: run test bench lint lock audit clean

run: $(INSTALLED)
	$(BIN)/kedro run

test: $(INSTALLED)
	$(BIN)/pytest

bench: $(INSTALLED)
	$(BIN)/python benchmarks/usual_recipe.py benchmarks/results --size $(SIZE)
	$(BIN)/python benchmarks/tokenization.py benchmarks/results

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

$(INSTALLED): requirements.lock pyproject.toml Makefile
	$(PYTHON) -m venv $(VENV)
	sed -n '/^setuptools==/,/[^\\]$$/p' requirements.lock \
		| $(LOCKED) --requirement /dev/stdin
	$(LOCKED) --no-build-isolation --use-pep517 --requirement requirements.lock
	$(BIN)/pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	$(BIN)/pip check
	touch $@

lock:
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/pip install --quiet uv
	printf '%s\n' setuptools $(TORCH) | $(BIN)/uv pip compile --quiet --universal \
		--python-version 3.11 --extra dev --generate-hashes --no-annotate \
		--custom-compile-command 'make lock' --output-file $(VENV)/lock pyproject.toml -
	sed -E '/^(torch|triton|nvidia-.*|cuda-.*)==/,/[^\\]$$/d' $(VENV)/lock > requirements.lock
	rm -rf $(VENV)

# Asks PyPI, over the network, for known vulnerabilities of the locked versions and of torch.
audit:
	$(PYTHON) -m venv $(VENV)/audit
	$(VENV)/audit/bin/pip install --quiet pip-audit
	{ sed -n 's/^\([^ ]*==[^ ]*\).*/\1/p' requirements.lock; echo $(TORCH); } \
		| $(VENV)/audit/bin/pip-audit --strict --no-deps --disable-pip --requirement /dev/stdin \
		|| { echo 'Vulnerable versions were found, or PyPI could not be asked (see above).'; exit 1; }

clean:
	rm -rf $(VENV)

# make run and make test set everything up in .venv. pip refuses every file that has no hash in
# requirements/*.lock; torch alone has none (requirements/torch.txt says why). pip installs
# whichever torch build your index serves: CUDA from PyPI on Linux. For the CPU build:
#   make run TORCH_INDEX=https://download.pytorch.org/whl/cpu
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUNS := $(VENV)/.runs
TESTS := $(VENV)/.tests
TORCH_INDEX ?=
# Test files run side by side. Each process uses one thread, because threads of several processes
# wait for each other.
WORKERS ?= 2
PYTEST ?=
LOCKED := $(BIN)/pip install --quiet --require-hashes --no-deps
UNBUILT := --no-build-isolation --use-pep517
RESULTS ?= build/benchmarks
SIZES ?= small

.PHONY: run test bench lint docs screenshots lock audit clean

run: $(RUNS)
	$(BIN)/kedro run

test: $(TESTS)
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses=$(WORKERS) \
		--dist=loadfile --no-loadscope-reorder $(PYTEST)

# All benchmarks, at sizes that two CPU cores can run; benchmarks/README.md has the others.
bench: $(RUNS)
	$(BIN)/python benchmarks/usual_recipe.py $(RESULTS)
	$(BIN)/python benchmarks/tokenization.py $(RESULTS)
	$(BIN)/python benchmarks/batch_inference.py $(RESULTS)
	$(BIN)/python benchmarks/flan_t5_shapes.py $(RESULTS) --sizes $(SIZES)
	$(BIN)/python benchmarks/start_up.py $(RESULTS)
	$(BIN)/python benchmarks/busy_machine.py $(RESULTS)

# Pictures for README and docs, of the latest finished run; needs Chromium.
screenshots: $(TESTS)
	$(BIN)/python docs/screenshots.py

lint: $(TESTS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo --no-cache
	$(BIN)/mypy

# The documentation as a website in build/site; its packages are not locked.
docs: $(RUNS)
	$(BIN)/pip install --quiet --no-build-isolation --editable '.[docs]'
	$(BIN)/mkdocs build --strict

# What the project needs to run.
$(RUNS): requirements/build.lock requirements/run.lock requirements/torch.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(LOCKED) --requirement requirements/build.lock
	$(LOCKED) $(UNBUILT) --requirement requirements/run.lock
	$(BIN)/pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) \
		--requirement requirements/torch.txt
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	$(BIN)/pip check
	touch $@

# The same versions, and what tests and linters need in addition.
$(TESTS): $(RUNS) requirements/dev.lock
	$(LOCKED) $(UNBUILT) --requirement requirements/dev.lock
	$(BIN)/pip check
	touch $@

# Renews the locks for all platforms; [tool.uv.pip] in pyproject.toml holds the options.
COMPILE = $(VENV)/lock/bin/uv pip compile --quiet
lock:
	$(PYTHON) -m venv $(VENV)/lock
	$(VENV)/lock/bin/pip install --quiet uv
	$(COMPILE) --upgrade --extra dev --constraint requirements/torch.txt \
		--output-file requirements/dev.lock pyproject.toml
	$(COMPILE) --extra app --constraint requirements/torch.txt \
		--constraint requirements/dev.lock --output-file requirements/run.lock pyproject.toml
	$(COMPILE) --constraint requirements/dev.lock --output-file requirements/build.lock \
		requirements/build.in

# Asks PyPI, over the network, for known vulnerabilities of the locked versions and of torch.
audit:
	$(PYTHON) -m venv $(VENV)/audit
	$(VENV)/audit/bin/pip install --quiet pip-audit
	$(VENV)/audit/bin/pip-audit --strict --disable-pip --requirement requirements/dev.lock
	$(VENV)/audit/bin/pip-audit --strict --disable-pip --no-deps \
		--requirement requirements/torch.txt

clean:
	rm -rf $(VENV)

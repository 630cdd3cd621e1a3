# Everything sets itself up: the environment is made on first use and again when the dependencies change.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOAK_SECONDS ?= 60
# Tests that run side by side: most of them wait most of the time.
WORKERS ?= 3

.PHONY: demo test lint types docs build wheel-check soak bench clean servers

$(VENV)/.installed: setup.cfg pyproject.toml scripts/prepare-python
	@PYTHON="$(PYTHON)" sh scripts/prepare-python
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip setuptools
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: $(VENV)/.installed
	@$(BIN)/python examples/demo.py

servers:
	@bash scripts/install-servers

test: $(VENV)/.installed servers
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python meshlib meshlib_contrib examples tests/typing/consumer.py \
		tests/typing/decorators.py tests/typing/mocking.py

docs: $(VENV)/.installed
	$(BIN)/python -m scripts.generate_docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	$(BIN)/python -m scripts.check_site

build: $(VENV)/.installed
	rm -rf dist build
	$(BIN)/python -m build --outdir dist .

wheel-check: build
	@sh scripts/check-wheel

soak: $(VENV)/.installed servers
	MESHLIB_SOAK_SECONDS=$(SOAK_SECONDS) $(BIN)/python -m pytest -m soak -s tests/faults tests/fork tests/integration tests/model

bench: $(VENV)/.installed
	$(BIN)/python -m benchmarks call
	$(BIN)/python -m benchmarks imports
	$(BIN)/python -m benchmarks coldstart
	$(BIN)/python -m benchmarks pick
	$(BIN)/python -m benchmarks memory
	$(BIN)/python -m benchmarks update
	$(BIN)/python -m benchmarks propagation
	$(BIN)/python -m benchmarks limiter
	$(BIN)/python -m benchmarks breaker
	$(BIN)/python -m benchmarks govern
	$(BIN)/python -m benchmarks policies

clean:
	rm -rf $(VENV) build dist site *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

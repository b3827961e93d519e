# The interpreter that the environments are made from; everything after that runs inside them.
PYTHON ?= python3
# Test processes of each part of the suite; two parts run at once.
WORKERS ?= 2
# Of the longest part of the tests, and of one that runs alone.
LONGEST_WORKERS ?= 4
# What `make bench` is told: --quick, --only W1-postgres, --peer none, ...
BENCH ?=

# How long `make soak` takes in all and `make verify` on each store, and from which seed: by default the time, which the report keeps.
MINUTES ?= 30
SEED ?=

VENV := .venv
BIN := $(VENV)/bin
DEMO_VENV := .venv-demo
# Twice quiet: warnings about the local pip set-up are hidden, errors are shown.
PIP_INSTALL := -m pip --disable-pip-version-check install -qq

# An example is a module of its own; names that begin with an underscore belong to one.
EXAMPLES := $(sort $(patsubst examples/%.py,examples.%,$(filter-out examples/_%,$(wildcard examples/*.py))))

.DEFAULT_GOAL := help
# A recipe that fails must not leave a stamp that says it worked.
.DELETE_ON_ERROR:

.PHONY: help
help: ## Show this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/.stamp: requirements-dev.txt requirements-run.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP_INSTALL) -r requirements-dev.txt
	$(BIN)/python $(PIP_INSTALL) --no-deps -e .
	@touch $@

# Runtime dependencies alone, so that the demo shows what a user's install can do.
$(DEMO_VENV)/.stamp: requirements-run.txt pyproject.toml
	$(PYTHON) -m venv $(DEMO_VENV)
	$(DEMO_VENV)/bin/python $(PIP_INSTALL) -r requirements-run.txt
	$(DEMO_VENV)/bin/python $(PIP_INSTALL) --no-deps -e .
	@touch $@

# The driver as well, where the demo is to run on a server: what `pip install '.[postgres]'` adds.
$(DEMO_VENV)/.postgres: $(DEMO_VENV)/.stamp requirements-dev.txt
	$(DEMO_VENV)/bin/python $(PIP_INSTALL) --constraint requirements-dev.txt asyncpg
	@touch $@

.PHONY: venv
venv: $(VENV)/.stamp ## Make the development environment in .venv

.PHONY: test
test: $(VENV)/.stamp ## Run every test on SQLite and the newest Postgres; the behaviour suite also with a replay at each durable call
	# Some tests wait, for leases, polls and processes, so two parts run at once. What each has said is shown when it ends.
	@$(MAKE) --no-print-directory --jobs=2 --keep-going --output-sync=target test-plain test-replay test-postgres

# The parts of `make test`. The first takes as long as the others together, and has its storms behind it when the last begins with its own.
.PHONY: test-plain test-replay test-postgres
test-plain: $(VENV)/.stamp
	$(BIN)/python -m pytest -n $(LONGEST_WORKERS) -m "not soak and not oldest"
# Only what keeps its executions in a store asks how it is to be replayed: the rest has said so itself, and is in the first part.
test-replay: $(VENV)/.stamp
	ZART_TEST_REPLAY=always $(BIN)/python -m pytest -n $(WORKERS) tests/behaviour -m "store and not soak"
test-postgres: $(VENV)/.stamp
	ZART_TEST_STORE=postgres $(BIN)/python -m pytest -n $(WORKERS) tests/behaviour tests/chaos tests/verification -m "store and not soak"

.PHONY: test-oldest
test-oldest: $(VENV)/.stamp ## Run the contract and the behaviour suite on the oldest Postgres at hand
	ZART_TEST_STORE=postgres16 $(BIN)/python -m pytest -n $(LONGEST_WORKERS) tests/contract tests/behaviour -m "(oldest or store) and not soak"

.PHONY: check
check: $(VENV)/.stamp ## Lint, check formatting, types, the layering and the pins
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pyright
	$(BIN)/lint-imports --no-logo
	$(BIN)/python -m pip --disable-pip-version-check check

.PHONY: format
format: $(VENV)/.stamp ## Format the code and apply the linter's safe fixes
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

.PHONY: demo
demo: $(DEMO_VENV)/.stamp $(if $(filter postgres%,$(ZART_DATABASE_URL)),$(DEMO_VENV)/.postgres) ## Run the demo with nothing but the runtime dependencies installed
	@$(DEMO_VENV)/bin/python -m examples.demo

.PHONY: bench
bench: $(VENV)/.stamp ## Measure us, the limits and the peers; BENCH=--quick for a few minutes
	$(BIN)/python -m benchmarks $(BENCH)

.PHONY: examples
examples: $(VENV)/.stamp ## Run every example
	@set -e; for example in $(EXAMPLES); do echo "== $$example"; $(BIN)/python -m $$example; done

.PHONY: soak
soak: $(VENV)/.stamp ## Run all that is random or long; MINUTES=30 SEED=, one report in reports/soak
	$(BIN)/python -m tests.soak --minutes $(MINUTES) $(addprefix --seed ,$(SEED))

.PHONY: verify
verify: $(VENV)/.stamp ## Run random programs under fire and compare; MINUTES=30 SEED=, reports in reports/verification
	$(BIN)/python -m tests.verification --minutes $(MINUTES) $(addprefix --seed ,$(SEED)) --store sqlite
	$(BIN)/python -m tests.verification --minutes $(MINUTES) $(addprefix --seed ,$(SEED)) --store postgres

.PHONY: clean
clean: ## Remove the environments, caches and build products
	rm -rf $(VENV) $(DEMO_VENV) build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Needs Python 3.11 or later, and nothing else: everything is installed into .venv.
# The stamps in .venv make a second call fast; a change of pyproject.toml installs again.

PYTHON ?= python3

# Installed for `make test` and `make verify`, and for no search. A CPU build is enough.
# `make test TORCH=` goes without: the tests that need torch are then skipped.
TORCH ?= torch==2.13.0

# How many files of tests run at a time. Most tests wait for something, so three suit two cores.
JOBS ?= 3

# `make verify LONG=1` has more seeds, more examples and more nodes, and takes an hour or more.
LONG ?= 0

# Tests start hundreds of Python processes. Each would compile the package anew.
unexport PYTHONDONTWRITEBYTECODE

VENV := .venv
BIN  := $(VENV)/bin
PIP  := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# What a target needs: the package alone, or with the tools of development, or these and torch.
CREATED      := $(VENV)/.stamp-created
FOR_PACKAGE  := $(VENV)/.stamp-package
FOR_DEMO     := $(VENV)/.stamp-demo
FOR_DEVELOP  := $(VENV)/.stamp-develop
FOR_DOCS     := $(VENV)/.stamp-docs
FOR_PEERS    := $(VENV)/.stamp-peers
TORCH_STAMP  := $(if $(strip $(TORCH)),$(VENV)/.stamp-$(subst =,-,$(strip $(TORCH))))
FOR_TESTS    := $(TORCH_STAMP) $(FOR_DEVELOP)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-18s %s\n", $$1, $$2}' Makefile

.PHONY: demo
demo: $(FOR_DEMO) ## see a run meet, lose a node and regroup, on this machine
	$(BIN)/rallypoint demo

# tests/kinds.py says what the markers mean. Files that take long come first, so their order stays.
PYTEST := $(BIN)/python -m pytest --dist loadfile --no-loadscope-reorder

.PHONY: test
test: lint types $(FOR_TESTS) ## check format, lint and types, and run all tests except the long ones
	$(PYTEST) -n $(JOBS) -m "not verify"

.PHONY: unit
unit: $(FOR_DEVELOP) ## the tests without processes, sockets or torch, for while you work
	$(PYTEST) -n logical -m "not (processes or sockets or torch or docs or verify)"

.PHONY: verify
verify: $(FOR_TESTS) ## the long tests: chaos, partitions, many seeds, real jobs (LONG=1: even longer)
	RALLYPOINT_TEST_LONG=$(LONG) $(PYTEST) -n $(JOBS) -m "verify"

.PHONY: lint
lint: $(FOR_DEVELOP) ## check format and lint; changes nothing
	$(BIN)/ruff format --check
	$(BIN)/ruff check

.PHONY: format
format: $(FOR_DEVELOP) ## format, and mend what ruff can mend
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

.PHONY: types
types: $(FOR_DEVELOP) ## check types
	$(BIN)/mypy

.PHONY: bench
bench: $(FOR_DEVELOP) ## measure the figures that the documentation quotes
	$(BIN)/python benchmarks/figures.py

# When a search without a near end stops: fuzz, simulate, mutants, model. Empty: when it has all.
MINUTES ?=
SECONDS_MAX = $$(($(MINUTES) * 60))

# How many inputs `make fuzz` sends, and from which seed.
FRAMES ?= 1000000
SEED ?= 1

.PHONY: fuzz
fuzz: $(FOR_DEVELOP) ## send hostile input at the shipped code (FRAMES, SEED, MINUTES); goes on where it stopped
	$(BIN)/python -m tests.fuzz --inputs $(FRAMES) --seed $(SEED) --state .fuzz-$(SEED).json \
	  $(if $(MINUTES),--seconds $(SECONDS_MAX))

# How many seeds `make simulate` has played when it ends.
SEEDS ?= 1000000

.PHONY: simulate
simulate: $(FOR_PACKAGE) ## play simulated jobs under faults, one for each seed (SEEDS, MINUTES); goes on where it stopped
	$(BIN)/python -m rallypoint.simulation --seeds 0:$(SEEDS) --jobs $(JOBS) --state .simulate.json \
	  $(if $(MINUTES),--seconds $(SECONDS_MAX))

# Which other Pythons `make versions` compares with.
PYTHONS ?= python3.12 python3.13

.PHONY: versions
versions: $(FOR_PACKAGE) ## see that a seed has the same history with each version of Python (PYTHONS)
	$(BIN)/python -m tests.simulation.versions $(PYTHONS)

# How long `make chaos` goes on, and over which ledger: etcd or file.
HOURS ?= 1
LEDGER ?= etcd

# Where `make chaos` keeps its records, until all is well. Empty: in a temporary folder.
FOLDER ?=

.PHONY: chaos
chaos: $(FOR_DEVELOP) ## kill, freeze and cut off real processes (HOURS, LEDGER, SEED, FOLDER); goes on where it stopped
	$(BIN)/python -m tests.chaos --hours $(HOURS) --ledger $(LEDGER) --seed $(SEED) \
	  $(if $(FOLDER),--folder $(FOLDER))

# How many rounds `make soak` has.
ROUNDS ?= 10000

.PHONY: soak
soak: $(FOR_DEVELOP) ## thousands of real rounds, and whether anything grows with them (ROUNDS, LEDGER)
	$(BIN)/python -m tests.soak --rounds $(ROUNDS) --ledger $(LEDGER)

# Which marked lines `make mutants` breaks: a file or a folder, such as core/membership.py.
ONLY ?=

.PHONY: mutants
mutants: $(FOR_DEVELOP) ## break each line that keeps a rule, and run the tests (ONLY, MINUTES); goes on where it stopped
	$(BIN)/python -m tests.mutation --only '$(ONLY)' --worlds 30 --state .mutants.json \
	  $(if $(MINUTES),--stop-after $(SECONDS_MAX))

# Which world `make model` explores, and how far.
WORLD ?= whole
STATES ?= 5000000

.PHONY: model
model: $(FOR_PACKAGE) ## explore a large world of the model checker (WORLD, STATES, MINUTES); goes on where it stopped
	$(BIN)/python -m rallypoint.simulation.explore --world $(WORLD) --states $(STATES) --state .model-$(WORLD) \
	  $(if $(MINUTES),--seconds $(SECONDS_MAX))

# How many seeds `make planted` tries for each bug.
PLANTED_SEEDS ?= 1000

.PHONY: planted
planted: $(FOR_DEVELOP) ## plant bugs in the shipped code, see that they are found, and write docs/verification.md (PLANTED_SEEDS)
	$(BIN)/python -m tests.simulation.planted --seeds $(PLANTED_SEEDS) --jobs 2 --write

.PHONY: scale
scale: $(FOR_DEVELOP) ## measure how many nodes one coordinator serves, and write it into docs/scale.md
	$(BIN)/python benchmarks/scale.py

.PHONY: profile
profile: $(FOR_PEERS) ## draw where the coordinator's time goes, into docs/images
	$(BIN)/python benchmarks/flames.py

.PHONY: docs
docs: $(FOR_DOCS) ## build the documentation into site/; any warning is an error
	$(BIN)/python -m tools.docsite

.PHONY: peers
peers: $(FOR_PEERS) ## compare with other rendezvous, and write docs/benchmarks.md (half an hour)
	@$(BIN)/python benchmarks/peers/run.py --install || \
	  echo "notice: peers that could not be installed are skipped, by name." >&2
	$(BIN)/python benchmarks/peers/run.py --write

.PHONY: rewrite-scenarios
rewrite-scenarios: $(FOR_DEVELOP) ## write the scenarios' results anew; read the diff before you commit
	$(BIN)/python -m pytest tests/core/test_scenarios.py --rewrite-scenarios

.PHONY: clean
clean: ## remove .venv, caches and builds
	rm -rf $(VENV) build dist site .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find src tests tools -name __pycache__ -type d -prune -exec rm -rf {} +

$(CREATED):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Rallypoint needs Python 3.11 or later; $(PYTHON) is missing or older." >&2; \
	  echo "hint: name another one: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(FOR_PACKAGE): pyproject.toml | $(CREATED)
	$(PIP) --editable .
	@touch $@

$(FOR_DEMO): pyproject.toml | $(CREATED)
	$(PIP) --editable '.[examples]'
	@touch $@ $(FOR_PACKAGE)

$(FOR_DEVELOP): pyproject.toml | $(CREATED)
	$(PIP) --editable '.[dev,examples]'
	@touch $@ $(FOR_DEMO) $(FOR_PACKAGE)

$(FOR_DOCS): pyproject.toml | $(CREATED)
	$(PIP) --editable '.[docs]'
	@touch $@

$(FOR_PEERS): pyproject.toml | $(FOR_TESTS)
	$(PIP) --editable '.[dev,examples,bench]'
	@touch $@

# Without it the tests that need torch are skipped, so a failure is printed and not fatal. No stamp
# is left then, and the next call tries again.
ifneq ($(TORCH_STAMP),)
$(TORCH_STAMP): | $(CREATED)
	@echo "Installing $(TORCH) for the tests that need it; 'make test TORCH=' goes without."
	@if $(PIP) '$(TORCH)'; then touch $@; else \
	  echo "notice: $(TORCH) could not be installed; the tests that need torch will be skipped." >&2; fi
endif

# The same few commands for people and CI. `make help` lists them.

PYTHON ?= python3
# Extra arguments: make test ARGS="-k bridge", make bench-cni ARGS=--help
ARGS ?=
# make lock keeps the pins that still fit; make lock UPGRADE=1 takes the newest of everything.
UPGRADE ?=

PY := .venv/bin/python
PIP := $(PY) -m pip --disable-pip-version-check --no-input -q
# A stamp is older than its lock when the lock has changed: then, and only then, is there something to install.
RUN_STAMP := .venv/.netloom-run
DEV_STAMP := .venv/.netloom-dev

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:

.PHONY: help venv dev machine demo test kill check format bench bench-cni bench-proxy soak lock clean

help: ## List the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(RUN_STAMP) ## Set up .venv with what netloom needs to run

dev: $(DEV_STAMP) ## Add what tests and checks need to .venv

machine: ## As root on Debian: install the programs the tests drive
	@tests/setup-machine tests

demo: venv ## Give three pods a network, here and now, and leave nothing
	@$(PY) -m cni_plugins.demo $(ARGS)

test: dev machine ## Run the tests (root for all of them)
	@$(PY) -m pytest $(ARGS)

kill: dev machine ## Kill the plugins and the agent at every system call, in turn (root; 3,000 kills, minutes)
	@NETLOOM_KILLS=all $(PY) -m pytest tests/kill $(ARGS)

check: dev ## Lint, formatting and types; changes nothing
	@status=0; \
	$(PY) -m ruff check . || status=1; \
	$(PY) -m ruff format --check . || status=1; \
	$(PY) -m mypy || status=1; \
	exit $$status

format: dev ## Repair what ruff can repair
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .

bench: bench-cni bench-proxy ## Measure, beside the reference plugins, Envoy and HAProxy (root)

bench-cni: dev machine ## The plugins alone; ARGS="--case ordinary --repeat 20"
	@$(PY) tests/bench/run.py $(ARGS)

bench-proxy: dev machine ## The proxy alone: HTTP/1.1, HTTP/2 and gRPC, TCP
	@$(PY) -m tests.bench.proxies
	@$(PY) -m tests.bench.http2_cost
	@$(PY) -m tests.bench.tcp_proxies

# 24 hours of a busy node and of a proxy. It takes two hours: no test may be ended for being slow.
soak: dev machine ## Many calls through one agent, an hour of load on a proxy: memory must stay flat (root)
	@NETLOOM_SOAK=$${NETLOOM_SOAK:-100000} NETLOOM_SOAK_S=$${NETLOOM_SOAK_S:-3600} \
	$(PY) -m pytest -s -o faulthandler_timeout=0 tests/agent/test_soak.py tests/meshproxy/live/test_soak.py $(ARGS)

clean: ## Remove what the other commands made, .venv included
	rm -rf .venv build dist netloom.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --no-build-isolation: setuptools comes from the lock, with its hash, like everything else.
$(RUN_STAMP): requirements.lock pyproject.toml
	@PYTHON='$(PYTHON)' tests/setup-machine venv
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv .venv
	@$(PIP) install --require-hashes -r requirements.lock
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

$(DEV_STAMP): requirements-dev.lock $(RUN_STAMP)
	@$(PIP) install --require-hashes -r requirements-dev.lock
	@touch $@

# Pinned, so that two people who lock get the same file; it lives in an environment that is thrown away.
LOCK_TOOL := uv==0.13.8
LOCK_FLAGS := --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
	--custom-compile-command 'make lock' $(if $(UPGRADE),--upgrade)

# The dev lock takes the run lock as constraints, so the two never disagree. Neither names an index: the machine's is used.
lock: ## Pin what pyproject.toml asks for, with hashes (UPGRADE=1: the newest)
	@PYTHON='$(PYTHON)' tests/setup-machine venv
	@dir=$$(mktemp -d); trap 'rm -rf "$$dir"' EXIT; \
	$(PYTHON) -m venv "$$dir"; \
	"$$dir/bin/pip" --disable-pip-version-check -q install $(LOCK_TOOL); \
	"$$dir/bin/uv" pip compile $(LOCK_FLAGS) --group build -o requirements.lock pyproject.toml; \
	"$$dir/bin/uv" pip compile $(LOCK_FLAGS) --group dev -c requirements.lock -o requirements-dev.lock

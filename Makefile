# make demo    a whole study on this machine, audited          make test    everything that a change must pass
# Options:     make demo DEMO_ARGS="--rounds 5"                make test PYTEST_ARGS="tests/ledger"
#              make demo PIP_ARGS="--extra-index-url URL"      URL: an index with CPU-only builds of torch

PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
DEMO_ARGS ?=
PYTEST_ARGS ?=
WORKERS ?= 2
BENCH_ARGS ?=
STUDY_ARGS ?=
CHAOS_ARGS ?=
DATA_DIR ?= data
OUT_DIR ?= out

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(PIP_ARGS)
export OMP_NUM_THREADS ?= 1
export DO_NOT_TRACK := true

CONSORTIUM ?= consortium
CONSORTIUM_ARGS ?=

# What tests of a whole deployment run beside Python; without a package its tests say that they are skipped.
SYSTEM_PACKAGES := ceph-common ceph-mon ceph-osd faketime iproute2 nginx-light postgresql radosgw systemd

.PHONY: system-packages chaos consortium-up consortium-study consortium-down demo ui test test-long study-heart study-eicu fuzz bench bench-data bench-consortium lint format clean help

help:
	@sed -n '1,3s/^# //p' Makefile

demo: $(VENV)/.installed-demo
	$(BIN)/consilium demo $(DEMO_ARGS)

ui: $(VENV)/.installed-demo
	$(BIN)/consilium ui

test: lint
	$(BIN)/python -m pytest -m "not long" -n $(WORKERS) --dist loadfile $(PYTEST_ARGS)

# As root on Debian; asks no server where nothing is missing.
system-packages:
	@missing=$$(for name in $(SYSTEM_PACKAGES); do \
	  dpkg-query --show --showformat '$${db:Status-Status}' $$name 2>/dev/null | grep -qx installed || echo $$name; done); \
	if [ -n "$$missing" ]; then apt-get update -qq \
	  && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $$missing >/dev/null; fi

test-long: $(VENV)/.installed-test
	@if [ "$$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then $(MAKE) system-packages; fi
	$(BIN)/python -m pytest -m "long" --timeout 7200 $(PYTEST_ARGS)

# More than 100,000 mutated messages; the test command tries a few thousand.
fuzz: $(VENV)/.installed-test
	$(BIN)/python -m pytest tests/secure_sum/test_fuzz.py --hypothesis-profile fuzz --timeout 7200 $(PYTEST_ARGS)

# A coordinator with PostgreSQL, Prefect, MLflow, S3 and nginx, and four hospitals, as processes of this machine in the
# folder CONSORTIUM; CONSORTIUM_ARGS="--store folder --rounds 5".
consortium-up consortium-study consortium-down: consortium-%: $(VENV)/.installed-test
	$(BIN)/python -m tests.consortium $* --folder "$(CONSORTIUM)" $(if $(filter up,$*),$(CONSORTIUM_ARGS))

# Accuracy on many public splits with real encryption; DATA_DIR names the folder of the original files.
study-heart: STUDY = uci-heart
study-eicu: STUDY = eicu-demo
study-heart study-eicu: study-%: $(VENV)/.installed-test
	$(BIN)/consilium study run studies/$(STUDY)/study.yaml --accuracy --data-dir "$(DATA_DIR)" \
	  --out "$(OUT_DIR)/$*" --resume $(STUDY_ARGS)

# Studies whose processes are killed and whose links are cut when a seed says so, a network namespace per host (as root);
# finished seeds are kept.
# CHAOS_ARGS="--seeds 0-4 --rounds 5" runs some, shorter.
chaos: $(VENV)/.installed-test
	$(BIN)/python -m tests.chaos --out "$(OUT_DIR)/chaos" $(CHAOS_ARGS)

# 30 to 25,000,000 coefficients; BENCH_ARGS="1000000 --processes 4" measures one size on four cores.
bench: $(VENV)/.installed-test
	$(BIN)/python -m tests.bench $(BENCH_ARGS)

# Contract checks of up to ten million rows beside plain scanning; BENCH_ARGS="csv:1000000" measures one case.
bench-data: $(VENV)/.installed-test
	$(BIN)/python -m tests.bench.data $(BENCH_ARGS)

# Seconds per round beyond compute, memory, bytes on the wire and time to recover, of four hospitals on PostgreSQL and S3;
# BENCH_ARGS="--rounds 20 --no-recover" measures more rounds and kills nobody.
bench-consortium: $(VENV)/.installed-test
	$(BIN)/python -m tests.bench.consortium $(BENCH_ARGS)

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Leaves demo folders alone: they hold ledgers and evidence.
clean:
	rm -rf $(VENV) build dist consilium.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "consilium needs Python 3.11 or newer; name one with make PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# torch goes first and by itself: asked for alone, pip takes a CPU-only build where one is at hand; as somebody's
# dependency it may bring gigabytes of CUDA libraries.
$(VENV)/.torch: constraints.txt | $(VENV)/bin/python
	@echo "Installing into $(VENV): a few minutes, about 450 MB"
	$(PIP) torch==2.13.0
	@touch $@

$(VENV)/.installed-demo: pyproject.toml constraints.txt $(VENV)/.torch
	$(PIP) -e '.[demo]'
	@touch $@

$(VENV)/.installed-test: pyproject.toml constraints.txt $(VENV)/.torch
	$(PIP) -e '.[test]'
	@touch $@ $(VENV)/.installed-demo

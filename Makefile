# Targets print their own help: `make`.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# The first Python that is new enough; `make PYTHON=/path/to/python demo` insists on one.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
# Where torch comes from; empty means the default index, whose Linux build carries CUDA (5 GB) and runs on the CPU too.
TORCH_INDEX_URL ?=
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
PYTEST := $(BIN)/python -m pytest
EXAMPLES ?= 500
SHORT := sigkill races fencing sigterm cancel poison predictor dataset_kills api_kills

.PHONY: help demo serve test lint types unit e2e chaos-short chaos chaos-long bench bench-predict bench-datasets bench-load contract audit image-check clean

help: ## Show this help
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-15s %s\n", $$1, $$2}'

demo: .venv/installed ## The main job, end to end: train FashionMNIST over HTTP, predict ten test pictures
	@$(BIN)/python -m tests.end_to_end.demo

serve: .venv/installed ## Service and worker in the foreground on EPOCHD_PORT (8000); Ctrl-C stops both
	@exec $(BIN)/epochd serve

test: lint types unit e2e chaos-short ## Everything that must hold: lint, types, all test tiers

lint: .venv/installed ## ruff: format, lint, import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: .venv/installed ## mypy, strict, over code and tests
	$(BIN)/mypy

unit: .venv/installed ## The unit tier, in seconds
	$(PYTEST) -q -n 2 tests/service tests/worker

e2e: .venv/installed .venv/browser/installed ## Over real HTTP with a real worker process, and the README's commands
	$(PYTEST) -q tests/end_to_end

chaos-short: .venv/installed ## Twenty kills, races, and a few of everything else that takes seconds
	ROUNDS=2 TERMS=2 CANCELS=4 API_KILLS=2 $(PYTEST) -q -n 2 --dist loadfile $(addprefix tests/chaos/test_,$(addsuffix .py,$(SHORT)))

chaos: .venv/installed ## Kill, freeze and corrupt what can be, a few times (KILLS=200 for more)
	$(PYTEST) -q tests/chaos

chaos-long: .venv/installed ## The same with all kills, races, damages and restarts (an hour)
	KILLS=200 ROUNDS=100 TERMS=50 CANCELS=100 WRITES=60 FLIPS=300 CUTS=99 HOLD=10 LOAD_SECONDS=60 RESTARTS=10 \
		FULL_SECONDS=75 RACES=full DATASET_KILLS=20 PREDICTOR_KILLS=50 API_KILLS=200 $(PYTEST) -q tests/chaos

bench: .venv/installed ## Measure: epochd beside scripts and bare loops, one table of pairs (half an hour)
	@$(BIN)/python -m tests.bench

bench-predict: .venv/bench/installed .venv/bench/wrk ## Measure: predictions beside a naive endpoint and LitServe (a quarter of an hour)
	@$(BIN)/python -m tests.bench.predicting

bench-datasets: .venv/installed ## Measure: preparing beside a Pillow loop, a 2 GiB upload, 10 GB of pictures (20 GB of disk)
	@$(BIN)/python -m tests.bench.datasets

bench-load: .venv/installed ## Measure: submissions, polling, streams, a long history, and a soak (an hour; PART=streams for one)
	@$(BIN)/python -m tests.bench.load $(PART)

contract: .venv/installed .venv/tools/installed ## Fuzz the running product against its OpenAPI description (EXAMPLES=500), use a generated client (an hour)
	@$(BIN)/python -m tests.contract --examples $(EXAMPLES)

audit: .venv/installed .venv/tools/installed ## bandit over our code, pip-audit over what it depends on (asks the network)
	$(BIN)/bandit -q -c pyproject.toml -r service worker
	@log=$$(mktemp); trap 'rm -f "$$log"' EXIT; \
	if .venv/tools/bin/pip-audit --strict --no-deps --disable-pip -r constraints.txt > $$log 2>&1; then tail -3 $$log; \
	elif grep -qE 'ConnectionError|Dependency not found|ServiceError|Timeout' $$log; then tail -1 $$log; \
		echo "The service that knows of holes did not answer for every package, so pip-audit can say nothing: this is no pass."; exit 1; \
	else cat $$log; exit 1; fi

image-check: .venv/installed ## Build the image with buildah and run the main job inside it
	@PYTHON=$(BIN)/python docker/image-check.sh

clean: ## Remove the virtual environment and caches (not your data folder)
	rm -rf .venv build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

.venv/installed: pyproject.toml constraints.txt | .venv/bin/pip
	@echo "Installing into .venv (with CUDA-enabled torch some 5 GB: this takes minutes)"
	@$(if $(TORCH_INDEX_URL),$(PIP) install -q -c constraints.txt --index-url $(TORCH_INDEX_URL) torch torchvision)
	@$(PIP) install -q -c constraints.txt -e '.[dev]'
	@touch $@

# Their versions do not go with ours, so they have an environment of their own.
.venv/tools/installed: | .venv/installed
	@$(BIN)/python -m venv --without-pip .venv/tools
	@$(PIP) --python .venv/tools/bin/python install -q openapi-python-client==0.29.1 pip-audit==2.10.1; touch $@

# The dashboard's tests drive Debian's chromium, and axe-core looks for what keeps people out. Without root, or without
# npm, those tests say so and skip themselves.
.venv/browser/installed: | .venv/installed
	@mkdir -p .venv/browser; \
	if ! command -v chromium chromium-browser google-chrome > /dev/null; then \
		if [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
			echo "Installing chromium, for the tests of the dashboard"; \
			{ apt-get -q -y install chromium || { apt-get -q update && apt-get -q -y install chromium; }; } > .venv/browser/log 2>&1 || tail -3 .venv/browser/log; \
		else echo "No chromium here: the tests of the dashboard will skip themselves."; fi; \
	fi; \
	if command -v npm > /dev/null; then cd .venv/browser && \
		npm pack --silent axe-core@4.14.1 > /dev/null && tar -xzf axe-core-4.14.1.tgz package/axe.min.js --strip-components=1 || \
		echo "axe-core could not be fetched: its tests will skip themselves."; fi
	@touch $@

.venv/bench/installed: .venv/installed
	@mkdir -p .venv/bench; $(PIP) install -q -c constraints.txt -e '.[bench]'; touch $@

# Without root, as pip below. The wrapper finds the library that wrk needs.
.venv/bench/wrk: | .venv/installed
	@set -e; mkdir -p .venv/bench; \
	if command -v wrk > /dev/null; then ln -sf "$$(command -v wrk)" $@; else \
		scratch=$$(mktemp -d); trap 'rm -rf "$$scratch"' EXIT; mkdir -p $$scratch/{lists,archives}/partial; \
		own="-q -o Dir::State::Lists=$$scratch/lists -o Dir::Cache=$$scratch -o Dir::Cache::Archives=$$scratch/archives"; \
		(cd $$scratch && { apt-get -q download wrk libluajit-5.1-2 || \
			{ apt-get $$own update && apt-get $$own download wrk libluajit-5.1-2; }; } && \
			for package in *.deb; do dpkg-deb -x $$package .; done) > $$scratch/log 2>&1 || \
			{ tail -3 $$scratch/log; echo "wrk makes the load: install it (apt-get install wrk)"; exit 1; }; \
		cp $$scratch/usr/bin/wrk .venv/bench/wrk.bin; cp $$scratch/usr/lib/*/libluajit-5.1.so.2 .venv/bench/; \
		printf '#!/bin/sh\nhere=$$(dirname "$$(readlink -f "$$0")")\nLD_LIBRARY_PATH=$$here exec "$$here/wrk.bin" "$$@"\n' > $@; \
		chmod +x $@; \
	fi

# Debian's and Ubuntu's python3 comes without ensurepip (it is in python3-venv). Without root, pip's own wheel can
# still be had from the package archive.
.venv/bin/pip:
	@test -n "$(PYTHON)" || { echo "epochd needs Python 3.11 or newer; none was found"; exit 1; }
	@if $(PYTHON) -c 'import ensurepip' 2>/dev/null; then $(PYTHON) -m venv .venv; else \
		set -e; $(PYTHON) -m venv --without-pip .venv; \
		scratch=$$(mktemp -d); trap 'rm -rf "$$scratch"' EXIT; mkdir -p $$scratch/{lists,archives}/partial; \
		own="-q -o Dir::State::Lists=$$scratch/lists -o Dir::Cache=$$scratch -o Dir::Cache::Archives=$$scratch/archives"; \
		(cd $$scratch && { apt-get -q download python3-pip-whl || \
			{ apt-get $$own update && apt-get $$own download python3-pip-whl; }; } && \
			dpkg-deb -x python3-pip-whl_*.deb .) > $$scratch/log 2>&1 || \
			{ tail -3 $$scratch/log; rm -rf .venv; echo "This Python has no pip: install python3-venv (apt-get install python3-venv)"; exit 1; }; \
		wheel=$$(echo $$scratch/usr/share/python-wheels/pip-*.whl); \
		.venv/bin/python $$wheel/pip install -q --no-index $$wheel; \
	fi

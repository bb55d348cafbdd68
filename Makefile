# Set-up, demo and checks. Every target makes what it needs; `make help` prints them all.
PYTHON ?= python3
WORKERS ?= 2
FLICKR8K ?= ../shared/data/flickr8k
EXAMPLES ?= 20000
KILLS ?= 200
FAULTS ?= 50
SEED ?= $(shell date +%Y%m%d)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
AZURITE := 3
CEPH := ceph-common ceph-mon ceph-osd radosgw
CLUSTERS := /etc/postgresql-common/createcluster.conf
APT_INSTALL := apt-get install --yes --no-install-recommends
# Two busy processes of two threads each are six times slower than two of one.
TEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help setup demo test chaos check lint fix types arch docs-check s3-server azure-server postgres-server audit licences bundled-model bench bench-flickr8k clean

help: ## Print every target
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(INSTALLED) ## Make .venv with the tested versions (PYTHON=python3.12 chooses another Python)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Python must be 3.11 or newer, but $(PYTHON) is $$($(PYTHON) --version 2>&1)." \
	       "Say which to use: make setup PYTHON=python3.12" >&2; exit 1; }
	@echo "installing into $(VENV): 6 GB with torch's libraries, some minutes the first time"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq --upgrade pip
	@$(BIN)/python -m pip install -qq --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(INSTALLED) ## Run the nightly flow on bundled pictures with the bundled model, into ./demo-out
	$(BIN)/clipcap demo ./demo-out

test: $(INSTALLED) s3-server azure-server postgres-server ## Run all tests (WORKERS=2 processes)
	$(TEST) --numprocesses $(WORKERS) --dist loadgroup --durations 10 -rs

chaos: $(INSTALLED) s3-server postgres-server ## Kill, cut and starve nights by the ten thousand (KILLS=200 FAULTS=50 EXAMPLES=20000 SEED=today): hours
	CLIPCAP_CHAOS_SEED=$(SEED) CLIPCAP_CHAOS_EXAMPLES=$(EXAMPLES) CLIPCAP_CHAOS_KILLS=$(KILLS) CLIPCAP_CHAOS_FAULTS=$(FAULTS) \
	  $(TEST) tests/chaos tests/e2e/test_full_disk.py tests/deployments/test_losses.py --numprocesses $(WORKERS) --dist loadgroup --timeout 0 -rP

check: lint types test audit ## All that CI asks, in CI's order; the tests include arch, docs-check and licences

lint: $(INSTALLED) ## Look for mistakes and for unformatted files
	$(BIN)/ruff check
	$(BIN)/ruff format --check

fix: $(INSTALLED) ## Mend what ruff can mend, and format
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

types: $(INSTALLED) ## Check types, strictly
	$(BIN)/mypy

arch: $(INSTALLED) ## Check the direction of imports, names and sizes of files
	$(BIN)/lint-imports --no-logo
	$(TEST) tests/architecture

docs-check: $(INSTALLED) ## Check that the documentation is true
	$(TEST) tests/docs

s3-server: ## Install Debian's Ceph, which the S3 tests start (S3=no leaves it out)
	@if command -v radosgw >/dev/null && command -v ceph-osd >/dev/null; then :; \
	elif [ "$(S3)" != no ] && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "installing $(CEPH): the S3 tests start a real server"; \
	  export DEBIAN_FRONTEND=noninteractive; \
	  { apt-get update && $(APT_INSTALL) $(CEPH); } >/dev/null \
	    || echo "could not install $(CEPH): the S3 tests will be skipped"; \
	else \
	  echo "no radosgw here: the S3 tests will be skipped (on Debian: sudo apt-get install $(CEPH))"; \
	fi

azure-server: ## Install Azurite into build/azurite, which the Azure tests start (AZURE=no leaves it out)
	@if command -v azurite-blob >/dev/null || [ -x build/azurite/node_modules/.bin/azurite-blob ]; then :; \
	elif [ "$(AZURE)" != no ] && command -v npm >/dev/null; then \
	  echo "installing Azurite $(AZURITE) into build/azurite"; \
	  npm install --silent --no-audit --no-fund --prefix build/azurite azurite@$(AZURITE) >/dev/null 2>&1 \
	    || echo "could not install Azurite: the Azure tests will be skipped"; \
	else \
	  echo "no npm here: the Azure tests will be skipped"; \
	fi

# Debian's package would make a server of its own, started at boot: postgresql-common is told not to first,
# unless it is there and somebody has decided.
postgres-server: ## Install Debian's PostgreSQL, which the test of a production server starts (POSTGRES=no leaves it out)
	@if command -v initdb >/dev/null || ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1; then :; \
	elif [ "$(POSTGRES)" != no ] && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "installing postgresql: a test starts a server of its own"; \
	  export DEBIAN_FRONTEND=noninteractive; \
	  { apt-get update && { [ -e $(CLUSTERS) ] || { $(APT_INSTALL) postgresql-common \
	    && sed -i 's/^#create_main_cluster.*/create_main_cluster = false/' $(CLUSTERS); }; } \
	    && $(APT_INSTALL) postgresql; } >/dev/null \
	    || echo "could not install postgresql: the test of a production server will be skipped"; \
	else \
	  echo "no PostgreSQL here: the test of a production server will be skipped (on Debian: sudo apt-get install postgresql)"; \
	fi

audit: $(INSTALLED) ## Look up known weaknesses of the pinned versions (says so where it cannot)
	@[ -x build/audit/bin/pip-audit ] || { $(PYTHON) -m venv build/audit \
	  && build/audit/bin/python -m pip install -qq pip-audit; } >/dev/null 2>&1 || true
	$(BIN)/python -m tests.audit

licences: $(INSTALLED) ## Print the licence of every dependency; fails on one that nobody has looked at
	$(BIN)/python -m tests.licences

bundled-model: $(INSTALLED) ## Train the bundled model again from its seed
	$(BIN)/python -m clipcap.bundled.build clipcap/bundled --seed 0

bench: $(INSTALLED) ## Measure every stage on the photographs of a folder: make bench IMAGES=FOLDER
	@[ -n "$(IMAGES)" ] || { echo "Say which: make bench IMAGES=FOLDER_OF_PHOTOGRAPHS" >&2; exit 2; }
	$(BIN)/python -m bench.stages "$(IMAGES)" --model bundled --repeats 5
	$(BIN)/python -m bench.stages "$(IMAGES)" --model random-ViT-B-32 --repeats 3 --limit 24

bench-flickr8k: $(INSTALLED) ## Train captioners on real photographs and judge them (FLICKR8K=FOLDER), into build/
	$(BIN)/python -u -m bench.flickr8k "$(FLICKR8K)"

clean: ## Remove what demo, tests and tools left; .venv stays
	rm -rf demo-out build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

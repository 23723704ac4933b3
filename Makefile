# Every command sets up what it needs on a bare Debian 12, asks nothing, and needs no root once haproxy and serf are there.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo test check lint bench load long test-windows pages clean

export PATH := $(PATH):/usr/sbin:/sbin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

VENV := .venv
BIN := $(VENV)/bin
CODE := lbagent $(wildcard demo tests bench load scenarios)

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*##/\1\t/p' $(MAKEFILE_LIST) | expand -t 15

demo: $(VENV)/.demo  ## join, pause, reboot, resume and leave, with real Serf and HAProxy, in half a minute
	@$(BIN)/python -m demo

test: $(VENV)/.dev  ## all tests
	@$(BIN)/python -m pytest

check: lint test  ## what a change has to pass: format, lint, types, tests

lint: $(VENV)/.dev  ## format, lint and types
	@$(BIN)/ruff format --check $(CODE)
	@$(BIN)/ruff check $(CODE)
	@$(BIN)/mypy $(CODE)

bench: $(VENV)/.dev  ## how fast it is
	@$(BIN)/python bench/run.py

load: $(VENV)/.dev  ## 1,000 changes under load, with the runtime API and without it; four minutes
	@.ci/install wrk
	@$(BIN)/python -m load

long: $(VENV)/.dev  ## the daemon over 100,000 events and a day of syncs; ten minutes
	@$(BIN)/python -m load.long

test-windows: $(VENV)/.dev  ## windows/ under Wine, with a serf.exe that it builds; 2 GB, seven minutes
	@.ci/install wine /usr/lib/wine/wine64=wine64 go=golang-go \
	    /usr/share/gocode/src/github.com/hashicorp/serf=golang-github-hashicorp-serf-dev \
	    /usr/share/go-1.19/src=golang-1.19-src
	@$(BIN)/python -m pytest -s scenarios/test_windows.py

pages: $(VENV)/.demo  ## man page and completions, in build/
	@$(BIN)/python -m lbagent.manual build

clean:  ## removes what the others have made here
	@rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Debian's own python3, not one that happens to come first in PATH; else any that is new enough.
define NEW_VENV
	@for python in /usr/bin/python3 python3; do \
	    if "$$python" -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' 2> /dev/null; then break; fi; \
	    python=; \
	done; \
	[ -n "$$python" ] || { echo "python3 of at least 3.11, with venv, is needed" >&2; exit 1; }; \
	$(BIN)/python -c '' 2> /dev/null || "$$python" -m venv --clear $(VENV)
endef

define INSTALL
	@echo "setting up $(VENV) (once) ..."
	@for pause in 2 10 30 0; do \
	    if $(BIN)/python -m pip install -q --retries 5 --timeout 60 -e '$(1)'; then break; fi; \
	    [ "$$pause" != 0 ] || exit 1; \
	    sleep "$$pause"; \
	done
	@touch $@
endef

$(VENV)/.demo: pyproject.toml .ci/install
	@.ci/install
	$(NEW_VENV)
	$(call INSTALL,.)

$(VENV)/.dev: pyproject.toml .ci/install
	@.ci/install
	$(NEW_VENV)
	$(call INSTALL,.[dev])
	@touch $(VENV)/.demo

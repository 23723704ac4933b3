# Every command sets up what it needs on a bare Debian, asks nothing, and needs no root once haproxy and serf are there.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo test test-fast check lint dashboard docs pictures bench load scale fuzz long faults mutation histories matrix test-differential test-pair chaos test-windows test-spark test-web test-impala test-platform pages clean

export PATH := $(PATH):/usr/sbin:/sbin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

VENV := .venv
BIN := $(VENV)/bin
CODE := lbagent $(wildcard demo tests bench load scenarios)

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*##/\1\t/p' $(MAKEFILE_LIST) | expand -t 15

demo: $(VENV)/.demo  ## join, pause, reboot, resume and leave, with real Serf and HAProxy, in half a minute
	@$(BIN)/python -m demo

test: $(VENV)/.dev  ## all tests, ten minutes; on Debian 12 also with the HAProxy of later releases, which it downloads
	@.ci/haproxy || true
	@$(BIN)/python -m pytest -n 8 --dist worksteal

test-fast: $(VENV)/.dev  ## the tests without real programs, a minute
	@$(BIN)/python -m pytest -n 8 --dist worksteal --ignore tests/real --ignore tests/examples --ignore tests/packaging --ignore tests/docs

check: lint test  ## the required checks for a change: format, lint, types, tests

lint: $(VENV)/.dev  ## format, lint, types, import directions, and the English of documentation and code
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy $(CODE)
	@$(BIN)/lint-imports
	@$(BIN)/python -m tests.docs.prose --code

bench: $(VENV)/.dev  ## benchmarks, and how long a join and a pause take; installs wrk
	@.ci/install wrk
	@.ci/haproxy
	@$(BIN)/python bench/run.py
	@$(BIN)/python -m load.latency

load: $(VENV)/.dev  ## 1,000 changes under load, long sessions, a burst of reloads, reloads in a row; nine minutes
	@.ci/install wrk
	@$(BIN)/python -m load
	@$(BIN)/python -m load.sessions
	@$(BIN)/python -m load.burst
	@$(BIN)/python -m load.reloads

scale: $(VENV)/.dev  ## 200 real Serf agents, then 200, 2,000 and 20,000 simulated members; five minutes
	@.ci/haproxy
	@$(BIN)/python -m load.agents
	@$(BIN)/python -m load.scale

fuzz: $(VENV)/.dev  ## 100,000 hostile inputs from the handler to haproxy.cfg; fifteen minutes
	@LBAGENT_HOSTILE=100000 $(BIN)/python -m pytest -n 2 -q -s tests/run/test_hostile_inputs.py

long: $(VENV)/.dev  ## the daemon over 100,000 events and a day of syncs; ten minutes
	@$(BIN)/python -m load.long

faults: $(VENV)/.dev  ## every system call of a run fails once; two hours, EVERY=4 for every fourth
	@LBAGENT_STEPS=$(or $(EVERY),1) $(BIN)/python -m pytest -n 2 -q -rA tests/real/test_every_step.py

mutation: $(VENV)/.dev  ## 400 mutants of the pure modules, and the tests that notice them; twenty minutes, ALL=1 for all
	@$(BIN)/python -m tests.mutation $(if $(ALL),--all)

histories: $(VENV)/.dev  ## pauses in 50,000 random histories, compared with a model; a quarter of an hour, HISTORIES=N for N of each kind
	@LBAGENT_HISTORIES=$(or $(HISTORIES),5500) $(BIN)/python -m pytest -q -rP -n 2 tests/membership/test_pauses_model.py

matrix: $(VENV)/.dev  ## every test on every HAProxy version; `make test` runs a part of them; twenty minutes
	@.ci/haproxy
	@LBAGENT_MATRIX=1 $(BIN)/python -m pytest -n 8 --dist worksteal

test-differential: $(VENV)/.dev  ## servers added at run time, compared with the same lines after a reload: all pairs of keywords, on each HAProxy
	@LBAGENT_SWEEP=1 $(BIN)/python -m pytest -q -s tests/real/test_differential.py

test-pair: $(VENV)/.dev  ## two load balancers with keepalived under load, as root; five minutes
	@.ci/install keepalived rsyslogd logrotate nft ip curl pkill
	@$(BIN)/python -m pytest -q -s scenarios/test_pair.py

chaos: $(VENV)/.dev  ## random faults and changes on two load balancers and 30 nodes, compared with a model, as root; ten minutes, DURATION= in seconds, SEED=
	@.ci/install keepalived nft ip curl setpriv gcc /usr/include/dlfcn.h=libc6-dev
	@$(BIN)/python -m pytest -q scenarios/test_chaos.py -k 'not interrupted'
	@$(BIN)/python -m scenarios.chaos --seconds $(or $(DURATION),600) $(if $(SEED),--seed $(SEED))

test-windows: $(VENV)/.dev  ## the scripts of windows/ in Wine; builds serf.exe; 2 GB, seven minutes
	@.ci/install wine /usr/lib/wine/wine64=wine64 go=golang-go \
	    /usr/share/gocode/src/github.com/hashicorp/serf=golang-github-hashicorp-serf-dev \
	    /usr/share/go-1.19/src=golang-1.19-src
	@$(BIN)/python -m pytest -s scenarios/test_windows.py

test-spark: $(VENV)/.dev build/pyspark/.done  ## examples/spark-ha: real Spark masters fail over; five to ten minutes, FULL=1 for more
	@.ci/install java chromium chromedriver
	@rm -f build/spark/figures.txt
	@status=0; $(BIN)/python -m pytest -v scenarios/test_spark.py || status=$$?; \
	    if [ -e build/spark/figures.txt ]; then echo; cat build/spark/figures.txt; fi; exit $$status

test-web: $(VENV)/.dev build/axe/.done  ## the web page of a real pair in Chromium: live, pause, accessibility, pictures; five minutes
	@.ci/install chromium chromedriver
	@$(BIN)/python -m pytest -q -s scenarios/test_web.py

test-impala: $(VENV)/.dev build/impala/.ready  ## examples/impala with real HiveServer2 servers; installs java and 400 MB; six minutes
	@.ci/install java
	@$(BIN)/python -m pytest scenarios/test_impala.py

test-platform: $(VENV)/.platform  ## examples/data-platform: nodes join and change under JMeter's load; four minutes, FULL=1 for 1,000,000 requests
	@.ci/install ip nginx prometheus prometheus-node-exporter java jmeter /usr/share/jmeter/lib/ext/ApacheJMeter_http.jar=jmeter-http
	@scenarios/run_isolated $(BIN)/python -m pytest -sq -p no:cacheprovider scenarios/test_platform.py

pages: $(VENV)/.pages  ## man page and completions, in build/
	@$(BIN)/python packaging/pages.py build

dashboard: $(VENV)/.dev  ## the Grafana dashboard of examples/monitoring, from packaging/dashboard.py
	@mkdir -p build
	@$(BIN)/python packaging/dashboard.py > build/dashboard.json
	@mv build/dashboard.json examples/monitoring/dashboard.json

docs: $(VENV)/.docs  ## the documentation as a site that can be read offline, in build/site
	@# Not --quiet: it hides warnings from --strict too.
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict 2>&1 | sed '/^INFO/d'
	@echo "build/site/index.html"

pictures: $(VENV)/.pictures  ## docs/img from the real program and the Mermaid files, as root; half a minute
	@.ci/install keepalived rsyslogd logrotate nft ip curl setpriv
	@PATH="$$PWD/$(BIN):$$PATH" $(BIN)/python -m scenarios.pictures docs/img

include packaging/install.mk

clean:  ## removes the files that the other targets have created
	@rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Debian's python3 is preferred to the first one in PATH, which may be another version.
define NEW_VENV
	@for python in /usr/bin/python3 python3; do \
	    if "$$python" -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' 2> /dev/null; then break; fi; \
	    python=; \
	done; \
	[ -n "$$python" ] || { echo "python3: 3.11 or later with venv is needed; run apt-get install python3-venv" >&2; exit 1; }; \
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

# The servers and the client of test-impala are in a separate environment.
build/impala/.ready: scenarios/impala.txt | $(VENV)/.dev
	@echo "setting up build/impala (once) ..."
	@$(BIN)/python -m venv --clear build/impala
	@for pause in 2 10 30 0; do \
	    if build/impala/bin/python -m pip install -q --retries 5 --timeout 60 -r $<; then break; fi; \
	    [ "$$pause" != 0 ] || exit 1; \
	    sleep "$$pause"; \
	done
	@touch $@

$(VENV)/.demo: pyproject.toml .ci/install
	@.ci/install
	$(NEW_VENV)
	$(call INSTALL,.)

$(VENV)/.pages: pyproject.toml .ci/install
	@.ci/install
	$(NEW_VENV)
	$(call INSTALL,.[pages])
	@touch $(VENV)/.demo

$(VENV)/.docs: pyproject.toml .ci/install
	@.ci/install
	$(NEW_VENV)
	$(call INSTALL,.[docs])

$(VENV)/.dev: pyproject.toml .ci/install
	@.ci/install
	$(NEW_VENV)
	$(call INSTALL,.[dev])
	@touch $(VENV)/.demo $(VENV)/.pages $(VENV)/.docs

$(VENV)/.pictures: $(VENV)/.dev
	$(call INSTALL,.[pictures])

# The script that examines pages for accessibility; the rest of that package is for another browser driver.
build/axe/.done: | $(VENV)/.dev
	@$(BIN)/python -m pip install -q --no-deps --upgrade --target build/axe 'axe-playwright-python==0.1.8'
	@touch $@

# Spark and its ZooKeeper are in a separate environment.
build/pyspark/.done: | $(VENV)/.dev
	@echo "setting up build/pyspark (once, 320 MB) ..."
	@[ -x build/pyspark/bin/python ] || $(BIN)/python -m venv build/pyspark
	@for pause in 2 10 30 0; do \
	    if build/pyspark/bin/python -m pip install -q --retries 5 --timeout 60 'pyspark==3.5.*'; then break; fi; \
	    [ "$$pause" != 0 ] || exit 1; \
	    sleep "$$pause"; \
	done
	@touch $@

$(VENV)/.platform: $(VENV)/.dev
	$(call INSTALL,.[platform])

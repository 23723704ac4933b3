# Targets that install, remove and package lbagent, and the tests of the package.
.PHONY: install uninstall deb dist test-deb test-setup test-distros

PREFIX ?= /usr/local
DESTDIR ?=

install: pages  ## lbagent below PREFIX (/usr/local), its units, man page and completions; starts nothing
	@packaging/install '$(DESTDIR)' '$(PREFIX)'

uninstall:  ## removes the files of `make install`; settings and state stay
	@packaging/uninstall '$(DESTDIR)' '$(PREFIX)'

deb: pages docs  ## build/lbagent_VERSION_all.deb, with the site
	@packaging/deb

dist: $(VENV)/.dev  ## the sdist and the wheel, in dist/, checked by twine
	@rm -rf dist
	@$(BIN)/python -m build --no-isolation > /dev/null
	@$(BIN)/python -m twine check --strict dist/*

test-deb: $(VENV)/.dev deb  ## the package on a separate Debian 12 with systemd: installed, used, upgraded, purged; as root, five minutes
	@.ci/install debootstrap ip
	@RELEASES=bookworm $(BIN)/python -m pytest -q -s scenarios/test_deb.py

test-setup: RELEASES = bookworm trixie
test-setup: $(VENV)/.dev deb  ## a pair is set up by the documentation's commands on Debian 12 and 13, and faults are injected; as root, a quarter of an hour
	@.ci/install debootstrap ip
	@RELEASES='$(RELEASES)' $(BIN)/python -m pytest -v -s scenarios/test_setup.py

RELEASES ?= trixie sid
test-distros: $(VENV)/.dev deb  ## demo, tests and package on separate, bare Debian 13 and sid; as root, an hour
	@.ci/install debootstrap ip
	@RELEASES='$(RELEASES)' $(BIN)/python -m pytest -v -s scenarios/test_distros.py scenarios/test_deb.py

# How lbagent gets onto a host, and off it.
.PHONY: install uninstall deb dist test-deb test-setup test-distros

PREFIX ?= /usr/local
DESTDIR ?=

install: pages  ## lbagent below PREFIX (/usr/local), its units, man page and completions; starts nothing
	@packaging/install '$(DESTDIR)' '$(PREFIX)'

uninstall:  ## takes that away again; settings and state stay
	@packaging/uninstall '$(DESTDIR)' '$(PREFIX)'

deb: pages docs  ## build/lbagent_VERSION_all.deb, with the site
	@packaging/deb

dist: $(VENV)/.dev  ## the sdist and the wheel, in dist/, checked by twine
	@rm -rf dist
	@$(BIN)/python -m build --no-isolation > /dev/null
	@$(BIN)/python -m twine check --strict dist/*

test-deb: $(VENV)/.dev deb  ## the package on a Debian 12 of its own with systemd: installed, used, upgraded, purged; as root, five minutes
	@.ci/install debootstrap ip
	@RELEASES=bookworm $(BIN)/python -m pytest -q -s scenarios/test_deb.py

test-setup: RELEASES = bookworm trixie
test-setup: $(VENV)/.dev deb  ## a pair set up by the commands of the documentation on Debian 12 and 13, then broken; as root, a quarter of an hour
	@.ci/install debootstrap ip
	@RELEASES='$(RELEASES)' $(BIN)/python -m pytest -v -s scenarios/test_setup.py

RELEASES ?= trixie sid
test-distros: $(VENV)/.dev deb  ## demo, tests and package on Debian 13 and sid, each bare and of its own; as root, an hour
	@.ci/install debootstrap ip
	@RELEASES='$(RELEASES)' $(BIN)/python -m pytest -v -s scenarios/test_distros.py scenarios/test_deb.py

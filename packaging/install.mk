# How lbagent gets onto a host, and off it.
.PHONY: install uninstall deb test-deb

PREFIX ?= /usr/local
DESTDIR ?=

install: pages  ## lbagent below PREFIX (/usr/local), its units, man page and completions; starts nothing
	@packaging/install '$(DESTDIR)' '$(PREFIX)'

uninstall:  ## takes that away again; settings and state stay
	@packaging/uninstall '$(DESTDIR)' '$(PREFIX)'

deb: pages  ## build/lbagent_VERSION_all.deb
	@packaging/deb

test-deb: $(VENV)/.dev deb  ## the package on a Debian 12 of its own with systemd: installed, used, upgraded, purged; as root, five minutes
	@.ci/install debootstrap
	@$(BIN)/python -m pytest -q -s scenarios/test_deb.py

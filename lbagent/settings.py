"""Settings of every command, and the files of the state directory.

Command line options come first, then environment variables, then defaults.
"""

from __future__ import annotations

import os
from collections import namedtuple
from collections.abc import Mapping

DEFAULT_ROLES = "/etc/lbagent/roles.yml"
DEFAULT_STATE_DIR = "/var/lib/lbagent"
DEFAULT_RUNTIME_DIR = "/run/lbagent"
STATUS_SOCKET = "status.sock"
"""Name of the daemon's status socket in the runtime directory."""


class Paths:
    """The files of the state directory."""

    __slots__ = ("folder",)

    def __init__(self, folder: str) -> None:
        """`folder` is the state directory."""
        self.folder = folder

    @property
    def spool(self) -> str:
        """Directory of the events that are not applied to membership yet."""
        return os.path.join(self.folder, "spool")

    @property
    def bad(self) -> str:
        """Directory of files set aside because they are not valid events."""
        return os.path.join(self.spool, "bad")

    @property
    def lock(self) -> str:
        """Lock file of a run: its holder may update membership, plan and apply."""
        return os.path.join(self.folder, "lock")

    @property
    def watch_lock(self) -> str:
        """Lock file that a running `watch` holds."""
        return os.path.join(self.folder, "watch.lock")

    @property
    def members(self) -> str:
        """Membership, with pauses."""
        return os.path.join(self.folder, "members.json")

    @property
    def served(self) -> str:
        """What HAProxy last confirmed."""
        return os.path.join(self.folder, "served.json")

    @property
    def roles(self) -> str:
        """Cached copy of roles.yml."""
        return os.path.join(self.folder, "roles.json")

    @property
    def answers(self) -> str:
        """Answers to queries, written for handlers that may not apply changes themselves."""
        return os.path.join(self.folder, "answers.json")

    @property
    def history(self) -> str:
        """History: one JSON line per change."""
        return os.path.join(self.folder, "history.jsonl")

    @property
    def last(self) -> str:
        """Times of the last run, event, change, reload and sync."""
        return os.path.join(self.folder, "last.json")

    @property
    def peers(self) -> str:
        """The other load balancers, as the last sync saw them."""
        return os.path.join(self.folder, "peers.json")

    @property
    def metrics(self) -> str:
        """Metrics for node_exporter's textfile collector."""
        return os.path.join(self.folder, "metrics.prom")

    def prepare(self) -> None:
        """Create the missing directories. Raises OSError."""
        if not os.path.isdir(self.spool):
            # One by one: makedirs applies its mode to the last directory only.
            for folder in (self.folder, self.spool):
                os.makedirs(folder, mode=0o750, exist_ok=True)


_Fields = namedtuple("_Fields", "roles state_dir verbose", defaults=[False])  # noqa: PYI024  # `typing` takes longer to import than an event to store


class Settings(_Fields):
    """The paths of roles.yml and of the state directory, and the verbosity."""

    roles: str
    state_dir: str
    verbose: bool

    __slots__ = ()

    @property
    def paths(self) -> Paths:
        """The paths in the state directory."""
        return Paths(self.state_dir)


def load_settings(environ: Mapping[str, str], roles: str | None, state_dir: str | None, *, verbose: bool) -> Settings:
    """Return the settings from options (None where not given) and environment."""
    # systemd's STATE_DIRECTORY may list several directories; lbagent's is the first.
    given = environ.get("LBAGENT_STATE_DIR") or environ.get("STATE_DIRECTORY", "").split(":")[0]
    return Settings(
        roles or environ.get("LBAGENT_ROLES") or DEFAULT_ROLES, state_dir or given or DEFAULT_STATE_DIR, verbose
    )


def find_runtime_dir(environ: Mapping[str, str]) -> str | None:
    """Return the directory of the status socket, from $LBAGENT_RUNTIME_DIR or systemd; None where neither is set."""
    return environ.get("LBAGENT_RUNTIME_DIR") or environ.get("RUNTIME_DIRECTORY", "").split(":")[0] or None


def load_handler_settings(argv: list[str], environ: Mapping[str, str]) -> Settings | None:
    """Return the settings if `argv` is a plain `[options] handle`, else None.

    Avoids argparse, which takes 7 ms to import.
    """
    words = [part for word in argv for part in (word.split("=", 1) if word.startswith("--") else [word])]
    if not words or words.pop() != "handle":
        return None
    given: dict[str, str] = {}
    verbose = False
    while words:
        option = words.pop(0)
        if option in ("-v", "--verbose"):
            verbose = True
        elif option in ("--roles", "--state-dir") and words:
            given[option] = words.pop(0)
        else:
            return None
    return load_settings(environ, given.get("--roles"), given.get("--state-dir"), verbose=verbose)

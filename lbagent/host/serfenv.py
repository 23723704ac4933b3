"""serf.env: the address of the Serf agent, and its token, for processes that the agent itself has not started.

A file that root alone reads, beside roles.yml: on a command line or in a unit every user would see the token.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, MutableMapping

NAME = "serf.env"

_KEYS = ("SERF_RPC_ADDR", "SERF_RPC_AUTH")


class SerfEnv:
    """The serf.env of this load balancer, as part of an environment."""

    def __init__(self, folders: Iterable[str], environ: MutableMapping[str, str]) -> None:
        """The first of `folders` that holds a serf.env; what `environ` already has goes before the file."""
        self.paths = [os.path.join(folder, NAME) for folder in dict.fromkeys(folders)]
        self._environ = environ
        self._own = [key for key in _KEYS if not environ.get(key)]
        """The variables that only the file may set."""
        self._content: bytes | None = None
        self.error = ""
        """Why the file could not be read; nothing where it could, or is not there."""
        self.found = ""
        """The file that was read; nothing where there is none."""

    def load(self) -> bool:
        """Bring the environment in step with the file; returns whether the file has changed since the last time."""
        content = self._read()
        changed = content != self._content
        self._content = content
        if changed:
            found = _parse(content)
            for key in self._own:
                self._environ.pop(key, None)
                if value := found.get(key):
                    self._environ[key] = value
        return changed

    @property
    def changed(self) -> bool:
        """Whether the file is not what was loaded."""
        return self._read() != self._content

    def _read(self) -> bytes:
        self.error = self.found = ""
        for path in self.paths:
            try:
                with open(path, "rb") as file:
                    self.found = path
                    return file.read()
            except FileNotFoundError:
                continue
            except OSError as error:
                self.error = f"{path}: cannot be read: {error.strerror}"
                return b""
        return b""


def folders(roles: str, environ: Mapping[str, str], default: str) -> list[str]:
    """Where serf.env may be: beside roles.yml as given, as `LBAGENT_ROLES` names it, and at the `default` place."""
    return [os.path.dirname(path) for path in (roles, environ.get("LBAGENT_ROLES") or default, default)]


def take_up(folder: str, environ: MutableMapping[str, str]) -> None:
    """Add what `serf.env` in `folder` says to `environ`, which wins; nothing where that file may not be read."""
    SerfEnv([folder], environ).load()


def _parse(content: bytes) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in content.decode("utf-8", "surrogateescape").split("\n"):
        key, _, value = line.strip().partition("=")
        if key in _KEYS and (value := _unquoted(value)):
            found.setdefault(key, value)
    return found


def _unquoted(value: str) -> str:
    """The value without the quotes that systemd, which reads the same file for the agent, takes off too."""
    quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "\"'"
    return value[1:-1] if quoted else value


of_process: SerfEnv | None = None
"""The one that has set variables of this process; None where the Serf agent has set them all."""

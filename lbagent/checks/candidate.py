"""Candidate texts of haproxy.cfg, validated by `haproxy -c` in a temporary directory. The live files stay unchanged.

Used where no run may be disturbed: by `plan`, by `check`, and by `watch` after an edit of roles.yml.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import tempfile
from collections import UserDict
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import NamedTuple

from lbagent.errors import TryAgain
from lbagent.haproxy import config_files, validation
from lbagent.haproxy.config import Document, Edit, Marker
from lbagent.haproxy.config_files import ConfigSnapshot
from lbagent.haproxy.process import RunningHaproxy
from lbagent.haproxy.server_line import Server
from lbagent.haproxy.validation import find_reason
from lbagent.roles.model import HaproxySettings, MissingTag, Role, Roles, Service

UNREADABLE_FILE = re.compile(
    r"permission denied|unable to (?:stat|open|load|read)|cannot (?:open|access|stat)", re.IGNORECASE
)
"""HAProxy's messages about a file that haproxy.cfg names and that this user may not read."""

_SERVER_SECTIONS = ("backend", "listen")
_FIRST_ADDRESS = int(ipaddress.IPv4Address("192.0.2.1"))
"""RFC 5737: addresses for documentation."""

_PLACE = re.compile(r"^(?:parsing )?\[[^\]]*\] ?: ?(?:'server [^']*' ?: ?)?")
"""HAProxy's prefix of a message about a server line: file, line and server of the temporary copy."""

_SINGLE_TRIALS = 40
"""Lines that are validated one by one after HAProxy refused all of them together."""


class VerdictUnknown(TryAgain):
    """HAProxy's verdict is unknown: this user may not read a file that the text names, or paths in it are relative."""


class Validator:
    """Validates the live haproxy.cfg, and texts that could replace it, with `haproxy -c`."""

    def __init__(
        self,
        snapshot: ConfigSnapshot,
        settings: HaproxySettings,
        running: RunningHaproxy | None,
        *,
        accepted: bool = False,
    ) -> None:
        """`running` provides environment and working directory; `accepted`: HAProxy has accepted the live files."""
        self._snapshot, self._settings, self._running = snapshot, settings, running
        self._live_refusal: str | None = None
        self._live_checked = accepted

    def find_live_refusal(self) -> str | None:
        """Return why HAProxy refuses the live files; None where it accepts them. Raises VerdictUnknown, TryAgain."""
        if not self._live_checked:
            self._live_refusal = self._check([target.path for target in self._snapshot.targets])
            self._live_checked = True
        return self._live_refusal

    def find_refusal(self, texts: Sequence[str]) -> str | None:
        """Return why HAProxy refuses these texts; None where it accepts them. Raises VerdictUnknown, TryAgain."""
        reason = self._check_copies(texts)
        if reason is None or self.find_live_refusal() is not None:
            return reason
        if self._check_copies(self._snapshot.texts) is not None:
            raise VerdictUnknown("haproxy.cfg refers to files relative to its own directory")
        return reason

    def _check_copies(self, texts: Sequence[str]) -> str | None:
        with tempfile.TemporaryDirectory(prefix="lbagent-") as folder:
            paths = []
            for number, (target, text) in enumerate(zip(self._snapshot.targets, texts, strict=True)):
                path = os.path.join(folder, str(number), os.path.basename(target.path))
                os.mkdir(os.path.dirname(path))
                with open(path, "wb") as file:
                    file.write(config_files.encode(text))
                paths.append(path)
            return self._check(paths)

    def _check(self, paths: Sequence[str]) -> str | None:
        result = validation.check_files(paths, self._settings.timeout, self._running)
        if result.status is None:
            raise TryAgain(result.output)
        if result.succeeded:
            return None
        reason = find_reason(result.output)
        if os.geteuid() and UNREADABLE_FILE.search(result.output):
            raise VerdictUnknown(f"this user may not read all files that haproxy.cfg refers to ({reason})")
        for path, name in zip(paths, self._snapshot.names, strict=True):
            reason = reason.replace(path, name)
        return reason


class RefusedLine(NamedTuple):
    """A role and a service whose server lines HAProxy refuses."""

    role: str
    service: str
    reason: str
    """In HAProxy's words."""

    def __str__(self) -> str:
        return f"role {self.role}, service {self.service}: HAProxy refuses its server lines: {self.reason}"


class _TrialLine(NamedTuple):
    """The server line of one role and service, at one marker."""

    role: str
    service: str
    marker: Marker
    text: str


class _AllTags(UserDict[str, str]):
    """Tags of a node that has every tag; each has the value 1."""

    def __missing__(self, key: str) -> str:
        return "1"

    def __contains__(self, key: object) -> bool:
        return True


def find_refused_lines(document: Document, roles: Roles, validator: Validator) -> list[RefusedLine]:
    """Return the roles and services whose server lines HAProxy refuses, each tried with a documentation address.

    The result is empty where HAProxy refuses the live haproxy.cfg. Raises TryAgain where HAProxy cannot be run.
    """
    lines = [*_make_trial_lines(document, roles)]
    if not lines or validator.find_live_refusal() is not None:
        return []
    if validator.find_refusal(_insert_lines(document, lines)) is None:
        return []
    pairs = list(dict.fromkeys((line.role, line.service) for line in lines))[:_SINGLE_TRIALS]
    found = []
    for pair in pairs:
        own = [line for line in lines if (line.role, line.service) == pair]
        if reason := validator.find_refusal(_insert_lines(document, own)):
            found.append(RefusedLine(*pair, _PLACE.sub("", reason)))
    return found


def _make_trial_lines(document: Document, roles: Roles) -> Iterator[_TrialLine]:
    pairs, serving, numbers = roles.list_pairs(), roles.map_pairs_to_roles(), count()
    for proxy in document.proxies:
        for marker in proxy.markers if proxy.kind in _SERVER_SECTIONS else ():
            pair = pairs.get(marker.middle)
            for role in serving[pair] if pair else ():
                number = next(numbers)
                if pair and (text := _format_trial_line(role, roles.services[pair.service], number)):
                    yield _TrialLine(role.name, pair.service, marker, text)


def _format_trial_line(role: Role, service: Service, number: int) -> str | None:
    """Return the server line of a node with that role; None where no tags make one."""
    node = f"lbagent-check-{number}"
    values, address = role.build_values(node), str(ipaddress.IPv4Address(_FIRST_ADDRESS + number % 254))
    candidates: tuple[Mapping[str, str], ...] = ({}, _AllTags())
    for tags in candidates:
        with contextlib.suppress(MissingTag):
            port, options = service.find_port(values, tags), (role.options or service.options).fill(values, tags)
            return Server(node, address, port, options, role.name).line
    return None


def _insert_lines(document: Document, lines: list[_TrialLine]) -> tuple[str, ...]:
    """Return the texts of haproxy.cfg with these lines inserted above their markers."""
    by_marker: dict[int, list[str]] = {}
    for line in lines:
        text = f"{line.marker.indent}{line.text}{line.marker.ending}"
        by_marker.setdefault(line.marker.at, []).append(text)
    return document.apply_edits(Edit(at, at, texts) for at, texts in by_marker.items())

"""Candidate texts of haproxy.cfg, validated by `haproxy -c` in a temporary folder: the live files are not touched.

For whatever must not interfere with a run that is under way: `plan`, `check`, and `watch` when roles.yml was edited.
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

UNREADABLE = re.compile(
    r"permission denied|unable to (?:stat|open|load|read)|cannot (?:open|access|stat)", re.IGNORECASE
)

"""What HAProxy says where this user may not read a file that haproxy.cfg names."""


class Unjudged(TryAgain):
    """HAProxy's verdict is not known: this user may not read what the text refers to, or it uses relative paths."""


class Validator:
    """Asks `haproxy -c` about the live haproxy.cfg and about texts that could replace it."""

    def __init__(
        self, seen: ConfigSnapshot, settings: HaproxySettings, running: RunningHaproxy | None, *, accepted: bool = False
    ) -> None:
        """`running` gives environment and working directory, where there is one.

        `accepted` says that HAProxy has accepted the live files already.
        """
        self._seen, self._settings, self._running = seen, settings, running
        self._live: str | None = None
        self._asked = accepted

    def live_refusal(self) -> str | None:
        """HAProxy's words against the live files, None where it accepts them. Raises Unjudged, TryAgain."""
        if not self._asked:
            self._live, self._asked = self._refusal([target.path for target in self._seen.targets]), True
        return self._live

    def refusal(self, texts: Sequence[str]) -> str | None:
        """HAProxy's words against these texts, None where it accepts them. Raises Unjudged, TryAgain."""
        words = self._refusal_of_copies(texts)
        if words is None or self.live_refusal() is not None:
            return words
        if self._refusal_of_copies(self._seen.texts) is not None:
            raise Unjudged("haproxy.cfg refers to files relative to its own folder")
        return words

    def _refusal_of_copies(self, texts: Sequence[str]) -> str | None:
        with tempfile.TemporaryDirectory(prefix="lbagent-") as folder:
            paths = []
            for number, (target, text) in enumerate(zip(self._seen.targets, texts, strict=True)):
                path = os.path.join(folder, str(number), os.path.basename(target.path))
                os.mkdir(os.path.dirname(path))
                with open(path, "wb") as file:
                    file.write(config_files.encode(text))
                paths.append(path)
            return self._refusal(paths)

    def _refusal(self, paths: Sequence[str]) -> str | None:
        result = validation.check_files(paths, self._settings.timeout, self._running)
        if result.status is None:
            raise TryAgain(result.output)
        if result.succeeded:
            return None
        words = find_reason(result.output)
        if os.geteuid() and UNREADABLE.search(result.output):
            raise Unjudged(f"this user may not read all that haproxy.cfg refers to ({words})")
        for path, name in zip(paths, self._seen.names, strict=True):
            words = words.replace(path, name)
        return words


_HOLD_SERVERS = ("backend", "listen")
_FIRST = int(ipaddress.IPv4Address("192.0.2.1"))  # RFC 5737: addresses for documentation
_PLACE = re.compile(r"^(?:parsing )?\[[^\]]*\] ?: ?(?:'server [^']*' ?: ?)?")

_MOST = 40
"""Lines that are tried one by one after all of them together were refused."""


class RefusedLine(NamedTuple):
    """What a role and a service make, and HAProxy refuses."""

    role: str
    service: str
    words: str
    """HAProxy's."""

    def __str__(self) -> str:
        return f"role {self.role}, service {self.service}: HAProxy refuses every line: {self.words}"


class _Line(NamedTuple):
    """The line of one role and service, at one marker."""

    role: str
    service: str
    marker: Marker
    text: str


class _AnyTag(UserDict[str, str]):
    """The tags of a node that has every tag."""

    def __missing__(self, key: str) -> str:
        return "1"

    def __contains__(self, key: object) -> bool:
        return True


def refused_lines(document: Document, roles: Roles, validator: Validator) -> list[RefusedLine]:
    """The lines that HAProxy refuses, one for each role and service. Raises TryAgain where it cannot be asked.

    Only what the live haproxy.cfg allows can be judged: where that is refused itself, the result is empty.
    """
    lines = [*_lines(document, roles)]
    if not lines or validator.live_refusal() is not None or validator.refusal(_with(document, lines)) is None:
        return []
    tried = list(dict.fromkeys((line.role, line.service) for line in lines))[:_MOST]
    found = []
    for role, service in tried:
        own = [line for line in lines if (line.role, line.service) == (role, service)]
        if words := validator.refusal(_with(document, own)):
            found.append(RefusedLine(role, service, _PLACE.sub("", words)))
    return found


def _lines(document: Document, roles: Roles) -> Iterator[_Line]:
    pairs, serving, numbers = roles.list_pairs(), roles.map_pairs_to_roles(), count()
    for proxy in document.proxies:
        for marker in proxy.markers if proxy.kind in _HOLD_SERVERS else ():
            pair = pairs.get(marker.middle)
            for role in serving[pair] if pair else ():
                number = next(numbers)
                if pair and (text := _text(role, roles.services[pair.service], number)):
                    yield _Line(role.name, pair.service, marker, text)


def _text(role: Role, service: Service, number: int) -> str | None:
    """The line of a node of that role; None where no tags make one."""
    node = f"lbagent-check-{number}"
    values, address = role.build_values(node), str(ipaddress.IPv4Address(_FIRST + number % 254))
    every: tuple[Mapping[str, str], ...] = ({}, _AnyTag())
    for tags in every:
        with contextlib.suppress(MissingTag):
            port, options = service.find_port(values, tags), (role.options or service.options).fill(values, tags)
            return Server(node, address, port, options, role.name).line
    return None


def _with(document: Document, lines: list[_Line]) -> tuple[str, ...]:
    """The texts of haproxy.cfg with these lines added above their markers."""
    by_marker: dict[int, list[str]] = {}
    for line in lines:
        text = f"{line.marker.indent}{line.text}{line.marker.ending}"
        by_marker.setdefault(line.marker.at, []).append(text)
    return document.apply_edits(Edit(at, at, texts) for at, texts in by_marker.items())

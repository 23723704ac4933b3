"""The markers of haproxy.cfg beside the sections and services of roles.yml."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence

from lbagent.doctor import migration
from lbagent.doctor.finding import Finding, Kind, enumerated, error, ok, warning
from lbagent.haproxy.lines import Marker
from lbagent.haproxy.text import Document, Proxy
from lbagent.names import counted
from lbagent.roles import Roles


def alone(document: Document) -> Iterator[Finding]:
    """What is wrong with the markers where roles.yml cannot be used."""
    yield from _twice(document)
    what = "only doubled ones can be looked for: roles.yml cannot be used"
    yield warning(Kind.MARKERS, document.where(0).rpartition(":")[0], what, "mend roles.yml")


def judge(document: Document, roles: Roles) -> Iterator[Finding]:
    """What is wrong with the markers beside roles.yml; an ok where nothing is."""
    found = [*_twice(document), *_unknown(document, roles), *_missing(document, roles), *_nowhere(document, roles)]
    yield from found
    yield from migration.of_markers(document, roles)
    if not found:
        where = document.where(0).rpartition(":")[0]
        yield ok(
            Kind.MARKERS,
            where,
            f"every section and service has its marker ({counted(len(_there(document)), 'marker')})",
        )


def notes(document: Document, said: Sequence[str]) -> Iterator[Finding]:
    """The notes of a plan, but for those that `judge` has told."""
    told = {document.where(marker.at) for proxy in document.proxies for marker in proxy.markers}
    ours = {document.where(line.at) for proxy in document.proxies for line in proxy.managed}
    for note in said:
        where, _, words = note.partition(": ")
        if where in ours:
            yield warning(Kind.MARKER_GONE, where, words, "put the marker back below it, or take the line out")
        elif note.startswith("haproxy.cfg has no marker ") or where in told:
            continue
        elif " by hand: " in note:
            yield _by_hand(document, note)
        else:
            yield warning(Kind.NODE, "", note, "mend the node's tags or address, or roles.yml")


def _by_hand(document: Document, note: str) -> Finding:
    """A line by hand in the place of a managed one: above a marker, `--adopt` makes it one."""
    for proxy in document.proxies:
        for line in proxy.hand_written:
            if note.lower().startswith(f"{line.name} stands in {proxy} by hand: ".lower()):
                where, above = document.where(line.at), line.marker < len(proxy.markers)
                what = f"{note}: pauses and leaves of the node have no effect on it"
                made = error if above else warning
                return made(Kind.BY_HAND, where, what, "`lbagent apply --adopt` makes it a managed line")
    return warning(Kind.BY_HAND, "", note, "`lbagent apply --adopt` makes it a managed line")


def _there(document: Document) -> set[str]:
    return {marker.middle for proxy in document.proxies for marker in proxy.markers}


def _twice(document: Document) -> Iterator[Finding]:
    for proxy in document.proxies:
        seen: dict[str, Marker] = {}
        for marker in proxy.markers:
            first = seen.setdefault(marker.middle, marker)
            if first is not marker:
                yield error(
                    Kind.MARKER_TWICE,
                    document.where(marker.at),
                    f"{_text(marker.middle)} stands in {proxy} twice, first at {document.where(first.at)}",
                    "delete one",
                )


def _unknown(document: Document, roles: Roles) -> Iterator[Finding]:
    pairs = roles.pairs()
    for proxy in document.proxies:
        for marker in proxy.markers:
            if marker.middle not in pairs and not migration.is_classic(marker, roles):
                yield warning(
                    Kind.MARKER_UNKNOWN,
                    document.where(marker.at),
                    f"no role of roles.yml has a section and service for {_text(marker.middle)}",
                    _hint(marker, roles, proxy),
                )


def _hint(marker: Marker, roles: Roles, proxy: Proxy) -> str:
    near = difflib.get_close_matches(marker.middle, roles.pairs(), 1, 0.75)
    if near:
        return f"{_text(near[0])} ({roles.pairs()[near[0]]}) is the nearest that is known"
    return f"give a role that section and service, or take it out of {proxy}"


def _missing(document: Document, roles: Roles) -> Iterator[Finding]:
    there = _there(document)
    for pair, serving in roles.serving().items():
        if pair.middle not in there:
            names = enumerated([role.name for role in serving])
            yield warning(
                Kind.MARKER_MISSING,
                document.where(0).rpartition(":")[0],
                f"{pair} of role {names} has no marker",
                f"put {_text(pair.middle)} where the servers are to stand",
            )


def _nowhere(document: Document, roles: Roles) -> Iterator[Finding]:
    there = _there(document)
    for role in roles.roles.values():
        middles = [pair.middle for pair, serving in roles.serving().items() if role in serving]
        if middles and there.isdisjoint(middles):
            yield warning(
                Kind.ROLE_NOWHERE,
                document.where(0).rpartition(":")[0],
                f"none of the markers of role {role.name} stands anywhere: its nodes get no line",
                f"put {_text(middles[0])} where they are to stand",
            )


def _text(middle: str) -> str:
    return f"'# additional-{middle}-server'"

"""The markers of haproxy.cfg beside the sections and services of roles.yml."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence

from lbagent.doctor import migration
from lbagent.doctor.finding import Finding, Kind, enumerated, error, ok, warning
from lbagent.haproxy.lines import Marker
from lbagent.haproxy.text import Document, Proxy
from lbagent.names import counted
from lbagent.plan import doubled
from lbagent.roles import Roles

_NEARLY = re.compile(r"additional[-_ \t]+(.*?)(?:[-_ \t]+server\b.*)?[ \t\r]*$", re.IGNORECASE)


def alone(document: Document) -> Iterator[Finding]:
    """What is wrong with the markers where roles.yml cannot be used."""
    yield from _twice(document)
    what = "only doubled ones can be looked for: roles.yml cannot be used"
    yield warning(Kind.MARKERS, document.where(0).rpartition(":")[0], what, "mend roles.yml")


def judge(document: Document, roles: Roles) -> Iterator[Finding]:
    """What is wrong with the markers beside roles.yml; an ok where nothing is."""
    found = [
        *_twice(document),
        *_misplaced(document),
        *_unknown(document, roles),
        *_nearly(document, roles),
        *_missing(document, roles),
        *_nowhere(document, roles),
    ]
    yield from found
    yield from migration.of_markers(document, roles)
    yield from _unread(document)
    yield from _damaged(document)
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
    told |= {document.where(at) for at, _ in document.misplaced} | {document.where(at) for at in document.nearly}
    told |= {document.where(line.at) for line in document.damaged}
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
        name, _, rest = note.partition(" stands ")
        if not rest.startswith(f"in {proxy} by hand: "):
            continue
        for at, marker, found in [
            *((line.at, line.marker, line.name.lower() == name.lower()) for line in proxy.hand_written),
            *((one.at, len(proxy.markers), one.names(name)) for one in proxy.templates),
        ]:
            if found:
                what = f"{note}: pauses and leaves of the node have no effect on it"
                made = error if marker < len(proxy.markers) else warning
                return made(Kind.BY_HAND, document.where(at), what, _ADOPT)
    return warning(Kind.BY_HAND, "", note, _ADOPT)


_ADOPT = "`lbagent apply --adopt` makes it a managed line"


def _there(document: Document) -> set[str]:
    return {marker.middle for proxy in document.proxies for marker in proxy.markers}


def _twice(document: Document) -> Iterator[Finding]:
    for proxy in document.proxies:
        for first, marker in doubled(document, proxy):
            yield error(
                Kind.MARKER_TWICE,
                document.where(marker.at),
                f"{_text(marker.middle)} stands in {proxy} twice, first at {document.where(first.at)}",
                "delete one",
            )


def _misplaced(document: Document) -> Iterator[Finding]:
    for at, why in document.misplaced:
        text = document.lines[at].strip()
        fix = "move it into the `backend` or `listen` section that is to have the servers"
        yield warning(Kind.MARKER_MISPLACED, document.where(at), f"{text!r} is ignored: {why}", fix)


def _unread(document: Document) -> Iterator[Finding]:
    for proxy in document.proxies:
        for marker in proxy.markers:
            if document.unread(marker.at):
                what = f"HAProxy does not read what is at {_text(marker.middle)} (`.if`, or `disabled`)"
                yield ok(Kind.MARKER_UNREAD, document.where(marker.at), f"{what}: the lines there serve nothing")


def _damaged(document: Document) -> Iterator[Finding]:
    for line in document.damaged:
        what = f"{line.text!r} looks like a managed line, but {line.why}: lbagent leaves it alone"
        yield warning(Kind.LINE_DAMAGED, document.where(line.at), what, "delete it, or its `# lbagent` comment")


def _nearly(document: Document, roles: Roles) -> Iterator[Finding]:
    for at in document.nearly:
        found = _NEARLY.search(document.lines[at])
        meant = _near(found.group(1) if found else "", roles)
        fix = (
            f"write {_text(meant)}, and nothing else in that line"
            if meant
            else "write '# additional-SECTION-SERVICE-server'"
        )
        what = f"{document.lines[at].strip()!r} is not a marker, though nearly"
        yield warning(Kind.MARKER_NEARLY, document.where(at), what, fix)


def _near(middle: str, roles: Roles) -> str:
    """The middle of the known marker that is nearest, one of the same section where it has markers."""
    pairs = roles.pairs()
    by_case = {known.lower(): known for known in pairs}
    wanted = middle.lower()
    if wanted in by_case:
        return by_case[wanted]
    section = [known for known, pair in pairs.items() if wanted.startswith(f"{pair.section.lower()}-")]
    found = difflib.get_close_matches(wanted, [known.lower() for known in section or pairs], 1, 0.6)
    return by_case[found[0]] if found else ""


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
    if near := _near(marker.middle, roles):
        return f"{_text(near)} ({roles.pairs()[near]}) is the nearest that is known"
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

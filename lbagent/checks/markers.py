"""Check the markers of haproxy.cfg against the sections and services of roles.yml, and the notes of the plan."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence

from lbagent.checks.finding import SEE_MIGRATION, Finding, Kind, error, join_names, ok, warning
from lbagent.haproxy.config import Document, Marker, Proxy
from lbagent.names import format_count
from lbagent.planning.decisions import MissingMarkerNote, Note, OperatorLineNote
from lbagent.planning.plan import find_duplicate_markers
from lbagent.roles.model import Roles

_NEARLY = re.compile(r"additional[-_ \t]+(.*?)(?:[-_ \t]+server\b.*)?[ \t\r]*$", re.IGNORECASE)

_SIMILARITY = 0.6
"""Ratio of difflib from which a known marker is suggested."""

_ADOPT = "`lbagent apply --adopt` turns it into a managed line"


def check_markers(document: Document, roles: Roles | None) -> Iterator[Finding]:
    """Check the markers of haproxy.cfg. `roles` is None where roles.yml is invalid: only duplicates are found then."""
    if roles is None:
        yield from _find_duplicates(document)
        yield warning(Kind.MARKERS, _file(document), "markers not checked: roles.yml is invalid", "fix roles.yml")
        return
    found = [
        *_find_duplicates(document),
        *_find_misplaced(document),
        *_find_unknown(document, roles),
        *_find_malformed(document, roles),
        *_find_missing(document, roles),
    ]
    yield from found
    yield from _find_classic(document, roles)
    yield from _find_inactive(document)
    yield from _find_damaged_lines(document)
    if not found:
        markers = format_count(len(_list_middles(document)), "marker")
        yield ok(Kind.MARKERS, _file(document), f"every section and service has its marker ({markers})")


def check_notes(document: Document, notes: Sequence[str]) -> Iterator[Finding]:
    """Turn the notes of a plan about nodes into findings; `check_markers` finds the subjects of all other notes."""
    for note in notes:
        if isinstance(note, MissingMarkerNote):
            fix = "restore the marker below the line, or delete the line"
            yield warning(Kind.LINE_WITHOUT_MARKER, _locate(document, note), note.why, fix)
        elif isinstance(note, OperatorLineNote):
            yield _check_operator_line(document, note)
        elif isinstance(note, Note):
            yield warning(Kind.NODE, "", note, "fix the node's tags or address, or roles.yml")


def _check_operator_line(document: Document, note: OperatorLineNote) -> Finding:
    """Return the finding for an operator's line in place of a managed one; `--adopt` handles lines above a marker."""
    above = (line.at for one in document.proxies for line in one.operator_servers if line.marker < len(one.markers))
    severity = error if any(at == note.at for at in above) else warning
    return severity(Kind.OPERATOR_LINE, _locate(document, note), note, _ADOPT)


def _locate(document: Document, note: Note) -> str:
    return "" if note.at is None else document.locate(note.at)


def _find_duplicates(document: Document) -> Iterator[Finding]:
    for proxy in document.proxies:
        for first, marker in find_duplicate_markers(document, proxy):
            text = f"{_format(marker.middle)} is in {proxy} twice, first at {document.locate(first.at)}"
            yield error(Kind.MARKER_DUPLICATE, document.locate(marker.at), text, "delete one of them")


def _find_misplaced(document: Document) -> Iterator[Finding]:
    for at, reason in document.misplaced:
        text = f"{document.lines[at].strip()!r} is ignored: {reason}"
        fix = "move it into the `backend` or `listen` section of these servers"
        yield warning(Kind.MARKER_MISPLACED, document.locate(at), text, fix)


def _find_unknown(document: Document, roles: Roles) -> Iterator[Finding]:
    pairs = roles.list_pairs()
    for proxy in document.proxies:
        for marker in proxy.markers:
            if marker.middle not in pairs and not _is_classic(marker, roles):
                text = f"unknown marker {_format(marker.middle)}"
                if near := _find_nearest(marker.middle, roles):
                    fix = f"did you mean {_format(near)}?"
                else:
                    fix = "add its section and service to a role of roles.yml, or delete the marker"
                yield warning(Kind.MARKER_UNKNOWN, document.locate(marker.at), text, fix)


def _find_malformed(document: Document, roles: Roles) -> Iterator[Finding]:
    for at in document.near_markers:
        found = _NEARLY.search(document.lines[at])
        near = _find_nearest(found.group(1) if found else "", roles)
        fix = f"write {_format(near or 'SECTION-SERVICE')}, and nothing else in that line"
        text = f"{document.lines[at].strip()!r} is not a marker"
        yield warning(Kind.MARKER_MALFORMED, document.locate(at), text, fix)


def _find_nearest(middle: str, roles: Roles) -> str:
    """Return the middle of the most similar known marker, one of the same section where it has any; else nothing."""
    pairs = roles.list_pairs()
    by_case = {known.lower(): known for known in pairs}
    wanted = middle.lower()
    if wanted in by_case:
        return by_case[wanted]
    section = [known for known, pair in pairs.items() if wanted.startswith(f"{pair.section.lower()}-")]
    found = difflib.get_close_matches(wanted, [known.lower() for known in section or pairs], 1, _SIMILARITY)
    return by_case[found[0]] if found else ""


def _find_missing(document: Document, roles: Roles) -> Iterator[Finding]:
    """Find sections and services without a marker, and roles of which no marker exists: their nodes get no line."""
    there, serving = _list_middles(document), roles.map_pairs_to_roles()
    unserved = [
        role
        for role in roles.roles.values()
        if (middles := [pair.middle for pair, its in serving.items() if role in its]) and there.isdisjoint(middles)
    ]
    for role in unserved:
        middle = next(pair.middle for pair, its in serving.items() if role in its)
        text = f"no marker of role {role.name}; its nodes get no server lines"
        fix = f"insert {_format(middle)} where its servers belong"
        yield error(Kind.ROLE_WITHOUT_MARKER, _file(document), text, fix)
    for pair, its in serving.items():
        if pair.middle not in there and not all(role in unserved for role in its):
            text = f"{pair} of role {join_names([role.name for role in its])} has no marker"
            fix = f"insert {_format(pair.middle)} where its servers belong"
            yield warning(Kind.MARKER_MISSING, _file(document), text, fix)


def _find_inactive(document: Document) -> Iterator[Finding]:
    for proxy in document.proxies:
        for marker in proxy.markers:
            if document.is_never_read(marker.at):
                text = f"HAProxy does not read {_format(marker.middle)} (`.if` or `disabled`); its lines have no effect"
                yield ok(Kind.MARKER_INACTIVE, document.locate(marker.at), text)


def _find_damaged_lines(document: Document) -> Iterator[Finding]:
    for line in document.damaged:
        reason = f" ({line.why})" if line.why else ""
        text = f"{line.text!r} looks like a managed line but is not valid{reason}; lbagent ignores it"
        yield warning(Kind.LINE_DAMAGED, document.locate(line.at), text, "delete it, or its `# lbagent` comment")


def _is_classic(marker: Marker, roles: Roles) -> bool:
    """Return whether a marker has the form of the classic handler.rb: a service and no section."""
    return marker.middle not in roles.list_pairs() and marker.middle in roles.services


def _find_classic(document: Document, roles: Roles) -> Iterator[Finding]:
    """Find markers without a section, and server lines above markers, both from the classic handler.rb."""
    for proxy in document.proxies:
        for number, marker in enumerate(proxy.markers):
            if _is_classic(marker, roles):
                yield _make_classic_marker_finding(document, proxy, marker, roles)
            elif marker.middle in roles.list_pairs() and not document.has_managed_lines:
                yield from _find_unmanaged_lines(document, proxy, number)


def _make_classic_marker_finding(document: Document, proxy: Proxy, marker: Marker, roles: Roles) -> Finding:
    pairs = [pair for pair in roles.list_pairs().values() if pair.service == marker.middle]
    # First a section that the proxy is named after, as in `listen lb-iis`.
    pairs.sort(key=lambda pair: not proxy.name.lower().startswith(pair.section.lower()))
    text = f"{_format(marker.middle)} is a marker of the classic handler.rb; it names no section"
    if pairs:
        fix = f"write {_format(pairs[0].middle)}"
    else:
        fix = f"add a section with {marker.middle} to a role, and write {_format(f'SECTION-{marker.middle}')}"
    return error(Kind.MIGRATION, document.locate(marker.at), text, f"{fix}; {SEE_MIGRATION}")


def _find_unmanaged_lines(document: Document, proxy: Proxy, number: int) -> Iterator[Finding]:
    if lines := [line for line in proxy.operator_servers if line.marker == number]:
        names = join_names([line.name for line in lines])
        be = "is" if len(lines) == 1 else "are"
        text = (
            f"{format_count(len(lines), 'server line')} above the marker {be} not managed ({names});"
            " pauses and leaves of these nodes do not affect them"
        )
        fix = "run `lbagent apply --adopt` after the nodes have joined, or keep them as your own"
        yield warning(Kind.MIGRATION, document.locate(lines[0].at), text, f"{fix}; {SEE_MIGRATION}")


def _list_middles(document: Document) -> set[str]:
    return {marker.middle for proxy in document.proxies for marker in proxy.markers}


def _file(document: Document) -> str:
    return document.locate(0).rpartition(":")[0]


def _format(middle: str) -> str:
    return f"'# additional-{middle}-server'"

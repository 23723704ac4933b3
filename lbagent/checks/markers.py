"""Check the markers and managed lines of haproxy.cfg.

Markers against the sections and services of roles.yml; lines against the plan: edits by hand, changes that are not
applied yet, the safety guard, quarantine, cookies.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from lbagent.checks.finding import SEE_MIGRATION, Finding, Kind, error, join_names, ok, warning
from lbagent.haproxy.config import Document, ManagedLine, Marker, OperatorServer, Proxy
from lbagent.haproxy.reader import split_words
from lbagent.names import format_count
from lbagent.planning.decisions import MissingMarkerNote, Note, OperatorLineNote
from lbagent.planning.plan import Plan, find_duplicate_markers
from lbagent.roles.model import Roles

EVENT_LATE = 30
"""Seconds after which an event in the spool counts as stuck."""

_LINES_LIMIT = 20
"""Edited lines that get a finding each."""

_APPLY = "run `lbagent plan` to see the change, `lbagent apply` to make it"
_RESTORE = "run `lbagent apply` to restore it; a line without its `# lbagent` comment is yours"

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


class PendingWork(NamedTuple):
    """Work that is not finished, as the state directory shows it."""

    events: int = 0
    """Events in the spool."""
    oldest: int = 0
    """Seconds that the oldest of them has waited."""
    digest: str = ""
    """Digest of the managed lines that HAProxy last confirmed; empty where none is known."""
    failed_reload: str = ""
    """Why the last reload failed; empty where it succeeded."""
    quarantined: tuple[tuple[str, str], ...] = ()
    """Nodes in quarantine, with the reasons."""


def check_managed_lines(document: Document, plan: Plan, work: PendingWork) -> Iterator[Finding]:
    """Check whether the managed lines are what the plan asks for; a difference without another cause is an edit."""
    unfinished = [*_check_pending(work)]
    yield from unfinished
    for node, reason in work.quarantined:
        text = f"in quarantine, HAProxy refuses its server line: {reason}"
        yield error(Kind.QUARANTINE, node, text, "fix its tags or roles.yml; lbagent retries it")
    for blocked in plan.blocked:
        text = f"removals blocked by the safety guard: {blocked}"
        yield warning(Kind.BLOCKED, "", text, "run `lbagent apply --force` to apply them")
    if unfinished:
        return
    confirmed = work.digest in ("", document.compute_digest())
    changes = len(plan.added) + len(plan.removed)
    if plan.after == plan.before and confirmed:
        count = format_count(sum(len(proxy.managed) for proxy in document.proxies), "line")
        yield ok(Kind.DRIFT, "", f"the managed lines match the plan ({count})")
    elif plan.after == plan.before:
        text = "the managed lines match the plan, but HAProxy has not confirmed them"
        yield error(Kind.PENDING, "", text, "run `lbagent apply`")
    elif confirmed and changes:
        text = f"{format_count(changes, 'line')} would change after an edit of roles.yml or haproxy.cfg"
        yield warning(Kind.PENDING, "", text, _APPLY)
    else:
        yield from _find_edited_lines(document, plan)


def _check_pending(work: PendingWork) -> Iterator[Finding]:
    if work.events:
        text = f"{format_count(work.events, 'event')} in the spool"
        if work.oldest > EVENT_LATE:
            text += f", the oldest for {work.oldest} s; nothing applies them"
            yield error(Kind.PENDING, "", text, "start or restart `lbagent watch`, or run `lbagent apply`")
        else:
            yield warning(Kind.PENDING, "", text, "run `lbagent apply`, or wait for the next event")
    if work.failed_reload:
        text = f"the last reload failed: {work.failed_reload}"
        yield error(Kind.PENDING, "", text, "fix the cause, then run `lbagent apply --force`")


def _find_edited_lines(document: Document, plan: Plan) -> Iterator[Finding]:
    places = {f"{proxy}: {line.text}": document.locate(line.at) for proxy in document.proxies for line in proxy.managed}
    changes = [(places.get(line, ""), f"{line!r} was edited by hand") for line in plan.removed]
    changes += [("", f"{line!r} is missing") for line in plan.added]
    for where, text in changes[:_LINES_LIMIT]:
        yield warning(Kind.DRIFT, where, text, _RESTORE)
    if more := len(changes[_LINES_LIMIT:]):
        yield warning(Kind.DRIFT, "", f"{format_count(more, 'more line')} edited by hand", _APPLY)
    if not changes:
        yield warning(Kind.DRIFT, "", "managed lines were moved or indented by hand", _APPLY)


def check_cookies(document: Document) -> Iterator[Finding]:
    """Find servers of one proxy that have the same cookie: HAProxy sends their clients to the first of them."""
    for proxy in document.proxies:
        seen: dict[str, tuple[str, int]] = {}
        lines: list[ManagedLine | OperatorServer] = [*proxy.managed, *proxy.operator_servers]
        for line in lines:
            words = [] if line.text.startswith("#") else split_words(line.text).words
            if "cookie" not in words[3:-1]:
                continue
            value = words[words.index("cookie", 3) + 1]
            name, first = seen.setdefault(value, (line.name, line.at))
            if name != line.name and not document.are_exclusive(first, line.at):
                text = f"{name} and {line.name} in {proxy} have the same cookie {value!r}"
                fix = "use `cookie {server}` in the options, so that each server has its own cookie"
                yield warning(Kind.COOKIE, document.locate(proxy.start), text, fix)

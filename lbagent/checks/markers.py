"""The markers of haproxy.cfg beside the sections and services of roles.yml."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from lbagent.checks import migration
from lbagent.checks.finding import Finding, Kind, enumerated, error, ok, warning
from lbagent.haproxy.config import Document, ManagedLine, Marker, OperatorServer, Proxy
from lbagent.haproxy.words import split_words
from lbagent.names import format_count
from lbagent.planning.decisions import MissingMarkerNote, Note, OperatorLineNote
from lbagent.planning.plan import Plan, find_duplicate_markers
from lbagent.roles.model import Roles

_NEARLY = re.compile(r"additional[-_ \t]+(.*?)(?:[-_ \t]+server\b.*)?[ \t\r]*$", re.IGNORECASE)


def alone(document: Document) -> Iterator[Finding]:
    """What is wrong with the markers where roles.yml cannot be used."""
    yield from _twice(document)
    what = "only doubled ones can be looked for: roles.yml cannot be used"
    yield warning(Kind.MARKERS, document.locate(0).rpartition(":")[0], what, "mend roles.yml")


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
        where = document.locate(0).rpartition(":")[0]
        yield ok(
            Kind.MARKERS,
            where,
            f"every section and service has its marker ({format_count(len(_there(document)), 'marker')})",
        )


def notes(document: Document, plan_notes: Sequence[str]) -> Iterator[Finding]:
    """Return a finding for each note of a plan about a node; `judge` reports the others."""
    for note in plan_notes:
        if isinstance(note, MissingMarkerNote) and note.at is not None:
            fix = "put the marker back below the line, or delete the line"
            yield warning(Kind.MARKER_GONE, document.locate(note.at), note.why, fix)
        elif isinstance(note, OperatorLineNote):
            yield _judge_operator_line(document, note)
        elif isinstance(note, Note):
            yield warning(Kind.NODE, "", note, "fix the tags or the address of the node, or roles.yml")


def cookies(document: Document) -> Iterator[Finding]:
    """Servers of one proxy that have the same cookie, in the text that is to come."""
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
                what = f"{name} and {line.name} in {proxy} have the same cookie {value!r}"
                fix = "give each service a cookie of its own in its options, as in `cookie {server}`"
                yield warning(Kind.COOKIE, document.locate(proxy.start), what, fix)


def _judge_operator_line(document: Document, note: OperatorLineNote) -> Finding:
    """Return a finding for an operator's line instead of a managed one; an error where `--adopt` makes it managed."""
    lines = (line for proxy in document.proxies for line in proxy.operator_servers if line.marker < len(proxy.markers))
    made = error if any(line.at == note.at for line in lines) else warning
    return made(Kind.BY_HAND, document.locate(note.at) if note.at is not None else "", note, _ADOPT)


_ADOPT = "`lbagent apply --adopt` makes it a managed line"


def _there(document: Document) -> set[str]:
    return {marker.middle for proxy in document.proxies for marker in proxy.markers}


def _twice(document: Document) -> Iterator[Finding]:
    for proxy in document.proxies:
        for first, marker in find_duplicate_markers(document, proxy):
            yield error(
                Kind.MARKER_TWICE,
                document.locate(marker.at),
                f"{_text(marker.middle)} stands in {proxy} twice, first at {document.locate(first.at)}",
                "delete one",
            )


def _misplaced(document: Document) -> Iterator[Finding]:
    for at, why in document.misplaced:
        text = document.lines[at].strip()
        fix = "move it into the `backend` or `listen` section that is to have the servers"
        yield warning(Kind.MARKER_MISPLACED, document.locate(at), f"{text!r} is ignored: {why}", fix)


def _unread(document: Document) -> Iterator[Finding]:
    for proxy in document.proxies:
        for marker in proxy.markers:
            if document.is_never_read(marker.at):
                what = f"HAProxy does not read what is at {_text(marker.middle)} (`.if`, or `disabled`)"
                yield ok(Kind.MARKER_UNREAD, document.locate(marker.at), f"{what}: the lines there serve nothing")


def _damaged(document: Document) -> Iterator[Finding]:
    for line in document.damaged:
        what = f"{line.text!r} looks like a managed line, but {line.why}: lbagent leaves it alone"
        yield warning(Kind.LINE_DAMAGED, document.locate(line.at), what, "delete it, or its `# lbagent` comment")


def _nearly(document: Document, roles: Roles) -> Iterator[Finding]:
    for at in document.near_markers:
        found = _NEARLY.search(document.lines[at])
        meant = _near(found.group(1) if found else "", roles)
        fix = (
            f"write {_text(meant)}, and nothing else in that line"
            if meant
            else "write '# additional-SECTION-SERVICE-server'"
        )
        what = f"{document.lines[at].strip()!r} is not a marker, though nearly"
        yield warning(Kind.MARKER_NEARLY, document.locate(at), what, fix)


def _near(middle: str, roles: Roles) -> str:
    """The middle of the known marker that is nearest, one of the same section where it has markers."""
    pairs = roles.list_pairs()
    by_case = {known.lower(): known for known in pairs}
    wanted = middle.lower()
    if wanted in by_case:
        return by_case[wanted]
    section = [known for known, pair in pairs.items() if wanted.startswith(f"{pair.section.lower()}-")]
    found = difflib.get_close_matches(wanted, [known.lower() for known in section or pairs], 1, 0.6)
    return by_case[found[0]] if found else ""


def _unknown(document: Document, roles: Roles) -> Iterator[Finding]:
    pairs = roles.list_pairs()
    for proxy in document.proxies:
        for marker in proxy.markers:
            if marker.middle not in pairs and not migration.is_classic(marker, roles):
                yield warning(
                    Kind.MARKER_UNKNOWN,
                    document.locate(marker.at),
                    f"no role of roles.yml has a section and service for {_text(marker.middle)}",
                    _hint(marker, roles, proxy),
                )


def _hint(marker: Marker, roles: Roles, proxy: Proxy) -> str:
    if near := _near(marker.middle, roles):
        return f"{_text(near)} ({roles.list_pairs()[near]}) is the nearest that is known"
    return f"give a role that section and service, or take it out of {proxy}"


def _missing(document: Document, roles: Roles) -> Iterator[Finding]:
    there = _there(document)
    for pair, serving in roles.map_pairs_to_roles().items():
        if pair.middle not in there:
            names = enumerated([role.name for role in serving])
            yield warning(
                Kind.MARKER_MISSING,
                document.locate(0).rpartition(":")[0],
                f"{pair} of role {names} has no marker",
                f"put {_text(pair.middle)} where the servers are to stand",
            )


def _nowhere(document: Document, roles: Roles) -> Iterator[Finding]:
    there = _there(document)
    for role in roles.roles.values():
        middles = [pair.middle for pair, serving in roles.map_pairs_to_roles().items() if role in serving]
        if middles and there.isdisjoint(middles):
            yield warning(
                Kind.ROLE_NOWHERE,
                document.locate(0).rpartition(":")[0],
                f"none of the markers of role {role.name} stands anywhere: its nodes get no line",
                f"put {_text(middles[0])} where they are to stand",
            )


def _text(middle: str) -> str:
    return f"'# additional-{middle}-server'"


_SHOWN = 20
"""Lines told one by one."""

LONGEST_WAIT = 30
"""Seconds after which an event that waits is one that nothing applies."""

_DAEMON = "see the daemon, then `lbagent apply`"
_APPLY = "`lbagent plan` shows it, `lbagent apply` does it"


class Known(NamedTuple):
    """What the state directory says."""

    spooled: int
    """Events not folded yet."""
    waiting: int
    """Seconds for which the oldest of them has waited."""
    digest: str
    """Of the managed lines that HAProxy last confirmed; nothing where none is known."""
    failure: str
    """Of the last reload, nothing where it was good."""
    quarantined: tuple[tuple[str, str], ...]
    """Nodes in quarantine and why."""


def drift_judge(document: Document, plan: Plan, known: Known) -> Iterator[Finding]:
    """What differs between text and plan: edited by hand where nothing else explains it."""
    waiting = [*_waiting(known)]
    yield from waiting
    for node, why in known.quarantined:
        yield error(
            Kind.QUARANTINE, node, f"HAProxy refuses its line: {why}", "mend its tags, or roles.yml; it is tried again"
        )
    for held in plan.blocked:
        yield warning(Kind.HELD, "", f"held back: {held}", "`lbagent apply --force` lets them go")
    confirmed = known.digest in ("", document.compute_digest())
    if plan.after == plan.before:
        if not confirmed and not waiting:
            what = "the managed lines are as they should be, but HAProxy has not confirmed them"
            yield warning(Kind.PENDING, "", what, "`lbagent apply`")
        elif not waiting:
            yield ok(
                Kind.DRIFT, "", f"the managed lines are what they should be ({format_count(_lines(document), 'line')})"
            )
    elif confirmed and not waiting and (count := len(plan.added) + len(plan.removed)):
        yield warning(Kind.PENDING, "", f"{format_count(count, 'line')} would change, of roles.yml or the text", _APPLY)
    elif not waiting:
        yield from _drift_by_hand(document, plan)


def _waiting(known: Known) -> Iterator[Finding]:
    if known.spooled:
        what = f"{format_count(known.spooled, 'event')} in the spool"
        if known.waiting > LONGEST_WAIT:
            yield error(Kind.PENDING, "", f"{what}, the oldest for {known.waiting} s: nothing applies them", _DAEMON)
        else:
            yield warning(Kind.PENDING, "", what, "the next event takes them in, or `lbagent apply`")
    if known.failure:
        what = f"the last reload failed: {known.failure}"
        yield error(Kind.PENDING, "", what, "mend it, then `lbagent apply --force`")


def _drift_by_hand(document: Document, plan: Plan) -> Iterator[Finding]:
    there = {f"{proxy}: {line.text}": document.locate(line.at) for proxy in document.proxies for line in proxy.managed}
    changes = [(there.get(line, ""), f"{line!r} is not what lbagent wrote") for line in plan.removed]
    changes += [("", f"{line!r} is missing") for line in plan.added]
    for where, what in changes[:_SHOWN]:
        yield warning(Kind.DRIFT, where, what, "`lbagent apply` puts it right; without its comment a line is yours")
    if more := len(changes[_SHOWN:]):
        yield warning(Kind.DRIFT, "", f"{format_count(more, 'more line')} edited by hand", _APPLY)
    if not changes:
        yield warning(Kind.DRIFT, "", "managed lines were moved or indented by hand", _APPLY)


def _lines(document: Document) -> int:
    return sum(len(proxy.managed) for proxy in document.proxies)

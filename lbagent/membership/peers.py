"""The other load balancers: their statuses, whether their managed lines are the same, and the pauses that they report.

Reports are pages of at most 1,024 bytes. A query reaches only load balancers that are up, and LTimes order only the
commands on one clock. So each load balancer asks every other one for the last commands of each node on every clock, and
merges them (see `pauses`).

A page is `pauses=DIGEST more=0|1 v=2 whole=0|1 REPORT …`. A load balancer of an older version requests its own
format, without `v=2`: for each node whether it is paused, and the LTimes of the last user event and query.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from lbagent.membership import pauses
from lbagent.membership.model import (
    FORGET_AFTER,
    LEFT,
    LEGACY_DIGEST,
    UNKNOWN,
    LastCommands,
    Member,
    Members,
    Membership,
    Pause,
    PauseCommand,
    as_table,
    find_member,
)
from lbagent.membership.pauses import COMMANDS_LIMIT, FORMER_CLOCK_PREFIX, CommandsByClock
from lbagent.membership.updates import MembershipDraft, UpdateResult
from lbagent.names import NAME, canonical_address, make_printable
from lbagent.serf.events import QUERY, TYPED, USER
from lbagent.serf.member_list import AgentInfo, ListedMember

DEFAULT_ROLE = "lb"

_LINE_LIMIT = 1024

_DIGEST = re.compile(r"\bdigest=([0-9a-z]{1,32})\b")

VERSION = 2
"""Version of the pages. lbagent 0.x requests version 1, before the ends of pauses were remembered."""

REQUEST = "pauses after={after} v=2"
"""Payload of the query for the page after a node. An older version ignores everything after `after=`."""

_OLD_STATES = {"p": True, "r": False}
_CLOCKS_LIMIT = 16
_LTIME_DIGITS, _TIME_DIGITS = 20, 11
_HEX = frozenset("0123456789abcdef")
_SAME = "="
"""Substitutes for the first address of the node."""


class PauseReport(NamedTuple):
    """What one load balancer knows of the pauses of one node."""

    name: str
    seen: bool
    """Whether the node has ever been a member: otherwise its name is known from a command only."""
    addresses: tuple[str, ...]
    last_commands: CommandsByClock
    rebuilt_pause: Pause | None = None
    """A pause that is known from haproxy.cfg only; None where commands are known."""


class Page(NamedTuple):
    """As many reports as fit into one answer."""

    digest: str
    """Digest of all reports. With the same digest the pages hold nothing new."""
    more: bool
    """Whether more reports follow."""
    reports: tuple[PauseReport, ...]
    version: int = VERSION
    is_complete: bool = False
    """Whether all pauses of the load balancer are known from commands, and none from haproxy.cfg only."""


def format_page(membership: Membership, after: str, room: int, now: int, version: int = VERSION) -> str:
    """Return the page of the nodes whose names come after `after`, in at most `room` bytes.

    `now` is in epoch seconds.
    """
    texts = [(report.name, report) for report in _list_reports(membership, now) if report.name > after]
    marks = [f"v={VERSION}", f"whole={'01'[is_complete(membership)]}"] if version == VERSION else []
    fitting = [f"pauses={digest_reports(membership, now, version)}", "more=", *marks]
    left = room - len(" ".join(fitting)) - 1
    count = 0
    for _, report in texts:
        text = _format_report(report, room - 64) if version == VERSION else _format_old_report(report, now)
        left -= len(text) + 1
        if left < 0:
            break
        fitting.append(text)
        count += 1
    fitting[1] += "01"[count < len(texts)]
    return " ".join(fitting)


def digest_reports(membership: Membership, now: int, version: int = VERSION) -> str:
    """Return a digest of all reports without the times of arrival: equal where the same pauses are known."""
    if version == VERSION:
        lines = (_format_report(_drop_arrival_times(report), 1 << 16) for report in _list_reports(membership, now))
    else:
        lines = (
            " ".join(map(str, (report.name, _is_paused(report, now), _list_ltimes(report))))
            for report in _list_reports(membership, now)
        )
    return f"{zlib.crc32(chr(10).join(lines).encode()):08x}"


def parse_page(payload: str) -> Page | None:
    """Return the page in an answer; None where it is not a page. Reports that are not valid are left out."""
    words = payload.split()
    if len(words) < 2 or not words[0].startswith("pauses=") or words[1] not in ("more=0", "more=1"):  # noqa: PLR2004
        return None
    version = VERSION if words[2:3] == [f"v={VERSION}"] else 1
    parse_report, rest = (_parse_report, words[4:]) if version == VERSION else (_parse_old_report, words[2:])
    found = (parse_report(text.split(",")) for text in rest)
    known = tuple(report for report in found if report)
    is_whole = version == VERSION and words[3:4] == ["whole=1"]
    return Page(words[0].removeprefix("pauses="), words[1] == "more=1", known, version, is_whole)


def is_complete(membership: Membership) -> bool:
    """Return whether all pauses are known from commands, and the other load balancers have sent theirs."""
    return bool(membership.peers_asked_at) and not any(
        _has_rebuilt_pause(one) for one in as_table(membership.members).special.values()
    )


def drop_rebuilt_pauses(membership: Membership) -> Membership:
    """Return `membership` without the pauses that are known from haproxy.cfg only.

    A load balancer with complete knowledge has sent all its pauses: comments in haproxy.cfg add nothing.
    """
    draft = MembershipDraft(membership)
    for member in draft.members.special():
        if _has_rebuilt_pause(member):
            draft.members.put(member._replace(pause=None))
    return draft.membership


def _has_rebuilt_pause(member: Member) -> bool:
    return member.pause is not None and not member.last_commands


def merge_reports(
    membership: Membership, reports: Iterable[PauseReport], by: str, clocks: Mapping[str, int], now: int
) -> UpdateResult:
    """Return `membership` merged with the reports of the load balancer `by`, at `now` (epoch seconds).

    `clocks` holds the LTimes of the Serf agent now. A command with a higher LTime is from an earlier cluster.
    """
    draft = MembershipDraft(membership)
    for clock in (USER, QUERY):
        highest = draft.clocks.highest.get(clock, 0)
        if highest > clocks.get(clock, highest):
            draft.restart_clock(clock)
    knows_all = is_complete(membership)
    for report in reports:
        _merge_report(
            draft,
            _restart_clocks(report._replace(rebuilt_pause=None if knows_all else report.rebuilt_pause), clocks),
            by,
            now,
        )
    draft.hosts_changed = True
    draft.resume_hosts(now)
    return UpdateResult(draft.membership, {}, tuple(draft.causes), draft.all_warnings)


def _restart_clocks(report: PauseReport, clocks: Mapping[str, int]) -> PauseReport:
    known = report.last_commands
    for clock, ltime in clocks.items():
        if clock in known and known[clock].ltime > ltime:
            known = pauses.restart_clock(known, clock)
    return report._replace(last_commands=known)


def _merge_report(draft: MembershipDraft, report: PauseReport, by: str, now: int) -> None:
    known = draft.members.get(report.name)
    if known is None and not report.seen:
        # The name is from a command. Here the node is known by that name in another case, or by its address.
        known = find_member(draft.members, report.name, report.addresses[0] if report.addresses else None)
    if known is None or (known.status == UNKNOWN and report.seen):
        known = _add_missing_node(draft, report, known, by, now)
    if known is None:
        return
    if not (known.present or known.last_commands or known.pause):
        # The node is gone. Only its addresses at the commands count, so that all load balancers pause the same hosts.
        known = known._replace(address=next(iter(report.addresses), ""), elsewhere=())
    rebuilt = report.rebuilt_pause and report.rebuilt_pause._replace(by=f"reported by {by}")
    address = known.address or (report.addresses[0] if report.addresses else "")
    reported_addresses = report.addresses if report.name == known.name and not known.present else ()
    elsewhere = pauses.merge_addresses(known.elsewhere, reported_addresses)
    commands = pauses.fill_addresses(pauses.merge_commands(known.last_commands, report.last_commands), address)
    member = known._replace(
        address=address,
        elsewhere=() if set(elsewhere) <= {address} else elsewhere,
        last_commands=commands,
        pause=known.pause or (None if commands else rebuilt),
    )
    member = pauses.update_pause(member, now, f"reported by {by}")
    draft.members.put(member)
    if member.pause and (known.pause is None or known.pause.until != member.pause.until):
        draft.causes.append(f"sync: {known.name} is paused on {by}")
    elif known.pause and member.pause is None:
        draft.causes.append(f"sync: {known.name} was resumed on {by}")


def _add_missing_node(
    draft: MembershipDraft, report: PauseReport, known: Member | None, by: str, now: int
) -> Member | None:
    """Add a node that is not known here yet, as one that is not present; None where it cannot be remembered."""
    is_paused = _is_paused(report, now)
    last = pauses.find_last_activity(report.last_commands, now) or (
        report.rebuilt_pause.since if report.rebuilt_pause else 0
    )
    address = report.addresses[0] if report.addresses else ""
    if report.seen and (is_paused or last + FORGET_AFTER > now):
        commands: CommandsByClock = {}
        for unknown in draft.take_unknown(report.name, ""):
            # Its name may be written in another case.
            commands = pauses.merge_commands(commands, unknown.last_commands)
        member = Member(report.name, address, "", None, LEFT, now if is_paused else min(last, now), None, commands)
        return member if draft.add_member(member) else None
    if known:
        return known
    if last + FORGET_AFTER <= now or draft.is_full_of_unknown(paused=is_paused):
        return None
    if is_paused:
        draft.causes.append(f"sync: {report.name} (unknown node) is paused on {by}")
    member = Member(report.name, address, "", None, UNKNOWN, min(last, now))
    draft.remember_unknown(member)
    return member


def _list_reports(membership: Membership, now: int) -> list[PauseReport]:
    """Return the reports of all nodes, sorted by name.

    A node that is gone and not paused is reported only for as long as Serf may replay its commands.
    """
    found = []
    for member in as_table(membership.members).special.values():
        paused = member.pause is not None and (member.pause.until is None or member.pause.until > now)
        last = pauses.find_last_activity(member.last_commands, now)
        if paused or (member.last_commands and (member.present or last + FORGET_AFTER > now)):
            rebuilt = None if member.last_commands else member.pause
            addresses = pauses.merge_addresses([member.address], member.elsewhere)
            found.append(PauseReport(member.name, member.status != UNKNOWN, addresses, member.last_commands, rebuilt))
    return sorted(found, key=lambda report: report.name)


def _drop_arrival_times(report: PauseReport) -> PauseReport:
    known = {
        clock: last._replace(commands=tuple(command._replace(at=0) for command in last.commands))
        for clock, last in report.last_commands.items()
    }
    return report._replace(
        last_commands=known, rebuilt_pause=report.rebuilt_pause and report.rebuilt_pause._replace(since=0)
    )


# A report as text: NAME,FLAGS,ADDRESSES[,CLOCK/LTIME/COMMAND|COMMAND…]…
#   FLAGS      s: has been a member, u: known from a command only; pSINCE[:UNTIL]: paused in haproxy.cfg only
#   ADDRESSES  joined by +
#   COMMAND    DIGEST;p[UNTIL] or r;ARRIVAL;ADDRESS (= for the first one);CLOCK=LTIME+…


def _format_report(report: PauseReport, room: int) -> str:
    flags = "s" if report.seen else "u"
    if report.rebuilt_pause:
        flags += f"p{report.rebuilt_pause.since}" + (
            f":{report.rebuilt_pause.until}" if report.rebuilt_pause.until is not None else ""
        )
    for most in range(COMMANDS_LIMIT, 0, -1):
        clocks = [
            _format_clock(clock, last, most, report.addresses) for clock, last in sorted(report.last_commands.items())
        ]
        text = ",".join([report.name, flags, "+".join(report.addresses), *clocks])
        if len(text) <= room:
            return text
    return f"{report.name},{flags},"  # more clocks than any cluster has


def _format_clock(clock: str, last: LastCommands, most: int, addresses: tuple[str, ...]) -> str:
    kept = sorted(last.commands, key=lambda command: (not command.pauses, command.digest))[:most]
    return f"{clock}/{last.ltime}/" + "|".join(_format_command(command, addresses) for command in sorted(kept))


def _format_command(command: PauseCommand, addresses: tuple[str, ...]) -> str:
    state = f"p{'' if command.until is None else command.until}" if command.pauses else "r"
    address = _SAME if command.address and addresses[:1] == (command.address,) else command.address
    after = "+".join(f"{clock}={ltime}" for clock, ltime in command.after)
    return f"{command.digest};{state};{command.at};{address};{after}"


def _parse_report(fields: list[str]) -> PauseReport | None:
    try:
        name, flags, listed, *clocks = fields
        addresses = tuple(_parse_address(text) for text in listed.split("+")) if listed else ()
        if not NAME.fullmatch(name) or flags[:1] not in ("s", "u") or len(clocks) > _CLOCKS_LIMIT:
            return None
        commands = dict(_parse_clock(text.split("/"), addresses) for text in clocks)
        rebuilt = _parse_pause(flags[1:]) if flags[1:] and not commands else None
        return PauseReport(name, flags[0] == "s", pauses.merge_addresses(addresses, ()), commands, rebuilt)
    except ValueError:
        return None


def _parse_clock(parts: list[str], addresses: tuple[str, ...]) -> tuple[str, LastCommands]:
    clock, ltime, command = parts
    commands = [_parse_command(text.split(";"), addresses) for text in command.split("|")]
    if len({one.digest for one in commands}) != len(commands) or len(commands) > COMMANDS_LIMIT:
        raise ValueError(command)
    return _parse_clock_name(clock), LastCommands(_parse_number(ltime, _LTIME_DIGITS), tuple(sorted(commands)))


def _parse_command(parts: list[str], addresses: tuple[str, ...]) -> PauseCommand:
    digest, state, at, address, listed_after = parts
    if digest != LEGACY_DIGEST and not (len(digest) == 8 and set(digest) <= _HEX):  # noqa: PLR2004  # CRC-32
        raise ValueError(digest)
    if state[:1] not in ("p", "r") or (state[0] == "r" and state != "r"):
        raise ValueError(state)
    until = _parse_number(state[1:], _TIME_DIGITS) if state[1:] else None
    pairs = [pair.partition("=") for pair in listed_after.split("+")] if listed_after else []
    after = {_parse_clock_name(clock): _parse_number(ltime, _LTIME_DIGITS) for clock, _, ltime in pairs}
    where = addresses[0] if address == _SAME and addresses else _parse_address(address) if address else ""
    return PauseCommand(
        digest, state[0] == "p", until, tuple(sorted(after.items())), where, _parse_number(at, _TIME_DIGITS)
    )


def _parse_pause(text: str) -> Pause:
    since, _, until = text.removeprefix("p").partition(":")
    return Pause(_parse_number(since, _TIME_DIGITS), "", "", _parse_number(until, _TIME_DIGITS) if until else None)


def _parse_clock_name(text: str) -> str:
    name = text.removeprefix(FORMER_CLOCK_PREFIX)
    typed = name.startswith(f"{TYPED}@") and (name == f"{TYPED}@" or NAME.fullmatch(name.removeprefix(f"{TYPED}@")))
    if name not in (USER, QUERY) and not (typed and name == text):
        raise ValueError(text)
    return text


def _parse_address(text: str) -> str:
    address = canonical_address(text)
    if address is None or address != text:
        raise ValueError(text)
    return address


def _parse_number(text: str, digits: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= digits):
        raise ValueError(text)
    return int(text)


# A report for a load balancer of an older version: NAME,p or r,USER LTIME,QUERY LTIME,SINCE,[UNTIL]


def _is_paused(report: PauseReport, now: int) -> bool:
    if report.last_commands:
        requested = pauses.find_requested_pause(report.last_commands)
        return requested is not None and requested.is_active(now)
    return report.rebuilt_pause is not None and (report.rebuilt_pause.until is None or report.rebuilt_pause.until > now)


def _list_ltimes(report: PauseReport) -> tuple[int, ...]:
    return tuple(report.last_commands[clock].ltime if clock in report.last_commands else 0 for clock in (USER, QUERY))


def _format_old_report(report: PauseReport, now: int) -> str:
    requested = pauses.find_requested_pause(report.last_commands) if _is_paused(report, now) else None
    since = requested.since if requested else report.rebuilt_pause.since if report.rebuilt_pause else 0
    until = requested.until if requested else report.rebuilt_pause.until if report.rebuilt_pause else None
    state = "p" if _is_paused(report, now) else "r"
    return ",".join((report.name, state, *map(str, _list_ltimes(report)), str(since), str(until or "")))


def _parse_old_report(fields: list[str]) -> PauseReport | None:
    try:
        name, state, user, query, since, until = fields
        if not NAME.fullmatch(name) or state not in _OLD_STATES:
            return None
        ltimes = {USER: _parse_number(user, _LTIME_DIGITS - 1), QUERY: _parse_number(query, _LTIME_DIGITS - 1)}
        began, end = _parse_number(since, _TIME_DIGITS), _parse_number(until, _TIME_DIGITS) if until else None
    except ValueError:
        return None
    address, paused = canonical_address(name), _OLD_STATES[state]
    rebuilt = Pause(began, "", "", end) if paused and not any(ltimes.values()) else None
    commands = dict(_build_old_commands(ltimes, PauseCommand(LEGACY_DIGEST, paused, end if paused else None, at=began)))
    return PauseReport(
        name, seen=False, addresses=(address,) if address else (), last_commands=commands, rebuilt_pause=rebuilt
    )


def _build_old_commands(ltimes: Mapping[str, int], command: PauseCommand) -> Iterator[tuple[str, LastCommands]]:
    for clock, ltime in ltimes.items():
        if ltime:
            after = tuple((other, lt) for other, lt in ltimes.items() if other != clock and lt)
            yield clock, LastCommands(ltime, (command._replace(after=after),))


class Peer(NamedTuple):
    """Another load balancer. The names of the fields are the keys in peers.json."""

    name: str
    address: str
    status: str
    """Status in Serf: alive, failed."""
    digest: str | None = None
    """Digest of its managed lines when it last answered; None where it has never answered."""
    equal: bool | None = None
    """Whether this load balancer had the same managed lines at that time."""
    seen: int | None = None
    """Time of its last answer in epoch seconds."""
    answers: bool = False
    """Whether it answered the last query."""
    status_line: str | None = None
    """Its answer: name, counts, digest and the outcome of its last run. None where it has never answered."""


class Peers(NamedTuple):
    """All other load balancers, as one sync saw them."""

    at: int
    """Time of the sync in epoch seconds."""
    role: str
    """The Serf role that all load balancers have."""
    peers: tuple[Peer, ...] = ()


class Observer(NamedTuple):
    """The load balancer that runs the sync, at the time of a sync."""

    now: int
    """Time in epoch seconds."""
    info: AgentInfo
    digest: str
    """Digest of its managed lines."""


def update_peers(
    before: Peers | None, observer: Observer, listed: Sequence[ListedMember], status_lines: Mapping[str, str]
) -> Peers:
    """Return the other load balancers as `observer` sees them.

    `listed` are their members in Serf's list, `status_lines` the answers to `lbagent-status` by name.
    """
    now, digest = observer.now, observer.digest
    known = {peer.name: peer for peer in before.peers} if before else {}
    found = []
    for one in listed:
        peer = known.get(one.name, Peer(one.name, one.address, one.status))
        peer = peer._replace(address=one.address, status=one.status, answers=False)
        answer = status_lines.get(one.name, "")
        if words := _DIGEST.search(answer):
            # Serf lets an answer have 1,024 bytes.
            line = make_printable(answer[:_LINE_LIMIT])
            peer = peer._replace(digest=words[1], equal=words[1] == digest, seen=now, answers=True, status_line=line)
        found.append(peer)
    return Peers(now, observer.info.role or DEFAULT_ROLE, tuple(found))


def list_current_peers(peers: Peers | None, members: Members, roles: Sequence[str]) -> list[Peer]:
    """Return the other load balancers as the last sync saw them, with the statuses from later events.

    Before the first sync they are the members with DEFAULT_ROLE. `roles` are the names of the roles in roles.yml.
    """
    role = peers.role if peers else DEFAULT_ROLE
    found = {peer.name: peer for peer in peers.peers} if peers else {}
    table = as_table(members)
    if role not in roles:
        rows = zip(table.columns.names, table.columns.addresses, table.columns.roles, strict=True)
        found |= {name: Peer(name, address, "") for name, address, its in rows if its == role and name not in found}
    now = []
    for name, peer in found.items():
        member = members.get(name)
        if member is None or not member.present:
            if peers and peer.status and member is None:
                now.append(peer)  # listed by Serf, no event yet
            continue
        # The newer status counts: that of an event, or that of the last sync.
        newer = not (peers and peer.status) or member.changed > peers.at
        now.append(peer._replace(status=member.status, address=member.address) if newer else peer)
    return sorted(now, key=lambda one: one.name)


def serialize_peers(peers: Peers) -> bytes:
    """Return the content of peers.json."""
    return json.dumps({**peers._asdict(), "peers": [one._asdict() for one in peers.peers]}).encode()


def parse_peers(content: bytes) -> Peers:
    """Parse what `serialize_peers` returned. Raises ValueError, KeyError, TypeError, AttributeError, RecursionError."""
    found = json.loads(content)
    rows = [_parse_peer(row) for row in found["peers"]]
    return Peers(int(found["at"]), str(found["role"]), tuple(rows))


def _parse_peer(row: Mapping[str, Any]) -> Peer:
    seen, digest, equal, line = (row.get(key) for key in ("seen", "digest", "equal", "status_line"))
    return Peer(
        str(row["name"]),
        str(row["address"]),
        str(row["status"]),
        str(digest) if digest is not None else None,
        bool(equal) if equal is not None else None,
        int(seen) if seen is not None else None,
        bool(row.get("answers")),
        str(line) if line is not None else None,
    )

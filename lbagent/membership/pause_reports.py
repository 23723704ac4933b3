"""What load balancers tell each other of pauses, as pages of at most 1,024 bytes.

A query reaches only load balancers that are up, and LTimes order only what is on one clock. So each one asks the
others what the last commands of each node were, on every clock, and joins that with what it knows (see `pauses`).

A page is `pauses=DIGEST more=0|1 v=2 whole=0|1 WORD …`. A load balancer of an older version asks for its own format
and is answered in it, without `v=2`: of each node, whether it is paused, with the LTimes of the last user event and
query.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping

from lbagent.membership import pauses
from lbagent.membership.lookup import find_member
from lbagent.membership.model import (
    LEFT,
    REMEMBERED,
    TOLD,
    UNKNOWN,
    LastCommand,
    Member,
    Membership,
    Pause,
    Said,
    as_table,
)
from lbagent.membership.pauses import COMMANDS_LIMIT, FORMER, Known
from lbagent.membership.updates import MembershipDraft, UpdateResult
from lbagent.names import NAME, canonical_address
from lbagent.serf.events import QUERY, TYPED, USER
from lbagent.system.tuples import NamedTuple

VERSION = 2
"""Of the pages; 1 is what lbagent 0.x before the ends of pauses were remembered asks for."""

ASKS = "pauses after={after} v=2"
"""The payload of the query that asks for the page after a node: an older version reads no further than `after=`."""

_OLD_STATES = {"p": True, "r": False}
_CLOCKS_LIMIT = 16
_LTIME_DIGITS, _TIME_DIGITS = 20, 11
_HEX = frozenset("0123456789abcdef")
_SAME = "="
"""In place of the node's first address."""


class PauseReport(NamedTuple):
    """What one load balancer knows of one node."""

    name: str
    seen: bool
    """Whether anybody has ever seen the node: it is more than a name in a command."""
    addresses: tuple[str, ...]
    heard: Known
    base: Pause | None = None
    """A pause of which only haproxy.cfg tells; None where commands were heard."""


class Page(NamedTuple):
    """As many words as fit into one answer."""

    digest: str
    """Of all words: with the same digest there is nothing to learn."""
    more: bool
    """Whether others come after these."""
    words: tuple[PauseReport, ...]
    version: int = VERSION
    whole: bool = False
    """Whether the load balancer has its knowledge from commands alone, and not from what haproxy.cfg showed."""


def format_page(membership: Membership, after: str, room: int, now: int, version: int = VERSION) -> str:
    """What is known of the nodes that come after the name `after`, in at most `room` bytes."""
    texts = [(word.name, word) for word in _words(membership, now) if word.name > after]
    marks = [f"v={VERSION}", f"whole={'01'[whole(membership)]}"] if version == VERSION else []
    fitting = [f"pauses={digest_reports(membership, now, version)}", "more=", *marks]
    left = room - len(" ".join(fitting)) - 1
    count = 0
    for _, word in texts:
        text = _text(word, room - 64) if version == VERSION else _old_text(word, now)
        left -= len(text) + 1
        if left < 0:
            break
        fitting.append(text)
        count += 1
    fitting[1] += "01"[count < len(texts)]
    return " ".join(fitting)


def digest_reports(membership: Membership, now: int, version: int = VERSION) -> str:
    """Equal where the same is known of pauses; when commands arrived may differ."""
    if version == VERSION:
        lines = (_text(_without_arrivals(word), 1 << 16) for word in _words(membership, now))
    else:
        lines = (" ".join(map(str, (word.name, _runs(word, now), _ltimes(word)))) for word in _words(membership, now))
    return f"{zlib.crc32(chr(10).join(lines).encode()):08x}"


def parse_page(said: str) -> Page | None:
    """The page in an answer; None where it is not a page. A word in it that cannot be read is left out."""
    words = said.split()
    if len(words) < 2 or not words[0].startswith("pauses=") or words[1] not in ("more=0", "more=1"):  # noqa: PLR2004
        return None
    version = VERSION if words[2:3] == [f"v={VERSION}"] else 1
    read_word, rest = (_word, words[4:]) if version == VERSION else (_old_word, words[2:])
    found = (read_word(text.split(",")) for text in rest)
    known = tuple(word for word in found if word)
    is_whole = version == VERSION and words[3:4] == ["whole=1"]
    return Page(words[0].removeprefix("pauses="), words[1] == "more=1", known, version, is_whole)


def whole(membership: Membership) -> bool:
    """Whether all that is known of pauses comes from commands, since the others were asked for theirs."""
    return membership.met > 0 and not any(_base(one) for one in as_table(membership.members).special.values())


def without_base(membership: Membership) -> Membership:
    """`membership` once a load balancer that is whole has told all it knows: comments in haproxy.cfg add nothing."""
    slate = MembershipDraft(membership)
    for member in slate.members.special():
        if _base(member):
            slate.members.put(member._replace(pause=None))
    return slate.membership


def _base(member: Member) -> bool:
    return member.pause is not None and not member.heard


def merge_reports(
    membership: Membership, told: Iterable[PauseReport], by: str, clocks: Mapping[str, int], now: int
) -> UpdateResult:
    """`membership` joined with what the load balancer `by` has told.

    `clocks` is what the agent says its LTimes are now: what is beyond them was heard in an older cluster.
    """
    slate = MembershipDraft(membership)
    for clock in (USER, QUERY):
        if slate.clocks.get(clock, 0) > clocks.get(clock, slate.clocks.get(clock, 0)):
            slate.causes.append(f"the {clock} clock of Serf started anew")
            slate.begin_anew(clock)
    knows_all = whole(membership)
    for word in told:
        _join(slate, _of_this_cluster(word._replace(base=None if knows_all else word.base), clocks), by, now)
    slate.hosts_changed = True
    slate.resume_hosts(now)
    return UpdateResult(slate.membership, {}, tuple(slate.causes), slate.said)


def _of_this_cluster(word: PauseReport, clocks: Mapping[str, int]) -> PauseReport:
    known = word.heard
    for clock, ltime in clocks.items():
        if clock in known and known[clock].ltime > ltime:
            known = pauses.begin_anew(known, clock)
    return word._replace(heard=known)


def _join(slate: MembershipDraft, word: PauseReport, by: str, now: int) -> None:
    known = slate.members.get(word.name)
    if known is None and not word.seen:
        # The name in a command, of which the node is known here: in another case, or as an address.
        known = find_member(slate.members, word.name, word.addresses[0] if word.addresses else None)
    if known is None or (known.status == UNKNOWN and word.seen):
        known = _enrol(slate, word, known, by, now)
    if known is None:
        return
    if not (known.present or known.heard or known.pause):
        # It is gone, and only where it was when the commands came counts: both shall pause the same hosts.
        known = known._replace(address=next(iter(word.addresses), ""), elsewhere=())
    base = word.base and word.base._replace(by=f"told by {by}")
    address = known.address or (word.addresses[0] if word.addresses else "")
    told_where = word.addresses if word.name == known.name and not known.present else ()
    elsewhere = pauses.join_addresses(known.elsewhere, told_where)
    heard = pauses.place(pauses.join(known.heard, word.heard), address)
    member = known._replace(
        address=address,
        elsewhere=() if set(elsewhere) <= {address} else elsewhere,
        heard=heard,
        pause=known.pause or (None if heard else base),
    )
    member = pauses.settle(member, now, f"told by {by}")
    slate.members.put(member)
    if member.pause and (known.pause is None or known.pause.until != member.pause.until):
        slate.causes.append(f"sync: {known.name} is paused on {by}")
    elif known.pause and member.pause is None:
        slate.causes.append(f"sync: {known.name} was resumed on {by}")


def _enrol(slate: MembershipDraft, word: PauseReport, known: Member | None, by: str, now: int) -> Member | None:
    """A node that is not known here yet, as one that is not present; None where it cannot be remembered."""
    runs = _runs(word, now)
    last = pauses.last_moment(word.heard, now) or (word.base.since if word.base else 0)
    address = word.addresses[0] if word.addresses else ""
    if word.seen and (runs or last + REMEMBERED > now):
        heard = known.heard if known else {}
        slate.awaited(word.name, "")
        member = Member(word.name, address, "", None, LEFT, now if runs else min(last, now), None, heard)
        return member if slate.enrol(member) else None
    if known:
        return known
    if last + REMEMBERED <= now or slate.full_of_unknown(paused=runs):
        return None
    if runs:
        slate.causes.append(f"sync: {word.name} (unknown node) is paused on {by}")
    member = Member(word.name, address, "", None, UNKNOWN, min(last, now))
    slate.await_(member)
    return member


def _words(membership: Membership, now: int) -> list[PauseReport]:
    """What is worth telling: of nodes that are gone without a pause only what may still be replayed."""
    found = []
    for member in as_table(membership.members).special.values():
        paused = member.pause is not None and (member.pause.until is None or member.pause.until > now)
        last = pauses.last_moment(member.heard, now)
        if paused or (member.heard and (member.present or last + REMEMBERED > now)):
            base = None if member.heard else member.pause
            addresses = pauses.join_addresses([member.address], member.elsewhere)
            found.append(PauseReport(member.name, member.status != UNKNOWN, addresses, member.heard, base))
    return sorted(found, key=lambda word: word.name)


def _without_arrivals(word: PauseReport) -> PauseReport:
    known = {
        clock: heard._replace(commands=tuple(said._replace(at=0) for said in heard.commands))
        for clock, heard in word.heard.items()
    }
    return word._replace(heard=known, base=word.base and word.base._replace(since=0))


# --- words as text ------------------------------------------------------------------------------------------------
#
# NAME,FLAGS,ADDRESSES[,CLOCK/LTIME/COMMAND|COMMAND…]…
#   FLAGS      s: seen, u: only a name in a command; then, where haproxy.cfg alone tells of a pause, pSINCE[:UNTIL]
#   ADDRESSES  joined by +
#   COMMAND    DIGEST;p[UNTIL] or r;ARRIVAL;ADDRESS (= for the first one);CLOCK=LTIME+…


def _text(word: PauseReport, room: int) -> str:
    flags = "s" if word.seen else "u"
    if word.base:
        flags += f"p{word.base.since}" + (f":{word.base.until}" if word.base.until is not None else "")
    for most in range(COMMANDS_LIMIT, 0, -1):
        clocks = [_clock_text(clock, heard, most, word.addresses) for clock, heard in sorted(word.heard.items())]
        text = ",".join([word.name, flags, "+".join(word.addresses), *clocks])
        if len(text) <= room:
            return text
    return f"{word.name},{flags},"  # a crowd of clocks that no cluster has


def _clock_text(clock: str, heard: LastCommand, most: int, addresses: tuple[str, ...]) -> str:
    kept = sorted(heard.commands, key=lambda said: (not said.pauses, said.digest))[:most]
    return f"{clock}/{heard.ltime}/" + "|".join(_said_text(said, addresses) for said in sorted(kept))


def _said_text(said: Said, addresses: tuple[str, ...]) -> str:
    state = f"p{'' if said.until is None else said.until}" if said.pauses else "r"
    address = _SAME if said.address and addresses[:1] == (said.address,) else said.address
    after = "+".join(f"{clock}={ltime}" for clock, ltime in said.after)
    return f"{said.digest};{state};{said.at};{address};{after}"


def _word(fields: list[str]) -> PauseReport | None:
    try:
        name, flags, listed, *clocks = fields
        addresses = tuple(_address(text) for text in listed.split("+")) if listed else ()
        if not NAME.fullmatch(name) or flags[:1] not in ("s", "u") or len(clocks) > _CLOCKS_LIMIT:
            return None
        heard = dict(_clock(text.split("/"), addresses) for text in clocks)
        base = _pause(flags[1:]) if flags[1:] and not heard else None
        return PauseReport(name, flags[0] == "s", pauses.join_addresses(addresses, ()), heard, base)
    except ValueError:
        return None


def _clock(parts: list[str], addresses: tuple[str, ...]) -> tuple[str, LastCommand]:
    clock, ltime, said = parts
    commands = [_said(text.split(";"), addresses) for text in said.split("|")]
    if len({one.digest for one in commands}) != len(commands) or len(commands) > COMMANDS_LIMIT:
        raise ValueError(said)
    return _clock_name(clock), LastCommand(_number(ltime, _LTIME_DIGITS), tuple(sorted(commands)))


def _said(parts: list[str], addresses: tuple[str, ...]) -> Said:
    said_digest, state, at, address, heard = parts
    if said_digest != TOLD and not (len(said_digest) == 8 and set(said_digest) <= _HEX):  # noqa: PLR2004  # CRC-32
        raise ValueError(said_digest)
    if state[:1] not in ("p", "r") or (state[0] == "r" and state != "r"):
        raise ValueError(state)
    until = _number(state[1:], _TIME_DIGITS) if state[1:] else None
    pairs = [pair.partition("=") for pair in heard.split("+")] if heard else []
    after = {_clock_name(clock): _number(ltime, _LTIME_DIGITS) for clock, _, ltime in pairs}
    where = addresses[0] if address == _SAME and addresses else _address(address) if address else ""
    return Said(said_digest, state[0] == "p", until, tuple(sorted(after.items())), where, _number(at, _TIME_DIGITS))


def _pause(text: str) -> Pause:
    since, _, until = text.removeprefix("p").partition(":")
    return Pause(_number(since, _TIME_DIGITS), "", "", _number(until, _TIME_DIGITS) if until else None)


def _clock_name(text: str) -> str:
    name = text.removeprefix(FORMER)
    typed = name.startswith(f"{TYPED}@") and (name == f"{TYPED}@" or NAME.fullmatch(name.removeprefix(f"{TYPED}@")))
    if name not in (USER, QUERY) and not (typed and name == text):
        raise ValueError(text)
    return text


def _address(text: str) -> str:
    address = canonical_address(text)
    if address is None or address != text:
        raise ValueError(text)
    return address


def _number(text: str, digits: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= digits):
        raise ValueError(text)
    return int(text)


# --- for a load balancer of an older version ----------------------------------------------------------------------
#
# NAME,p or r,USER LTIME,QUERY LTIME,SINCE,[UNTIL]


def _runs(word: PauseReport, now: int) -> bool:
    if word.heard:
        lasting = pauses.asked(word.heard)
        return lasting is not None and lasting.runs(now)
    return word.base is not None and (word.base.until is None or word.base.until > now)


def _ltimes(word: PauseReport) -> tuple[int, ...]:
    return tuple(word.heard[clock].ltime if clock in word.heard else 0 for clock in (USER, QUERY))


def _old_text(word: PauseReport, now: int) -> str:
    lasting = pauses.asked(word.heard) if _runs(word, now) else None
    since = lasting.since if lasting else word.base.since if word.base else 0
    until = lasting.until if lasting else word.base.until if word.base else None
    state = "p" if _runs(word, now) else "r"
    return ",".join((word.name, state, *map(str, _ltimes(word)), str(since), str(until or "")))


def _old_word(fields: list[str]) -> PauseReport | None:
    try:
        name, state, user, query, since, until = fields
        if not NAME.fullmatch(name) or state not in _OLD_STATES:
            return None
        ltimes = {USER: _number(user, _LTIME_DIGITS - 1), QUERY: _number(query, _LTIME_DIGITS - 1)}
        began, end = _number(since, _TIME_DIGITS), _number(until, _TIME_DIGITS) if until else None
    except ValueError:
        return None
    address, paused = canonical_address(name), _OLD_STATES[state]
    base = Pause(began, "", "", end) if paused and not any(ltimes.values()) else None
    heard = dict(_old_heard(ltimes, Said(TOLD, paused, end if paused else None, at=began)))
    return PauseReport(name, seen=False, addresses=(address,) if address else (), heard=heard, base=base)


def _old_heard(ltimes: Mapping[str, int], said: Said) -> Iterator[tuple[str, LastCommand]]:
    for clock, ltime in ltimes.items():
        if ltime:
            after = tuple((other, lt) for other, lt in ltimes.items() if other != clock and lt)
            yield clock, LastCommand(ltime, (said._replace(after=after),))

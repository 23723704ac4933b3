"""What load balancers tell each other of pauses, and whose word is the later one.

A query reaches only who is up, and LTimes order only what is on one clock: a load balancer that was down, or
heard two clocks in another order, learns from the others. Who has heard more is believed; where neither has,
or each of something else, the pause wins, so that all come to the same.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping

from lbagent.fold import Folded
from lbagent.membership import REMEMBERED, TOLD, UNKNOWN, Heard, Member, Membership, Pause
from lbagent.names import NAME, canonical_address
from lbagent.serf.command import QUERY, USER
from lbagent.slate import Slate
from lbagent.table import tabled
from lbagent.tuples import NamedTuple

_CLOCKS = (USER, QUERY)
_STATES = {"p": True, "r": False}
_FIELDS = 6
_DIGITS = {2: 19, 3: 19, 4: 11, 5: 11}
"""The most that an LTime or a time may have, by field."""


class Word(NamedTuple):
    """What one load balancer knows of the pause of one node."""

    name: str
    paused: bool
    ltimes: tuple[int, ...]
    """Of the last pause or resume it heard, by user event and by query; 0 for none."""
    since: int
    until: int | None

    def __str__(self) -> str:
        state = "p" if self.paused else "r"
        return ",".join((self.name, state, *map(str, self.ltimes), str(self.since), str(self.until or "")))


class Page(NamedTuple):
    """As many words as fit into one answer."""

    digest: str
    """Of all words: who has the same has nothing to learn."""
    more: bool
    """Whether others come after these."""
    words: tuple[Word, ...]


def page(membership: Membership, after: str, room: int, now: int) -> str:
    """What is known of the nodes that come after the name `after`, in at most `room` bytes."""
    words = _words(membership, now)
    rest = [str(word) for word in words if word.name > after]
    fitting = [f"pauses={digest(membership, now)}", "more="]
    left = room - len(" ".join(fitting)) - 1
    for said in rest:
        left -= len(said) + 1
        if left < 0:
            break
        fitting.append(said)
    fitting[1] += "01"[len(fitting) - 2 < len(rest)]
    return " ".join(fitting)


def digest(membership: Membership, now: int) -> str:
    """Equal where the same is known of pauses; their times may differ by the way they came."""
    text = "\n".join(f"{word.name} {word.paused} {word.ltimes}" for word in _words(membership, now))
    return f"{zlib.crc32(text.encode()):08x}"


def read(said: str) -> Page | None:
    """The page in an answer, None where it is none; what is no word in it is left out."""
    words = said.split()
    if len(words) < 2 or not words[0].startswith("pauses=") or words[1] not in ("more=0", "more=1"):  # noqa: PLR2004
        return None
    found = (_word(text.split(",")) for text in words[2:])
    return Page(words[0].removeprefix("pauses="), words[1] == "more=1", tuple(word for word in found if word))


def agreed(membership: Membership, told: Iterable[Word], by: str, clocks: Mapping[str, int], now: int) -> Folded:
    """`membership` after the load balancer `by` has told its words.

    `clocks` is what the agent says its LTimes are now: what is beyond them was heard in an older cluster.
    """
    slate = Slate(membership)
    for word in told:
        if word.paused and word.until is not None and word.until <= now:
            continue
        known = slate.members.get(word.name)
        if known is not None:
            _weigh(slate, known, word, by, clocks)
        elif word.paused and word.since + REMEMBERED > now and not slate.full_of_unknown:
            _await(slate, word._replace(since=min(word.since, now)), by, clocks)
    return Folded(slate.membership, {}, tuple(slate.causes), ())


def _await(slate: Slate, word: Word, by: str, clocks: Mapping[str, int]) -> None:
    heard = {clock: Heard(ltime, (TOLD,), paused=True) for clock, ltime in _heard(word, clocks).items()}
    address = canonical_address(word.name) or ""
    slate.await_(Member(word.name, address, "", None, UNKNOWN, word.since, _pause(word, by), heard))
    slate.causes.append(f"sync: {word.name} (unknown node) is paused on {by}")


def _weigh(slate: Slate, known: Member, word: Word, by: str, clocks: Mapping[str, int]) -> None:
    ours, theirs = _valid(known, clocks), _heard(word, clocks)
    news = {clock: ltime for clock, ltime in theirs.items() if ltime > ours.get(clock, 0)}
    behind = _later(known, theirs, clocks)
    if behind and not news:
        return
    heard = {clock: Heard(ltime, (TOLD,), word.paused) for clock, ltime in news.items()}
    member = known._replace(heard={**known.heard, **heard})
    slate.members.enter(member)
    if word.paused and (known.pause is None or _ends_otherwise(known.pause, word, newer=bool(news) and not behind)):
        slate.members.enter(member._replace(pause=_pause(word, by)))
        slate.causes.append(f"sync: {known.name} is paused on {by}")
    elif known.pause and not word.paused and not behind and news:
        _resume(slate, member, theirs, clocks)
        slate.causes.append(f"sync: {known.name} was resumed on {by}")


def _ends_otherwise(pause: Pause, word: Word, *, newer: bool) -> bool:
    """Whether the other's pause takes the place of ours: it is the newer one, or of two like ones the longer."""
    if newer or pause.until is None:
        return newer and pause.until != word.until
    return word.until is None or word.until > pause.until


def _resume(slate: Slate, member: Member, theirs: Mapping[str, int], clocks: Mapping[str, int]) -> None:
    """As a resume does, for the whole host: but a name of it that has heard more keeps its pause."""
    for other in slate.members.special():
        same = other.name == member.name or (member.address and other.address == member.address)
        if same and other.pause and (other.name == member.name or not _later(other, theirs, clocks)):
            slate.members.enter(other._replace(pause=None))


def _later(member: Member, theirs: Mapping[str, int], clocks: Mapping[str, int]) -> bool:
    """Whether we have heard something of it that they have not."""
    return any(ltime > theirs.get(clock, 0) for clock, ltime in _valid(member, clocks).items())


def _valid(member: Member, clocks: Mapping[str, int]) -> dict[str, int]:
    return {clock: one.ltime for clock, one in member.heard.items() if one.ltime <= clocks.get(clock, one.ltime)}


def _heard(word: Word, clocks: Mapping[str, int]) -> dict[str, int]:
    pairs = zip(_CLOCKS, word.ltimes, strict=True)
    return {clock: ltime for clock, ltime in pairs if 0 < ltime <= clocks.get(clock, ltime)}


def _pause(word: Word, by: str) -> Pause:
    return Pause(word.since, f"told by {by}", "", word.until)


def _words(membership: Membership, now: int) -> list[Word]:
    found = []
    for member in tabled(membership.members).special.values():
        pause = member.pause if member.pause and (member.pause.until or now + 1) > now else None
        if pause or member.heard:
            ltimes = tuple(member.heard[clock].ltime if clock in member.heard else 0 for clock in _CLOCKS)
            since, until = (pause.since, pause.until) if pause else (0, None)
            found.append(Word(member.name, pause is not None, ltimes, since, until))
    return sorted(found)


def _word(fields: list[str]) -> Word | None:
    if len(fields) != _FIELDS or not NAME.fullmatch(fields[0]) or fields[1] not in _STATES:
        return None
    *needed, until = fields[2:]
    numbers = [*needed, until or "0"]
    if not all(text.isascii() and text.isdigit() and len(text) <= _DIGITS[at] for at, text in enumerate(numbers, 2)):
        return None
    user, query, since = map(int, needed)
    return Word(fields[0], _STATES[fields[1]], (user, query), since, int(until) if until else None)

"""How commands change membership: pause, resume and forget, from whichever clock."""

from __future__ import annotations

from collections.abc import Mapping

from lbagent import pauses
from lbagent.membership import ALIVE, LEFT, UNKNOWN, Member, Pause, Said
from lbagent.names import NAME, canonical_address
from lbagent.roll import find
from lbagent.serf.command import TYPED, USER, Command
from lbagent.serf.raw import Raw
from lbagent.slate import Slate

DONE = "done"
"""What alone is a confirmation, once HAProxy serves it so."""

NOT_YET = "not applied yet"
"""How an answer begins to a command that is remembered, and tried again; `refused` says that nothing is remembered."""

STILL_PAUSED = "still paused by its tag"
NOBODY = {"pause": "unknown node, remembered", "resume": "unknown node", "forget": "unknown node"}
"""What is answered where nobody has that name."""


def commanded(slate: Slate, command: Command, raw: Raw, serf_clocks: Mapping[str, int]) -> str:
    """Obey the command, unless it is a replay; returns the answer, `done` where HAProxy still has to confirm it."""
    command = _in_time(slate, command, raw.at // 1000)
    _tick(slate, command, raw.at // 1000, serf_clocks)
    # Looked up among the members of this moment, not of before the batch: the member-join may be part of it.
    member = find(slate.members, command.name, command.address)
    if member is None:
        return NOBODY["forget"] if command.verb == "forget" else _unknown(slate, command, raw)
    if command.verb == "forget" and member.status == UNKNOWN and member.pause is None:
        return NOBODY["forget"]
    answer = _obey(slate, command, raw, member)
    # A node nobody has seen can be forgotten, but neither pausing nor resuming it does anything yet.
    return answer if member.status != UNKNOWN or command.verb == "forget" else NOBODY[command.verb]


def _obey(slate: Slate, command: Command, raw: Raw, member: Member) -> str:
    if command.verb == "forget" and member.status == ALIVE and not command.force:
        return f"refused: {member.name} is alive"
    host = [member] if command.verb == "pause" else _host(slate, member)
    clock, ltime = _clock(slate, command, raw)
    said = Said(command.digest, command.verb == "pause", command.until, at=raw.at // 1000)
    news = False
    for one in host:
        heard = pauses.hear(one, clock, ltime, said)
        news = news or (one is member and heard is not one)
        slate.members.enter(_settled(heard, command, raw))
    slate.hosts_changed = True
    if not news:
        return DONE
    slate.causes.append(f"{command.verb} {member.name} by {_who(command, raw)}")
    if command.verb == "pause":
        if command.until is not None and command.until <= raw.at // 1000:
            slate.ended.append(member.name)
        return DONE
    if command.verb == "forget":
        _forget(slate, slate.members[member.name], raw.at // 1000)
        return DONE
    return STILL_PAUSED if member.paused_by_tag else DONE


def _settled(member: Member, command: Command, raw: Raw) -> Member:
    """The member with the pause that is in effect after this command."""
    lasting = pauses.asked(member.heard)
    if command.verb == "pause" and lasting and command.digest in lasting.digests:
        member = member._replace(pause=_pause(command, raw, member.pause))
    return pauses.settle(member, raw.at // 1000, _who(command, raw))


def _host(slate: Slate, member: Member) -> list[Member]:
    """The node under every name it has at its address, as far as anything was heard of that name; itself first."""
    others = (one for one in slate.members.special() if one.name != member.name and (one.pause or one.heard))
    return [member, *(one for one in others if member.address and member.address in one.addresses)]


def _clock(slate: Slate, command: Command, raw: Raw) -> tuple[str, int]:
    """The clock that orders the command, and its LTime there.

    Each load balancer has a clock of its own for what is typed on it. It starts from the time of day, so that it goes
    on after the state was lost; it is compared with nothing but itself.
    """
    if command.ltime is not None:
        return command.clock, command.ltime
    clock = f"{TYPED}@{raw.self_name}"
    slate.clocks[clock] = max(raw.at // 1000, slate.clocks.get(clock, 0) + 1)
    return clock, slate.clocks[clock]


def _forget(slate: Slate, member: Member, now: int) -> None:
    slate.missed.pop(member.name, None)
    if member.status != UNKNOWN:
        # As one that left: its lines go, asked for, and what was heard of it orders what may still come.
        slate.members.enter(member._replace(status=LEFT, changed=now, quarantine=None))


def _in_time(slate: Slate, command: Command, now: int) -> Command:
    """The command, with `for=` counted from when it must have been sent: before a later one was heard."""
    if command.clock != USER or command.lasting is None or command.until is None or command.ltime is None:
        return command
    later = [at for ltime, at in slate.marks if ltime > command.ltime]
    return command._replace(until=min([now, *later]) + command.lasting)


def _tick(slate: Slate, command: Command, now: int, serf_clocks: Mapping[str, int]) -> None:
    if command.ltime is None:
        return
    highest = slate.clocks.get(command.clock, 0)
    if command.ltime <= highest and serf_clocks.get(command.clock, highest + 1) <= highest:
        # A cluster started anew counts from 1 again: what was heard in the old one orders nothing now.
        slate.causes.append(f"the {command.clock} clock of Serf started anew")
        slate.begin_anew(command.clock)
    slate.tick(command.clock, command.ltime, now)


def _unknown(slate: Slate, command: Command, raw: Raw) -> str:
    """Remember a pause or resume of a node that nobody has seen: the node may join later, or the other command come."""
    # A name that is an address means the host that has it, whatever it will be called.
    address = command.address or canonical_address(command.name) or ""
    if why := _not_remembered(slate, command, address):
        if command.verb == "resume":
            return NOBODY["resume"]
        slate.warnings.append(f"pause of {command.name[:80]!r}: {why}")
        return f"refused: {why}"
    now = raw.at // 1000
    clock, ltime = _clock(slate, command, raw)
    said = Said(command.digest, command.verb == "pause", command.until, at=now)
    member = pauses.hear(Member(command.name, address, "", None, UNKNOWN, now), clock, ltime, said)
    slate.await_(_settled(member, command, raw))
    if command.verb == "pause":
        slate.causes.append(f"pause {command.name} (unknown node) by {_who(command, raw)}")
    return NOBODY[command.verb]


def _not_remembered(slate: Slate, command: Command, address: str) -> str | None:
    """Why a command for a node nobody knows cannot be remembered."""
    if address and (count := sum(one.address == address and one.present for one in slate.members.values())):
        return f"{count} nodes have the address {address}: name one of them"
    if not NAME.fullmatch(command.name):
        return f"no node has the address {address}" if address else "not a node name"
    full = slate.full_of_unknown(paused=command.verb == "pause")
    return "too many unknown nodes are paused" if full else None


def _pause(command: Command, raw: Raw, present: Pause | None) -> Pause:
    if present and (present.reason, present.until) == (command.reason, command.until):
        return present  # the same pause again: it began when it began
    return Pause(raw.at // 1000, _who(command, raw), command.reason, command.until)


def _who(command: Command, raw: Raw) -> str:
    if command.clock == TYPED:
        return f"operator on {raw.self_name}"
    way = "user event" if command.clock == "user" else "query"
    return f"operator on {command.by}, by {way}" if command.by else way

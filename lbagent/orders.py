"""How commands change membership: pause, resume and forget, from whichever clock."""

from __future__ import annotations

from collections.abc import Mapping

from lbagent import order
from lbagent.membership import ALIVE, LEFT, UNKNOWN, Member, Pause
from lbagent.names import NAME, canonical_address
from lbagent.roll import find
from lbagent.serf.command import TYPED, Command
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
    """Obey the command, if it is to be obeyed; returns the answer, `done` where HAProxy still has to confirm it."""
    _tick(slate, command, serf_clocks)
    # Looked up among what stands now, not before the batch: the member-join may be part of it.
    member = find(slate.members, command.name, command.address)
    if member is None:
        return _unknown(slate, command, raw) if command.verb == "pause" else NOBODY[command.verb]
    answer = _obey(slate, command, raw, member)
    # A node nobody has seen can be forgotten, but neither pausing nor resuming it does anything yet.
    return answer if member.status != UNKNOWN or command.verb == "forget" else NOBODY[command.verb]


def _obey(slate: Slate, command: Command, raw: Raw, member: Member) -> str:
    heard = member.heard.get(command.clock)
    obeyed = order.obeyed(command, heard)
    if command.verb == "forget" and member.status == ALIVE and not command.force:
        return f"refused: {member.name} is alive"
    member = member._replace(heard=order.hear(member.heard, command, heard))
    slate.members.enter(member)
    if not obeyed:
        return DONE
    slate.causes.append(f"{command.verb} {member.name} by {_who(command, raw)}")
    if command.verb == "pause":
        slate.members.enter(member._replace(pause=_pause(command, raw, member.pause)))
        return DONE
    _resume(slate, member)
    if command.verb == "forget":
        _forget(slate, slate.members[member.name], raw.at // 1000)
        return DONE
    return STILL_PAUSED if member.paused_by_tag else DONE


def _resume(slate: Slate, member: Member) -> None:
    """End the pause of a node, under whatever name it has at its address."""
    for other in slate.members.special():
        if other.pause and (other.name == member.name or (member.address and other.address == member.address)):
            slate.members.enter(other._replace(pause=None))


def _forget(slate: Slate, member: Member, now: int) -> None:
    slate.missed.pop(member.name, None)
    if member.status == UNKNOWN:
        slate.members.strike(member.name)
    else:
        # As one who left: its lines go, asked for, and what was heard of it orders what may still come.
        slate.members.enter(member._replace(status=LEFT, changed=now, quarantine=None))


def _tick(slate: Slate, command: Command, serf_clocks: Mapping[str, int]) -> None:
    if command.ltime is None:
        return
    highest = slate.clocks.get(command.clock, 0)
    if command.ltime <= highest and serf_clocks.get(command.clock, highest + 1) <= highest:
        # A cluster started anew counts from 1 again: what was heard in the old one orders nothing now.
        slate.causes.append(f"the {command.clock} clock of Serf started anew")
        highest = 0
        for member in slate.members.special():
            heard = {clock: last for clock, last in member.heard.items() if clock != command.clock}
            slate.members.enter(member._replace(heard=heard))
    slate.clocks[command.clock] = max(highest, command.ltime)


def _unknown(slate: Slate, command: Command, raw: Raw) -> str:
    # A name that is an address means the host that has it, whatever it will be called.
    address = command.address or canonical_address(command.name) or ""
    if why := _not_remembered(slate, command, address):
        slate.warnings.append(f"pause of {command.name[:80]!r}: {why}")
        return f"refused: {why}"
    pause, heard = _pause(command, raw, None), order.hear({}, command, None)
    slate.await_(Member(command.name, address, "", None, UNKNOWN, pause.since, pause, heard))
    slate.causes.append(f"pause {command.name} (unknown node) by {_who(command, raw)}")
    return NOBODY["pause"]


def _not_remembered(slate: Slate, command: Command, address: str) -> str | None:
    """Why a pause of a node nobody knows cannot be remembered."""
    if address and (count := sum(one.address == address and one.present for one in slate.members.values())):
        return f"{count} nodes have the address {address}: name one of them"
    if not NAME.fullmatch(command.name):
        return f"no node has the address {address}" if address else "not a node name"
    return "too many unknown nodes are paused" if slate.full_of_unknown else None


def _pause(command: Command, raw: Raw, present: Pause | None) -> Pause:
    if present and (present.reason, present.until) == (command.reason, command.until):
        return present  # the same pause again: it began when it began
    return Pause(raw.at // 1000, _who(command, raw), command.reason, command.until)


def _who(command: Command, raw: Raw) -> str:
    if command.clock == TYPED:
        return f"operator on {raw.self_name}"
    way = "user event" if command.clock == "user" else "query"
    return f"operator on {command.by}, by {way}" if command.by else way

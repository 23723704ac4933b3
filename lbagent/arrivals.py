"""How member events change membership: who comes, goes, fails, or has become another."""

from __future__ import annotations

from lbagent import pauses
from lbagent.membership import ALIVE, FAILED, LEFT, UNKNOWN, Member
from lbagent.serf.events import MemberEvent, MemberLine, as_stdin_tells
from lbagent.slate import Slate

_GOES = frozenset({"member-leave", "member-reap"})


def members_changed(slate: Slate, event: MemberEvent, now: int) -> None:
    """Enter every line of the event; `now` in epoch seconds."""
    slate.warnings += event.refused
    slate.happened(event.kind, [line.name for line in event.members if _changed(slate, event, line, now)])


def _changed(slate: Slate, event: MemberEvent, line: MemberLine, now: int) -> bool:
    known = slate.members.get(line.name)
    slate.missed.pop(line.name, None)
    if event.kind in _GOES:
        if known is None or known.status in (LEFT, UNKNOWN):
            return False
        slate.members.enter(known._replace(status=LEFT, changed=now, quarantine=None))
        return True
    status = FAILED if event.kind == "member-failed" else ALIVE
    if known is None or known.status == UNKNOWN:
        return _came(slate, line, status, now)
    changed = known.changed if known.status == status else now
    heard = pauses.place(known.heard, line.address)
    slate.hosts_changed = slate.hosts_changed or heard is not known.heard
    tags = line.tags
    if not event.exact and known.tags and as_stdin_tells(known.tags) == line.tags:
        tags = dict(known.tags)  # the same, known without a doubt since the last sync
    fresh = known._replace(
        address=line.address,
        role=line.role,
        tags=tags,
        status=status,
        changed=changed,
        heard=heard,
        elsewhere=(),
    )
    slate.members.enter(fresh)
    return fresh != known


def _came(slate: Slate, line: MemberLine, status: str, now: int) -> bool:
    member = Member(line.name, line.address, line.role, line.tags, status, now)
    for awaited in slate.awaited(line.name, line.address):
        known = pauses.place(awaited.heard, awaited.address or line.address)
        member = member._replace(pause=member.pause or awaited.pause, heard=pauses.join(member.heard, known))
        slate.hosts_changed = True
    return slate.enrol(pauses.settle(member, now, ""))

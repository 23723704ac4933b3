"""Whether haproxy.cfg is what lbagent last made of it, and what is still to be done."""

from __future__ import annotations

from collections.abc import Iterator

from lbagent.doctor.finding import Finding, Kind, error, ok, warning
from lbagent.haproxy.text import Document
from lbagent.names import counted
from lbagent.plan import Plan
from lbagent.tuples import NamedTuple

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


def judge(document: Document, plan: Plan, known: Known) -> Iterator[Finding]:
    """What differs between text and plan: edited by hand where nothing else explains it."""
    waiting = [*_waiting(known)]
    yield from waiting
    for node, why in known.quarantined:
        yield error(
            Kind.QUARANTINE, node, f"HAProxy refuses its line: {why}", "mend its tags, or roles.yml; it is tried again"
        )
    for held in plan.held:
        yield warning(Kind.HELD, "", f"held back: {held}", "`lbagent apply --force` lets them go")
    confirmed = known.digest in ("", document.digest())
    if plan.after == plan.before:
        if not confirmed and not waiting:
            what = "the managed lines are as they should be, but HAProxy has not confirmed them"
            yield warning(Kind.PENDING, "", what, "`lbagent apply`")
        elif not waiting:
            yield ok(Kind.DRIFT, "", f"the managed lines are what they should be ({counted(_lines(document), 'line')})")
    elif confirmed and not waiting and (count := len(plan.added) + len(plan.removed)):
        yield warning(Kind.PENDING, "", f"{counted(count, 'line')} would change, of roles.yml or the text", _APPLY)
    elif not waiting:
        yield from _by_hand(document, plan)


def _waiting(known: Known) -> Iterator[Finding]:
    if known.spooled:
        what = f"{counted(known.spooled, 'event')} in the spool"
        if known.waiting > LONGEST_WAIT:
            yield error(Kind.PENDING, "", f"{what}, the oldest for {known.waiting} s: nothing applies them", _DAEMON)
        else:
            yield warning(Kind.PENDING, "", what, "the next event takes them in, or `lbagent apply`")
    if known.failure:
        what = f"the last reload failed: {known.failure}"
        yield error(Kind.PENDING, "", what, "mend it, then `lbagent apply --force`")


def _by_hand(document: Document, plan: Plan) -> Iterator[Finding]:
    there = {f"{proxy}: {line.text}": document.where(line.at) for proxy in document.proxies for line in proxy.managed}
    changes = [(there.get(line, ""), f"{line!r} is not what lbagent wrote") for line in plan.removed]
    changes += [("", f"{line!r} is missing") for line in plan.added]
    for where, what in changes[:_SHOWN]:
        yield warning(Kind.DRIFT, where, what, "`lbagent apply` puts it right; without its comment a line is yours")
    if more := len(changes[_SHOWN:]):
        yield warning(Kind.DRIFT, "", f"{counted(more, 'more line')} edited by hand", _APPLY)
    if not changes:
        yield warning(Kind.DRIFT, "", "managed lines were moved or indented by hand", _APPLY)


def _lines(document: Document) -> int:
    return sum(len(proxy.managed) for proxy in document.proxies)

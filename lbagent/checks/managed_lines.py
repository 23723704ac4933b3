"""Check the managed lines: edits by hand, changes that are not applied yet, the safety guard, quarantine, cookies."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from lbagent.checks.finding import Finding, Kind, error, ok, warning
from lbagent.haproxy.config import Document, ManagedLine, OperatorServer
from lbagent.haproxy.reader import split_words
from lbagent.names import format_count
from lbagent.planning.plan import Plan

EVENT_LATE = 30
"""Seconds after which an event in the spool counts as stuck."""

_LINES_LIMIT = 20
"""Edited lines that get a finding each."""

_APPLY = "run `lbagent plan` to see the change, `lbagent apply` to make it"
_RESTORE = "run `lbagent apply` to restore it; a line without its `# lbagent` comment is yours"


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

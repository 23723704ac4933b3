"""The event handlers of a Serf agent: what they are called for, and whether that is all lbagent needs."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from lbagent.doctor.finding import Finding, Kind, enumerated, error, ok, unseen, warning

_MEMBERS = ("member-join", "member-leave", "member-failed", "member-update", "member-reap")
_KINDS = (*_MEMBERS, "user", "query", "*")

NEEDED = (
    *(f"{kind}:" for kind in _MEMBERS),
    *(f"{kind}:{name}" for kind in ("user", "query") for name in ("pause", "resume")),
    "query:lbagent-status",
    "query:lbagent-forget",
)
"""The filters of `serf info` that have to lead to `lbagent handle`."""

Handlers = Sequence[tuple[str, str]]
"""Filters, as `serf info` writes them (`*:`, `user:`, `user:pause`), and their commands."""


def of_specs(specs: Sequence[str]) -> list[tuple[str, str]]:
    """The handlers that `event_handlers` of an agent's settings make; a spec that is none makes none."""
    found = []
    for spec in specs:
        filters, command = _parted(spec)
        if _wrong(filters) is None:
            found += [(one if ":" in one else f"{one}:", command) for one in filters]
    return found


def merged(told: Mapping[str, str], written: Handlers) -> list[tuple[str, str]]:
    """What the agent tells of its handlers, with those it does not tell: of one filter it tells the last only."""
    return [*told.items(), *(pair for pair in written if pair[0] in told and pair not in told.items())]


def specs(written: Sequence[str], where: str) -> Iterator[Finding]:
    """The specs in a file of the agent with which it would not start again."""
    for spec in written:
        filters, _ = _parted(spec)
        if (wrong := _wrong(filters)) is not None:
            yield error(
                Kind.HANDLER_SPEC,
                where,
                f"the agent does not start with the handler {spec!r}: {wrong!r} is no event",
                "write EVENT,EVENT=COMMAND without blanks; a command that holds a `=` needs `*=` in front",
            )


Look = Callable[[str], bool | None]
"""A look at a command; None where it cannot be seen."""


def judge(handlers: Handlers, calls: Look, exists: Look) -> Iterator[Finding]:
    """Whether `lbagent handle` is called for all it needs, once; `calls` and `exists` look at a command."""
    seen = {command: calls(command) for _, command in handlers}
    ours = list(dict.fromkeys((name, command) for name, command in handlers if seen[command]))
    if hidden := sorted(command for command, found in seen.items() if found is None):
        what = f"whether {enumerated([repr(one) for one in hidden])} calls lbagent cannot be looked at by this user"
        yield unseen(Kind.HANDLERS, "serf info", what, "run this as root")
        return
    if not ours:
        what = "no handler of the agent calls lbagent: nothing that happens is heard of"
        yield error(Kind.HANDLERS, "serf info", what, 'write `"event_handlers": ["lbagent handle"]`')
        return
    covering = {need: sum(_covers(name, need) for name, _ in ours) for need in NEEDED}
    found = [*_gaps(covering), *_programs({command for _, command in ours}, exists)]
    yield from found
    if not found:
        yield ok(Kind.HANDLERS, "serf info", f"{ours[0][1]!r} is called for all that lbagent needs")


def program(command: str) -> str:
    """The program that a shell runs first for `command`; nothing where that cannot be said."""
    words = [*_words(command)]
    while words and "=" in words[0].split("/")[0]:
        words.pop(0)
    return words[0] if words else ""


def names_lbagent(command: str) -> bool:
    """Whether the command itself is lbagent's."""
    words = _words(command)
    return "handle" in words and any(word.rpartition("/")[2] == "lbagent" for word in words)


def _gaps(covering: Mapping[str, int]) -> Iterator[Finding]:
    missing = [need.rstrip(":") for need, times in covering.items() if not times]
    twice = [need.rstrip(":") for need, times in covering.items() if times > 1]
    if missing:
        what = f"lbagent is not called for {', '.join(missing)}"
        yield error(Kind.HANDLERS, "serf info", what, "call it for all, without a filter: `lbagent handle`")
    if twice:
        what = f"lbagent is called more than once for {enumerated(twice)}"
        yield warning(Kind.HANDLERS, "serf info", what, "one handler without a filter is enough")


def _programs(commands: Collection[str], exists: Look) -> Iterator[Finding]:
    for command in sorted(commands):
        found = exists(command)
        if found is None:
            what = f"whether {program(command)!r} is a program in the agent's PATH cannot be looked at by this user"
            yield unseen(Kind.HANDLERS, "serf info", what, "run this as root")
        elif not found:
            what = f"the handler {command!r} cannot be run: {program(command)!r} is no program in the agent's PATH"
            yield error(Kind.HANDLERS, "serf info", what, "give its whole path")


def _covers(name: str, need: str) -> bool:
    return name in ("*:", need) or (name in ("user:", "query:") and need.startswith(name))


def _parted(spec: str) -> tuple[list[str], str]:
    # As Serf does: at the first `=`, whatever stands in front of it; nothing there means all.
    head, separator, command = spec.partition("=")
    return ((head or "*").split(","), command) if separator else (["*"], spec)


def _wrong(filters: Sequence[str]) -> str | None:
    """The first filter that is none; None where all are."""
    for one in filters:
        kind, colon, _ = one.partition(":")
        if kind not in _KINDS or (colon and kind not in ("user", "query")):
            return one
    return None


def _words(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError:
        return command.split()

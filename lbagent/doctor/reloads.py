"""What the `global` section says of reloads: the stats socket, listeners handed over, the end of old workers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lbagent.doctor.directives import Directive, Section, milliseconds
from lbagent.doctor.finding import Finding, Kind, enumerated, ok, warning
from lbagent.doctor.proxies import keeps_alive

_SOCKET = "`stats socket /run/haproxy/admin.sock mode 660 level admin expose-fd listeners`"
_KEEP_ALIVE = ("http-keep-alive", "http-request", "client")
"""The timeouts that bound an idle client, in the order in which HAProxy looks for them."""


def judge(sections: Sequence[Section], main: str, *, master: bool) -> Iterator[Finding]:
    """What there is to say; `main` is the file to name where nothing stands, `master` whether HAProxy runs with one."""
    own = [section for section in sections if section.kind == "global"]
    lines = [line for section in own for line in section.own]
    where = own[0].where if own else main
    sockets = [line for line in lines if line.begins("stats", "socket")]
    yield from _sockets(sockets, where)
    if sockets:
        yield from _hand_over(sockets, master=master)
    yield from _hard_stop([line for line in lines if line.begins("hard-stop-after")], sections, where)


def _sockets(sockets: Sequence[Directive], where: str) -> Iterator[Finding]:
    if not sockets:
        what = "no stats socket: a reload is confirmed from the process table alone, and nothing can be asked"
        yield warning(Kind.STATS_SOCKET, where, what, f"write {_SOCKET}")
        return
    admin = next((line for line in sockets if line.after("level") == "admin"), None)
    if admin is None:
        what = (
            f"the stats socket has level {sockets[0].after('level') or 'operator'}: servers cannot be changed with it"
        )
        yield warning(Kind.STATS_SOCKET, sockets[0].where, what, "write `level admin`")
    else:
        yield ok(Kind.STATS_SOCKET, admin.where, "a stats socket with level admin")


def _hand_over(sockets: Sequence[Directive], *, master: bool) -> Iterator[Finding]:
    if any("listeners" in line.words for line in sockets):
        yield ok(Kind.HAND_OVER, sockets[0].where, "listeners are handed over at a reload")
    elif master:
        yield ok(Kind.HAND_OVER, sockets[0].where, "the master hands listeners over at a reload")
    else:
        what = "without a master, a reload loses the connections that wait to be accepted"
        yield warning(Kind.HAND_OVER, sockets[0].where, what, "write `expose-fd listeners`, or run HAProxy with -W")


def _hard_stop(lines: Sequence[Directive], sections: Sequence[Section], where: str) -> Iterator[Finding]:
    if not lines or len(lines[-1].words) < 2:  # noqa: PLR2004  # hard-stop-after TIME
        what = "no `hard-stop-after`: at every reload an old worker stays until its last connection ends"
        yield warning(Kind.HARD_STOP, where, what, "write `hard-stop-after` with a time longer than any request takes")
        return
    line, limit = lines[-1], milliseconds(lines[-1].words[1])
    said = " ".join(line.words[:2])
    found = [*_cut(sections, limit, said)] if limit is not None else []
    yield from found
    if not found:
        yield ok(Kind.HARD_STOP, line.where, f"old workers end by `{said}`")


def _cut(sections: Sequence[Section], limit: float, said: str) -> Iterator[Finding]:
    """The proxies of which `hard-stop-after` cuts off what their own timeouts allow."""
    clients = [one for one in sections if keeps_alive(one) and one.option("idle-close-on-response")]
    servers = [one for one in sections if one.kind in ("backend", "listen") and one.http]
    for proxies, names, what, fix in (
        (clients, _KEEP_ALIVE, "idle clients of {} ({}) are cut off by `{}`", "make `timeout http-keep-alive` shorter"),
        (
            servers,
            ("server",),
            "an answer that {} may wait for ({}) is cut off by `{}`",
            "make `hard-stop-after` longer",
        ),
    ):
        longer = [(one, time) for one in proxies if (time := _longer(one, names, limit))]
        if longer:
            proxy, time = longer[0]
            told = what.format(enumerated([str(one) for one, _ in longer]), time, said)
            yield warning(Kind.HARD_STOP, proxy.where, f"after a reload, {told}", fix)


def _longer(proxy: Section, names: Sequence[str], limit: float) -> str:
    """The timeout that lets something take as long as `limit`, or longer; nothing where none does."""
    found = proxy.timeout(*names)
    return found[0] if found is not None and found[1] is not None and found[1] >= limit else ""

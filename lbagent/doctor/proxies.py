"""What the sections of haproxy.cfg say that costs requests at a reload, or rules the runtime API out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from lbagent.doctor.directives import CLIENTS, SERVERS, Section
from lbagent.doctor.finding import Finding, Kind, enumerated, ok, warning

_HASHES = ("source", "uri", "url_param", "hdr", "rdp-cookie", "hash")


def judge(sections: Sequence[Section], marked: frozenset[str]) -> Iterator[Finding]:
    """What there is to say; `marked` are the proxies (`listen lb-iis`) that hold markers."""
    proxies = [section for section in sections if section.kind in (*CLIENTS, *SERVERS)]
    for kind, well, look in (
        (Kind.IDLE_CLOSE, "a reload lets idle clients send their next request", _idle_close),
        (Kind.TIMEOUTS, "every proxy has its timeouts", _timeouts),
        (Kind.SERVER_STATE, "no server state is loaded from a file", _server_state),
    ):
        found = [*look(proxies)]
        yield from found
        if not found:
            yield ok(kind, "", well)
    yield from _runtime_api([proxy for proxy in proxies if str(proxy) in marked])


def keeps_alive(proxy: Section) -> bool:
    """Whether its clients may hold a connection idle between two requests."""
    return proxy.binds and proxy.http and not proxy.option("httpclose")


def _idle_close(proxies: Sequence[Section]) -> Iterator[Finding]:
    lacking = [one for one in proxies if keeps_alive(one) and not one.option("idle-close-on-response")]
    yield from _grouped(
        Kind.IDLE_CLOSE,
        lacking,
        "at a reload, {} closes idle connections on which a client may just be sending a request".format,
        "write `option idle-close-on-response` there, or in its defaults",
    )


def _timeouts(proxies: Sequence[Section]) -> Iterator[Finding]:
    for name, kinds, why in (
        ("client", CLIENTS, "a client that is gone keeps its connection, and an old worker, for ever"),
        ("connect", SERVERS, "a server that does not answer holds a request up for ever"),
        ("server", SERVERS, "an answer that never comes keeps its connection, and an old worker, for ever"),
    ):
        lacking = [one for one in proxies if one.kind in kinds and not _is_set(one, name)]
        yield from _grouped(
            Kind.TIMEOUTS,
            lacking,
            lambda names, name=name, why=why: f"no `timeout {name}` in {names}: {why}",  # type: ignore[misc]
            f"write `timeout {name}` there, or in its defaults",
        )


def _is_set(proxy: Section, name: str) -> bool:
    found = proxy.timeout(name)
    return found is not None and found[1] != 0


def _server_state(proxies: Sequence[Section]) -> Iterator[Finding]:
    loading = []
    for proxy in proxies:
        line = proxy.last("load-server-state-from-file")
        if line is not None and line.words[1:2] != ("none",):
            loading.append(line.where)
    for where in dict.fromkeys(loading):
        what = "a state file brings back ports of servers that have changed since, and HAProxy believes it"
        yield warning(
            Kind.SERVER_STATE, where, what, "take `load-server-state-from-file` out; a pause stands in haproxy.cfg"
        )


def _runtime_api(proxies: Sequence[Section]) -> Iterator[Finding]:
    for proxy in proxies:
        if why := _static(proxy):
            yield ok(Kind.RUNTIME_API, proxy.where, f"{proxy} can only be changed by a reload: {why}")


def _static(proxy: Section) -> str:
    """Why servers cannot be added through the runtime API; nothing where they can."""
    balance, hashing = proxy.last("balance"), proxy.last("hash-type")
    words = balance.words if balance is not None else ("balance", "roundrobin")
    algorithm = words[1].partition("(")[0] if len(words) > 1 else ""
    consistent = hashing is not None and "consistent" in hashing.words
    if algorithm == "static-rr":
        return "`balance static-rr` (`roundrobin` could be changed at run time)"
    if algorithm in _HASHES and not consistent:
        return f"`{' '.join(words)}` (with `hash-type consistent` it could be changed at run time)"
    cookie = proxy.last("cookie")
    if cookie is not None and "dynamic" not in cookie.words:
        return f"`cookie {cookie.words[1] if len(cookie.words) > 1 else ''}` (with `dynamic` it could be at run time)"
    return ""


def _grouped(kind: Kind, proxies: Sequence[Section], what: Callable[[str], str], fix: str) -> Iterator[Finding]:
    """One warning for all that take what they lack from the same defaults, at the first of them."""
    groups: dict[int, list[Section]] = {}
    for proxy in proxies:
        groups.setdefault(id(proxy.base), []).append(proxy)
    for group in groups.values():
        yield warning(kind, group[0].where, what(enumerated([str(one) for one in group])), fix)

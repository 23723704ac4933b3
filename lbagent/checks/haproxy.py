"""haproxy.cfg as directives: what each section says for itself, and what it takes from its `defaults`."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from lbagent.checks.candidate import UNREADABLE
from lbagent.checks.finding import AS_SERF, Finding, Kind, enumerated, error, ok, unseen, warning
from lbagent.errors import TryAgain
from lbagent.haproxy import process, reader
from lbagent.haproxy.config import Document
from lbagent.haproxy.process import RunningHaproxy
from lbagent.haproxy.reload import build_successor_command
from lbagent.haproxy.runtime import socket
from lbagent.haproxy.validation import check_files as validation_checked
from lbagent.names import format_count
from lbagent.roles.model import HaproxySettings
from lbagent.system import processes, subprocess

CLIENTS = ("frontend", "listen")
SERVERS = ("backend", "listen")

_TIME = re.compile(r"([0-9]{1,12})(us|ms|s|m|h|d)?")
_MILLISECONDS = {"us": 0.001, "ms": 1.0, "": 1.0, "s": 1e3, "m": 60e3, "h": 3600e3, "d": 86400e3}


class Directive(NamedTuple):
    """One line, in words."""

    where: str
    words: tuple[str, ...]

    def begins(self, *words: str) -> bool:
        """Whether these are its first words."""
        return self.words[: len(words)] == words

    def after(self, word: str) -> str:
        """The word that follows `word`; nothing where there is none."""
        at = self.words.index(word) + 1 if word in self.words else len(self.words)
        return self.words[at] if at < len(self.words) else ""


class Section:
    """A section, and the `defaults` it takes what it does not say itself from."""

    def __init__(self, where: str, kind: str, name: str, base: Section | None) -> None:
        """Nothing is said yet."""
        self.where, self.kind, self.name, self.base = where, kind, name, base
        self.own: list[Directive] = []

    def __str__(self) -> str:
        return f"{self.kind} {self.name}".strip()

    def last(self, *words: str) -> Directive | None:
        """The directive that begins with these words and holds: the last one, its own before that of its defaults."""
        for line in reversed(self.own):
            if line.begins(*words):
                return line
        return self.base.last(*words) if self.base else None

    def option(self, name: str) -> bool:
        """Whether `option NAME` holds."""
        for line in reversed(self.own):
            if line.begins("option", name):
                return True
            if line.begins("no", "option", name):
                return False
        return self.base.option(name) if self.base else False

    def timeout(self, *names: str) -> tuple[str, float | None] | None:
        """The first of these timeouts that is set: its words, and its milliseconds (None where they are a variable)."""
        for name in names:
            line = self.last("timeout", name)
            if line is not None and len(line.words) > 2:  # noqa: PLR2004  # timeout NAME TIME
                return " ".join(line.words[:3]), milliseconds(line.words[2])
        return None

    @property
    def http(self) -> bool:
        """Whether it speaks HTTP."""
        line = self.last("mode")
        return line is not None and line.words[1:2] == ("http",)

    @property
    def binds(self) -> bool:
        """Whether clients come to it."""
        return self.kind in CLIENTS and any(line.begins("bind") for line in self.own)


def milliseconds(text: str) -> float | None:
    """A time as HAProxy writes it; None where it is none, or a variable."""
    found = _TIME.fullmatch(text)
    return int(found[1]) * _MILLISECONDS[found[2] or ""] if found else None


def sections(document: Document) -> list[Section]:
    """Every section of haproxy.cfg that HAProxy reads, or may read, in order; `server` lines are passed over."""
    found: dict[int, Section] = {}
    defaults: dict[str, Section] = {}
    for directive, section in document.read_directives():
        at, where = directive.at, document.locate(directive.at)
        if section is not None and section.at == at:
            found[at] = one = Section(where, section.kind, section.name, _base(section, defaults))
            if section.kind == "defaults":
                defaults[section.name] = defaults[""] = one
        elif (own := max(directive.place.sections)) in found:
            found[own].own.append(Directive(where, tuple(directive.words)))
    return [*found.values()]


def _base(section: reader.Section, defaults: Mapping[str, Section]) -> Section | None:
    if section.base or section.kind in (*CLIENTS, *SERVERS):
        return defaults.get(section.base)
    return None


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


_SOCKET = "`stats socket /run/haproxy/admin.sock mode 660 level admin expose-fd listeners`"
_KEEP_ALIVE = ("http-keep-alive", "http-request", "client")
"""The timeouts that bound an idle client, in the order in which HAProxy looks for them."""


def reloads_judge(sections: Sequence[Section], main: str, *, master: bool) -> Iterator[Finding]:
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


TESTED = ("2.6", "2.8", "3.0", "3.2")
"""The versions of HAProxy that the tests run with, oldest first."""

_OLDEST, _NEWEST = (tuple(map(int, TESTED[at].split("."))) for at in (0, -1))
_TOLD = 10
"""Warnings, or alerts, told one by one."""

_LINE = re.compile(r"\[(ALERT|WARNING)\] +(?:\([0-9]+\)|[0-9/ ]+) ?: (?:config ?: )?(.*)")
_PLACE = re.compile(r"parsing \[([^\]]+:[0-9]+)\] ?: ?(.*)")
_SUMMARY = re.compile(r"Error\(s\) found in configuration file|Fatal errors found in configuration")
_VERSION = re.compile(r"version ([0-9]+)\.([0-9]+)[^ ]*")


class Checked(NamedTuple):
    """How `haproxy -c` ended."""

    good: bool
    words: str
    seconds: float
    limit: float
    """`haproxy.timeout` of roles.yml."""


def version(words: str) -> Finding:
    """The version that `haproxy -v` tells, beside those lbagent is tested with."""
    found = _VERSION.search(words)
    if found is None:
        return warning(Kind.HAPROXY, "haproxy -v", f"tells no version: {first_words(words)!r}", "install HAProxy")
    told = found[0].removeprefix("version ")
    number = (int(found[1]), int(found[2]))
    if number < _OLDEST:
        return warning(
            Kind.HAPROXY, "", f"HAProxy {told} is older than all that were tested", f"use {TESTED[0]} or newer"
        )
    if number > _NEWEST:
        what = f"HAProxy {told} is newer than all that were tested"
        return warning(Kind.HAPROXY, "", what, f"use {TESTED[-1]}, or try changes on a test system first")
    near = "" if f"{found[1]}.{found[2]}" in TESTED else f" (tested are {', '.join(TESTED[:-1])} and {TESTED[-1]})"
    return ok(Kind.HAPROXY, "", f"HAProxy {told}{near}")


def checked(result: Checked, where: str) -> Iterator[Finding]:
    """What `haproxy -c` has to say of haproxy.cfg, each complaint a finding."""
    told = [(found[1], found[2]) for found in map(_LINE.match, result.words.split("\n")) if found]
    alerts = [words for severity, words in told if severity == "ALERT"]
    reasons = [words for words in alerts if not _SUMMARY.match(words)]
    warnings = [words for severity, words in told if severity == "WARNING"]
    if not result.good and not reasons:
        # HAProxy 3.1 and later give some reasons in a warning.
        reasons = [words for words in warnings if _PLACE.match(words)]
        warnings = [words for words in warnings if words not in reasons]
    alerts = reasons or alerts
    if not result.good:
        for words in alerts[:_TOLD] or [first_words(result.words) or "refused without a word"]:
            place, what = _placed(words, where)
            yield error(Kind.HAPROXY_CFG, place, what, "until it is mended no node gets in or out")
    for words in warnings[:_TOLD]:
        place, what = _placed(words, where)
        yield warning(Kind.HAPROXY_CFG, place, what, "HAProxy's own warning")
    if more := _more(alerts) + _more(warnings):
        yield warning(Kind.HAPROXY_CFG, where, f"{format_count(more, 'more complaint')} of HAProxy", "see `haproxy -c`")
    if result.good and not warnings:
        yield ok(Kind.HAPROXY_CFG, where, "accepted by `haproxy -c`, without a warning")
    yield _in_time(result)


def _in_time(result: Checked) -> Finding:
    if result.seconds > result.limit / 2:
        what = f"`haproxy -c` took {result.seconds:.1f} s, `haproxy.timeout` in roles.yml is {result.limit:g} s"
        return warning(Kind.TIME_LIMIT, "", what, "make it four times as long as the check takes")
    return ok(Kind.TIME_LIMIT, "", f"`haproxy -c` keeps well within {result.limit:g} s")


def _placed(words: str, where: str) -> tuple[str, str]:
    found = _PLACE.match(words)
    return (found[1], found[2]) if found else (where, words)


def _more(told: Sequence[str]) -> int:
    return len(told[_TOLD:])


def first_words(words: str) -> str:
    """The first line of them."""
    return words.strip().split("\n")[0]


_VERSION_LIMIT = 5.0
_ANSWER_LIMIT = 2.0

Lines = Sequence[Sequence[str]]
"""The words of each line of `global`."""


def haproxy_seen_version() -> Finding:
    """The version of the program."""
    try:
        return version(subprocess.run_program(["haproxy", "-v"], _VERSION_LIMIT).output)
    except OSError as missing:
        what = f"haproxy cannot be run ({missing.strerror}): no change of haproxy.cfg can be validated"
        return error(Kind.HAPROXY, "", what, "install it, or have it in PATH")


def verdict(paths: Sequence[str], settings: HaproxySettings, running: RunningHaproxy | None) -> Iterator[Finding]:
    """What `haproxy -c` says of the files. Raises TryAgain where it cannot be run."""
    started = time.monotonic()
    result = validation_checked(paths, settings.timeout, running)
    took = time.monotonic() - started
    if result.status is None:
        what = f"`haproxy -c` did not end within `haproxy.timeout`, {settings.timeout:g} s"
        yield error(Kind.TIME_LIMIT, "", what, "make `haproxy.timeout` in roles.yml longer")
    elif result.was_killed:
        what = f"`haproxy -c` {result.ending}: whether HAProxy accepts it is not known"
        yield error(Kind.HAPROXY_CFG, paths[0], what, "give this machine more memory, or see why")
    elif os.geteuid() and not result.succeeded and UNREADABLE.search(result.output):
        what = f"`haproxy -c` may not read all that it refers to: {first_words(result.output)}"
        yield unseen(Kind.HAPROXY_CFG, paths[0], what, AS_SERF)
    else:
        yield from checked(Checked(result.succeeded, result.output, took, settings.timeout), paths[0])


def runs(settings: HaproxySettings, lines: Lines) -> tuple[RunningHaproxy | None, Finding]:
    """The HAProxy that runs this haproxy.cfg, and what is to be said of it."""
    try:
        running = process.find_haproxy(settings.config, lines)
    except TryAgain as several:
        return None, error(Kind.PROCESS, "", *_parted(str(several)))
    if running is None:
        return None, _none()
    main, worker = running.main, running.worker
    try:
        _reloadable(running, settings, lines)
    except TryAgain as impossible:
        return running, error(Kind.PROCESS, f"pid {main.pid}", *_parted(str(impossible)))
    except OSError as missing:
        what = f"its reload command cannot be run: {missing.filename}: {missing.strerror}"
        return running, error(Kind.PROCESS, f"pid {main.pid}", what, "mend `haproxy.reload` in roles.yml")
    told = f"master {main.pid}, worker {worker.pid}" if running.is_master else f"pid {main.pid}, without a master"
    return running, ok(Kind.PROCESS, "", f"HAProxy runs it: {told}")


def _reloadable(running: RunningHaproxy, settings: HaproxySettings, lines: Lines) -> None:
    """Raise TryAgain or OSError where a reload cannot even be begun."""
    if settings.reload is not None:
        subprocess.find_program(settings.reload[0])
    elif not running.is_master and not (running.main.unit and os.path.isdir("/run/systemd/system")):
        build_successor_command(running, lines)


def answers(lines: Lines, running: RunningHaproxy) -> Iterator[Finding]:
    """Whether a stats socket of the running HAProxy answers, and to an admin."""
    for address in socket.list_stats_sockets(lines):
        try:
            level = socket.ask(address, "show cli level", _ANSWER_LIMIT).strip()
            pid = socket.fetch_worker_pid(address, _ANSWER_LIMIT)
        except PermissionError:
            what = "cannot be looked at: this user may not connect to it"
            yield unseen(Kind.STATS_ANSWER, address, what, AS_SERF)
        except OSError as refused:
            what = f"does not answer, though HAProxy runs (pid {running.main.pid}): {refused.strerror or refused}"
            yield error(Kind.STATS_ANSWER, address, what, "reload HAProxy, or mend the path of its `stats socket`")
        else:
            yield _answered(address, level, pid, running)


def _answered(address: str, level: str, pid: int | None, running: RunningHaproxy) -> Finding:
    if pid not in (None, running.worker.pid):
        what = f"pid {pid} answers there, not the worker {running.worker.pid} that runs this haproxy.cfg"
        return error(Kind.STATS_ANSWER, address, what, "give each HAProxy a stats socket of its own")
    if level != "admin":
        what = f"the running HAProxy answers with level {level!r} there"
        return warning(Kind.STATS_ANSWER, address, what, "write `level admin`, and reload HAProxy")
    return ok(Kind.STATS_ANSWER, address, f"worker {running.worker.pid} answers an admin there")


def _none() -> Finding:
    if processes.can_read_processes():
        what = "no HAProxy runs this haproxy.cfg: lines are written, and nobody serves them"
        return error(Kind.PROCESS, "", what, "start it")
    what = "whether HAProxy runs cannot be looked at: processes of others are hidden"
    return unseen(Kind.PROCESS, "HAProxy's process", what, AS_SERF)


def _parted(words: str) -> tuple[str, str]:
    what, _, fix = words.rpartition(": ")
    return what, fix

"""Check HAProxy: the program, its verdict on haproxy.cfg, the process, the stats sockets, and its settings.

The settings are those for reloads and the runtime API: sockets, timeouts, hard-stop-after, balance, cookie. Defaults
are inherited as in HAProxy's configuration manual, section 4: a proxy takes what it does not set itself from the
`defaults` named with `from`, else from the last `defaults` above it.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from lbagent.checks.finding import Finding, Kind, error, join_names, ok, unreadable, warning
from lbagent.errors import TryAgain
from lbagent.haproxy import config_files, process, reader, validation
from lbagent.haproxy.config import Document
from lbagent.haproxy.config_files import ConfigSnapshot
from lbagent.haproxy.process import RunningHaproxy
from lbagent.haproxy.reload import build_successor_command
from lbagent.haproxy.runtime import session
from lbagent.haproxy.runtime.session import GlobalLines
from lbagent.haproxy.validation import UNREADABLE_FILE
from lbagent.names import format_count
from lbagent.roles.model import HaproxySettings
from lbagent.system import processes, subprocess

_CLIENT_SECTIONS = ("frontend", "listen")
_SERVER_SECTIONS = ("backend", "listen")

_TIME = re.compile(r"([0-9]{1,12})(us|ms|s|m|h|d)?")
_MILLISECONDS = {"us": 0.001, "ms": 1.0, "": 1.0, "s": 1e3, "m": 60e3, "h": 3600e3, "d": 86400e3}

_KEEP_ALIVE_TIMEOUTS = ("http-keep-alive", "http-request", "client")
"""The timeouts that limit an idle client; HAProxy uses the first that is set."""

_STATIC_BALANCE = ("source", "uri", "url_param", "hdr", "rdp-cookie", "hash")
"""Values of `balance` for which servers can only be added at run time with `hash-type consistent`."""

_SOCKET = "`stats socket /run/haproxy/admin.sock mode 660 level admin expose-fd listeners`"

TESTED = ("2.6", "2.8", "3.0", "3.2")
"""The versions of HAProxy that lbagent is tested with, oldest first."""

_OLDEST, _NEWEST = (tuple(map(int, TESTED[at].split("."))) for at in (0, -1))

_MESSAGES_LIMIT = 10
"""Warnings, and alerts, of HAProxy that get a finding each."""

_MESSAGE = re.compile(r"\[(ALERT|WARNING)\] +(?:\([0-9]+\)|[0-9/ ]+) ?: (?:config ?: )?(.*)")
_PLACE = re.compile(r"parsing \[([^\]]+:[0-9]+)\] ?: ?(.*)")
_SUMMARY = re.compile(r"Error\(s\) found in configuration file|Fatal errors found in configuration")
_VERSION = re.compile(r"version ([0-9]+)\.([0-9]+)[^ ]*")

_VERSION_TIMEOUT = 5.0
_SOCKET_TIMEOUT = 2.0

_FIX_CONFIG = "fix haproxy.cfg; until then no server line can be added or removed"


class ValidationResult(NamedTuple):
    """How `haproxy -c` ended."""

    accepted: bool
    output: str
    seconds: float
    limit: float
    """`haproxy.timeout` of roles.yml, in seconds."""


def check_program() -> Finding:
    """Check whether the haproxy program can be run, and its version."""
    try:
        return check_version(subprocess.run_program(["haproxy", "-v"], _VERSION_TIMEOUT).output)
    except OSError as missing:
        text = f"the haproxy program cannot be run ({missing.strerror}); changes of haproxy.cfg cannot be validated"
        return error(Kind.HAPROXY, "", text, "install HAProxy, or add it to PATH")


def check_version(output: str) -> Finding:
    """Compare the version in the output of `haproxy -v` with the tested ones."""
    found = _VERSION.search(output)
    if found is None:
        text = f"the output is not a version: {_first_line(output)!r}"
        return warning(Kind.HAPROXY, "haproxy -v", text, "install HAProxy")
    version = found[0].removeprefix("version ")
    number = (int(found[1]), int(found[2]))
    if number < _OLDEST:
        text = f"HAProxy {version} is older than the oldest supported version, {TESTED[0]}; each change needs a reload"
        return warning(Kind.HAPROXY, "", text, f"use {', '.join(TESTED[:-1])} or {TESTED[-1]}")
    if number > _NEWEST:
        text = f"HAProxy {version} is newer than the newest tested version, {TESTED[-1]}"
        return warning(Kind.HAPROXY, "", text, f"use {TESTED[-1]}, or try changes on a test system first")
    tested = f"{found[1]}.{found[2]}" in TESTED
    note = "" if tested else f" (not tested; tested are {', '.join(TESTED[:-1])} and {TESTED[-1]})"
    return ok(Kind.HAPROXY, "", f"HAProxy {version}{note}")


def check_config(paths: Sequence[str], settings: HaproxySettings, running: RunningHaproxy | None) -> Iterator[Finding]:
    """Check the files with `haproxy -c`. Raises TryAgain where it cannot be run."""
    started = time.monotonic()
    result = validation.check_files(paths, settings.timeout, running)
    seconds = time.monotonic() - started
    if result.status is None:
        text = f"`haproxy -c` did not end within `haproxy.timeout` ({settings.timeout:g} s)"
        yield error(Kind.TIME_LIMIT, "", text, "set a longer `haproxy.timeout` in roles.yml")
    elif result.was_killed:
        text = f"`haproxy -c` {result.ending}; its verdict is unknown"
        yield error(
            Kind.HAPROXY_CFG, paths[0], text, "check the memory of this machine, then run `lbagent check` again"
        )
    elif os.geteuid() and not result.succeeded and UNREADABLE_FILE.search(result.output):
        text = f"`haproxy -c` may not read a file that it names: {_first_line(result.output)}"
        yield unreadable(Kind.HAPROXY_CFG, paths[0], text)
    else:
        yield from check_verdict(ValidationResult(result.succeeded, result.output, seconds, settings.timeout), paths[0])


def check_verdict(result: ValidationResult, main: str) -> Iterator[Finding]:
    """Yield a finding for each message of `haproxy -c`, and one for its run time. `main` is the first file."""
    messages = [(found[1], found[2]) for found in map(_MESSAGE.match, result.output.split("\n")) if found]
    alerts = [text for severity, text in messages if severity == "ALERT"]
    reasons = [text for text in alerts if not _SUMMARY.match(text)]
    warnings = [text for severity, text in messages if severity == "WARNING"]
    if not result.accepted and not reasons:
        # HAProxy 3.1 and later give some reasons in a warning.
        reasons = [text for text in warnings if _PLACE.match(text)]
        warnings = [text for text in warnings if text not in reasons]
    alerts = reasons or alerts
    if not result.accepted:
        for text in alerts[:_MESSAGES_LIMIT] or [_first_line(result.output) or "HAProxy refuses it without a reason"]:
            yield error(Kind.HAPROXY_CFG, *_split_place(text, main), _FIX_CONFIG)
    for text in warnings[:_MESSAGES_LIMIT]:
        yield warning(Kind.HAPROXY_CFG, *_split_place(text, main), "this is a warning of HAProxy; see its manual")
    if more := len(alerts[_MESSAGES_LIMIT:]) + len(warnings[_MESSAGES_LIMIT:]):
        yield warning(Kind.HAPROXY_CFG, main, f"{format_count(more, 'more message')} of HAProxy", "run `haproxy -c`")
    if result.accepted and not warnings:
        yield ok(Kind.HAPROXY_CFG, main, "`haproxy -c` accepts it without a warning")
    if result.seconds > result.limit / 2:
        text = f"`haproxy -c` took {result.seconds:.1f} s; `haproxy.timeout` in roles.yml is {result.limit:g} s"
        yield warning(Kind.TIME_LIMIT, "", text, "set `haproxy.timeout` to four times that duration")
    else:
        yield ok(Kind.TIME_LIMIT, "", f"`haproxy -c` takes less than half of {result.limit:g} s")


def _split_place(text: str, main: str) -> tuple[str, str]:
    found = _PLACE.match(text)
    return (found[1], found[2]) if found else (main, text)


def _first_line(output: str) -> str:
    return output.strip().split("\n")[0]


class VerdictUnknown(TryAgain):
    """HAProxy's verdict is unknown: this user may not read a file that the text names, or paths in it are relative."""


class Validator:
    """Validates the live haproxy.cfg, and copies of texts that could replace it, with `haproxy -c`.

    For `plan`, `check`, and `watch` after an edit of roles.yml: no run is disturbed.
    """

    def __init__(
        self,
        snapshot: ConfigSnapshot,
        settings: HaproxySettings,
        running: RunningHaproxy | None,
        *,
        accepted: bool = False,
    ) -> None:
        """`running` provides environment and working directory; `accepted`: HAProxy has accepted the live files."""
        self._snapshot, self._settings, self._running = snapshot, settings, running
        self._live_refusal: str | None = None
        self._live_checked = accepted

    def find_live_refusal(self) -> str | None:
        """Return why HAProxy refuses the live files; None where it accepts them. Raises VerdictUnknown, TryAgain."""
        if not self._live_checked:
            self._live_refusal = self._check([target.path for target in self._snapshot.targets])
            self._live_checked = True
        return self._live_refusal

    def find_refusal(self, texts: Sequence[str]) -> str | None:
        """Return why HAProxy refuses these texts; None where it accepts them. Raises VerdictUnknown, TryAgain."""
        reason = self._check_copies(texts)
        if reason is None or self.find_live_refusal() is not None:
            return reason
        if self._check_copies(self._snapshot.texts) is not None:
            raise VerdictUnknown("haproxy.cfg refers to files relative to its own directory")
        return reason

    def _check_copies(self, texts: Sequence[str]) -> str | None:
        with tempfile.TemporaryDirectory(prefix="lbagent-") as folder:
            paths = []
            for number, (target, text) in enumerate(zip(self._snapshot.targets, texts, strict=True)):
                path = os.path.join(folder, str(number), os.path.basename(target.path))
                os.mkdir(os.path.dirname(path))
                with open(path, "wb") as file:
                    file.write(config_files.encode(text))
                paths.append(path)
            return self._check(paths)

    def _check(self, paths: Sequence[str]) -> str | None:
        result = validation.check_files(paths, self._settings.timeout, self._running)
        if result.status is None:
            raise TryAgain(result.output)
        if result.succeeded:
            return None
        reason = validation.find_reason(result.output)
        if os.geteuid() and UNREADABLE_FILE.search(result.output):
            raise VerdictUnknown(f"this user may not read all files that haproxy.cfg refers to ({reason})")
        for path, name in zip(paths, self._snapshot.names, strict=True):
            reason = reason.replace(path, name)
        return reason


def check_process(settings: HaproxySettings, lines: GlobalLines) -> tuple[RunningHaproxy | None, Finding]:
    """Return the HAProxy that runs this haproxy.cfg, and whether it runs and can be reloaded."""
    try:
        running = process.find_haproxy(settings.config, lines)
    except TryAgain as several:
        return None, error(Kind.PROCESS, "", *_split_fix(several))
    if running is None:
        if not processes.can_read_processes():
            return None, unreadable(Kind.PROCESS, "HAProxy's process", "processes of other users are hidden")
        return None, _explain_no_process(settings)
    pid = running.main.pid
    try:
        _prepare_reload(running, settings, lines)
    except TryAgain as impossible:
        return running, error(Kind.PROCESS, f"HAProxy pid {pid}", *_split_fix(impossible))
    except OSError as missing:
        text = f"the reload command cannot be run: {missing.filename}: {missing.strerror}"
        return running, error(Kind.PROCESS, f"HAProxy pid {pid}", text, "fix `haproxy.reload` in roles.yml")
    return running, _check_files(running, settings)


def _check_files(running: RunningHaproxy, settings: HaproxySettings) -> Finding:
    """Check whether HAProxy was started with exactly the files of `haproxy.config`."""
    pid = running.main.pid
    with contextlib.suppress(OSError):  # reported where haproxy.cfg is read
        names = [path for given in settings.config for path in process.list_files(given)]
        if other := process.explain_other_files(running, names):
            text = f"was started with {other}, haproxy.config is {' '.join(names)}; each join takes a reload"
            fix = "set `haproxy.config` in roles.yml to the `-f` files of HAProxy, in the same order"
            return warning(Kind.PROCESS, f"HAProxy pid {pid}", text, fix)
    name = f"master {pid}, worker {running.worker.pid}" if running.is_master else f"pid {pid}, without a master"
    return ok(Kind.PROCESS, "", f"HAProxy runs this haproxy.cfg ({name})")


def _explain_no_process(settings: HaproxySettings) -> Finding:
    """Return the finding where no HAProxy runs this haproxy.cfg; those that run other files are named."""
    found = processes.find_processes("haproxy")
    pids, folders = {one.pid for one in found}, {os.path.dirname(path) for path in settings.config}
    mains = [(one.pid, process.list_config_files(one.argv)) for one in found if one.parent not in pids]
    # First those with a file in the same directory: most likely one of them is meant.
    mains.sort(key=lambda one: not folders & {os.path.dirname(path) for path in one[1]})
    others = [f"pid {pid} runs {' '.join(files)}" for pid, files in mains if files]
    text = f"no HAProxy runs {' '.join(settings.config)}; server lines have no effect"
    if not others:
        return error(Kind.PROCESS, "", text, "start HAProxy")
    fix = "set `haproxy.config` in roles.yml to the `-f` files of your HAProxy, or start it"
    return error(Kind.PROCESS, "", f"{text} ({join_names(others)})", fix)


def _prepare_reload(running: RunningHaproxy, settings: HaproxySettings, lines: GlobalLines) -> None:
    """Raise TryAgain or OSError where a reload cannot be started."""
    if settings.reload is not None:
        subprocess.find_program(settings.reload[0])
    elif not running.is_master and not (running.main.unit and os.path.isdir("/run/systemd/system")):
        build_successor_command(running, lines)


def _split_fix(refusal: TryAgain) -> tuple[str, str]:
    """Return problem and fix of a message of the form `PROBLEM; FIX` or `PROBLEM: FIX`."""
    message = str(refusal)
    text, _, fix = message.rpartition("; ") if "; " in message else message.rpartition(": ")
    return text, fix


def check_stats_answers(lines: GlobalLines, running: RunningHaproxy) -> Iterator[Finding]:
    """Check whether each stats socket is answered, by this worker, with level admin."""
    for address in session.list_stats_sockets(lines):
        try:
            level = session.ask(address, "show cli level", _SOCKET_TIMEOUT).strip()
            pid = session.fetch_worker_pid(address, _SOCKET_TIMEOUT)
        except PermissionError:
            yield unreadable(Kind.STATS_ANSWER, address, "this user may not connect to it")
        except OSError as refused:
            reason = refused.strerror or refused
            text = f"no answer, although HAProxy runs (pid {running.main.pid}): {reason}"
            yield error(Kind.STATS_ANSWER, address, text, "reload HAProxy, or fix the path of its `stats socket`")
        else:
            yield _check_stats_answer(address, level, pid, running)


def _check_stats_answer(address: str, level: str, pid: int | None, running: RunningHaproxy) -> Finding:
    if pid not in (None, running.worker.pid):
        text = f"pid {pid} answers, not worker {running.worker.pid}, which runs this haproxy.cfg"
        return error(Kind.STATS_ANSWER, address, text, "give each HAProxy its own stats socket")
    if level != "admin":
        text = f"the running HAProxy answers with level {level!r}"
        return warning(Kind.STATS_ANSWER, address, text, "set `level admin`, and reload HAProxy")
    return ok(Kind.STATS_ANSWER, address, f"worker {running.worker.pid} answers with level admin")


class Directive(NamedTuple):
    """One line of haproxy.cfg, as words."""

    where: str
    """FILE:LINE."""
    words: tuple[str, ...]

    def starts_with(self, *words: str) -> bool:
        """Return whether these are its first words."""
        return self.words[: len(words)] == words

    def find_value(self, word: str) -> str:
        """Return the word after `word`; empty where there is none."""
        at = self.words.index(word) + 1 if word in self.words else len(self.words)
        return self.words[at] if at < len(self.words) else ""


class Section:
    """A section of haproxy.cfg and the `defaults` that it inherits from."""

    def __init__(self, where: str, kind: str, name: str, base: Section | None) -> None:
        """Make a section without directives."""
        self.where, self.kind, self.name, self.base = where, kind, name, base
        self.directives: list[Directive] = []

    def __str__(self) -> str:
        return f"{self.kind} {self.name}".strip()

    def find(self, *words: str) -> Directive | None:
        """Return the directive with these first words that is in effect: the last one, own before inherited."""
        for directive in reversed(self.directives):
            if directive.starts_with(*words):
                return directive
        return self.base.find(*words) if self.base else None

    def has_option(self, name: str) -> bool:
        """Return whether `option NAME` is in effect."""
        for directive in reversed(self.directives):
            if directive.starts_with("option", name):
                return True
            if directive.starts_with("no", "option", name):
                return False
        return self.base.has_option(name) if self.base else False

    def find_timeout(self, *names: str) -> tuple[str, float | None] | None:
        """Return the first of these timeouts that is set: text and milliseconds (None for a variable)."""
        for name in names:
            directive = self.find("timeout", name)
            if directive is not None and len(directive.words) > 2:  # noqa: PLR2004  # timeout NAME TIME
                return " ".join(directive.words[:3]), parse_milliseconds(directive.words[2])
        return None

    @property
    def is_http(self) -> bool:
        """Whether its mode is http."""
        mode = self.find("mode")
        return mode is not None and mode.words[1:2] == ("http",)

    @property
    def has_bind(self) -> bool:
        """Whether clients connect to it."""
        return self.kind in _CLIENT_SECTIONS and any(one.starts_with("bind") for one in self.directives)

    @property
    def keeps_alive(self) -> bool:
        """Whether clients may keep an idle connection between two requests."""
        return self.has_bind and self.is_http and not self.has_option("httpclose")


def parse_milliseconds(text: str) -> float | None:
    """Return a time of haproxy.cfg in milliseconds (the unit where none is given); None if it is not a time."""
    found = _TIME.fullmatch(text)
    return int(found[1]) * _MILLISECONDS[found[2] or ""] if found else None


def read_sections(document: Document) -> list[Section]:
    """Return the sections that HAProxy reads, or may read, in order, with all directives but `server` lines."""
    found: dict[int, Section] = {}
    defaults: dict[str, Section] = {}
    for directive, section in document.read_directives():
        at, where = directive.at, document.locate(directive.at)
        if section is not None and section.at == at:
            found[at] = one = Section(where, section.kind, section.name, _find_base(section, defaults))
            if section.kind == "defaults":
                defaults[section.name] = defaults[""] = one
        elif (own := max(directive.place.sections)) in found:
            found[own].directives.append(Directive(where, tuple(directive.words)))
    return [*found.values()]


def _find_base(section: reader.Section, defaults: Mapping[str, Section]) -> Section | None:
    if section.base or section.kind in (*_CLIENT_SECTIONS, *_SERVER_SECTIONS):
        return defaults.get(section.base)
    return None


def has_peer(sections: Sequence[Section]) -> bool:
    """Return whether a `peers` section names a second load balancer."""
    peers = [section for section in sections if section.kind == "peers"]
    return any(sum(line.starts_with("peer") for line in section.directives) > 1 for section in peers)


def check_sections(
    sections: Sequence[Section], main: str, with_markers: frozenset[str], *, has_master: bool | None
) -> Iterator[Finding]:
    """Check what reloads and the runtime API depend on.

    `main` is the file that is named where a directive is missing, `with_markers` are the proxies with markers (as
    `listen lb-iis`). `has_master`: whether HAProxy runs in master-worker mode; None where it does not run.
    """
    own = [section for section in sections if section.kind == "global"]
    lines = [line for section in own for line in section.directives]
    where = own[0].where if own else main
    sockets = [line for line in lines if line.starts_with("stats", "socket")]
    yield from _check_stats_socket(sockets, where)
    if sockets:
        yield from _check_hand_over(sockets, has_master=has_master)
    yield from _check_hard_stop([line for line in lines if line.starts_with("hard-stop-after")], sections, where)
    proxies = [section for section in sections if section.kind in (*_CLIENT_SECTIONS, *_SERVER_SECTIONS)]
    yield from _check_idle_close(proxies)
    yield from _check_timeouts(proxies)
    yield from _check_server_state(proxies)
    for proxy in proxies:
        if str(proxy) in with_markers and (reason := _explain_static(proxy)):
            text = f"{proxy} can only be changed by a reload: {reason}"
            yield ok(Kind.RUNTIME_API, proxy.where, text)


def _check_stats_socket(sockets: Sequence[Directive], where: str) -> Iterator[Finding]:
    if not sockets:
        text = "no stats socket; each change needs a reload, and `lbagent status` cannot show server states"
        yield warning(Kind.STATS_SOCKET, where, text, f"add {_SOCKET}")
        return
    admin = next((line for line in sockets if line.find_value("level") == "admin"), None)
    if admin is None:
        level = sockets[0].find_value("level") or "operator"
        text = f"the stats socket has level {level}; servers cannot be changed through it"
        yield warning(Kind.STATS_SOCKET, sockets[0].where, text, "set `level admin`")
    else:
        yield ok(Kind.STATS_SOCKET, admin.where, "stats socket with level admin")


def _check_hand_over(sockets: Sequence[Directive], *, has_master: bool | None) -> Iterator[Finding]:
    where = sockets[0].where
    if any("listeners" in line.words for line in sockets):
        yield ok(Kind.HAND_OVER, where, "the new process takes over the listeners at a reload")
    elif has_master:
        yield ok(Kind.HAND_OVER, where, "the master passes the listeners on at a reload")
    elif has_master is False:
        text = "HAProxy runs without a master; a reload loses connections that wait to be accepted"
        yield warning(Kind.HAND_OVER, where, text, "add `expose-fd listeners`, or run HAProxy with -W")


def _check_hard_stop(lines: Sequence[Directive], sections: Sequence[Section], where: str) -> Iterator[Finding]:
    if not lines or len(lines[-1].words) < 2:  # noqa: PLR2004  # hard-stop-after TIME
        text = "no `hard-stop-after`; after each reload an old worker stays until its last connection ends"
        yield warning(Kind.HARD_STOP, where, text, "add `hard-stop-after` with a time longer than any request takes")
        return
    line, limit = lines[-1], parse_milliseconds(lines[-1].words[1])
    setting = " ".join(line.words[:2])
    found = [*_find_cut_off(sections, limit, setting)] if limit is not None else []
    yield from found
    if not found:
        yield ok(Kind.HARD_STOP, line.where, f"old workers end after `{setting}`")


def _find_cut_off(sections: Sequence[Section], limit: float, setting: str) -> Iterator[Finding]:
    """Find proxies whose own timeouts allow longer than `hard-stop-after`."""
    idle = [one for one in sections if one.keeps_alive and one.has_option("idle-close-on-response")]
    answering = [one for one in sections if one.kind in _SERVER_SECTIONS and one.is_http]
    for proxies, names, text, fix in (
        (idle, _KEEP_ALIVE_TIMEOUTS, "idle clients of {} ({})", "set a shorter `timeout http-keep-alive`"),
        (answering, ("server",), "slow responses of {} ({})", "set a longer `hard-stop-after`"),
    ):
        longer = [(one, timeout) for one in proxies if (timeout := _find_longer_timeout(one, names, limit))]
        if longer:
            proxy, timeout = longer[0]
            cut_off = text.format(join_names([str(one) for one, _ in longer]), timeout)
            yield warning(Kind.HARD_STOP, proxy.where, f"`{setting}` cuts off {cut_off} after a reload", fix)


def _find_longer_timeout(proxy: Section, names: Sequence[str], limit: float) -> str:
    """Return the timeout that is in effect if it is `limit` milliseconds or longer, else an empty string."""
    found = proxy.find_timeout(*names)
    return found[0] if found is not None and found[1] is not None and found[1] >= limit else ""


def _check_idle_close(proxies: Sequence[Section]) -> Iterator[Finding]:
    lacking = [one for one in proxies if one.keeps_alive and not one.has_option("idle-close-on-response")]
    yield from _group(
        Kind.IDLE_CLOSE,
        lacking,
        "a reload closes idle connections of {}; a request that is on its way is lost".format,
        "add `option idle-close-on-response` to it or its defaults",
    )
    if not lacking:
        yield ok(Kind.IDLE_CLOSE, "", "a reload does not cut off requests of idle clients")


def _check_timeouts(proxies: Sequence[Section]) -> Iterator[Finding]:
    complete = True
    for name, kinds, effect in (
        ("client", _CLIENT_SECTIONS, "connections of vanished clients, and old workers, never end"),
        ("connect", _SERVER_SECTIONS, "a server that does not answer blocks a request forever"),
        ("server", _SERVER_SECTIONS, "connections to servers that never respond, and old workers, never end"),
    ):
        lacking = [one for one in proxies if one.kind in kinds and not _has_timeout(one, name)]
        complete &= not lacking
        yield from _group(
            Kind.TIMEOUTS,
            lacking,
            lambda names, name=name, effect=effect: f"no `timeout {name}` in {names}; {effect}",  # type: ignore[misc]
            f"add `timeout {name}` to it or its defaults",
        )
    if complete:
        yield ok(Kind.TIMEOUTS, "", "every proxy has its timeouts")


def _has_timeout(proxy: Section, name: str) -> bool:
    found = proxy.find_timeout(name)
    return found is not None and found[1] != 0


def _check_server_state(proxies: Sequence[Section]) -> Iterator[Finding]:
    directives = [one for proxy in proxies if (one := proxy.find("load-server-state-from-file"))]
    places = dict.fromkeys(one.where for one in directives if one.words[1:2] != ("none",))
    for where in places:
        text = "a server-state file restores old ports of servers that have changed since"
        fix = "remove `load-server-state-from-file`; pauses are kept in haproxy.cfg"
        yield warning(Kind.SERVER_STATE, where, text, fix)
    if not places:
        yield ok(Kind.SERVER_STATE, "", "HAProxy loads no server-state file")


def _explain_static(proxy: Section) -> str:
    """Return why HAProxy cannot add servers to the proxy at run time; empty where it can."""
    balance, hash_type = proxy.find("balance"), proxy.find("hash-type")
    words = balance.words if balance is not None else ("balance", "roundrobin")
    algorithm = words[1].partition("(")[0] if len(words) > 1 else ""
    consistent = hash_type is not None and "consistent" in hash_type.words
    if algorithm == "static-rr":
        return "`balance static-rr` (`roundrobin` can be changed at run time)"
    if algorithm in _STATIC_BALANCE and not consistent:
        return f"`{' '.join(words)}` (with `hash-type consistent` it can be changed at run time)"
    cookie = proxy.find("cookie")
    if cookie is not None and "dynamic" not in cookie.words:
        name = cookie.words[1] if len(cookie.words) > 1 else ""
        return f"`cookie {name}` (with `dynamic` it can be changed at run time)"
    return ""


def _group(kind: Kind, proxies: Sequence[Section], text: Callable[[str], str], fix: str) -> Iterator[Finding]:
    """Yield one warning for all proxies with the same defaults, at the first of them."""
    groups: dict[int, list[Section]] = {}
    for proxy in proxies:
        groups.setdefault(id(proxy.base), []).append(proxy)
    for group in groups.values():
        yield warning(kind, group[0].where, text(join_names([str(one) for one in group])), fix)

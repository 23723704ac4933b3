"""Compute and send the commands that change the servers of a running HAProxy.

A removed server is first put into maintenance. HAProxy 3.0 and later delete it once its sessions have ended. Older
versions keep it, because deleting one may use freed memory; it is reused when its node returns.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Container, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

from lbagent.haproxy.config import RUNTIME_NAME, Document, Key, Lines, Proxy, format_target, split_server_line
from lbagent.haproxy.runtime import capabilities
from lbagent.haproxy.runtime.capabilities import Capabilities, Inherited, Keywords, NeedsReload, find_inherited
from lbagent.haproxy.runtime.session import Session, SessionError
from lbagent.haproxy.server_line import is_drained, undrain_line
from lbagent.names import canonical_address
from lbagent.system import processes

LEFT_LIMIT = 100
"""Number of servers left in maintenance that cannot be deleted, above which a reload removes them."""

AWAITED_CHECK_LIMIT = 2.0
"""Longest interval in seconds of a check whose first result is waited for."""

_DYNAMIC = frozenset(("", "roundrobin", "leastconn", "random", "first"))
_CONSISTENT = frozenset(("source", "uri", "url_param", "hdr", "rdp-cookie", "hash"))


class KnownServers(NamedTuple):
    """The servers that a worker is known to have."""

    lines: Lines
    """Lines of the servers that serve."""
    left: Lines
    """Lines of the servers in maintenance; empty if the line is unknown."""
    sure: bool
    """False if the file has changed since: servers can be removed, but not added."""
    draining: frozenset[Key] = frozenset()
    """Servers that drain: their checks continue, so `state ready` is enough to bring them back."""


class Join(NamedTuple):
    """A server that is to get traffic once it answers."""

    key: Key
    line: str
    commands: tuple[str, ...]
    """Commands that add it, move it or change its weight."""
    endpoint: tuple[str, int] | None = None
    """Address and port of its check; None if it has none, or only HAProxy knows."""
    check_wait: float | None = None
    """Seconds to HAProxy's first check result, if it is more than a connection and worth waiting for."""
    ready: bool = True
    """False if its state does not change: `disabled` in haproxy.cfg, or only a new weight."""
    drain: bool = False
    """Whether its node is paused: the server gets only existing clients."""

    @property
    def target(self) -> str:
        """PROXY/SERVER, as the runtime API names it."""
        return format_target(self.key)


def format_stop_command(key: Key, *, drain: bool) -> str:
    """Return the command that removes a server from balancing.

    With `drain`, sticky clients continue; otherwise (`maint`) no client does. Running requests finish either way,
    except that `maint` cuts them if `on-marked-down shutdown-sessions` is set.
    """
    return f"set server {format_target(key)} state {'drain' if drain else 'maint'}"


class ServerChanges:
    """The changes from the servers that a worker has to the wanted ones."""

    def __init__(
        self, document: Document, known: KnownServers, wanted: Lines, capabilities: Capabilities, doubt: str = ""
    ) -> None:
        """`document` is the text with the proxies; `wanted` are the lines of the servers to serve.

        `doubt` is why HAProxy may load more than `document`; empty where it does not.
        """
        self._document, self._known, self._capabilities, self._doubt = document, known, capabilities, doubt
        self.joins: list[Join] = []
        self.needs_reload: dict[Key, str] = {}
        """Servers that need a reload, with the reason."""
        for key, line in wanted.items():
            if key in known.left or known.lines.get(key) != line:
                self._add_join(key, line)

    @cached_property
    def dynamic_cookies(self) -> list[str]:
        """Commands that give cookies to the added servers."""
        proxies = sorted({join.key[0] for join in self.joins})
        return [
            f"enable dynamic-cookie backend {name}"
            for name in proxies
            if "dynamic" in self._find_inherited(name).cookie
        ]

    def list_keywords(self, key: Key, line: str) -> list[str]:
        """Return all words of this server: those of `default-server`, then its own."""
        return [*self._find_default_words(key[0]), *split_server_line(line)[2]]

    def _find_default_words(self, proxy: str) -> tuple[str, ...]:
        """Return the words of the `default-server` lines that apply in a proxy; empty where they are unknown."""
        try:
            return self._find_inherited(proxy).default_server
        except NeedsReload:
            return ()

    def may_be_disabled(self, key: Key, line: str) -> bool:
        """Return whether haproxy.cfg disables this server, or an agent check may disable it."""
        return bool(self._doubt) or self.is_disabled(key, line) or self.has_agent(key, line)

    def is_disabled(self, key: Key, line: str) -> bool:
        """Return whether haproxy.cfg disables this server."""
        return _is_last(self.list_keywords(key, line), "disabled", "enabled")

    def has_agent(self, key: Key, line: str) -> bool:
        """Return whether an agent check may disable this server."""
        return _is_last(self.list_keywords(key, line), "agent-check", "no-agent-check")

    def can_return(self, key: Key, line: str) -> bool:
        """Return whether a server can be added again without a reload after it was deleted."""
        try:
            if line:
                self._format_add_command(key, line)
            else:
                self._require_dynamic_servers(key[0], ("id",))
        except NeedsReload:
            return False
        return True

    def _add_join(self, key: Key, line: str) -> None:
        if not self._known.sure:
            self.needs_reload[key] = "HAProxy may not run the servers of haproxy.cfg"
            return
        try:
            self.joins += self._plan_joins(key, line)
        except NeedsReload as error:
            self.needs_reload[key] = str(error)

    def _plan_joins(self, key: Key, line: str) -> list[Join]:
        address, port, _ = split_server_line(line)
        if not port or address != canonical_address(address):
            raise NeedsReload("its line has no IP address and port")
        old = self._known.left.get(key, self._known.lines.get(key))
        if old is None:
            return [self._plan_checked_join(key, line, [self._format_add_command(key, line)])]
        weight = self._plan_weight(key, old, line)
        was, drains = split_server_line(old), is_drained(line)
        stays, returns = was[:2] == (address, port), key in self._known.left
        if stays and (drains if returns else is_drained(old) == drains):
            # Otherwise only the comment differs, or a draining server continues to drain.
            return [Join(key, line, tuple(weight), ready=False)] if weight else []
        if was[0] != address and self.has_agent(key, line):
            raise NeedsReload("its agent check keeps the old address")
        move = f"set server {format_target(key)} addr {address} port {port}"
        if self.is_disabled(key, line):
            return [Join(key, line, (*weight, *([] if stays else [move])), ready=False)]
        if stays and key in self._known.draining:
            return [Join(key, line, tuple(weight))]
        return [self._plan_checked_join(key, line, [*weight, move])]

    def _plan_weight(self, key: Key, old: str, line: str) -> list[str]:
        """Return the command if only the weight differs; empty if nothing differs. Raises NeedsReload."""
        drained, drains = is_drained(old), is_drained(line)
        old, line = undrain_line(old), undrain_line(line)
        same = bool(old) and split_server_line(old)[2] == split_server_line(line)[2]
        if not same:
            before, after = self._resolve_keywords_but_weight(key, old), self._resolve_keywords_but_weight(key, line)
            if before is None or before != after:
                raise NeedsReload(f"{format_target(key)} has other options in HAProxy")
        weights = self._find_weight(key, old), self._find_weight(key, line)
        if drains or (not drained and weights[0] == weights[1]):
            return []  # a draining server keeps its weight until it is resumed
        if not weights[1].isdigit():
            raise NeedsReload(f"`weight {weights[1]}` is not a number")
        proxy = self._find_proxy(key[0])
        if not self._takes_dynamic_servers(proxy, self._find_inherited(proxy.name)):
            raise NeedsReload(f"`balance {proxy.balance}` does not allow a change of weight")
        return [f"set server {format_target(key)} weight {weights[1]}"]

    def _resolve_keywords_but_weight(self, key: Key, line: str) -> Keywords | None:
        """Return a server's keywords without its weight; None if they are unknown."""
        try:
            found = self._resolve_keywords(key, line) if line else None
        except NeedsReload:
            return None
        return found and {word: value for word, value in found.items() if word != "weight"}

    def _find_weight(self, key: Key, line: str) -> str:
        """Return the weight of a server."""
        return ["1", *(value for word, value in pairwise(self.list_keywords(key, line)) if word == "weight")][-1]

    def _plan_checked_join(self, key: Key, line: str, commands: list[str]) -> Join:
        address, port, _ = split_server_line(line)
        here = self._find_inherited(key[0])
        try:
            words = self._resolve_keywords(key, line)
        except NeedsReload:
            # The server exists already, whatever its keywords.
            return Join(key, line, tuple(commands), drain=is_drained(line))
        if "check" not in words:
            return Join(key, line, tuple(commands), drain=is_drained(line))
        commands = [*commands, f"enable health {format_target(key)}"]
        if words.get("init-state", "none") != "none":
            return Join(key, line, tuple(commands), drain=is_drained(line))
        endpoint = capabilities.find_check_endpoint(words, address, port)
        deep = bool(here.check_options) or "ssl" in words or "check-ssl" in words
        due = capabilities.parse_time(words.get("fastinter", words.get("inter", "2s")))
        # A server that serves already continues: if all waited for a result, none would serve meanwhile.
        awaited = deep and due <= AWAITED_CHECK_LIMIT and key not in self._known.lines and not is_drained(line)
        return Join(key, line, tuple(commands), endpoint, due if awaited else None, drain=is_drained(line))

    def _resolve_keywords(self, key: Key, line: str) -> Keywords:
        words = [*self._find_inherited(key[0]).default_server, *split_server_line(line)[2]]
        return capabilities.resolve_keywords(words, self._capabilities)

    def _format_add_command(self, key: Key, line: str) -> str:
        address, port, _ = split_server_line(line)
        words = self._resolve_keywords(key, line)
        self._require_dynamic_servers(key[0], words)
        host = f"[{address}]" if ":" in address else address
        keywords = capabilities.format_keywords(words, self._capabilities)
        return f"add server {format_target(key)} {host}:{port}{keywords}"

    def _require_dynamic_servers(self, name: str, words: Container[str]) -> None:
        """Raise NeedsReload if adding a server with these keywords would differ from a reload."""
        proxy, here = self._find_proxy(name), self._find_inherited(name)
        balance = _get_algorithm(proxy)
        if doubt := self._doubt or here.doubt:
            raise NeedsReload(doubt)
        if here.mode not in ("", "http", "tcp"):
            raise NeedsReload(f"`mode {here.mode}` does not support dynamic servers")
        if here.unbalanced:
            raise NeedsReload(f"`{min(here.unbalanced)}` does not support dynamic servers")
        if not self._takes_dynamic_servers(proxy, here):
            raise NeedsReload(f"`balance {balance}` does not support dynamic servers")
        if balance in (*_CONSISTENT, "random", "first") and "id" not in words:
            raise NeedsReload(f"`balance {balance}` needs an `id` to place a server as a reload does")
        if here.cookie and "dynamic" not in here.cookie and not self._capabilities.takes_cookies:
            raise NeedsReload("`cookie` without `dynamic` gives no cookie to dynamic servers")
        if "check" in words and (options := here.check_options & self._capabilities.reload_options):
            raise NeedsReload(f"`option {min(options)}` does not support checks of dynamic servers")

    @staticmethod
    def _takes_dynamic_servers(proxy: Proxy, here: Inherited) -> bool:
        balance = _get_algorithm(proxy)
        return balance in _DYNAMIC or (balance in _CONSISTENT and here.hash_type[:1] == ("consistent",))

    def _find_proxy(self, name: str) -> Proxy:
        found = self._document.find_proxies(name)
        if len(found) != 1 or not RUNTIME_NAME.fullmatch(name):
            raise NeedsReload(f"proxy {name!r} cannot be named on the stats socket")
        return found[0]

    def _find_inherited(self, name: str) -> Inherited:
        return self._all_inherited.get(self._find_proxy(name).start, Inherited())

    @cached_property
    def _all_inherited(self) -> Mapping[int, Inherited]:
        return find_inherited(self._document)


def _get_algorithm(proxy: Proxy) -> str:
    return (proxy.balance or "").partition("(")[0]


def _is_last(words: list[str], on: str, off: str) -> bool:
    """Return whether `on` is the last one of two words that cancel each other."""
    found = [word for word in words if word in (on, off)]
    return found[-1:] == [on]


_CONNECT_TIMEOUT = 1.0
"""Seconds within which new servers have to accept a connection."""

_POLL_INTERVAL = 0.02
_CHECK_GRACE = 0.4
"""Seconds that a check may take beyond its interval."""

_MOVE_ANSWERS = ("changed from", "no need to change", "nothing changed")
"""Texts in a successful answer to `set server … addr`; the last one is from HAProxy 3.0 and later."""


class Admission:
    """Brings servers into balancing at one worker."""

    def __init__(self, talk: Session) -> None:
        """Use this session."""
        self._talk = talk

    def admit_servers(self, joins: Sequence[Join], cookies: Sequence[str]) -> bool:
        """Bring servers into balancing, each once it answers; return whether all commands succeeded.

        `cookies` are commands, sent after those of the servers.
        """
        if not joins:
            return True
        if not self._send_all([*(command for join in joins for command in join.commands), *cookies]):
            return False
        silent = processes.find_silent_endpoints(
            (join.endpoint for join in joins if join.endpoint and not join.check_wait), _CONNECT_TIMEOUT
        )
        prompt = [join for join in joins if not join.check_wait and join.ready]
        good = self._send_all(
            [one for join in prompt for one in _format_ready_commands(join, up=join.endpoint not in silent)]
        )
        return self._admit_checked([join for join in joins if join.check_wait]) and good

    def _admit_checked(self, joins: Sequence[Join]) -> bool:
        """Let HAProxy's checks decide: a server that drains and is DOWN is checked, and gets no traffic."""
        if not joins:
            return True
        if not self._send_all([one for join in joins for one in _format_down_commands(join)]):
            return False
        deadline = time.monotonic() + max(join.check_wait for join in joins if join.check_wait) + _CHECK_GRACE
        passed: set[Key] = set()
        with contextlib.suppress(SessionError):
            while len(passed) < len(joins) and time.monotonic() < deadline:
                time.sleep(_POLL_INTERVAL)
                states = self._talk.fetch_states()
                passed = {join.key for join in joins if join.key in states and states[join.key].passed}
        up = [f"set server {join.target} health up" for join in joins if join.key in passed]
        return self._send_all([*up, *(f"set server {join.target} state ready" for join in joins)])

    def _send_all(self, commands: Sequence[str]) -> bool:
        """Send all commands and return whether all succeeded; a failure does not stop the rest."""
        good = True
        for command, answer in zip(commands, self._talk.send(commands), strict=True):
            if answer is None or not _is_success(command, answer):
                good = False
                self._talk.problems += [f"`{command}`: {answer}"] if answer else []
        return good


def _format_ready_commands(join: Join, *, up: bool) -> list[str]:
    if join.drain:
        return [f"set server {join.target} state drain", *([] if up else [f"set server {join.target} health down"])]
    # A server that does not answer stays DOWN until its checks pass; `ready` alone would make it UP.
    return [*([] if up else _format_down_commands(join)), f"set server {join.target} state ready"]


def _format_down_commands(join: Join) -> list[str]:
    return [f"set server {join.target} state drain", f"set server {join.target} health down"]


def _is_success(command: str, answer: str) -> bool:
    if command.startswith("add server"):
        # Warnings may precede it.
        return answer.rpartition("\n")[2] == "New server registered."
    if " addr " in command:
        return any(word in answer for word in _MOVE_ANSWERS)
    return answer == ""

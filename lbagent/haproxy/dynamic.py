"""What has to be said to a running HAProxy so that it serves other managed lines: text in, commands out.

A server is never deleted (2.6 may use what it has freed): one that goes is left behind in maintenance, and taken up
again when its node returns.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from functools import cached_property

from lbagent.haproxy import keywords
from lbagent.haproxy.defaults import Inherited, inherited
from lbagent.haproxy.keywords import Unsayable
from lbagent.haproxy.roster import NAME, Key, Lines, parts, target
from lbagent.haproxy.server import is_drained, undrain_line
from lbagent.haproxy.text import Document, Proxy
from lbagent.names import canonical_address
from lbagent.tuples import NamedTuple

LEFT_LIMIT = 100
"""Servers left behind in maintenance, after which one reload clears them."""

PROMPTLY = 2.0
"""Seconds within which HAProxy's own first check is worth waiting for."""

_DYNAMIC = frozenset(("", "roundrobin", "leastconn", "random", "first"))
_CONSISTENT = frozenset(("source", "uri", "url_param", "hdr", "rdp-cookie", "hash"))


class Known(NamedTuple):
    """What a worker is known to have."""

    lines: Lines
    """Of the servers that it serves."""
    left: Lines
    """Of those in maintenance; nothing where the line that made one is not known."""
    sure: bool
    """False where the file has changed since, so that servers can be taken out, but not in."""
    checked: frozenset[Key] = frozenset()
    """Servers out of balancing that drain: their checks go on, so that `state ready` is all they need."""


class Join(NamedTuple):
    """A server that is to take traffic, once it is known to answer."""

    key: Key
    line: str
    commands: tuple[str, ...]
    """What makes it, or moves it."""
    endpoint: tuple[str, int] | None
    """Where its check connects to; None where it has none."""
    verdict: float | None
    """Seconds until HAProxy's own check has judged it, where that is more than a connection and worth waiting for."""
    drain: bool = False
    """Whether its node is paused: it takes no new clients, only those that are bound to it."""

    @property
    def target(self) -> str:
        """The server as the stats socket calls it."""
        return target(self.key)


class Difference:
    """From what a worker has to what it is to have."""

    def __init__(self, document: Document, known: Known, wanted: Lines) -> None:
        """`document` is the text with the proxies; `wanted` the lines that are to be served."""
        self._document, self._known = document, known
        self.withdrawn: Lines = {key: line for key, line in known.lines.items() if key not in wanted}
        """What has to go into maintenance."""
        self.joins: list[Join] = []
        self.unsayable: dict[Key, str] = {}
        """What takes a reload, and why."""
        for key, line in wanted.items():
            if key in known.left or known.lines.get(key) != line:
                self._join(key, line)

    @cached_property
    def dynamic_cookies(self) -> list[str]:
        """The commands that give cookies to the servers that are added."""
        proxies = sorted({join.key[0] for join in self.joins})
        return [
            f"enable dynamic-cookie backend {name}" for name in proxies if "dynamic" in self._inherited(name).cookie
        ]

    def _join(self, key: Key, line: str) -> None:
        if not self._known.sure:
            self.unsayable[key] = "what HAProxy serves is not known to be what stood in haproxy.cfg"
            return
        try:
            self.joins += self._joined(key, line)
        except Unsayable as error:
            self.unsayable[key] = str(error)

    def _joined(self, key: Key, line: str) -> list[Join]:
        address, port, options = parts(line)
        if not port or address != canonical_address(address):
            raise Unsayable("it is at no address and port")
        old = self._known.left.get(key, self._known.lines.get(key))
        if old is None:
            return [self._checked(key, line, self._addition(key, line))]
        if not old or parts(undrain_line(old))[2] != parts(undrain_line(line))[2]:
            raise Unsayable(f"{target(key)} is there with other options")
        was = parts(old)
        stays, weight = was[:2] == (address, port), self._weight(key, old, line)
        if stays and not weight and (key not in self._known.left or is_drained(line)):
            return []  # only the comment differs, or a server that drains goes on draining
        if "agent-check" in options and was[0] != address:
            raise Unsayable("an agent does not follow its server's address")
        if stays and key in self._known.checked:
            return [Join(key, line, tuple(weight), None, None)]
        join = self._checked(key, line, f"set server {target(key)} addr {address} port {port}")
        return [join._replace(commands=(*join.commands, *weight))]

    def _weight(self, key: Key, old: str, line: str) -> list[str]:
        """The command that ends the `weight 0` with which a server was made. Raises Unsayable."""
        if not is_drained(old) or is_drained(line):
            return []
        proxy, here = self._proxy(key[0]), self._inherited(key[0])
        if self._static(proxy, here):
            raise Unsayable(f"`balance {proxy.balance}` takes no other weight than that of the file")
        words = [*here.default_server, *parts(line)[2]]
        weights = [value for word, value in itertools.pairwise(words) if word == "weight"]
        return [f"set server {target(key)} weight {[*weights[-1:], '1'][0]}"]

    def _checked(self, key: Key, line: str, command: str) -> Join:
        address, port, options = parts(line)
        here = self._inherited(key[0])
        try:
            words = keywords.expanded([*here.default_server, *options])
        except Unsayable:
            # It is there already, whatever it was made of.
            return Join(key, line, (command,), None, None, is_drained(line))
        if "check" not in words:
            return Join(key, line, (command,), None, None, is_drained(line))
        endpoint = keywords.endpoint(words, address, port)
        deep = bool(here.deep) or "ssl" in words or "check-ssl" in words
        due = keywords.seconds(words.get("fastinter", words.get("inter", "2s")))
        # Who serves already goes on: were all to wait for a verdict, nobody would serve meanwhile.
        awaited = deep and due <= PROMPTLY and key not in self._known.lines
        due_at = due if awaited and not is_drained(line) else None
        return Join(key, line, (command, f"enable health {target(key)}"), endpoint, due_at, is_drained(line))

    def _addition(self, key: Key, line: str) -> str:
        address, port, options = parts(line)
        here = self._inherited(key[0])
        words = keywords.expanded([*here.default_server, *options])
        self._dynamic(self._proxy(key[0]), here, words)
        host = f"[{address}]" if ":" in address else address
        return f"add server {target(key)} {host}:{port}{keywords.said(words)}"

    def _dynamic(self, proxy: Proxy, here: Inherited, words: Mapping[str, str]) -> None:
        balance = (proxy.balance or "").partition("(")[0]
        consistent = balance in _CONSISTENT and here.hash_type[:1] == ("consistent",)
        if here.odd:
            raise Unsayable(here.odd)
        if self._static(proxy, here):
            raise Unsayable(f"`balance {balance}` takes no dynamic servers")
        if (consistent or balance in ("random", "first")) and "id" not in words:
            raise Unsayable(f"`balance {balance}` would place a server without `id` elsewhere than a reload does")
        if here.cookie and "dynamic" not in here.cookie:
            raise Unsayable("`cookie` without `dynamic` gives no cookie to dynamic servers")

    @staticmethod
    def _static(proxy: Proxy, here: Inherited) -> bool:
        """Whether the proxy's `balance` makes its table of servers once and for all."""
        balance = (proxy.balance or "").partition("(")[0]
        consistent = balance in _CONSISTENT and here.hash_type[:1] == ("consistent",)
        return balance not in _DYNAMIC and not consistent

    def _proxy(self, name: str) -> Proxy:
        found = self._document.proxies_named(name)
        if len(found) != 1 or not NAME.fullmatch(name):
            raise Unsayable(f"proxy {name!r} is none that the stats socket can be told of")
        return found[0]

    def _inherited(self, name: str) -> Inherited:
        return self._all_inherited.get(self._proxy(name).start, Inherited())

    @cached_property
    def _all_inherited(self) -> Mapping[int, Inherited]:
        return inherited(self._document)

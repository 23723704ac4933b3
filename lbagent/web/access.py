"""Access to the page: Host and Origin checks, users, sessions, and the limit of failed log-ins.

Anyone who can reach the page may read it. A command needs a log-in of a user in the users file, the form's token, and
a request that the page itself sent.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import re
import secrets
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

from lbagent.errors import UsageError
from lbagent.names import NAME
from lbagent.system import untrusted_files

SESSION_SECONDS = 8 * 3600
"""A session ends this long after the log-in."""

COOKIE = "lbagent_session"

_HASH = re.compile(r"\$2[aby]\$(?:0[4-9]|1[0-7])\$[./A-Za-z0-9]{53}")
"""A bcrypt hash whose check takes at most some seconds (cost 17)."""

_PASSWORD_BYTES = 72
"""bcrypt ignores what follows, or refuses it, depending on its version."""

_FAILURES, _PERIOD = 5, 300.0
"""Failed log-ins that an address, or a user, has in so many seconds."""

_TRACKED = 10_000
"""Addresses and users whose failures are remembered."""

_NOBODY = "$2b$12$1JiUAOWArd7Odxq2tGqHp.sv1L4hWOC8/Seqp4ifktRvArQUEMk5e"
"""Checked for unknown users, so that they take as long as known ones."""


class Hosts:
    """The names and addresses under which this page may be requested.

    A page of another site whose name resolves to this address (DNS rebinding) sends its own name as Host.
    """

    def __init__(self, names: Collection[str]) -> None:
        """`names` are host names and IP addresses, without ports."""
        self._names = {_unbracket(name.lower()) for name in names}

    def accept(self, host: str, local_address: str) -> bool:
        """Return whether a Host header is one of the names, or the address that the connection came to."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        return name in self._names or (name != "" and name == local_address.lower())


def _unbracket(name: str) -> str:
    return name.removeprefix("[").removesuffix("]")


def is_same_origin(headers: Mapping[str, str]) -> bool:
    """Return whether a page of this site sent the request, by Sec-Fetch-Site and Origin. Without both: False."""
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is not None and site != "same-origin":
        return False
    if origin is not None:
        # Only the host: behind HAProxy the scheme that the browser sees is not the one here.
        return urlsplit(origin).netloc.lower() == headers.get("host", "").lower() != ""
    return site is not None


class Users:
    """The users file, in htpasswd's format with bcrypt hashes. It is read at each check: edits count at once."""

    def __init__(self, path: str) -> None:
        """Check the whole file. Raises UsageError, OSError."""
        self._path = path
        self.read()

    def read(self) -> dict[str, str]:
        """Return the hash of each user. Raises UsageError, OSError."""
        found: dict[str, str] = {}
        text = untrusted_files.read_whole_file(self._path).decode("utf-8", "replace")
        for number, line in enumerate(text.split("\n"), 1):
            if not line.strip() or line.startswith("#"):
                continue
            user, _, hashed = line.strip().partition(":")
            if not NAME.fullmatch(user):
                raise UsageError(f"{self._path}:{number}: {user[:40]!r} is not a user name; use {NAME.pattern}")
            if not _HASH.fullmatch(hashed):
                raise UsageError(f"{self._path}:{number}: {user}: not a bcrypt hash; write it with `htpasswd -B`")
            found[user] = hashed
        if not found:
            raise UsageError(f"{self._path}: has no user; add one with `htpasswd -B {self._path} NAME`")
        return found

    def check(self, user: str, password: str) -> bool:
        """Return whether the password is right; takes a while, as bcrypt does. Raises UsageError, OSError."""
        import bcrypt  # noqa: PLC0415  # only with --users

        hashed = self.read().get(user)
        given = password.encode()
        plain = b"\0" not in given and 0 < len(given) <= _PASSWORD_BYTES
        right = bcrypt.checkpw(given if plain else b"?", (hashed or _NOBODY).encode())
        return right and plain and hashed is not None


class Session(NamedTuple):
    """A user who has logged in."""

    user: str
    token: str
    """The hidden field of each form of this session."""
    key: str
    """Identifies the session."""


class Sessions:
    """Signed cookies. Their key is made at the start, so a restart logs all users out."""

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        """`now` returns epoch seconds."""
        self._key, self._now = secrets.token_bytes(32), now
        self._ended: dict[str, float] = {}

    def begin(self, user: str) -> str:
        """Return the cookie's value for a user who has logged in."""
        content = json.dumps([user, self._now() + SESSION_SECONDS, secrets.token_urlsafe(16)]).encode()
        payload = base64.urlsafe_b64encode(content).decode()
        return f"{payload}.{self._sign('session', payload)}"

    def find(self, cookie: str) -> Session | None:
        """Return the session of a cookie; None if it is not ours, too old, or was ended."""
        payload, _, signature = cookie.rpartition(".")
        if not hmac.compare_digest(signature.encode(), self._sign("session", payload).encode()):
            return None
        try:
            user, until, key = json.loads(base64.urlsafe_b64decode(payload))
        except (ValueError, TypeError, binascii.Error):
            return None
        if until <= self._now() or key in self._ended:
            return None
        return Session(user, self._sign("form", payload), key)

    def end(self, session: Session) -> None:
        """Log a session out."""
        now = self._now()
        self._ended = {key: until for key, until in self._ended.items() if until > now}
        self._ended[session.key] = now + SESSION_SECONDS

    def _sign(self, purpose: str, payload: str) -> str:
        return hmac.new(self._key, f"{purpose} {payload}".encode("utf-8", "replace"), hashlib.sha256).hexdigest()


def is_token(session: Session, given: str) -> bool:
    """Return whether a form has the token of its session."""
    return hmac.compare_digest(session.token.encode(), given.encode("utf-8", "replace"))


class FailureLimit:
    """Counts failed log-ins by address and by user."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` returns seconds."""
        self._clock = clock
        self._failures: dict[str, deque[float]] = {}

    def seconds_left(self, *keys: str) -> int:
        """Return the seconds until the next attempt is allowed for all of these keys; 0 if it is now."""
        now = self._clock()
        waits = (self._failures[key][0] + _PERIOD - now for key in keys if self._is_full(key, now))
        return max([0, *(int(wait) + 1 for wait in waits)])

    def add(self, *keys: str) -> None:
        """Count one failure for each key."""
        now = self._clock()
        for key in keys:
            self._is_full(key, now)  # drops what is too old
            self._failures.setdefault(key, deque(maxlen=_FAILURES)).append(now)
        while len(self._failures) > _TRACKED:
            del self._failures[next(iter(self._failures))]

    def forget(self, *keys: str) -> None:
        """Drop the failures of these keys."""
        for key in keys:
            self._failures.pop(key, None)

    def _is_full(self, key: str, now: float) -> bool:
        times = self._failures.get(key)
        while times and times[0] + _PERIOD <= now:
            times.popleft()
        if times is not None and not times:
            del self._failures[key]
        return times is not None and len(times) == _FAILURES

"""Find and inspect processes.

Every event that runs without the daemon has to find HAProxy. What that takes is read from /proc: importing psutil takes
13 ms, longer than an interpreter's start, and its search of the process table takes five times as long as this one.
Also read here is what psutil does not offer: the start time in clock ticks, which identifies a process although the
system clock is set, signal masks, files in the view of a process in a container, and children without a search of the
whole process table. psutil is imported for everything else.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

_ESTABLISHED, _LISTENING = "01", "0A"
_LOCAL, _REMOTE, _STATE, _USER = 1, 2, 3, 7
_EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104  # compared, not bound

_IPV4_BYTES = 4
_MAPPED = "::ffff:"
"""Prefix of an IPv4 address on an IPv6 socket."""

Endpoint = tuple[str, int]
"""Address and port."""

_AT_ONCE = 200
"""Maximum number of simultaneous attempts: a process may have few descriptors."""

_PARENT, _STARTED = 1, 19

_LOOKS = 3
"""Attempts to compare a file that may be replaced meanwhile."""

_LINKS = 40
"""Maximum number of symbolic links in one path, as in the kernel."""

_EXEC, _POLL = 2.0, 0.005
"""Seconds that an exec may take on a busy machine, and seconds between two attempts."""

_ENV_END = 48
"""Index of env_end in /proc/PID/stat behind the program name."""


class Process(NamedTuple):
    """One process, as it was when read. `pid` and `started` together identify it."""

    pid: int
    started: int
    """Start time, in clock ticks since boot."""
    parent: int
    program: str
    alive: bool
    """Neither a zombie nor dead."""

    @property
    def identity(self) -> tuple[int, int]:
        """The pid and start time. A pid alone may be reused."""
        return self.pid, self.started

    @property
    def user(self) -> int | None:
        """The real uid; None if the process has ended."""
        import psutil  # noqa: PLC0415  # as the docstring of the module explains

        try:
            # Not the owner of /proc/PID: that is root for a process that forbids core dumps.
            return psutil.Process(self.pid).uids().real
        except psutil.Error:
            return None

    @property
    def start_time(self) -> float:
        """The start time in epoch seconds, to about 10 ms."""
        import psutil  # noqa: PLC0415  # as the docstring of the module explains

        # Not its create_time: some versions keep the boot time, which changes when the clock is set.
        return psutil.boot_time() + self.started / os.sysconf("SC_CLK_TCK")

    @property
    def argv(self) -> list[str]:
        """The command line; empty if the process has ended or may not be read."""
        return [os.fsdecode(word) for word in self._read_nonempty("cmdline").split(b"\0")[:-1]]

    @property
    def environ(self) -> dict[str, str]:
        """The initial environment; empty if it may not be read."""
        pairs = (word.partition(b"=") for word in self._read_nonempty("environ").split(b"\0") if b"=" in word)
        return {os.fsdecode(key): os.fsdecode(value) for key, _, value in pairs}

    @property
    def environ_readable(self) -> bool:
        """Whether `environ` can be read. If not, an empty `environ` means nothing."""
        return os.access(f"/proc/{self.pid}/environ", os.R_OK)

    @property
    def cwd(self) -> str | None:
        """The working directory; None if it may not be read."""
        try:
            return os.readlink(f"/proc/{self.pid}/cwd")
        except OSError:
            return None

    def runs_program(self, program: os.stat_result) -> bool:
        """Return whether it executes this very file; not if the file was replaced since, or that may not be read."""
        try:
            return os.path.samestat(os.stat(f"/proc/{self.pid}/exe"), program)
        except OSError:
            return False

    def defers_signal(self, signal: int) -> bool:
        """Return whether the process blocks this signal, or has it pending. Visible to any user."""
        return self._has_signal(signal, b"SigBlk", b"ShdPnd", b"SigPnd")

    def handles_signal(self, signal: int) -> bool:
        """Return whether the process has a handler for this signal."""
        return self._has_signal(signal, b"SigCgt")

    def _has_signal(self, signal: int, *masks: bytes) -> bool:
        fields = (line.partition(b":") for line in self._read_lines("status"))
        return any(name in masks and int(value, 16) >> (signal - 1) & 1 for name, _, value in fields)

    def sees_file(self, path: str, ours: str) -> bool:
        """Return whether `path`, in the view of the process, is the same file or directory as our `ours`.

        The process may run in a container or chroot, so `path` is resolved in its root directory. If that may not be
        inspected, or the process has changed its root since it started, the names are compared.
        """
        for _ in range(_LOOKS):
            try:
                theirs = os.stat(_resolve_in_root(f"/proc/{self.pid}/root", path))
                if os.path.samestat(theirs, os.stat(ours)):
                    return True
            except PermissionError:
                return _is_same_name(path, ours)
            except OSError:
                return self._root_is_ours and _is_same_name(path, ours)
            if not _is_same_name(path, ours):
                return False
            # The file may have been replaced between the two stat calls.
        return False

    def resolve_path(self, path: str) -> str:
        """Return our path for what the process calls `path`; `path` itself where its root may not be inspected.

        A process that has changed its root since it started does not see its own files: for these, too, `path` itself.
        """
        with contextlib.suppress(OSError):
            inside = _resolve_in_root(f"/proc/{self.pid}/root", path)
            os.stat(inside)
            return inside
        return path

    def translate_address(self, address: str) -> str:
        """Return our path for the socket that the process calls `address`, resolved in its root and working directory.

        Addresses that are not paths are returned unchanged.
        """
        kind, separator, path = address.rpartition("@")
        if kind not in ("", "unix") or not (separator or path.startswith("/")):
            return address
        path = os.path.join(self.cwd or "/", path)
        root = f"/proc/{self.pid}/root"
        with contextlib.suppress(OSError):
            if not os.path.samestat(os.stat(root), os.stat("/")):
                return f"{root}{path}"
        return path

    @property
    def inner_pid(self) -> int:
        """The pid in its own pid namespace; differs in a container."""
        for line in self._read_lines("status"):
            if line.startswith(b"NSpid:"):
                return int(line.split()[-1])
        return self.pid

    @property
    def shares_network(self) -> bool | None:
        """Whether it is in our network namespace; None if that may not be inspected."""
        try:
            return os.readlink(f"/proc/{self.pid}/ns/net") == os.readlink("/proc/self/ns/net")
        except OSError:
            return None

    @property
    def _root_is_ours(self) -> bool:
        """Whether its root directory has the same name for us: no chroot, or one that it entered itself."""
        link = f"/proc/{self.pid}/root"
        try:
            return os.path.samestat(os.stat(link), os.stat(os.readlink(link)))
        except OSError:
            return False

    @property
    def unit(self) -> str | None:
        """The systemd service that it belongs to, or None."""
        for line in map(os.fsdecode, self._read_lines("cgroup")):
            for part in reversed(line.rpartition(":")[2].split("/")):
                if part.endswith(".service"):
                    return part
        return None

    def _read_nonempty(self, name: str) -> bytes:
        """Read a file in /proc/PID; retry while it is empty because of an exec.

        A HAProxy master makes two execs per reload.
        """
        deadline = time.monotonic() + _EXEC
        while (content := self._read(name)) == b"" and time.monotonic() < deadline:
            before, content, after = self._read_env_end(), self._read(name), self._read_env_end()
            # The address is another one after each exec, and 0 during one.
            if content or before == after != b"0" or not is_running(*self.identity):
                break
            time.sleep(_POLL)
        return content or b""

    def _read_env_end(self) -> bytes:
        """Return where the environment ends in the memory of the process, see env_end in proc(5)."""
        fields = (self._read("stat") or b"").rpartition(b") ")[2].split()
        return fields[_ENV_END] if len(fields) > _ENV_END else b""

    def _read_lines(self, name: str) -> list[bytes]:
        return (self._read(name) or b"").split(b"\n")

    def _read(self, name: str) -> bytes | None:
        """Return a file in /proc/PID; None if the process has ended or it may not be read."""
        try:
            with open(f"/proc/{self.pid}/{name}", "rb") as file:
                return file.read()
        except OSError:
            return None


def read_process(pid: int) -> Process | None:
    """Return the process `pid`; None if there is none, or if it cannot be read."""
    try:
        return find_process(pid)
    except OSError:
        return None


def find_process(pid: int) -> Process | None:
    """Return the process `pid`; None if there is none. Raises OSError if it cannot be read."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            stat = file.read()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The program name is in parentheses and may itself contain blanks and parentheses.
    name, _, rest = stat.partition(b"(")[2].rpartition(b")")
    fields = rest.split()
    return Process(pid, int(fields[_STARTED]), int(fields[_PARENT]), os.fsdecode(name), fields[0] not in b"ZXx")


def is_running(pid: int, started: int) -> bool:
    """Return whether this process still runs; the start time excludes a reused pid."""
    now = read_process(pid)
    return now is not None and now.alive and now.started == started


def find_processes(prefix: str) -> list[Process]:
    """Return every live process whose program name begins with `prefix`."""
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    return [
        one for pid in pids if (one := read_process(pid)) is not None and one.alive and one.program.startswith(prefix)
    ]


def find_children(pid: int) -> frozenset[int]:
    """Return the pids of the children of `pid`; empty if it has ended, or the kernel does not list them."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children", "rb") as file:
            return frozenset(map(int, file.read().split()))
    except OSError:
        return frozenset()


def can_read_processes() -> bool:
    """Return whether processes of other users are visible; not if /proc is mounted with hidepid."""
    return os.geteuid() == 0 or os.access("/proc/1/stat", os.R_OK)


def _resolve_in_root(root: str, path: str) -> str:
    """Resolve `path` within the root directory `root`; symbolic links do not lead out of it.

    Raises OSError (ELOOP).
    """
    parts, found, links = [*reversed(path.split("/"))], root, 0
    while parts:
        name = parts.pop()
        if name in ("", "."):
            continue
        if name == "..":
            found = root if found == root else os.path.dirname(found)
            continue
        inside = f"{found}/{name}"
        try:
            target = os.readlink(inside)
        except OSError:
            found = inside
            continue
        links += 1
        if links > _LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        parts += reversed(target.split("/"))
        if target.startswith("/"):
            found = root
    return found


def _is_same_name(path: str, ours: str) -> bool:
    return os.path.abspath(path) == os.path.abspath(ours) or os.path.realpath(path) == os.path.realpath(ours)


class Listener(NamedTuple):
    """A listening TCP socket."""

    address: str
    port: int
    pid: int | None
    """A process that has it open; None if it may not be inspected."""


def list_listeners() -> list[Listener]:
    """Return the listening sockets in our network namespace; empty if they may not be inspected."""
    import psutil  # noqa: PLC0415  # takes 13 ms, needed only after a failed reload

    try:
        found = psutil.net_connections("tcp")
    except (psutil.Error, OSError):
        return []
    return [
        Listener(one.laddr.ip, one.laddr.port, one.pid)
        for one in found
        if one.status == psutil.CONN_LISTEN and one.laddr
    ]


def count_connections() -> Counter[Endpoint]:
    """Count the established connections by remote address and port.

    Reads /proc/net/tcp: psutil inspects the descriptors of all processes too, and takes three times as long.
    """
    found: Counter[str] = Counter()
    found.update(row[_REMOTE] for row in _read_rows(_STATE) if row[_STATE] == _ESTABLISHED)
    return Counter({_parse_endpoint(remote): count for remote, count in found.items()})


def find_listening_users(asked: str) -> set[int]:
    """Return the uids that listen at `asked`, a HOST:PORT.

    Reads /proc/net/tcp, which shows the sockets of other users to any user; psutil gives no uid of a socket.
    """
    at = _resolve_endpoint(asked)
    everywhere = {(one, port) for _, port in at for one in _EVERYWHERE}
    found = set()
    for row in _read_rows(_USER):
        if row[_STATE] == _LISTENING and _parse_endpoint(row[_LOCAL]) in at | everywhere:
            found.add(int(row[_USER]))
    return found


def is_same_endpoint(one: str, other: str) -> bool:
    """Return whether two HOST:PORT may be the same endpoint; a wildcard address includes each address."""
    if one == other:
        return True
    here, there = _resolve_endpoint(one), _resolve_endpoint(other)
    ports = {port for _, port in here} & {port for _, port in there}
    return not here.isdisjoint(there) or any((host, port) in here | there for host in _EVERYWHERE for port in ports)


def _resolve_endpoint(given: str) -> set[Endpoint]:
    """Return every address of HOST:PORT; empty if it cannot be resolved."""
    host, _, port = given.rpartition(":")
    if not (port.isascii() and port.isdigit()):
        return set()
    try:
        found = socket.getaddrinfo(host.strip("[]") or "0.0.0.0", int(port), type=socket.SOCK_STREAM)  # noqa: S104  # read, not bound
    except (OSError, ValueError, OverflowError):
        return set()
    return {(str(address[0]), int(address[1])) for *_, address in found}


def _read_rows(last: int) -> Iterator[list[str]]:
    for path in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError), open(path, encoding="ascii") as file:
            next(file)
            yield from (line.split(None, last + 1) for line in file)


def _parse_endpoint(row: str) -> Endpoint:
    """Parse an endpoint of /proc/net/tcp: words of 32 bits in the byte order of this machine, a colon and the port."""
    digits, port = row.split(":")
    words = (int(digits[at : at + 8], 16) for at in range(0, len(digits), 8))
    packed = b"".join(word.to_bytes(4, sys.byteorder) for word in words)
    address = socket.inet_ntop(socket.AF_INET if len(packed) == _IPV4_BYTES else socket.AF_INET6, packed)
    return address.removeprefix(_MAPPED) if "." in address else address, int(port, 16)


def find_silent_endpoints(endpoints: Iterable[Endpoint], seconds: float) -> set[Endpoint]:
    """Return the endpoints that refuse a connection, or do not accept one in `seconds`.

    Endpoints that were not tried in time count as answering.
    """
    left = sorted(set(endpoints))
    deadline = time.monotonic() + seconds
    found: set[Endpoint] = set()
    while left and time.monotonic() < deadline:
        found |= _try_connections(left[:_AT_ONCE], deadline)
        left = left[_AT_ONCE:]
    return found


def _try_connections(endpoints: Iterable[Endpoint], deadline: float) -> set[Endpoint]:
    trials: dict[int, tuple[socket.socket, Endpoint]] = {}
    try:
        refused = set()
        for endpoint in endpoints:
            try:
                one = _open_socket(endpoint)
            except OSError:  # no descriptors left, or no IPv6: not the fault of the other side
                continue
            trials[one.fileno()] = one, endpoint
            if one.connect_ex(endpoint) not in (0, errno.EINPROGRESS):
                refused.add(endpoint)
        waiting = {number: trial for number, trial in trials.items() if trial[1] not in refused}
        return refused | _wait_for_failures(waiting, deadline)
    finally:
        for one, _ in trials.values():
            one.close()


def _wait_for_failures(trials: dict[int, tuple[socket.socket, Endpoint]], deadline: float) -> set[Endpoint]:
    """Return the endpoints whose connection failed, or did not complete until the deadline."""
    poll, waiting, found = select.poll(), set(trials), set()
    for number in trials:
        poll.register(number, select.POLLOUT)
    while waiting and (rest := deadline - time.monotonic()) > 0:
        for number, _ in poll.poll(rest * 1000):
            poll.unregister(number)
            waiting.discard(number)
            if _read_error(trials[number][0]):
                found.add(trials[number][1])
    return found | {trials[number][1] for number in waiting}


def _open_socket(endpoint: Endpoint) -> socket.socket:
    one = socket.socket(socket.AF_INET6 if ":" in endpoint[0] else socket.AF_INET, socket.SOCK_STREAM)
    one.settimeout(0)
    # As HAProxy's own checks: reset before the acknowledgement, so that the server does not see a client.
    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    return one


def _read_error(one: socket.socket) -> int:
    return one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

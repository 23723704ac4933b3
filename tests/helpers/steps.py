"""The system calls of a run, and faults in each of them, with strace's fault injection.

A run is recorded first. A step is one of its system calls that can fail, identified by a filter, a name and a number:
the third `rename` of a file in the state directory. strace counts the calls that pass its filter, so the numbers are
those of every later run that does the same.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from tests.helpers.real_programs import LBAGENT, LoadBalancer, wait_until

_FILE_CALLS = (
    *(
        "openat",
        "read",
        "write",
        "fsync",
        "rename",
        "renameat",
        "link",
        "unlink",
        "unlinkat",
        "mkdir",
        "flock",
        "fcntl",
    ),
    *("newfstatat", "getdents64", "fchmod", "fchown", "listxattr", "readlink", "access", "close"),
)
_PROCESS_CALLS = ("openat", "read", "getdents64", "readlink", "newfstatat")
_OTHER_CALLS = (
    *("socket", "connect", "sendto", "recvfrom", "poll", "setsockopt", "getsockopt", "memfd_create", "clone3", "vfork"),
    *("pidfd_open", "pselect6", "pread64", "kill", "write"),
)

CHANGING = frozenset(
    (
        *("write", "fsync", "rename", "renameat", "link", "unlink", "unlinkat", "mkdir", "flock", "fchmod", "connect"),
        *("sendto", "recvfrom", "clone3", "vfork", "kill", "create"),
    )
)
"""Calls before which a kill makes a difference; `create` is an openat that may create a file."""

ERRORS: Mapping[str, tuple[str, ...]] = {
    "openat": ("EIO", "EMFILE"),
    "create": ("ENOSPC", "EIO", "EMFILE", "EROFS"),
    "read": ("EIO", "EINTR"),
    "write": ("ENOSPC", "EIO", "EINTR"),
    "fsync": ("EIO", "ENOSPC", "EINTR"),
    "rename": ("EIO", "ENOSPC"),
    "renameat": ("EIO", "ENOSPC"),
    "link": ("EIO", "ENOSPC", "EMLINK"),
    "unlink": ("EIO", "EROFS"),
    "unlinkat": ("EIO", "EROFS"),
    "mkdir": ("ENOSPC",),
    "flock": ("ENOLCK", "EINTR"),
    "fcntl": ("EIO", "EAGAIN"),
    "newfstatat": ("EIO",),
    "getdents64": ("EIO",),
    "fchmod": ("EIO",),
    "fchown": ("EPERM",),
    "listxattr": ("EIO",),
    "readlink": ("EIO",),
    "access": ("EIO",),
    "close": ("EIO",),
    "socket": ("EMFILE",),
    "connect": ("ECONNREFUSED", "EAGAIN", "EINTR"),
    "sendto": ("EPIPE", "EINTR"),
    "recvfrom": ("ECONNRESET", "EINTR"),
    "poll": ("ENOMEM", "EINTR"),
    "setsockopt": ("ENOMEM",),
    "getsockopt": ("ENOBUFS",),
    "memfd_create": ("EMFILE",),
    "clone3": ("EAGAIN",),
    "vfork": ("EAGAIN",),
    "pidfd_open": ("EMFILE",),
    "pselect6": ("ENOMEM", "EINTR"),
    "pread64": ("EIO",),
    "kill": ("EPERM",),
}
"""The errors of each call that a disk, a network, a limit or a signal causes."""

_ELSEWHERE = {"write": re.compile("[12]<"), "pread64": re.compile(r"\d+</memfd:")}
"""The descriptors of these calls that count without a filter for paths: other files are not lbagent's, or have one."""

_REPEATS = 10
"""Equal calls on one path that are kept at the begin of a run, and at its end."""

_PATH = re.compile('["<](/[^">]*)[">]')

_CALL = re.compile(r"(?:\d+ +)?(\w+)\((.*)")


class Filter(NamedTuple):
    """Which system calls strace counts."""

    name: str
    calls: tuple[str, ...]
    paths: tuple[Path, ...] = ()
    """Only calls on these paths, or on descriptors of them."""

    @property
    def options(self) -> list[str]:
        """The options of strace."""
        paths = [word for path in self.paths for word in ("-P", str(path))]
        return ["-qq", "-y", "-s", "80", "-e", "signal=none", "-e", f"trace={','.join(self.calls)}", *paths]


class Step(NamedTuple):
    """One system call of a run."""

    filter: Filter
    call: str
    number: int
    line: str
    """The line that strace writes for it."""

    @property
    def kind(self) -> str:
        """Its key in ERRORS."""
        return "create" if self.call == "openat" and "O_CREAT" in self.line else self.call

    @property
    def faults(self) -> list[str]:
        """The faults to inject: one error, or a request to end; and a kill where it makes a difference."""
        changing = self.kind in CHANGING
        errors = [*(f"error={name}" for name in ERRORS[self.kind]), *(["signal=TERM"] if changing else [])]
        # The steps of one kind take turns with the errors of that kind.
        return [errors[self.number % len(errors)], *(["signal=KILL"] if changing else [])]

    def __str__(self) -> str:
        return f"{self.filter.name}: {self.line[:110]} ({self.call} {self.number})"


class FaultyRun(NamedTuple):
    """A run with a fault."""

    status: int
    output: str
    errors: str
    line: str
    """The line of strace for the call that failed; empty if the run did not get as far as that step."""


def list_filters(lb: LoadBalancer, pids: Sequence[int]) -> list[Filter]:
    """Return the filters for runs on `lb`, whose HAProxy has the processes `pids`."""
    state = ["lock", "watch.lock", "roles.json"]
    for name in (
        "members.json",
        "served.json",
        "last.json",
        "metrics.prom",
        "answers.json",
        "peers.json",
        "history.jsonl",
    ):
        state += [name, f"{name}.new"]
    files = [lb.state, lb.state / "spool", *(lb.state / name for name in [*state, "served.json.incomplete"])]
    hidden = [lb.etc / f".{lb.cfg.name}.lbagent-{suffix}" for suffix in ("staged", "old", "replaced", "previous")]
    files += [lb.roles, lb.etc, lb.cfg, *hidden]
    proc = [Path("/proc"), *(Path(f"/proc/{pid}/{name}") for pid in pids for name in ("stat", "cmdline", "status"))]
    return [
        Filter("files", _FILE_CALLS, tuple(files)),
        Filter("processes", _PROCESS_CALLS, tuple(proc)),
        Filter("connections", _OTHER_CALLS),
    ]


def record_steps(
    lb: LoadBalancer,
    which: Filter,
    words: Sequence[str],
    stdin: bytes = b"",
    env: Mapping[str, str] = MappingProxyType({}),
    *,
    status: int = 0,
) -> list[Step]:
    """Make a good run and return its system calls. Raises AssertionError if its exit status is not `status`."""
    done, trace = _run_traced(lb, which.options, words, stdin, env)
    assert done.returncode == status, done.stderr
    return parse_steps(which, trace)


def parse_steps(which: Filter, trace: str) -> list[Step]:
    """Return the steps in the output of strace."""
    counted, found = Counter[str](), []
    for line in trace.splitlines():
        if parsed := _CALL.match(line):
            call, rest = parsed.groups()
            counted[call] += 1
            # The files of a run are in a filter of their own.
            if which.paths or call not in _ELSEWHERE or _ELSEWHERE[call].match(rest):
                # The fstat of an open file does not fail.
                if call == "newfstatat" and "AT_EMPTY_PATH" in rest:
                    continue
                found.append(Step(which, call, counted[call], line))
    return found


def limit_repeats(steps: Sequence[Step]) -> list[Step]:
    """Return the steps without those in the middle of a loop that waits for a process."""
    places: dict[tuple[str, str, str], list[int]] = {}
    for at, step in enumerate(steps):
        if paths := _PATH.findall(step.line):
            places.setdefault((step.filter.name, step.call, paths[-1]), []).append(at)
    left_out = {at for found in places.values() for at in found[_REPEATS:-_REPEATS]}
    return [step for at, step in enumerate(steps) if at not in left_out]


def inject(
    lb: LoadBalancer,
    step: Step,
    fault: str,
    words: Sequence[str],
    stdin: bytes = b"",
    env: Mapping[str, str] = MappingProxyType({}),
) -> FaultyRun:
    """Make a run with `fault` in this step.

    The call may be another one than was recorded, as other programs on the machine are looked at.
    """
    options = [*step.filter.options, "-e", f"inject={step.call}:{fault}:when={step.number}"]
    done, trace = _run_traced(lb, options, words, stdin, env)
    errors = "".join(line for line in done.stderr.decode().splitlines(keepends=True) if not line.startswith("strace: "))
    return FaultyRun(done.returncode, done.stdout.decode(), errors, find_injected(step, trace))


class Trace:
    """The output of strace; `text` is complete when strace has ended."""

    text = ""


@contextlib.contextmanager
def attach(pid: int, which: Filter, inject: str = "") -> Iterator[Trace]:
    """Trace the main thread of a running process, with a fault if given."""
    trace = Trace()
    with tempfile.NamedTemporaryFile(prefix="strace-", suffix=".txt") as file:
        options = [*which.options, *(["-e", f"inject={inject}"] if inject else [])]
        with subprocess.Popen(
            ["strace", "-p", str(pid), "-o", file.name, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as tracer:
            try:
                wait_until(lambda: b"TracerPid:\t0" not in Path(f"/proc/{pid}/status").read_bytes())
                yield trace
            finally:
                tracer.terminate()
        trace.text = Path(file.name).read_text(errors="replace")


def find_injected(step: Step, trace: str) -> str:
    """Return the line of strace for the call that failed; empty if the process did not get as far."""
    calls = [line for line in trace.splitlines() if (found := _CALL.match(line)) and found[1] == step.call]
    return calls[step.number - 1] if len(calls) >= step.number else ""


def _run_traced(
    lb: LoadBalancer, options: Sequence[str], words: Sequence[str], stdin: bytes, env: Mapping[str, str]
) -> tuple[subprocess.CompletedProcess[bytes], str]:
    with tempfile.NamedTemporaryFile(prefix="strace-", suffix=".txt") as file:
        done = subprocess.run(
            ["strace", "-o", file.name, *options, LBAGENT, *words],
            input=stdin,
            env={**lb.env, **env},
            cwd=lb.folder,
            capture_output=True,
            timeout=600,
            check=False,
        )
        return done, Path(file.name).read_text(errors="replace")

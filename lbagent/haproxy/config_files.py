"""haproxy.cfg on disk at one moment: its files, its text, and the HAProxy that runs it."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from lbagent.errors import TryAgain
from lbagent.haproxy import process
from lbagent.haproxy.config import Document
from lbagent.haproxy.instance import Haproxy
from lbagent.haproxy.process import RunningHaproxy
from lbagent.haproxy.runtime import session, state
from lbagent.haproxy.runtime.state import Stats
from lbagent.haproxy.validation import UNREADABLE_FILE, check_files, find_reason
from lbagent.roles.model import HaproxySettings
from lbagent.state import files
from lbagent.state.files import Target

_QUERY_TIMEOUT = 1.0
"""Seconds to wait for the server states."""


class ConfigSnapshot(NamedTuple):
    """All files of haproxy.cfg at one moment, in HAProxy's order."""

    targets: tuple[Target, ...]
    document: Document

    @property
    def texts(self) -> tuple[str, ...]:
        """The text of each file."""
        return tuple(decode(target.content) for target in self.targets)

    @property
    def names(self) -> list[str]:
        """The paths as the operator wrote them."""
        return [target.given for target in self.targets]

    @property
    def paths(self) -> list[str]:
        """The real paths of the files."""
        return [target.path for target in self.targets]

    @property
    def is_unchanged(self) -> bool:
        """Whether the files are still what was read."""
        return all(files.is_unchanged(target) for target in self.targets)

    @property
    def changed_at(self) -> float:
        """When any of the files was last changed (ctime), in epoch seconds. Raises OSError."""
        return max(os.stat(target.path).st_ctime for target in self.targets)

    @property
    def size(self) -> int:
        """Size of all files in bytes."""
        return sum(len(target.content) for target in self.targets)

    def remove_stale_stages(self) -> None:
        """Clean up after a run that was killed."""
        for target in self.targets:
            files.remove_stale_stages(target)

    @contextlib.contextmanager
    def stage(self, texts: Sequence[str]) -> Iterator[tuple[str, ...]]:
        """Stage `texts` and yield the paths for `haproxy -c`: staged files where a text differs. Raises OSError."""
        with contextlib.ExitStack() as stack:
            yield tuple(
                stack.enter_context(files.stage_text(target, encode(text))) if text != old else target.path
                for target, text, old in zip(self.targets, texts, self.texts, strict=True)
            )

    def swap(self, paths: Sequence[str], *, keep: bool) -> bool:
        """Replace the files by the staged ones; return False if one was saved meanwhile. Raises OSError."""
        return all(
            files.swap_files(path, target, keep=keep)
            for path, target in zip(paths, self.targets, strict=True)
            if path != target.path
        )


def read_config(settings: HaproxySettings) -> ConfigSnapshot:
    """Read haproxy.cfg. Raises OSError."""
    targets = tuple(files.read_target(path) for given in settings.config for path in list_files(given))
    if not targets:
        raise FileNotFoundError(errno.ENOENT, "holds no *.cfg file", settings.config[0])
    return ConfigSnapshot(targets, build_document(targets, lambda: process.read_environment(settings.config)))


def read_previous(scene: ConfigSnapshot) -> Document | None:
    """Return the version before lbagent's last change; None if none was kept."""
    found = []
    for target in scene.targets:
        with contextlib.suppress(OSError):
            found.append(files.read_target(target.hidden_path("previous"))._replace(given=target.given))
            continue
        found.append(target)
    return (
        build_document(found)
        if any(kept is not target for kept, target in zip(found, scene.targets, strict=True))
        else None
    )


def find_haproxy(settings: HaproxySettings, scene: ConfigSnapshot, known: RunningHaproxy | None = None) -> Haproxy:
    """Return the HAProxy that runs this haproxy.cfg; `known` saves the search if it is alive.

    Raises TryAgain if ambiguous.
    """
    return Haproxy(settings, scene.document.settings, known)


def query_server_states(document: Document) -> Stats:
    """Return the server states from HAProxy; empty if no stats socket answers."""
    for address in session.list_stats_sockets(document.settings):
        with contextlib.suppress(OSError, ValueError):
            return state.parse_stats(session.ask(address, state.STATS_COMMAND, _QUERY_TIMEOUT))
    return {}


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
                    file.write(encode(text))
                paths.append(path)
            return self._check(paths)

    def _check(self, paths: Sequence[str]) -> str | None:
        result = check_files(paths, self._settings.timeout, self._running)
        if result.status is None:
            raise TryAgain(result.output)
        if result.succeeded:
            return None
        reason = find_reason(result.output)
        if os.geteuid() and UNREADABLE_FILE.search(result.output):
            raise VerdictUnknown(f"this user may not read all files that haproxy.cfg refers to ({reason})")
        for path, name in zip(paths, self._snapshot.names, strict=True):
            reason = reason.replace(path, name)
        return reason


def build_document(
    targets: Sequence[Target], environ: Callable[[], Mapping[str, str] | None] = lambda: None
) -> Document:
    """Return the files as one document; `environ` returns the variables of the running HAProxy."""
    return Document([(target.given, decode(target.content)) for target in targets], environ)


def decode(content: bytes) -> str:
    """Decode any bytes so that `encode` restores them: Shift-JIS, Latin-1 or invalid UTF-8."""
    return content.decode("utf-8", "surrogateescape")


def encode(text: str) -> bytes:
    """Encode a text from `decode`."""
    return text.encode("utf-8", "surrogateescape")


def list_files(path: str) -> list[str]:
    """Return the files that HAProxy loads for this path of a file or directory. Raises OSError."""
    if not os.path.isdir(path):
        return [path]
    # HAProxy loads the non-hidden *.cfg files of a directory in byte order (management manual, section 3, option -f).
    names = sorted(os.fsencode(name) for name in os.listdir(path) if name.endswith(".cfg") and not name.startswith("."))
    return [os.path.join(path, os.fsdecode(name)) for name in names]

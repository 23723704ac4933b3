"""haproxy.cfg on disk at one moment: its files, its text, and the HAProxy that runs it."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from lbagent.haproxy import process, validation
from lbagent.haproxy.config import Document
from lbagent.haproxy.instance import Haproxy
from lbagent.haproxy.process import RunningHaproxy
from lbagent.haproxy.reader import Environment
from lbagent.haproxy.runtime import session, state
from lbagent.haproxy.runtime.state import Stats
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
    targets = tuple(files.read_target(path) for given in settings.config for path in process.list_files(given))
    if not targets:
        raise FileNotFoundError(errno.ENOENT, "holds no *.cfg file", settings.config[0])
    return ConfigSnapshot(targets, build_document(targets, lambda: validation.read_environment(settings.config)))


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
    return session.ask_any(document.settings, state.STATS_COMMAND, state.parse_stats, _QUERY_TIMEOUT) or {}


def build_document(targets: Sequence[Target], read_environment: Callable[[], Environment] = Environment) -> Document:
    """Return the files as one document; `read_environment` returns the environment of the running HAProxy."""
    files = tuple((target.given, decode(target.content)) for target in targets)
    return _parse_files(files).bind_environment(read_environment)


@lru_cache(maxsize=1)
def _parse_files(files: tuple[tuple[str, str], ...]) -> Document:
    # A command reads the same text several times, and the daemon once more after it has written it.
    return Document(files)


def decode(content: bytes) -> str:
    """Decode any bytes so that `encode` restores them: Shift-JIS, Latin-1 or invalid UTF-8."""
    return content.decode("utf-8", "surrogateescape")


def encode(text: str) -> bytes:
    """Encode a text from `decode`."""
    return text.encode("utf-8", "surrogateescape")

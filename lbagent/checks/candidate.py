"""Candidate texts of haproxy.cfg, validated by `haproxy -c` in a temporary folder: the live files are not touched.

For whatever must not interfere with a run that is under way: `plan`, `check`, and `watch` when roles.yml was edited.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Sequence

from lbagent import scene
from lbagent.errors import TryAgain
from lbagent.haproxy import acceptance
from lbagent.haproxy.acceptance import reason
from lbagent.haproxy.process import Running
from lbagent.roles import HaproxySettings
from lbagent.scene import Scene

UNREADABLE = re.compile(
    r"permission denied|unable to (?:stat|open|load|read)|cannot (?:open|access|stat)", re.IGNORECASE
)

"""What HAProxy says where this user may not read a file that haproxy.cfg names."""


class Unjudged(TryAgain):
    """HAProxy's verdict is not known: this user may not read what the text refers to, or it uses relative paths."""


class Validator:
    """Asks `haproxy -c` about the live haproxy.cfg and about texts that could replace it."""

    def __init__(
        self, seen: Scene, settings: HaproxySettings, running: Running | None, *, accepted: bool = False
    ) -> None:
        """`running` gives environment and working directory, where there is one.

        `accepted` says that HAProxy has accepted the live files already.
        """
        self._seen, self._settings, self._running = seen, settings, running
        self._live: str | None = None
        self._asked = accepted

    def live_refusal(self) -> str | None:
        """HAProxy's words against the live files, None where it accepts them. Raises Unjudged, TryAgain."""
        if not self._asked:
            self._live, self._asked = self._refusal([target.path for target in self._seen.targets]), True
        return self._live

    def refusal(self, texts: Sequence[str]) -> str | None:
        """HAProxy's words against these texts, None where it accepts them. Raises Unjudged, TryAgain."""
        words = self._refusal_of_copies(texts)
        if words is None or self.live_refusal() is not None:
            return words
        if self._refusal_of_copies(self._seen.texts) is not None:
            raise Unjudged("haproxy.cfg refers to files relative to its own folder")
        return words

    def _refusal_of_copies(self, texts: Sequence[str]) -> str | None:
        with tempfile.TemporaryDirectory(prefix="lbagent-") as folder:
            paths = []
            for number, (target, text) in enumerate(zip(self._seen.targets, texts, strict=True)):
                path = os.path.join(folder, str(number), os.path.basename(target.path))
                os.mkdir(os.path.dirname(path))
                with open(path, "wb") as file:
                    file.write(scene.encoded(text))
                paths.append(path)
            return self._refusal(paths)

    def _refusal(self, paths: Sequence[str]) -> str | None:
        result = acceptance.checked(paths, self._settings.timeout, self._running)
        if result.status is None:
            raise TryAgain(result.words)
        if result.good:
            return None
        words = reason(result.words)
        if os.geteuid() and UNREADABLE.search(result.words):
            raise Unjudged(f"this user may not read all that haproxy.cfg refers to ({words})")
        for path, name in zip(paths, self._seen.names, strict=True):
            words = words.replace(path, name)
        return words

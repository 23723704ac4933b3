"""Names of the files in the state directory."""

from __future__ import annotations

import os
from collections import namedtuple

_Fields = namedtuple("_Fields", "folder")  # noqa: PYI024  # `typing` takes longer to import than an event to store


class Paths(_Fields):
    """Paths in the state directory `folder`."""

    folder: str

    __slots__ = ()

    @property
    def spool(self) -> str:
        """Directory of the events that are not applied to membership yet."""
        return os.path.join(self.folder, "spool")

    @property
    def bad(self) -> str:
        """Directory of files set aside because they are not valid events."""
        return os.path.join(self.spool, "bad")

    @property
    def lock(self) -> str:
        """Lock file of a run: its holder may update membership, plan and apply."""
        return os.path.join(self.folder, "lock")

    @property
    def watch_lock(self) -> str:
        """Lock file that a running `watch` holds."""
        return os.path.join(self.folder, "watch.lock")

    @property
    def members(self) -> str:
        """Membership, with pauses."""
        return os.path.join(self.folder, "members.json")

    @property
    def served(self) -> str:
        """What HAProxy last confirmed."""
        return os.path.join(self.folder, "served.json")

    @property
    def roles(self) -> str:
        """Cached copy of roles.yml."""
        return os.path.join(self.folder, "roles.json")

    @property
    def answers(self) -> str:
        """Answers to queries, written for handlers that may not apply changes themselves."""
        return os.path.join(self.folder, "answers.json")

    @property
    def history(self) -> str:
        """History: one JSON line per change."""
        return os.path.join(self.folder, "history.jsonl")

    @property
    def last(self) -> str:
        """Times of the last run, event, change, reload and sync."""
        return os.path.join(self.folder, "last.json")

    @property
    def peers(self) -> str:
        """The other load balancers, as the last sync saw them."""
        return os.path.join(self.folder, "peers.json")

    @property
    def metrics(self) -> str:
        """Metrics for node_exporter's textfile collector."""
        return os.path.join(self.folder, "metrics.prom")

    def prepare(self) -> None:
        """Create the missing directories. Raises OSError."""
        if not os.path.isdir(self.spool):
            # One by one: makedirs applies its mode to the last directory only.
            for folder in (self.folder, self.spool):
                os.makedirs(folder, mode=0o750, exist_ok=True)

"""What lies where in the state directory."""

from __future__ import annotations

import os

from lbagent.system.tuples import NamedTuple


class Paths(NamedTuple):
    """The state directory, by name."""

    folder: str

    @property
    def spool(self) -> str:
        """The folder of events not yet folded."""
        return os.path.join(self.folder, "spool")

    @property
    def bad(self) -> str:
        """The folder, within the spool, of what is no event."""
        return os.path.join(self.spool, "bad")

    @property
    def lock(self) -> str:
        """Who holds this may fold, plan and apply."""
        return os.path.join(self.folder, "lock")

    @property
    def watch_lock(self) -> str:
        """Held by a living `watch`."""
        return os.path.join(self.folder, "watch.lock")

    @property
    def members(self) -> str:
        """Membership."""
        return os.path.join(self.folder, "members.json")

    @property
    def served(self) -> str:
        """What HAProxy last confirmed."""
        return os.path.join(self.folder, "served.json")

    @property
    def roles(self) -> str:
        """roles.yml as it was read last."""
        return os.path.join(self.folder, "roles.json")

    @property
    def answers(self) -> str:
        """What queries are told that a user stored who may not do more."""
        return os.path.join(self.folder, "answers.json")

    @property
    def history(self) -> str:
        """A line for each change."""
        return os.path.join(self.folder, "history.jsonl")

    @property
    def last(self) -> str:
        """When what last happened."""
        return os.path.join(self.folder, "last.json")

    @property
    def peers(self) -> str:
        """The other load balancers, as the last sync saw them."""
        return os.path.join(self.folder, "peers.json")

    @property
    def metrics(self) -> str:
        """What node_exporter's textfile collector reads."""
        return os.path.join(self.folder, "metrics.prom")

    def prepare(self) -> None:
        """Make the folders where they are missing. Raises OSError."""
        if not os.path.isdir(self.spool):
            # One by one: makedirs gives its mode to the last folder only.
            for folder in (self.folder, self.spool):
                os.makedirs(folder, mode=0o750, exist_ok=True)

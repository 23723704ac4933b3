"""The environment variables that HAProxy reads a line of haproxy.cfg with, as far as they are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

UNKNOWN = object()
"""The value of a variable that may be set or not."""

_OWN = ("HAPROXY_", ".")
"""What HAProxy sets for itself, by its version and the way it was started."""

COMMANDS = frozenset(("setenv", "presetenv", "unsetenv", "resetenv"))
"""The keywords of `global` that change it."""


class Environment:
    """Variables with their values; it changes as HAProxy reads on."""

    def __init__(self, variables: Mapping[str, str] | None = None) -> None:
        """`variables` are those of the process; None where they are not known."""
        self._known: dict[str, object] = {**variables} if variables is not None else {}
        self._complete = variables is not None

    def value(self, name: str) -> object:
        """The value of a variable, None where it is not set, or UNKNOWN."""
        if name in self._known:
            return self._known[name]
        return None if self._complete and not name.startswith(_OWN) else UNKNOWN

    def defined(self, name: str) -> bool | None:
        """Whether a variable is set; None where that is unknown."""
        value = self.value(name)
        return None if value is UNKNOWN else value is not None

    def change(self, words: Sequence[str], *, sure: bool) -> None:
        """Do what a line of `global` does to the environment; `sure` tells whether HAProxy certainly obeys it."""
        command, names = words[0], words[1:]
        match command:
            case "setenv" | "presetenv" if len(names) > 1:
                name = names[0]
                # Of `presetenv` for a variable that may be set, nothing is known afterwards either.
                if not sure:
                    self._known[name] = UNKNOWN
                elif command == "setenv" or self.defined(name) is False:
                    self._known[name] = names[1]
            case "unsetenv":
                self._known |= dict.fromkeys(names, None if sure else UNKNOWN)
            case "resetenv":
                kept = {name: self.value(name) for name in names}
                self._known = kept if sure else {}
                self._complete = self._complete and sure
            case _:  # HAProxy refuses it
                pass

"""haproxy.cfg as directives: what each section says for itself, and what it takes from its `defaults`.

Parsed apart from `haproxy/text`, which every event pays for and which passes over all of this.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from lbagent.haproxy.reading import SECTIONS
from lbagent.tuples import NamedTuple

CLIENTS = ("frontend", "listen")
SERVERS = ("backend", "listen")

_TIME = re.compile(r"([0-9]{1,12})(us|ms|s|m|h|d)?")
_MILLISECONDS = {"us": 0.001, "ms": 1.0, "": 1.0, "s": 1e3, "m": 60e3, "h": 3600e3, "d": 86400e3}


class Directive(NamedTuple):
    """One line, in words, without its comment."""

    where: str
    words: tuple[str, ...]

    def begins(self, *words: str) -> bool:
        """Whether these are its first words."""
        return self.words[: len(words)] == words

    def after(self, word: str) -> str:
        """The word that follows `word`; nothing where there is none."""
        at = self.words.index(word) + 1 if word in self.words else len(self.words)
        return self.words[at] if at < len(self.words) else ""


class Section:
    """A section, and the `defaults` it takes what it does not say itself from."""

    def __init__(self, where: str, kind: str, name: str, base: Section | None) -> None:
        """Nothing is said yet."""
        self.where, self.kind, self.name, self.base = where, kind, name, base
        self.own: list[Directive] = []

    def __str__(self) -> str:
        return f"{self.kind} {self.name}".strip()

    def last(self, *words: str) -> Directive | None:
        """The directive that begins with these words and holds: the last one, its own before that of its defaults."""
        for line in reversed(self.own):
            if line.begins(*words):
                return line
        return self.base.last(*words) if self.base else None

    def option(self, name: str) -> bool:
        """Whether `option NAME` holds."""
        for line in reversed(self.own):
            if line.begins("option", name):
                return True
            if line.begins("no", "option", name):
                return False
        return self.base.option(name) if self.base else False

    def timeout(self, *names: str) -> tuple[str, float | None] | None:
        """The first of these timeouts that is set: its words, and its milliseconds (None where they are a variable)."""
        for name in names:
            line = self.last("timeout", name)
            if line is not None and len(line.words) > 2:  # noqa: PLR2004  # timeout NAME TIME
                return " ".join(line.words[:3]), milliseconds(line.words[2])
        return None

    @property
    def http(self) -> bool:
        """Whether it speaks HTTP."""
        line = self.last("mode")
        return line is not None and line.words[1:2] == ("http",)

    @property
    def binds(self) -> bool:
        """Whether clients come to it."""
        return self.kind in CLIENTS and any(line.begins("bind") for line in self.own)


def milliseconds(text: str) -> float | None:
    """A time as HAProxy writes it; None where it is none, or a variable."""
    found = _TIME.fullmatch(text)
    return int(found[1]) * _MILLISECONDS[found[2] or ""] if found else None


def sections(files: Sequence[tuple[str, str]]) -> list[Section]:
    """Every section of the files, given as (name, text), in order; `server` lines are passed over."""
    found: list[Section] = []
    for name, text in files:
        for at, words in _lines(text):
            if words[0] in SECTIONS:
                found.append(_section(f"{name}:{at}", words, found))
            elif found:
                found[-1].own.append(Directive(f"{name}:{at}", words))
    return found


def _lines(text: str) -> Iterator[tuple[int, tuple[str, ...]]]:
    for at, line in enumerate(text.split("\n"), 1):
        if line.lstrip(" \t").startswith(("server ", "server\t", "#")):
            continue
        if words := tuple(word.strip("\"'") for word in line.split("#", maxsplit=1)[0].split()):
            yield at, words


def _section(where: str, words: tuple[str, ...], before: Sequence[Section]) -> Section:
    kind, name = words[0], words[1] if len(words) > 1 else ""
    defaults = [section for section in before if section.kind == "defaults"]
    base: Section | None = None
    if "from" in words[:-1]:
        wanted = words[words.index("from") + 1]
        base = next((section for section in reversed(defaults) if section.name == wanted), None)
        name = "" if name == "from" else name
    elif kind in (*CLIENTS, *SERVERS):
        base = defaults[-1] if defaults else None
    return Section(where, kind, name, base)

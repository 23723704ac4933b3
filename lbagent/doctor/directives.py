"""haproxy.cfg as directives: what each section says for itself, and what it takes from its `defaults`."""

from __future__ import annotations

import re
from collections.abc import Mapping

from lbagent.haproxy import reading
from lbagent.haproxy.text import Document
from lbagent.tuples import NamedTuple

CLIENTS = ("frontend", "listen")
SERVERS = ("backend", "listen")

_TIME = re.compile(r"([0-9]{1,12})(us|ms|s|m|h|d)?")
_MILLISECONDS = {"us": 0.001, "ms": 1.0, "": 1.0, "s": 1e3, "m": 60e3, "h": 3600e3, "d": 86400e3}


class Directive(NamedTuple):
    """One line, in words."""

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


def sections(document: Document) -> list[Section]:
    """Every section of haproxy.cfg that HAProxy reads, or may read, in order; `server` lines are passed over."""
    found: dict[int, Section] = {}
    defaults: dict[str, Section] = {}
    for directive, section in document.directives():
        at, where = directive.at, document.where(directive.at)
        if section is not None and section.at == at:
            found[at] = one = Section(where, section.kind, section.name, _base(section, defaults))
            if section.kind == "defaults":
                defaults[section.name] = defaults[""] = one
        elif (own := max(directive.place.sections)) in found:
            found[own].own.append(Directive(where, tuple(directive.words)))
    return [*found.values()]


def _base(section: reading.Section, defaults: Mapping[str, Section]) -> Section | None:
    if section.base or section.kind in (*CLIENTS, *SERVERS):
        return defaults.get(section.base)
    return None

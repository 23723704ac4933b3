"""haproxy.cfg line by line as HAProxy reads it: the section of each line, and whether HAProxy reads it at all."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence

from lbagent.haproxy.conditions import Level, Path, decided
from lbagent.haproxy.environment import COMMANDS, Environment
from lbagent.haproxy.words import Words, cut
from lbagent.tuples import NamedTuple

SECTIONS = frozenset(
    {"global", "defaults", "frontend", "backend", "listen", "peers", "resolvers", "mailers", "userlist", "program"}
    | {"http-errors", "ring", "cache", "log-forward", "fcgi-app", "crt-store", "traces", "log-profile", "acme"}
)
SERVERS = ("backend", "listen")
"""The sections whose servers lbagent manages."""

NOWHERE, ANYWHERE = -1, -2
"""In place of a section's line: outside of all sections, and in one that only HAProxy knows."""

_CONDITIONS = frozenset((".if", ".elif", ".else", ".endif"))


class Place(NamedTuple):
    """Where HAProxy is in the text, from one line on."""

    start: int
    sections: tuple[int, ...] = (NOWHERE,)
    """The lines of the sections that it may be in, the last in the text last; one where that is certain."""
    active: bool | None = True
    """Whether HAProxy reads what is here; None where only HAProxy can tell."""
    path: Path = ()
    """The branches of `.if` around it."""

    @property
    def section(self) -> int | None:
        """The line of its section; None where only HAProxy can tell which that is."""
        return self.sections[0] if len(self.sections) == 1 else None


class Directive(NamedTuple):
    """One line, in words."""

    at: int
    words: Sequence[str]
    sure: bool
    """Whether HAProxy certainly reads these words."""
    place: Place
    """That of the line; for a section's own line the place below it."""


class Section(NamedTuple):
    """The line that begins a section."""

    at: int
    kind: str
    name: str
    base: str
    """The name of the `defaults` that it is `from`."""
    sure: bool = True
    """Whether its name is known."""


class Reader:
    """Reads one line after the other."""

    def __init__(self, environment: Environment) -> None:
        """It begins outside of all sections; `environment` changes as `setenv` and its kind are read."""
        self._environment = environment
        self._levels: list[tuple[Level, tuple[int, ...], list[tuple[int, ...]]]] = []
        """Each `.if` around, with the sections it began in and those its branches have ended in."""
        self._numbers = 0
        self.place = Place(0)
        self.places = [self.place]
        """Each place, in the order of the text."""
        self.sections: dict[int, Section] = {}

    def begin(self, at: int) -> None:
        """Go on with another file, whose first line is `at`."""
        self._levels = []
        self._go(at, (NOWHERE,))

    def step(self, at: int, found: Words) -> Directive:
        """Read a line of at least one word."""
        words, sure = found
        first = words[0]
        if first in _CONDITIONS:
            self._condition(at, first, found)
        elif first in SECTIONS:
            self.sections[at] = section(at, found)
            self._go(at, (at,))
        elif self.place.active is False:
            pass
        elif not sure and "$" in first:
            self._go(at, (*self.place.sections, ANYWHERE))
        elif first in COMMANDS and self._in_global():
            certain = sure and self.place.active is True and self.place.section is not None
            self._environment.change(words, sure=certain)
        return Directive(at, words, sure, self.place)

    def at(self, line: int) -> Place:
        """The place of a line that has been read."""
        return self.places[bisect_right(self.places, line, key=lambda place: place.start) - 1]

    def _in_global(self) -> bool:
        return any(self.sections[at].kind == "global" for at in self.place.sections if at in self.sections)

    def _condition(self, at: int, word: str, found: Words) -> None:
        value = decided(" ".join(found.words[1:]), self._environment.defined) if found.sure else None
        if word == ".if":
            self._numbers += 1
            self._levels.append((Level(self._numbers, self.place.active, value), self.place.sections, []))
            self._go(at, self.place.sections)
        elif self._levels:  # HAProxy refuses the others
            level, before, ends = self._levels[-1]
            if level.active is not False:
                ends.append(self.place.sections)
            if word == ".endif":
                self._levels.pop()
                after = [*([] if level.complete and ends else [before]), *ends]
                self._go(at, tuple(dict.fromkeys(one for sections in after for one in sections)))
            else:
                level.turn(True if word == ".else" else value)
                self._go(at, before)

    def _go(self, at: int, sections: tuple[int, ...]) -> None:
        active = self._levels[-1][0].active if self._levels else True
        path = tuple((level.number, level.branch) for level, _, _ in self._levels)
        self.place = Place(at, sections, active, path)
        self.places.append(self.place)


def section(at: int, found: Words) -> Section:
    """The section that begins with these words."""
    kind, *words = found.words
    name = words.pop(0) if words and not (kind == "defaults" and words[0] == "from") else ""
    base = words[1] if words[:1] == ["from"] and len(words) > 1 else ""
    return Section(at, kind, name, base, found.sure or "$" not in name)


def read(
    lines: Iterable[tuple[int, str]], files: Sequence[int], reader: Reader, environment: Environment
) -> Iterator[Directive]:
    """The directives among numbered `lines` of files that begin at the lines `files`."""
    begins = [*files]
    for at, line in lines:
        while begins and at >= begins[0]:
            reader.begin(begins.pop(0))
        found = cut(line, environment)
        if found.words:
            yield reader.step(at, found)


class Effective:
    """What HAProxy makes of a text: the words of `global`, and which servers it has."""

    def __init__(self, lines: Iterable[tuple[int, str]], files: Sequence[int], environment: Environment) -> None:
        """`lines` are the numbered ones that matter: sections, conditions, `global`, `enabled` and `disabled`."""
        self._reader = Reader(environment)
        self.settings: list[list[str]] = []
        """The words of each line of `global` that HAProxy reads, or may read, as far as they are known."""
        self._disabled: dict[int, bool | None] = {}
        self._defaults: dict[str, int] = {}
        for one in read(lines, files, self._reader, environment):
            self._take(one)

    def _take(self, one: Directive) -> None:
        first, place = one.words[0], one.place
        if place.active is False or first in _CONDITIONS:
            return
        found = self._reader.sections.get(one.at)
        if found is not None:
            base = self._defaults.get(found.base, NOWHERE) if found.kind != "defaults" or found.base else NOWHERE
            self._disabled[one.at] = self._disabled.get(base, False)
            if found.kind == "defaults":
                self._defaults[found.name] = self._defaults[""] = one.at
        elif first in ("disabled", "enabled"):
            certain = one.sure and place.active and place.section is not None
            for at in place.sections:
                self._disabled[at] = first == "disabled" if certain else None
        elif one.sure and any(self._kind(at) == "global" for at in place.sections):
            self.settings.append([*one.words])

    def _kind(self, at: int) -> str:
        return self._reader.sections[at].kind if at in self._reader.sections else ""

    def server(self, line: int) -> tuple[str | None, bool | None]:
        """The name of the proxy that a `server` line at `line` is in, and whether HAProxy has that server.

        Either is None where only HAProxy can tell.
        """
        place = self._reader.at(line)
        if place.active is False:
            return None, False
        if place.section is None or place.section not in self._reader.sections:
            return None, None
        found = self._reader.sections[place.section]
        disabled = self._disabled.get(place.section, False)
        if found.kind not in SERVERS or disabled is True:
            return None, False
        if not found.sure or not place.active or disabled is None:
            return None, None
        return found.name, True

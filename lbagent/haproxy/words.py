"""Split a line of haproxy.cfg into words as HAProxy does: quotes, backslashes, comments and variables.

Rules: HAProxy configuration manual, sections 2.2 "Quoting and escaping" and 2.3 "Environment variables". A word ends at
a blank outside quotes; `#` outside quotes begins a comment, also in the middle of a word; variables are expanded only
between double quotes. No other module splits lines.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

UNKNOWN = object()
"""The value of a variable when nothing is known about it."""

_OWN_PREFIXES = ("HAPROXY_", ".")
"""Prefixes of variables that HAProxy sets itself, by its version and the way it was started."""

COMMANDS = frozenset(("setenv", "presetenv", "unsetenv", "resetenv"))
"""The keywords of `global` that change the environment."""


EvaluatePredicate = Callable[[str], bool | None]
"""Returns whether a predicate such as `feature(THREAD)` is true of the running program; None where that is unknown."""


class Environment:
    """The environment variables at one line of haproxy.cfg; `setenv` and similar keywords change it."""

    def __init__(
        self, variables: Mapping[str, str] | None = None, evaluate_predicate: EvaluatePredicate = lambda _: None
    ) -> None:
        """`variables` are those of the HAProxy process; None where they are unknown."""
        self.evaluate_predicate = evaluate_predicate
        self._known: dict[str, object] = {**variables} if variables is not None else {}
        self._complete = variables is not None

    def find_value(self, name: str) -> object:
        """Return the value of a variable, None if it is not set, or UNKNOWN."""
        if name in self._known:
            return self._known[name]
        return None if self._complete and not name.startswith(_OWN_PREFIXES) else UNKNOWN

    def is_defined(self, name: str) -> bool | None:
        """Return whether a variable is set; None where that is unknown."""
        value = self.find_value(name)
        return None if value is UNKNOWN else value is not None

    def apply_command(self, words: Sequence[str], *, sure: bool) -> None:
        """Apply `setenv`, `presetenv`, `unsetenv` or `resetenv`.

        `sure`: whether HAProxy certainly executes the line.
        """
        command, names = words[0], words[1:]
        match command:
            case "setenv" | "presetenv" if len(names) > 1:
                name = names[0]
                # After `presetenv` of a variable that may be set, its value is unknown as well.
                if not sure:
                    self._known[name] = UNKNOWN
                elif command == "setenv" or self.is_defined(name) is False:
                    self._known[name] = names[1]
            case "unsetenv":
                self._known |= dict.fromkeys(names, None if sure else UNKNOWN)
            case "resetenv":
                kept = {name: self.find_value(name) for name in names}
                self._known = kept if sure else {}
                self._complete = self._complete and sure
            case _:  # HAProxy rejects it
                pass


WORD_LIMIT = 64
"""HAProxy rejects a line with more words."""

_SPECIAL = re.compile(r"[\"'\\]|[^\t\x20-\x7e]")
_PIECE = re.compile(r"[^ \t\v\f\n\r\0\"'\\#$]+|[ \t\v\f]+|.", re.DOTALL)
_BLANKS = " \t\v\f"
_VARIABLE = re.compile(r"\$(\{?)(\.?[A-Za-z_]?[A-Za-z0-9_]*)")
_HEX = re.compile(r"[0-9A-Fa-f]{2}")
_ESCAPED = {" ": " ", "\\": "\\", "t": "\t", "n": "\n", "r": "\r", "#": "#", "'": "'", '"': '"', "$": "$"}
_ALL_WORDS = "[*]"


class Words(NamedTuple):
    """The words of a line."""

    words: list[str]
    sure: bool = True
    """Whether HAProxy certainly reads these words: no variable has an unknown value, and nothing is rejected."""


class _Malformed(ValueError):
    """HAProxy rejects the line."""


def split_words(line: str, environment: Environment | None = None) -> Words:
    """Return the words of `line`, without its comment; variables unknown to `environment` are left as written.

    The list ends before an empty word, as HAProxy's parser of keywords does; not for `.if` and similar lines.
    """
    line = line.strip("\r\n \t\v\f") if "\\" not in line else line.lstrip(" \t\v\f\r").rstrip("\r\n")
    if line.startswith("["):
        return Words([])  # a scope, which has a meaning only in other files
    if not _SPECIAL.search(line):
        words = line.partition("#")[0].split()
        return Words(words, len(words) <= WORD_LIMIT)
    cutter = _Splitter(line, environment or Environment())
    words = cutter.split()
    if "" in words and not words[0].startswith("."):
        del words[words.index("") :]
    return Words(words, cutter.sure and len(words) <= WORD_LIMIT)


class _Splitter:
    def __init__(self, line: str, environment: Environment) -> None:
        self._line, self._environment, self._at = line, environment, 0
        self._found: list[str] = [""]
        self.sure = True

    def split(self) -> list[str]:
        try:
            self._split_line()
        except _Malformed:
            self.sure = False
        if self._found[-1] == "":  # after the last blank, or on a line with only a comment
            del self._found[-1]
        return self._found

    def _split_line(self) -> None:
        quote = ""
        while found := _PIECE.match(self._line, self._at):
            piece = found.group()
            self._at = found.end()
            if piece in "\n\r\0" or (piece == "#" and not quote):
                break
            if piece == quote:
                quote = ""
            elif piece in ("'", '"') and not quote:
                quote = piece
            elif piece == "\\" and quote != "'":
                self._found[-1] += self._read_escape(quote)
            elif piece == "$" and quote == '"':
                self._read_variable()
            elif piece[0] in _BLANKS and not quote:
                self._found.append("")
            else:
                self._found[-1] += piece
        if quote:
            raise _Malformed

    def _read_escape(self, quote: str) -> str:
        char = self._line[self._at : self._at + 1]
        if char == "x":
            digits = _HEX.match(self._line, self._at + 1)
            if digits is None:
                raise _Malformed
            self._at = digits.end()
            return bytes.fromhex(digits.group()).decode("utf-8", "surrogateescape")
        if char not in _ESCAPED or (char == "$" and not quote):
            return "\\"
        self._at += 1
        return _ESCAPED[char]

    def _read_variable(self) -> None:
        begin = self._at - 1
        found = _VARIABLE.match(self._line, begin)
        if found is None or found.group(2) in ("", ".") or found.group(2)[0].isdigit():
            raise _Malformed
        brace, name = found.groups()
        self._at = found.end()
        every = bool(brace) and self._line.startswith(_ALL_WORDS, self._at)
        if every:
            self._at += len(_ALL_WORDS)
        value = self._environment.find_value(name)
        if brace:
            value = self._read_braces(value)
        if value is UNKNOWN:
            self.sure = False
            self._found[-1] += self._line[begin : self._at]
        elif every:
            # Each word of the value is a word of the line. Versions differ in what an empty value becomes.
            self.sure = self.sure and bool(str(value or "").strip())
            first, *more = re.split(r"[ \t\v\f\n\r]+", str(value or ""))
            self._found[-1] += first
            self._found += more
        else:
            self._found[-1] += str(value or "")

    def _read_braces(self, value: object) -> object:
        end = self._line.find("}", self._at)
        default = self._line[self._at : end]
        if end < 0 or (default and default[0] != "-"):
            raise _Malformed
        self._at = end + 1
        return default[1:] if value is None and default else value

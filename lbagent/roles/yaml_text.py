"""Read a YAML text strictly; each mistake is noted with its place, key path and fix.

The text is composed into nodes, not loaded into values. So duplicate keys are detected, and a role called `no` or a
port written `080` stays what the operator typed.

libyaml stops at the first error and names a token. This module names the mistake: a tab, an indentation that matches no
other line, an unclosed list, a placeholder without quotes. A repaired text is read only to find further mistakes; it is
never used.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import yaml

_SCALAR_LIMIT = 2000
_MOST = 200
"""Maximum number of mistakes: a file of another format has one in each line."""

_SHORT = 60
_GLUED = re.compile(r"([A-Za-z0-9._-]+):([{\[].*)", re.DOTALL)

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_REPAIRS = 20
"""Maximum number of syntax errors per file; later ones are seldom useful."""

_TAB_WIDTHS = (2, 4, 8)
_KEY = re.compile(r"^(?P<indent> *)(?:- +)?(?P<key>[^\s#'\"{}\[\],&*!|>%@`][^:#]*?)\s*:(?:\s|$)")
_NO_SPACE = re.compile(r"^(?P<before>\s*[A-Za-z0-9][A-Za-z0-9._-]*:)(?P<value>[^\s:/].*)$")
_UNQUOTED = re.compile(
    r"(?P<before>:[ ]+|[\[,][ ]*|-[ ]+)"
    r"(?P<value>(?:[^\s,\[\]{}\"'#:&*!|>%@`](?:[^,\[\]{}\"'#:]|:(?!\s))*)?"
    r"(?:\{(?:interval|name|role|server|tag:[^{}\"']*)\}(?:[^,\[\]{}\"'#:]|:(?!\s))*)+)"
)
_BAD_START = re.compile(r"(?P<before>:[ ]+|[\[,][ ]*|-[ ]+)(?P<value>[@`%*&|>!][^,\]}#]*)")
_BREAK = re.compile("\r\n|[\r\x85\u2028\u2029]")
_CLOSERS = {"sequence": ("list", "]"), "mapping": ("mapping", "}")}


@dataclass(frozen=True, slots=True)
class Mistake:
    """One mistake in a file, with its fix."""

    line: int
    """Counted from 1; 0 for the file as a whole."""
    column: int
    path: str
    """Key path, such as `roles.web.interval`."""
    problem: str
    fix: str

    def format_sentence(self, where: str) -> str:
        """Format as `FILE:LINE:COLUMN: KEY PATH: PROBLEM; FIX`."""
        place = f"{where}:{self.line}:{self.column}" if self.line else where
        path = f"{self.path}: " if self.path else ""
        fix = f"; {self.fix}" if self.fix else ""
        return f"{place}: {path}{self.problem}{fix}"


@dataclass(frozen=True, slots=True)
class _SyntaxError:
    """A syntax error as libyaml reports it. Lines and columns are counted from 0."""

    lines: Sequence[str]
    line: int
    column: int
    problem: str
    """libyaml's words, such as `expected ',' or ']', but got '<stream end>'`."""
    context: str
    """What was being parsed, such as `while parsing a flow sequence`."""
    begin: tuple[int, int]
    """Line and column where the construct in `context` begins; those of the error without a context."""

    @property
    def text(self) -> str:
        """The line of the error."""
        return self.lines[self.line]

    @property
    def above(self) -> list[int]:
        """The lines above the error that are neither empty nor a comment, the nearest first."""
        return [at for at in reversed(range(self.line)) if self.lines[at].lstrip()[:1] not in ("", "#")]

    @property
    def near(self) -> list[int]:
        """The line of the error and the nearest one above."""
        return [self.line, *self.above[:1]]

    def mentions(self, *words: str) -> bool:
        """Return whether libyaml's words contain one of these."""
        return any(one in self.problem for one in words)

    def replace_line(self, at: int, text: str) -> str:
        """Return the file with another text in line `at`."""
        return "\n".join([*self.lines[:at], text, *self.lines[at + 1 :]])

    def quote(self, at: int, start: int, value: str) -> str:
        """Return the file with quotes around `value`, which begins at `start` of line `at`."""
        line = self.lines[at]
        return self.replace_line(at, f'{line[:start]}"{value}"{line[start + len(value) :]}')


@dataclass(frozen=True, slots=True)
class _Repair:
    """The mistakes behind a syntax error, and candidate repairs of the text."""

    mistakes: Sequence[Mistake]
    """Without key paths: only the repaired text shows them."""
    texts: Sequence[str]
    in_key: bool = True
    """Whether the mistakes have key paths."""


@dataclass(frozen=True, slots=True)
class _Attempt:
    """A repaired text, as far as it can be parsed."""

    text: str
    root: yaml.Node | None
    error: yaml.MarkedYAMLError | None
    rank: tuple[float, int]
    """The best has the largest: it can be parsed furthest; among complete ones, it has the fewest mistakes."""


Judge = Callable[[yaml.Node], int]
"""Counts the mistakes in a repaired text; the repair with the fewest is chosen."""


def parse_yaml(content: bytes, judge: Judge) -> tuple[yaml.Node | None, list[Mistake]]:
    """Return the root node of a YAML text and its syntax mistakes; None if it is empty or cannot be repaired."""
    try:
        return yaml.compose(content, Loader=_LOADER), []
    except yaml.reader.ReaderError as error:
        return None, [_explain_unreadable(content, error)]
    except RecursionError:
        return None, [Mistake(0, 0, "", "is nested too deeply", "")]
    except yaml.MarkedYAMLError as error:
        # Normalise line breaks: YAML recognises several kinds.
        text = _BREAK.sub("\n", content.decode("utf-8-sig", "replace"))
        if not text.endswith("\n"):
            # Without the end of the last line, the parser reports an open bracket at another place.
            return parse_yaml(f"{text}\n".encode(), judge)
        return _repair_text(text, error, judge)


def _repair_text(text: str, error: yaml.MarkedYAMLError, judge: Judge) -> tuple[yaml.Node | None, list[Mistake]]:
    found: list[Mistake] = []
    for _ in range(_REPAIRS):
        repair = _diagnose(text, error)
        attempts = [_try_repair(one, judge) for one in repair.texts]
        best = max(attempts, key=lambda one: one.rank)
        lines = best.text.split("\n")
        found += [
            replace(one, path=_find_key_path(lines, one.line - 1)) if repair.in_key else one for one in repair.mistakes
        ]
        if best.error is None or _find_position(best.error.problem_mark) <= _find_position(error.problem_mark):
            return best.root, found
        text, error = best.text, best.error
    return None, found


def _try_repair(text: str, judge: Judge) -> _Attempt:
    try:
        root = yaml.compose(text, Loader=_LOADER)
    except yaml.MarkedYAMLError as error:
        return _Attempt(text, None, error, (_find_position(error.problem_mark)[0], 0))
    except (yaml.YAMLError, RecursionError):  # another kind of mistake, such as a control character
        return _Attempt(text, None, None, (0, 0))
    return _Attempt(text, root, None, (math.inf, -judge(root) if root else 0))


def _find_position(mark: yaml.Mark | None) -> tuple[int, int]:
    """Return line and column, counted from 0. Every error of a parser has a mark."""
    return mark.line, mark.column  # type: ignore[union-attr]


def _explain_unreadable(content: bytes, error: yaml.reader.ReaderError) -> Mistake:
    position = error.position
    line = content[:position].count(b"\n") + 1
    column = position - (content.rfind(b"\n", 0, position) + 1) + 1
    try:
        content.decode("utf-8")
    except UnicodeError:
        return Mistake(line, column, "", "is not UTF-8 text", "save it as UTF-8")
    return Mistake(line, column, "", "contains a control character", "remove it")


def _diagnose(text: str, error: yaml.MarkedYAMLError) -> _Repair:
    """Find the mistake behind a syntax error. Only lines up to the error are reliably parsed."""
    found = _SyntaxError(
        text.split("\n"),
        *_find_position(error.problem_mark),
        str(error.problem),
        str(error.context),
        _find_position(error.context_mark or error.problem_mark),
    )
    repairs = (diagnose(found) for diagnose in _DIAGNOSES)
    unknown = _Repair([Mistake(found.line + 1, found.column + 1, "", f"invalid YAML: {error.problem}", "")], [text])
    return next(filter(None, repairs), unknown)


def _diagnose_tabs(error: _SyntaxError) -> _Repair | None:
    before = error.text[: error.column + 1]
    if "\t" not in before or before.strip():
        return None
    indents = [(at, line[: len(line) - len(line.lstrip())]) for at, line in enumerate(error.lines) if line.strip()]
    tabbed = {at: indent for at, indent in indents if "\t" in indent}
    mistakes = [
        Mistake(at + 1, indent.index("\t") + 1, "", "is indented with a tab", "use spaces")
        for at, indent in tabbed.items()
    ]
    return _Repair(mistakes, [_expand_tabs(error.lines, tabbed, width) for width in _TAB_WIDTHS])


def _expand_tabs(lines: Sequence[str], tabbed: Mapping[int, str], width: int) -> str:
    """Return the text with spaces in place of the tabs of the indentations in `tabbed`, by line."""
    return "\n".join(
        tabbed[at].replace("\t", " " * width) + line[len(tabbed[at]) :] if at in tabbed else line
        for at, line in enumerate(lines)
    )


def _diagnose_unquoted_placeholder(error: _SyntaxError) -> _Repair | None:
    if not (found := _find_value(_UNQUOTED, error)):
        return None
    start, value = found
    mistake = Mistake(error.line + 1, start + 1, "", f"{value} needs quotes", f'write "{value}"')
    return _Repair([mistake], [error.quote(error.line, start, value)])


def _diagnose_bad_start(error: _SyntaxError) -> _Repair | None:
    if not error.mentions("cannot start any token", "undefined alias", "alphabetic"):
        return None
    if not (found := _find_value(_BAD_START, error)):
        return None
    start, value = found
    problem = f"a value cannot begin with {value[0]} without quotes"
    mistake = Mistake(error.line + 1, start + 1, "", problem, f'write "{value}"')
    return _Repair([mistake], [error.quote(error.line, start, value)])


def _find_value(pattern: re.Pattern[str], error: _SyntaxError) -> tuple[int, str] | None:
    """Return the value at the error that `pattern` matches, and where it starts; None if there is none."""
    for one in pattern.finditer(error.text):
        if one.start("value") <= error.column <= one.end("value"):
            return one.start("value"), one["value"].rstrip()
    return None


def _diagnose_unclosed_quote(error: _SyntaxError) -> _Repair | None:
    if "quoted scalar" not in error.context:
        return None
    at, column = error.begin
    line = error.lines[at].rstrip()
    if not error.mentions("end of stream", "document"):
        return _diagnose_escape(error)
    quote = line[column]
    mistake = Mistake(at + 1, column + 1, "", "the quote is not closed", f"add {quote}")
    inner = line.rstrip("]},")
    return _Repair(
        [mistake], [error.replace_line(at, text) for text in (line + quote, inner + quote + line[len(inner) :])]
    )


def _diagnose_escape(error: _SyntaxError) -> _Repair:
    fix = "use single quotes, in which a backslash has no meaning"
    backslash = error.text.rfind("\\", 0, error.column + 1)
    text = error.replace_line(error.line, f"{error.text[:backslash]}\\{error.text[backslash:]}")
    return _Repair([Mistake(error.line + 1, backslash + 1, "", "unknown escape sequence", fix)], [text])


def _diagnose_unclosed_bracket(error: _SyntaxError) -> _Repair | None:
    kind = next((kind for kind in _CLOSERS if error.context.endswith(f"flow {kind}")), None)
    if kind is None:
        return _diagnose_open_end(error)
    name, closer = _CLOSERS[kind]
    at, begin = error.begin
    line = error.lines[at].rstrip()
    end = error.column if at == error.line else len(line)
    if end < len(line) and line[end] not in "]}":
        # `{port: 80 options: check}` is reported at the second colon.
        start = (line.rfind(" ", begin, end) + 1 or end) if line[end] == ":" else end
        mistake = Mistake(at + 1, start + 1, "", f"a comma is missing in the {name}", "add it")
        return _Repair([mistake], [error.replace_line(at, f"{line[:start].rstrip()}, {line[start:]}")])
    mistake = Mistake(at + 1, begin + 1, "", f"the {name} is not closed", f"add {closer}")
    rests = (line[end:], line[end + 1 :])
    return _Repair([mistake], [error.replace_line(at, line[:end] + closer + rest) for rest in rests])


def _diagnose_open_end(error: _SyntaxError) -> _Repair | None:
    """Find a list or mapping that is still open at the end of the file."""
    if any(line.strip() for line in error.lines[error.line :]):
        return None
    opened: list[tuple[int, int, str]] = []
    for number, line in enumerate(error.lines):
        for found in re.finditer(r"\"(?:[^\"\\]|\\.)*\"|'[^']*'|(?:^|\s)#.*|[\[\]{}]", line):
            if found[0] in "[{":
                opened.append((number, found.start(), found[0]))
            elif found[0] in "]}" and opened:
                opened.pop()
    if not opened:
        return None
    at, column, bracket = opened[-1]
    name, closer = _CLOSERS["sequence" if bracket == "[" else "mapping"]
    mistake = Mistake(at + 1, column + 1, "", f"the {name} is not closed", f"add {closer}")
    return _Repair([mistake], [error.replace_line(at, error.lines[at].rstrip() + closer)])


def _diagnose_unmatched_closer(error: _SyntaxError) -> _Repair | None:
    closer = error.text[error.column : error.column + 1]
    if not closer or closer not in "]}":
        return None
    mistake = Mistake(error.line + 1, error.column + 1, "", f"unmatched {closer}", "remove it")
    text = error.text[: error.column] + error.text[error.column + 1 :]
    return _Repair([mistake], [error.replace_line(error.line, text)])


def _diagnose_second_document(error: _SyntaxError) -> _Repair | None:
    if not error.mentions("another document"):
        return None
    mistake = Mistake(error.line + 1, error.column + 1, "", "begins a second YAML document", "remove the line ---")
    return _Repair([mistake], [error.replace_line(error.line, "")], in_key=False)


def _diagnose_duplicate_anchor(error: _SyntaxError) -> _Repair | None:
    if "duplicate anchor" not in error.context:
        return None
    fix = f"rename one, the first is in line {error.begin[0] + 1}"
    text = f"{error.text[: error.column + 1]}_{error.text[error.column + 1 :]}"
    mistake = Mistake(error.line + 1, error.column + 1, "", "duplicate anchor", fix)
    return _Repair([mistake], [error.replace_line(error.line, text)])


def _diagnose_missing_space(error: _SyntaxError) -> _Repair | None:
    # The error is reported at the next key, once the line before turns out not to be one.
    for at in error.near:
        if (found := _NO_SPACE.match(error.lines[at])) and (at == error.line or ": " not in found["value"]):
            before, value = found["before"], found["value"]
            text = error.replace_line(at, f"{before} {value}")
            fix = f"write {before.strip()} {value.strip()}"
            return _Repair([Mistake(at + 1, len(before), "", "missing space after ':'", fix)], [text])
    return None


def _diagnose_indentation(error: _SyntaxError) -> _Repair | None:
    if not error.mentions("expected key", "mapping values", "'-' indicator", "expected <block end>"):
        return None
    at, line, indent = error.line, error.text, _measure_indent(error.text)
    # Candidate indentations: those of the line above and of its parents.
    levels: list[int] = []
    for one in error.above:
        if not levels or _measure_indent(error.lines[one]) < levels[-1]:
            levels.append(_measure_indent(error.lines[one]))
    if not levels or (indent in levels and _KEY.match(line)):
        return None
    if not _KEY.match(line) and not line.lstrip().startswith("- "):
        return _diagnose_key_without_colon(error, at)
    texts = [_move_block(error.lines, at, indent, level) for level in levels]
    texts += [error.replace_line(at, " " * level + line.lstrip(" ")) for level in levels]
    right = " or ".join(f"{level}" for level in sorted(levels) if level or len(levels) == 1 or indent <= 1)
    problem = f"is indented by {indent} spaces, unlike any line above"
    return _Repair([Mistake(at + 1, indent + 1, "", problem, f"indent it by {right} spaces")], texts)


def _diagnose_missing_colon(error: _SyntaxError) -> _Repair | None:
    if not error.mentions("expected ':'", "mapping values"):
        return None
    for at in error.near:
        if not _KEY.match(error.lines[at]) and (repair := _diagnose_key_without_colon(error, at)):
            return repair
    return None


def _diagnose_key_without_colon(error: _SyntaxError, at: int) -> _Repair | None:
    line = error.lines[at]
    found = re.fullmatch(r"([A-Za-z0-9][A-Za-z0-9._-]*)(?:\s+([^:]*))?", line.strip())
    if not found:
        return None
    right = f"{found[1]}: {found[2] or ''}".rstrip()
    indent = _measure_indent(line)
    text = error.replace_line(at, " " * indent + right)
    return _Repair([Mistake(at + 1, indent + 1, "", "missing ':' after the key", f"write {right}")], [text])


def _diagnose_second_colon(error: _SyntaxError) -> _Repair | None:
    found = _KEY.match(error.text)
    if found is None or error.column < found.end() or not error.mentions("mapping values"):
        return None
    value = error.text[found.end() :].strip()
    start = error.text.index(value, found.end())
    mistake = Mistake(error.line + 1, start + 1, "", "a value with : needs quotes", f'write "{value}"')
    return _Repair([mistake], [error.replace_line(error.line, f'{error.text[:start]}"{value}"')])


def _move_block(lines: Sequence[str], at: int, indent: int, level: int) -> str:
    """Return the text with the line `at`, and the lines below it that belong to it, moved to `level`."""
    moved = list(lines)
    for number in range(at, len(lines)):
        line = lines[number]
        own = _measure_indent(line)
        if number > at and line.strip() and own < indent:
            break
        if line.strip():
            moved[number] = " " * max(0, own + level - indent) + line.lstrip(" ")
    return "\n".join(moved)


def _measure_indent(line: str) -> int:
    return len(line) - len(line.lstrip(" "))


def _find_key_path(lines: Sequence[str], at: int) -> str:
    """Return the key path of a line, from the indentation of the lines above."""
    keys: list[str] = []
    indent: int | None = None
    for line in reversed(lines[: at + 1]):
        found = _KEY.match(line)
        if found and (indent is None or len(found["indent"]) < indent):
            indent = len(found["indent"])
            keys.append(found["key"])
    return ".".join(reversed(keys))


_DIAGNOSES = (
    _diagnose_tabs,
    _diagnose_unquoted_placeholder,
    _diagnose_unclosed_quote,
    _diagnose_unclosed_bracket,
    _diagnose_unmatched_closer,
    _diagnose_second_document,
    _diagnose_duplicate_anchor,
    _diagnose_bad_start,
    _diagnose_missing_space,
    _diagnose_missing_colon,
    _diagnose_indentation,
    _diagnose_second_colon,
)
"""In the order of attempts: unambiguous mistakes first."""


class Reader:
    """Reads the nodes of one file and notes its mistakes."""

    def __init__(self) -> None:
        self.mistakes: list[Mistake] = []
        self.unread: set[str] = set()
        """Keys whose values could not be read; references to them are not further mistakes."""

    @property
    def is_full(self) -> bool:
        """Whether the maximum number of mistakes is reached."""
        return len(self.mistakes) >= _MOST

    def note(self, node: yaml.Node | None, path: str, problem: str, fix: str = "") -> None:
        """Note a mistake at a node, or in the file as a whole (None)."""
        line, column = (node.start_mark.line + 1, node.start_mark.column + 1) if node is not None else (0, 0)
        if not self.is_full:
            self.mistakes.append(Mistake(line, column, path, problem, fix))

    def read_text(self, node: yaml.Node, path: str, fix: str, *, empty: bool = False) -> str | None:
        """Return the text of a scalar; None if it is not a valid one. `empty` allows an empty text."""
        if isinstance(node, yaml.ScalarNode) and node.tag.endswith(":null") and not node.style:
            self.note(node, path, "has no value", fix)
            return None
        if not isinstance(node, yaml.ScalarNode):
            quoted = find_unquoted_placeholder(node)
            if quoted:
                self.note(node, path, f"{quoted} needs quotes", f'write "{quoted}"')
            else:
                kind = "a list" if isinstance(node, yaml.SequenceNode) else "a mapping"
                self.note(node, path, f"is {kind}, not a single value", fix)
            return None
        text: str = node.value
        if any(character < " " for character in text):
            self.note(node, path, f"{text[:_SHORT]!r} contains a control character", fix)
        elif len(text) > _SCALAR_LIMIT:
            self.note(node, path, f"has {len(text)} characters", f"use at most {_SCALAR_LIMIT}")
        elif not text.strip() and not empty:
            self.note(node, path, "is empty", fix)
        else:
            return text
        return None

    def read_texts(self, node: yaml.Node, path: str, fix: str, empty: str = "") -> list[tuple[yaml.Node, str]] | None:
        """Return the texts of a list with their nodes; None if it is not a list of texts.

        `empty` is the fix for an empty list; without it, an empty list is valid.
        """
        if not isinstance(node, yaml.SequenceNode):
            shown = f"{node.value[:_SHORT]!r} is" if isinstance(node, yaml.ScalarNode) and node.value else "is"
            self.note(node, path, f"{shown} not a list", fix)
            return None
        if empty and not node.value:
            self.note(node, path, "is an empty list", empty)
        found = [(item, self.read_text(item, path, fix)) for item in node.value]
        return [(item, text) for item, text in found if text is not None] if all(text for _, text in found) else None

    def read_items(self, node: yaml.Node, path: str, fix: str) -> dict[str, tuple[yaml.Node, yaml.Node]] | None:
        """Return the nodes of each key and its value, by key; None if it is not a mapping."""
        if not isinstance(node, yaml.MappingNode):
            empty = isinstance(node, yaml.ScalarNode) and (not node.value or node.tag.endswith(":null"))
            shown = f"{node.value[:_SHORT]!r} is" if isinstance(node, yaml.ScalarNode) else "is a list,"
            self.note(node, path, "has no keys" if empty else f"{shown} not a mapping of keys to values", fix)
            return None
        found: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self.note(key, path, "invalid key", "write KEY: VALUE")
                continue
            name = str(key.value)
            if not name.strip() or any(character < " " for character in name) or len(name) > _SCALAR_LIMIT:
                self.note(key, path, f"invalid key {name[:_SHORT]!r}", "write KEY: VALUE")
                continue
            glued = _GLUED.match(name)
            if glued:
                self.note(
                    key,
                    f"{path}.{glued[1]}".lstrip("."),
                    "missing space after ':'",
                    f"write {glued[1]}: with a space after it",
                )
                self.unread.add(glued[1])
                continue
            if name in found:
                first = found[name][0].start_mark.line + 1
                self.note(
                    key, f"{path}.{name}".lstrip("."), "duplicate key", f"remove one, the first is in line {first}"
                )
                continue
            found[name] = (key, value)
        return found

    def note_unknown_key(self, key: yaml.Node, path: str, known: Sequence[str]) -> None:
        """Note an unknown key; `known` are the valid ones."""
        name = str(key.value)
        before, colon, behind = name.partition(":")
        if colon and before in known:
            self.note(key, path, "missing space after ':'", f"write {before}: {behind}")
            return
        near = find_nearest(name, known)
        fix = f"did you mean {near}?" if near else f"use one of: {', '.join(known)}"
        self.note(key, path, "unknown key", fix)


def find_unquoted_placeholder(node: yaml.Node) -> str | None:
    """Return the placeholders that YAML read as a mapping, because they lack quotes; None if it is not that."""
    if not isinstance(node, yaml.MappingNode) or not node.flow_style or not node.value:
        return None
    if any(not isinstance(key, yaml.ScalarNode) or value.value != "" for key, value in node.value):
        return None
    return "{" + ", ".join(str(key.value) for key, _ in node.value) + "}"


def find_nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the known word that `word` was probably meant to be; None if none is close."""
    candidates = {_normalize(one): one for one in known}
    plain = _normalize(word)
    if plain in candidates:
        return candidates[plain]
    close = difflib.get_close_matches(plain, candidates, cutoff=0.75)
    if close:
        return candidates[close[0]]
    starts = [one for one in candidates if len(plain) >= 3 and (one.startswith(plain) or plain.startswith(one))]  # noqa: PLR2004
    return candidates[starts[0]] if len(starts) == 1 else None


def is_nearly_equal(word: str, other: str) -> bool:
    """Return whether two words differ only in case, `-` and `_`, a doubled letter or a plural `s`."""
    return word != other and _normalize(word) == _normalize(other)


def _normalize(word: str) -> str:
    letters = re.sub(r"[^a-z0-9]", "", word.lower())
    return re.sub(r"(.)\1+", r"\1", letters).removesuffix("s")

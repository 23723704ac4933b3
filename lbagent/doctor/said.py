"""What the `haproxy` program said, as findings: `haproxy -c` and `haproxy -v`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from lbagent.doctor.finding import Finding, Kind, error, ok, warning
from lbagent.names import counted
from lbagent.tuples import NamedTuple

TESTED = ("2.6", "2.8", "3.0", "3.2")
"""The versions of HAProxy that the tests run with, oldest first."""

_OLDEST, _NEWEST = (tuple(map(int, TESTED[at].split("."))) for at in (0, -1))
_TOLD = 10
"""Warnings, or alerts, told one by one."""

_LINE = re.compile(r"\[(ALERT|WARNING)\] +(?:\([0-9]+\)|[0-9/ ]+) ?: (?:config ?: )?(.*)")
_PLACE = re.compile(r"parsing \[([^\]]+:[0-9]+)\] ?: ?(.*)")
_SUMMARY = re.compile(r"Error\(s\) found in configuration file|Fatal errors found in configuration")
_VERSION = re.compile(r"version ([0-9]+)\.([0-9]+)[^ ]*")


class Checked(NamedTuple):
    """How `haproxy -c` ended."""

    good: bool
    words: str
    seconds: float
    limit: float
    """`haproxy.timeout` of roles.yml."""


def version(words: str) -> Finding:
    """The version that `haproxy -v` tells, beside those lbagent is tested with."""
    found = _VERSION.search(words)
    if found is None:
        return warning(Kind.HAPROXY, "haproxy -v", f"tells no version: {first_words(words)!r}", "install HAProxy")
    told = found[0].removeprefix("version ")
    number = (int(found[1]), int(found[2]))
    if number < _OLDEST:
        return warning(
            Kind.HAPROXY, "", f"HAProxy {told} is older than all that were tested", f"use {TESTED[0]} or newer"
        )
    if number > _NEWEST:
        what = f"HAProxy {told} is newer than all that were tested"
        return warning(Kind.HAPROXY, "", what, f"use {TESTED[-1]}, or try changes on a test system first")
    near = "" if f"{found[1]}.{found[2]}" in TESTED else f" (tested are {', '.join(TESTED[:-1])} and {TESTED[-1]})"
    return ok(Kind.HAPROXY, "", f"HAProxy {told}{near}")


def checked(result: Checked, where: str) -> Iterator[Finding]:
    """What `haproxy -c` has to say of haproxy.cfg, each complaint a finding."""
    told = [(found[1], found[2]) for found in map(_LINE.match, result.words.split("\n")) if found]
    alerts = [words for severity, words in told if severity == "ALERT"]
    reasons = [words for words in alerts if not _SUMMARY.match(words)]
    warnings = [words for severity, words in told if severity == "WARNING"]
    if not result.good and not reasons:
        # HAProxy 3.1 and later give some reasons in a warning.
        reasons = [words for words in warnings if _PLACE.match(words)]
        warnings = [words for words in warnings if words not in reasons]
    alerts = reasons or alerts
    if not result.good:
        for words in alerts[:_TOLD] or [first_words(result.words) or "refused without a word"]:
            place, what = _placed(words, where)
            yield error(Kind.HAPROXY_CFG, place, what, "until it is mended no node gets in or out")
    for words in warnings[:_TOLD]:
        place, what = _placed(words, where)
        yield warning(Kind.HAPROXY_CFG, place, what, "HAProxy's own warning")
    if more := _more(alerts) + _more(warnings):
        yield warning(Kind.HAPROXY_CFG, where, f"{counted(more, 'more complaint')} of HAProxy", "see `haproxy -c`")
    if result.good and not warnings:
        yield ok(Kind.HAPROXY_CFG, where, "accepted by `haproxy -c`, without a warning")
    yield _in_time(result)


def _in_time(result: Checked) -> Finding:
    if result.seconds > result.limit / 2:
        what = f"`haproxy -c` took {result.seconds:.1f} s, `haproxy.timeout` in roles.yml is {result.limit:g} s"
        return warning(Kind.TIME_LIMIT, "", what, "make it four times as long as the check takes")
    return ok(Kind.TIME_LIMIT, "", f"`haproxy -c` keeps well within {result.limit:g} s")


def _placed(words: str, where: str) -> tuple[str, str]:
    found = _PLACE.match(words)
    return (found[1], found[2]) if found else (where, words)


def _more(told: Sequence[str]) -> int:
    return len(told[_TOLD:])


def first_words(words: str) -> str:
    """The first line of them."""
    return words.strip().split("\n")[0]

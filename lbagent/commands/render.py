"""The command `render`: a template of haproxy.cfg, filled with the managed lines, for configuration management.

It only reads files and writes stdout; HAProxy is not involved.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from lbagent.errors import UsageError
from lbagent.haproxy import config_files
from lbagent.haproxy.config import Document, Edit
from lbagent.haproxy.config_files import ConfigSnapshot
from lbagent.membership.model import Membership
from lbagent.planning import quarantine
from lbagent.planning.plan import PlanOptions, make_plan
from lbagent.roles.model import Roles
from lbagent.run.engine import Engine
from lbagent.settings import Settings
from lbagent.state import files
from lbagent.system.log import Log

STDIN = "-"

_NamedTexts = Sequence[tuple[str, str]]
"""All files of one haproxy.cfg: path and text."""


def render(path: str | None) -> Callable[[Settings, Log], int]:
    """Return the command that prints `path` (default: haproxy.cfg; `-`: stdin) with its managed lines."""

    def verb(settings: Settings, log: Log) -> int:
        log.journal = False
        engine = Engine(settings, log)
        roles = engine.load_roles()
        live = _read_live(roles, required=path is None)
        texts, number = _read_template(path, roles, live)
        membership = _load_membership(engine, roles, required=live is not None)
        kept = quarantine.find_quarantined_in(membership, live.document, roles) if live else frozenset[str]()
        # Start from the managed lines of the live file: what the next run would keep (a quarantine, a blocked removal)
        # is kept here too.
        names = [name for name, _ in texts]
        document = Document([*zip(names, _insert_live_lines(texts, live), strict=True)])
        wanted = make_plan(document, roles, membership, PlanOptions(kept=kept))
        for note in wanted.notes:
            log.warning(note)
        sys.stdout.buffer.write(config_files.encode(wanted.after[number]))
        sys.stdout.buffer.flush()
        return 0

    return verb


def _read_live(roles: Roles, *, required: bool) -> ConfigSnapshot | None:
    """Return the live haproxy.cfg; None if it is missing and not `required`. Raises OSError."""
    try:
        return config_files.read_config(roles.haproxy)
    except FileNotFoundError:
        if required:
            raise
        return None


def _read_template(path: str | None, roles: Roles, live: ConfigSnapshot | None) -> tuple[_NamedTexts, int]:
    """Return the live files with the template in the place of its file, and its number. Raises UsageError, OSError."""
    texts = [(target.given, config_files.decode(target.content)) for target in live.targets] if live else []
    if path is None:
        if len(texts) != 1:
            files_given = ", ".join(roles.haproxy.config)
            raise UsageError(f"render: haproxy.cfg has {len(texts)} files ({files_given}); name one")
        return texts, 0
    content = sys.stdin.buffer.read() if path == STDIN else files.read_target(path).content
    text = config_files.decode(content)
    number = _find_live_file(path, [name for name, _ in texts])
    if number is None:
        return [("stdin" if path == STDIN else path, text)], 0
    name = texts[number][0]
    return [*texts[:number], (name, text), *texts[number + 1 :]], number


def _find_live_file(path: str, names: Sequence[str]) -> int | None:
    """Return the number of the live file that the template replaces: the only one, or the one with its name."""
    if len(names) == 1:
        return 0
    base = os.path.basename(path)
    same = [number for number, name in enumerate(names) if os.path.basename(name) in (base, base.removesuffix(".j2"))]
    return same[0] if len(same) == 1 else None


def _load_membership(engine: Engine, roles: Roles, *, required: bool) -> Membership:
    """Return the membership of the next run; empty where there is none and it is not `required`. Raises OSError."""
    try:
        return engine.preview_membership(roles)
    except FileNotFoundError:
        if required:
            raise
        return Membership()  # no run was made here, and there is no haproxy.cfg to rebuild membership from


def _insert_live_lines(texts: _NamedTexts, live: ConfigSnapshot | None) -> tuple[str, ...]:
    """Return the texts with the managed lines of the live file above the same markers, instead of their own."""
    document = Document(list(texts))
    lines_by_marker = _list_lines_by_marker(live.document) if live else {}
    edits = [Edit(line.at, line.at + 1, []) for proxy in document.proxies for line in proxy.managed]
    for proxy in document.proxies:
        for marker in proxy.markers:
            lines = lines_by_marker.get((str(proxy), marker.middle), ())
            edits.append(Edit(marker.at, marker.at, [f"{marker.indent}{text}{marker.ending}" for text in lines]))
    return document.apply_edits(edits)


def _list_lines_by_marker(document: Document) -> dict[tuple[str, str], list[str]]:
    """Return the managed lines by proxy and by the middle of the marker below them."""
    found: dict[tuple[str, str], list[str]] = {}
    for proxy in document.proxies:
        for line in proxy.managed:
            if line.marker < len(proxy.markers):
                found.setdefault((str(proxy), proxy.markers[line.marker].middle), []).append(line.text)
    return found

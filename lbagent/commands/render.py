"""The verb `render`: a haproxy.cfg of configuration management, filled with the managed lines, before it is deployed.

Pure reading: nothing is written but stdout, and HAProxy is not asked.
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
from lbagent.state.paths import Paths
from lbagent.system.log import Log

STDIN = "-"


def render(path: str | None) -> Callable[[Settings, Log], int]:
    """The verb that prints `path` (default: haproxy.cfg; `-`: stdin) with the managed lines it should have."""

    def verb(settings: Settings, log: Log) -> int:
        log.journal = False
        engine = Engine(Paths(settings.state_dir), settings.roles, log)
        roles = engine.roles()
        live = _look(roles, needed=path is None)
        template, at = _template(path, roles, live)
        membership = _membership(engine, roles, known=live is not None)
        kept = quarantine.find_quarantined_in(membership, live.document, roles) if live else frozenset[str]()
        # As the next run would find it: what it would leave alone (a quarantine, a blocked removal) is carried over.
        seeded = Document([*zip(_names(template), _seeded(template, live), strict=True)])
        wanted = make_plan(seeded, roles, membership, PlanOptions(kept=kept))
        for note in wanted.notes:
            log.warning(note)
        sys.stdout.buffer.write(config_files.encode(wanted.after[at]))
        sys.stdout.buffer.flush()
        return 0

    return verb


_Template = Sequence[tuple[str, str]]
"""All files of the haproxy.cfg that is to be, by name."""


def _look(roles: Roles, *, needed: bool) -> ConfigSnapshot | None:
    """The live haproxy.cfg; None before its first deployment. Raises OSError where it is `needed`."""
    try:
        return config_files.read_config(roles.haproxy)
    except FileNotFoundError:
        if needed:
            raise
        return None


def _template(path: str | None, roles: Roles, live: ConfigSnapshot | None) -> tuple[_Template, int]:
    """The template among the other files of haproxy.cfg, and its number there. Raises UsageError, OSError."""
    there = [(target.given, config_files.decode(target.content)) for target in live.targets] if live else []
    if path is None:
        if len(there) != 1:
            raise UsageError(
                f"render: haproxy.cfg has {len(there)} files ({', '.join(roles.haproxy.config)}); name one"
            )
        return there, 0
    content = sys.stdin.buffer.read() if path == STDIN else files.read_target(path).content
    text = config_files.decode(content)
    number = _number(path, [name for name, _ in there])
    if number is None:
        return [("stdin" if path == STDIN else path, text)], 0
    name = there[number][0]
    return [*there[:number], (name, text), *there[number + 1 :]], number


def _number(path: str, names: Sequence[str]) -> int | None:
    """Which of the live files the template is for: the only one, or the one of its name; None where that is open."""
    if len(names) == 1:
        return 0
    base = os.path.basename(path)
    alike = [at for at, name in enumerate(names) if os.path.basename(name) in (base, base.removesuffix(".j2"))]
    return alike[0] if len(alike) == 1 else None


def _membership(engine: Engine, roles: Roles, *, known: bool) -> Membership:
    """What the next run would know. Raises OSError."""
    try:
        return engine.preview_membership(roles)
    except FileNotFoundError:
        if known:
            raise
        return Membership()  # nothing has run here, and there is no haproxy.cfg to learn from


def _names(template: _Template) -> list[str]:
    return [name for name, _ in template]


def _seeded(template: _Template, live: ConfigSnapshot | None) -> tuple[str, ...]:
    """The template's texts with the managed lines of the live file above the same markers, instead of its own."""
    document = Document(list(template))
    standing = _standing(live.document) if live else {}
    edits = [Edit(line.at, line.at + 1, []) for proxy in document.proxies for line in proxy.managed]
    for proxy in document.proxies:
        for marker in proxy.markers:
            lines = standing.get((str(proxy), marker.middle), ())
            edits.append(Edit(marker.at, marker.at, [f"{marker.indent}{text}{marker.ending}" for text in lines]))
    return document.apply_edits(edits)


def _standing(document: Document) -> dict[tuple[str, str], list[str]]:
    """The managed lines of a text, by proxy and the middle of the marker below them."""
    found: dict[tuple[str, str], list[str]] = {}
    for proxy in document.proxies:
        for line in proxy.managed:
            if line.marker < len(proxy.markers):
                found.setdefault((str(proxy), proxy.markers[line.marker].middle), []).append(line.text)
    return found

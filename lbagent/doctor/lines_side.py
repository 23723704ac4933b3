"""roles.yml, haproxy.cfg, HAProxy and the state directory, looked at one after the other."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator

from lbagent import rolescache, rolesfile, scene
from lbagent.doctor import declared, directives, drift, haproxy_seen, machine, markers, proxies, reloads
from lbagent.doctor.drift import Known
from lbagent.doctor.finding import AS_SERF, Finding, Kind, error, warning
from lbagent.doctor.keylines import key_lines
from lbagent.engine import Engine
from lbagent.errors import Refused, RolesRefused
from lbagent.haproxy.process import Running
from lbagent.host.log import Log, told
from lbagent.host.paths import Paths
from lbagent.membership import Membership
from lbagent.prospect import Prospect, prospect
from lbagent.roles import HaproxySettings, Roles
from lbagent.scene import Scene
from lbagent.settings import Settings


class LinesSide:
    """What each look has found out for the next ones; what one could not find out, the others do without."""

    def __init__(self, settings: Settings, log: Log) -> None:
        """Nothing is known yet."""
        self._path, self._paths, self._log = settings.roles, Paths(settings.state_dir), log
        self.roles: Roles | None = None
        self._seen: Scene | None = None
        self._running: Running | None = None
        self._membership = Membership()
        self._prospect: Prospect | None = None
        self._hindrance = "haproxy.cfg cannot be read"
        """Why there is no prospect."""

    @property
    def _haproxy(self) -> HaproxySettings | None:
        return self._before() if self.roles is None else self.roles.haproxy

    def _before(self) -> HaproxySettings | None:
        """What a roles.yml that cannot be used said when it was last read; None where that is not known."""
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError), open(self._paths.roles, "rb") as file:
            return rolescache.thawed(json.load(file)["state"]).haproxy
        return None

    @property
    def _lines(self) -> list[list[str]]:
        return self._seen.document.settings if self._seen else []

    def declared(self) -> Iterator[Finding]:
        """roles.yml."""
        try:
            with open(self._path, "rb") as file:
                content = file.read()
            self.roles = rolesfile.parse(content, self._path)
        except PermissionError:
            yield warning(Kind.ROLES, self._path, "cannot be looked at: this user may not read it", AS_SERF)
            return
        except (RolesRefused, OSError) as refused:
            where, _, what = told(refused).partition(": ")
            yield error(Kind.ROLES, where, what, "until it loads no event changes anything")
            return
        yield from declared.judge(self.roles, self._path, key_lines(content))

    def program(self) -> Iterator[Finding]:
        """The haproxy program, and the text that it is to read."""
        yield haproxy_seen.version()
        if self._haproxy is None:
            what = "cannot be looked at, nor who runs it: which file it is stands in roles.yml, which cannot be used"
            yield warning(Kind.HAPROXY_CFG, "", what, "mend roles.yml, and check again")
            return
        try:
            self._seen = scene.look(self._haproxy)
        except PermissionError as unread:
            where = unread.filename
            yield warning(Kind.HAPROXY_CFG, where, "cannot be looked at: this user may not read it", AS_SERF)
        except OSError as missing:
            where, _, what = told(missing).partition(": ")
            yield error(Kind.HAPROXY_CFG, where, what, "name the file in roles.yml: `haproxy: {config: …}`")

    def marked(self) -> Iterator[Finding]:
        """The markers, and what the plan says of them."""
        if self._seen is None:
            return
        document = self._seen.document
        if self.roles is None:
            self._hindrance = "roles.yml cannot be used"
            yield from markers.alone(document)
            return
        yield from markers.judge(document, self.roles)
        try:
            self._membership = Engine(self._paths, self._path, self._log).foreseen(self.roles)
            self._prospect = prospect(document, self.roles, self._membership)
        except (Refused, OSError) as hindered:  # a doubled marker, or a state directory that may not be read
            self._hindrance = told(hindered)
            return
        yield from markers.notes(document, self._prospect.notes)

    def process(self) -> Iterator[Finding]:
        """The HAProxy that runs."""
        if self._haproxy is not None:
            self._running, finding = haproxy_seen.runs(self._haproxy, self._lines)
            yield finding

    def verdict(self) -> Iterator[Finding]:
        """`haproxy -c`, on the live files. Raises TryAgain."""
        if self._seen is not None and self._haproxy is not None:
            paths = [target.given for target in self._seen.targets]
            yield from haproxy_seen.verdict(paths, self._haproxy, self._running)

    def sections(self) -> Iterator[Finding]:
        """What haproxy.cfg says that a reload, or the runtime API, depends on."""
        if self._seen is None:
            return
        files = [(target.given, text) for target, text in zip(self._seen.targets, self._seen.texts, strict=True)]
        found = directives.sections(files)
        yield from reloads.judge(found, files[0][0], master=bool(self._running and self._running.is_master))
        marked = frozenset(str(proxy) for proxy in self._seen.document.proxies if proxy.markers)
        yield from proxies.judge(found, marked)

    def answers(self) -> Iterator[Finding]:
        """The stats socket."""
        if self._running is not None:
            yield from haproxy_seen.answers(self._lines, self._running)

    def drift(self) -> Iterator[Finding]:
        """Whether the managed lines are what they should be. Raises OSError."""
        if self._seen is None or self._prospect is None or self._prospect.plan is None:
            what = f"cannot be looked at, without a plan: {self._hindrance}"
            yield warning(Kind.DRIFT, "", what, "mend that, and check again")
            return
        engine, members = Engine(self._paths, self._path, self._log), self._membership.members
        there = ((name, members[name].quarantine) for name in sorted(self._prospect.quarantined))
        quarantined = tuple((name, one.reason) for name, one in there if one)
        served = engine.store.served()
        failure = served.failure.words if served.failure else ""
        known = Known(len(engine.spool.names()), served.digest, failure, quarantined)
        yield from drift.judge(self._seen.document, self._prospect.plan, known)

    def permissions(self) -> Iterator[Finding]:
        """Who may write what lbagent believes, and whether lbagent itself can write."""
        targets = [target.path for target in self._seen.targets] if self._seen else []
        folders = [os.path.dirname(path) for path in targets]
        state = [self._paths.folder, self._paths.spool]
        roles = [self._path, *(os.path.dirname(seen(self._path)) for seen in (os.path.abspath, os.path.realpath))]
        yield from machine.owned([*roles, *targets, *folders, *state, self._paths.members])
        yield from machine.writable([*folders, *state])
        yield from machine.replaceable(targets)

    def state(self) -> Iterator[Finding]:
        """The state directory."""
        yield from machine.state(self._paths)

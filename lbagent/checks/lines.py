"""roles.yml, haproxy.cfg, HAProxy and the state directory, looked at one after the other."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping

from lbagent.checks import daemon, files, haproxy, markers, migration
from lbagent.checks import roles as checks_roles
from lbagent.checks.candidate import Unjudged, Validator, refused_lines
from lbagent.checks.files import Account
from lbagent.checks.finding import AS_SERF, Finding, Kind, Severity, error, ok, unseen, warning
from lbagent.checks.markers import Known
from lbagent.checks.roles import key_lines
from lbagent.errors import Refused, RolesRefused
from lbagent.haproxy import config_files
from lbagent.haproxy.config_files import ConfigSnapshot
from lbagent.haproxy.process import RunningHaproxy
from lbagent.membership.model import Membership
from lbagent.planning.plan import Preview, make_preview
from lbagent.roles import cache, loader
from lbagent.roles.model import HaproxySettings, Roles
from lbagent.run.engine import Engine
from lbagent.settings import Settings
from lbagent.state.paths import Paths
from lbagent.system import untrusted_files
from lbagent.system.log import Log, format_error, format_error_lines


class LinesSide:
    """What each look has found out for the next ones; what one could not find out, the others do without."""

    def __init__(self, settings: Settings, log: Log) -> None:
        """Nothing is known yet."""
        self._path, self._paths, self._log = settings.roles, Paths(settings.state_dir), log
        self.roles: Roles | None = None
        self._seen: ConfigSnapshot | None = None
        self._running: RunningHaproxy | None = None
        self._membership = Membership()
        self._prospect: Preview | None = None
        self._key_lines: Mapping[tuple[str, ...], int] = {}
        """Where the keys of roles.yml are."""
        self._accepted = False
        """Whether HAProxy accepts the live haproxy.cfg."""
        self._hidden = False
        """Whether it is only this user who may not look."""
        self._hindrance = "haproxy.cfg cannot be read"
        """Why there is no prospect."""

    @property
    def _haproxy(self) -> HaproxySettings | None:
        return self._before() if self.roles is None else self.roles.haproxy

    def _before(self) -> HaproxySettings | None:
        """What a roles.yml that cannot be used said when it was last read; None where that is not known."""
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError), open(self._paths.roles, "rb") as file:
            return cache.deserialize_roles(json.loads(json.load(file)["state"])).haproxy
        return None

    @property
    def _lines(self) -> list[list[str]]:
        return self._seen.document.settings if self._seen else []

    def declared(self) -> Iterator[Finding]:
        """roles.yml."""
        content = b""
        try:
            content = untrusted_files.read_whole_file(self._path)
            self.roles = loader.parse_roles(content, self._path)
        except PermissionError:
            self._hidden = True
            yield unseen(Kind.ROLES, self._path, "cannot be looked at: this user may not read it", AS_SERF)
            return
        except FileNotFoundError as missing:
            yield error(Kind.ROLES, self._path, str(missing.strerror), "until it loads no event changes anything")
            yield from files.old_roles(self._path)
            return
        except (RolesRefused, OSError) as refused:
            for sentence in format_error_lines(refused):
                where, _, what = sentence.partition(": ")
                yield error(Kind.ROLES, where, what, "until it loads no event changes anything")
            yield from migration.of_roles(content, self._path)
            return
        self._key_lines = key_lines(content)
        yield from checks_roles.judge(self.roles, self._path, self._key_lines)

    def program(self) -> Iterator[Finding]:
        """The haproxy program, and the text that it is to read."""
        yield haproxy.haproxy_seen_version()
        if self._haproxy is None:
            what = "cannot be looked at, nor who runs it: which file it is stands in roles.yml, which cannot be used"
            if not self._hidden:
                yield warning(Kind.HAPROXY_CFG, "", what, "mend roles.yml, and check again")
            return
        try:
            self._seen = config_files.read_config(self._haproxy)
        except PermissionError as unread:
            self._hidden = True
            where = unread.filename
            yield unseen(Kind.HAPROXY_CFG, where, "cannot be looked at: this user may not read it", AS_SERF)
        except OSError as missing:
            where, _, what = format_error(missing).partition(": ")
            yield error(Kind.HAPROXY_CFG, where, what, "name the file in roles.yml: `haproxy: {config: …}`")

    def marked(self) -> Iterator[Finding]:
        """The markers, and what the plan says of them."""
        if self._seen is None:
            return
        document = self._seen.document
        if self.roles is None:
            self._hindrance = "roles.yml cannot be used"
            if not self._hidden:
                yield from markers.alone(document)
            return
        yield from markers.judge(document, self.roles)
        try:
            self._membership = Engine(self._paths, self._path, self._log).preview_membership(self.roles)
            self._prospect = make_preview(document, self.roles, self._membership)
        except (Refused, OSError) as hindered:  # a doubled marker, or a state directory that may not be read
            self._hindrance = format_error(hindered)
            self._hidden |= isinstance(hindered, PermissionError)
            return
        yield from markers.notes(document, self._prospect.notes)
        if self._prospect.plan is not None:
            yield from markers.cookies(document.reread(self._prospect.plan.after))

    def process(self) -> Iterator[Finding]:
        """The HAProxy that runs."""
        if self._haproxy is not None:
            self._running, finding = haproxy.runs(self._haproxy, self._lines)
            yield finding

    def verdict(self) -> Iterator[Finding]:
        """`haproxy -c`, on the live files. Raises TryAgain."""
        if self._seen is not None and self._haproxy is not None:
            paths = [target.given for target in self._seen.targets]
            found = [*haproxy.verdict(paths, self._haproxy, self._running)]
            self._accepted = not any(one.unseen or one.severity is Severity.ERROR for one in found)
            yield from found

    def service_lines(self) -> Iterator[Finding]:
        """The lines that roles.yml would make, tried before any node exists. Raises TryAgain."""
        if self._seen is None or self.roles is None or not self._accepted:
            return
        validator = Validator(self._seen, self.roles.haproxy, self._running, accepted=True)
        try:
            found = refused_lines(self._seen.document, self.roles, validator)
        except Unjudged:
            return
        for one in found:
            what = f"HAProxy refuses the lines of role {one.role} for service {one.service}: {one.words}"
            yield error(Kind.SERVICE_LINE, self._place(one.role, one.service), what, "correct its `options`")
        if not found:
            yield ok(Kind.SERVICE_LINE, "", "HAProxy accepts the lines that each role and service would make")

    def _place(self, role: str, service: str) -> str:
        """FILE:LINE of what makes the lines of a role for a service."""
        for path in (("roles", role, "options"), (role, "options"), ("services", service, "options")):
            if line := self._key_lines.get(path):
                return f"{self._path}:{line}"
        line = self._key_lines.get(("roles", role)) or self._key_lines.get((role,))
        return f"{self._path}:{line}" if line else self._path

    @property
    def has_peers(self) -> bool:
        """Whether haproxy.cfg knows another load balancer to share stick tables with."""
        if self._seen is None:
            return False
        peers = [section for section in haproxy.sections(self._seen.document) if section.kind == "peers"]
        return any(sum(line.begins("peer") for line in section.own) > 1 for section in peers)

    def access(self, handler: Account | None) -> Iterator[Finding]:
        """What the account that runs `lbagent handle` may not do."""
        if handler is not None and handler.user != 0:
            configs = [target.path for target in self._seen.targets] if self._seen else []
            yield from files.access_judge(handler, self._paths, [self._path, *configs])

    def daemon(self, handler: Account | None) -> Iterator[Finding]:
        """The daemon, its syncs, and the last run."""
        yield from daemon.judge(self._paths, handler)

    def sections(self) -> Iterator[Finding]:
        """What haproxy.cfg says that a reload, or the runtime API, depends on."""
        if self._seen is None:
            return
        document = self._seen.document
        found = haproxy.sections(document)
        main = self._seen.targets[0].given
        yield from haproxy.reloads_judge(found, main, master=bool(self._running and self._running.is_master))
        starts = {document.locate(proxy.start) for proxy in document.proxies if proxy.markers}
        marked = frozenset(str(section) for section in found if section.where in starts)
        yield from haproxy.judge(found, marked)

    def answers(self) -> Iterator[Finding]:
        """The stats socket."""
        if self._running is not None:
            yield from haproxy.answers(self._lines, self._running)

    def drift(self) -> Iterator[Finding]:
        """Whether the managed lines are what they should be. Raises OSError."""
        if self._seen is None or self._prospect is None or self._prospect.plan is None:
            what = f"cannot be looked at, without a plan: {self._hindrance}"
            made = unseen if self._hidden else warning
            yield made(Kind.DRIFT, "", what, "mend that, and check again")
            return
        engine, members = Engine(self._paths, self._path, self._log), self._membership.members
        there = ((name, members[name].quarantine) for name in sorted(self._prospect.quarantined))
        quarantined = tuple((name, one.reason) for name, one in there if one)
        served = engine.store.load_served()
        failure = served.failure.words if served.failure else ""
        oldest = engine.spool.find_oldest_time()
        waiting = 0 if oldest is None else max(0, int(time.time() - oldest))
        known = Known(len(engine.spool.list_names()), waiting, served.digest, failure, quarantined)
        yield from markers.drift_judge(self._seen.document, self._prospect.plan, known)

    def permissions(self) -> Iterator[Finding]:
        """Who may write what lbagent believes, and whether lbagent itself can write."""
        targets = [target.path for target in self._seen.targets] if self._seen else []
        folders = [os.path.dirname(path) for path in targets]
        state = [self._paths.folder, self._paths.spool]
        roles = [self._path, *(os.path.dirname(seen(self._path)) for seen in (os.path.abspath, os.path.realpath))]
        yield from files.owned([*roles, *targets, *folders, *state, self._paths.members])
        yield from files.writable([*folders, *state])
        yield from files.replaceable(targets)

    def state(self) -> Iterator[Finding]:
        """The state directory."""
        yield from files.state(self._paths)

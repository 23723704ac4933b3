"""Run all checks in order. A check that fails does not hide another; nothing is changed and no lock is taken."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import lbagent
from lbagent.checks import daemon, files, haproxy, markers, roles, serf
from lbagent.checks.files import Account
from lbagent.checks.finding import Finding, Kind, Severity, Subject, error, has_error, ok, unreadable, warning
from lbagent.checks.haproxy import Validator, VerdictUnknown
from lbagent.checks.markers import PendingWork
from lbagent.checks.roles import find_refused_lines
from lbagent.errors import LbagentError, Refused, RolesRefused
from lbagent.haproxy import config_files
from lbagent.haproxy.config_files import ConfigSnapshot
from lbagent.haproxy.process import RunningHaproxy
from lbagent.membership.model import Membership
from lbagent.planning.plan import Preview, make_preview
from lbagent.roles import loader, model
from lbagent.roles.model import HaproxySettings, Roles
from lbagent.run.engine import Engine
from lbagent.serf import agent
from lbagent.serf.agent import Agent, list_event_handlers, list_join_addresses
from lbagent.serf.member_list import AgentInfo
from lbagent.settings import Settings
from lbagent.system import untrusted_files
from lbagent.system.log import Log, format_error, format_error_lines

Check = Callable[[], Iterator[Finding]]

_FIX_ROLES = "fix roles.yml; until then no event takes effect"

_NAMES_LIMIT = 8
"""Unreadable objects that the summary of an ordinary user names."""


def run_checks(settings: Settings, log: Log) -> list[Finding]:
    """Run all checks; return the findings in the order of their subjects."""
    checks = _Checks(settings, log)
    found = [ok(Kind.LBAGENT, "", f"version {lbagent.__version__} on Python {platform.python_version()}")]
    for kind, check in checks.list_checks():
        found += _run_check(kind, check)
    found = [*_drop_repetitions(found)]
    if os.geteuid():
        found = [*_merge_unreadable(found)]
    order = [*Subject]
    return sorted(found, key=lambda finding: order.index(finding.kind.subject))


def _run_check(kind: Kind, check: Check) -> Iterator[Finding]:
    """Yield what one check finds; an exception becomes a finding."""
    try:
        yield from check()
    except PermissionError as refused:
        yield unreadable(kind, refused.filename or "", f"not checked: {format_error(refused)}")
    except (LbagentError, OSError) as failure:
        yield warning(kind, "", f"not checked: {format_error(failure)}", "fix that, then run `lbagent check` again")
    except Exception as defect:  # noqa: BLE001  # a defect in one check must not hide another
        text = f"not checked, because of a defect of lbagent: {type(defect).__name__}: {defect}"
        yield warning(kind, "", text, "report it to the developers")


def _drop_repetitions(found: Sequence[Finding]) -> Iterator[Finding]:
    """Yield the findings without those whose cause another finding names."""
    kinds = {one.kind for one in found}
    subjects = {one.kind.subject for one in found if one.severity is not Severity.OK and one.kind is not Kind.LAST_RUN}
    cause_known = not subjects.isdisjoint((Subject.ROLES, Subject.HAPROXY, Subject.LINES, Subject.FILES))
    for one in found:
        if one.kind is Kind.LAST_RUN and cause_known:
            continue
        is_unmanaged_line = one.kind is Kind.MIGRATION and one.severity is Severity.WARNING
        if not (is_unmanaged_line and Kind.OPERATOR_LINE in kinds):
            yield one


def _merge_unreadable(found: Sequence[Finding]) -> Iterator[Finding]:
    """Yield the findings; all that this user may not read becomes one of them."""
    yield from (one for one in found if not one.unreadable)
    if hidden := [one for one in found if one.unreadable]:
        names = list(dict.fromkeys(one.where for one in hidden if one.where)) or [hidden[0].kind.value]
        more = len(names) - _NAMES_LIMIT
        text = ", ".join(names[:_NAMES_LIMIT]) + (f" and {more} more" if more > 0 else "")
        text = f"not run as root; not readable for this user and not checked: {text}"
        yield warning(Kind.USER, "", text, "run `lbagent check` as root")


class _Checks:
    """The checks in the order in which they run; later ones use what earlier ones have read."""

    def __init__(self, settings: Settings, log: Log) -> None:
        self._settings, self._paths, self._log = settings, settings.paths, log
        self._roles: Roles | None = None
        self._key_lines: Mapping[roles.KeyPath, int] = {}
        self._snapshot: ConfigSnapshot | None = None
        self._config_accepted = False
        self._haproxy: RunningHaproxy | None = None
        self._membership = Membership()
        self._preview: Preview | None = None
        self._obstacle = "haproxy.cfg cannot be read"
        """Why there is no preview."""
        self._obstacle_unreadable = False
        """Whether this user may not read what the preview needs."""
        self._agent_info: AgentInfo | None = None
        self._agent: Agent | None = None

    def list_checks(self) -> list[tuple[Kind, Check]]:
        """Return the checks, each with the kind of the finding where it cannot be done."""
        return [
            (Kind.ROLES, self.check_roles),
            (Kind.HAPROXY, self.check_haproxy_program),
            (Kind.MARKERS, self.check_markers),
            (Kind.PROCESS, self.check_haproxy_process),
            (Kind.HAPROXY_CFG, self.check_haproxy_cfg),
            (Kind.SERVICE_LINE, self.check_service_lines),
            (Kind.HAPROXY_CFG, self.check_haproxy_sections),
            (Kind.STATS_ANSWER, self.check_stats_answers),
            (Kind.DRIFT, self.check_managed_lines),
            (Kind.PERMISSIONS, self.check_files),
            (Kind.STATE, lambda: files.check_state_directory(self._paths)),
            (Kind.SERF, self.check_agent),
            (Kind.HANDLERS, self.check_handlers),
            (Kind.PEERS, self.check_peers),
            (Kind.AGENT_FILES, lambda: serf.check_agent_process(self._agent, self._agent_info)),
            (Kind.ACCESS, self.check_access),
            (Kind.SETTINGS, self.check_settings),
            (Kind.DAEMON, lambda: daemon.check_daemon(self._paths, self._serf_account)),
        ]

    def check_roles(self) -> Iterator[Finding]:
        content, path = b"", self._settings.roles
        try:
            content = untrusted_files.read_whole_file(path)
            self._roles = loader.parse_roles(content, path)
        except PermissionError:
            self._obstacle_unreadable = True
            yield unreadable(Kind.ROLES, path)
        except FileNotFoundError:
            yield error(Kind.ROLES, path, "does not exist; no event takes effect", "create it, or name it with --roles")
            yield from roles.check_classic_file(path)
        except (RolesRefused, OSError) as refused:
            for message in format_error_lines(refused):
                where, _, text = message.partition(": ")
                yield error(Kind.ROLES, where, text, _FIX_ROLES)
            yield from roles.check_classic_content(content, path)
        else:
            self._key_lines = roles.find_key_lines(content)
            yield from roles.check_roles(self._roles, path, self._key_lines)

    def check_haproxy_program(self) -> Iterator[Finding]:
        """Check the program, and read haproxy.cfg for the checks below."""
        yield haproxy.check_program()
        settings = self._haproxy_settings
        if settings is None:
            if not self._obstacle_unreadable:
                text = "haproxy.cfg and its HAProxy are not checked: only roles.yml, which is invalid, names the file"
                yield warning(Kind.HAPROXY_CFG, "", text, "fix roles.yml, then run `lbagent check` again")
            return
        try:
            self._snapshot = config_files.read_config(settings)
        except PermissionError as refused:
            self._obstacle_unreadable = True
            yield unreadable(Kind.HAPROXY_CFG, refused.filename)
        except OSError as failure:
            where, _, text = format_error(failure).partition(": ")
            yield error(Kind.HAPROXY_CFG, where, text, "set its path in roles.yml: `haproxy: {config: PATH}`")

    def check_markers(self) -> Iterator[Finding]:
        """Check the markers, and make the preview for the checks below."""
        if self._snapshot is None:
            return
        document = self._snapshot.document
        yield from markers.check_markers(document, self._roles) if self._roles or not self._obstacle_unreadable else ()
        if self._roles is None:
            self._obstacle = "roles.yml is invalid"
            return
        try:
            self._membership = Engine(self._settings, self._log).preview_membership(self._roles)
            self._preview = make_preview(document, self._roles, self._membership)
        except (Refused, OSError) as failure:
            self._obstacle = format_error(failure)
            self._obstacle_unreadable |= isinstance(failure, PermissionError)
            return
        yield from markers.check_notes(document, self._preview.notes)
        if self._preview.plan is not None:
            yield from markers.check_cookies(document.reread(self._preview.plan.after))

    def check_haproxy_process(self) -> Iterator[Finding]:
        if (settings := self._haproxy_settings) is not None:
            self._haproxy, finding = haproxy.check_process(settings, self._global_lines)
            yield finding

    def check_haproxy_cfg(self) -> Iterator[Finding]:
        """Check haproxy.cfg with `haproxy -c`. Raises TryAgain."""
        if self._snapshot is not None and (settings := self._haproxy_settings) is not None:
            paths = [target.given for target in self._snapshot.targets]
            found = [*haproxy.check_config(paths, settings, self._haproxy)]
            self._config_accepted = not has_error(found) and not any(one.unreadable for one in found)
            yield from found

    def check_service_lines(self) -> Iterator[Finding]:
        """Try the server line of each role and service before any node exists. Raises TryAgain."""
        if self._snapshot is None or self._roles is None or not self._config_accepted:
            return
        validator = Validator(self._snapshot, self._roles.haproxy, self._haproxy, accepted=True)
        try:
            refused = find_refused_lines(self._snapshot.document, self._roles, validator)
        except VerdictUnknown:
            return
        for one in refused:
            text = f"HAProxy refuses the server lines of role {one.role}, service {one.service}: {one.reason}"
            where = self._locate_options(one.role, one.service)
            yield error(Kind.SERVICE_LINE, where, text, "correct `options` or `interval`")
        if not refused:
            yield ok(Kind.SERVICE_LINE, "", "HAProxy accepts the server lines of each role and service")

    def _locate_options(self, role: str, service: str) -> str:
        """Return FILE:LINE of the options that a role and a service use."""
        path = self._settings.roles
        for keys in (("roles", role, "options"), (role, "options"), ("services", service, "options")):
            if line := self._key_lines.get(keys):
                return f"{path}:{line}"
        line = self._key_lines.get(("roles", role)) or self._key_lines.get((role,))
        return f"{path}:{line}" if line else path

    def check_haproxy_sections(self) -> Iterator[Finding]:
        if self._snapshot is None:
            return
        document = self._snapshot.document
        main = self._snapshot.targets[0].given
        starts = {document.locate(proxy.start) for proxy in document.proxies if proxy.markers}
        with_markers = frozenset(str(section) for section in self._sections if section.where in starts)
        has_master = self._haproxy.is_master if self._haproxy else None
        yield from haproxy.check_sections(self._sections, main, with_markers, has_master=has_master)

    def check_stats_answers(self) -> Iterator[Finding]:
        if self._haproxy is not None:
            yield from haproxy.check_stats_answers(self._global_lines, self._haproxy)

    def check_managed_lines(self) -> Iterator[Finding]:
        """Compare the managed lines with the plan. Raises OSError."""
        if self._snapshot is None or self._preview is None or self._preview.plan is None:
            text = f"managed lines not checked: {self._obstacle}"
            if self._obstacle_unreadable:
                yield unreadable(Kind.DRIFT, "", text)
            else:
                yield warning(Kind.DRIFT, "", text, "fix that, then run `lbagent check` again")
            return
        engine, members = Engine(self._settings, self._log), self._membership.members
        quarantines = ((name, members[name].quarantine) for name in sorted(self._preview.quarantined))
        quarantined = tuple((name, one.reason) for name, one in quarantines if one)
        served = engine.store.load_served()
        failure = served.failure.words if served.failure else ""
        oldest = engine.spool.find_oldest_time()
        waiting = 0 if oldest is None else max(0, int(time.time() - oldest))
        work = PendingWork(len(engine.spool.list_names()), waiting, served.digest, failure, quarantined)
        yield from markers.check_managed_lines(self._snapshot.document, self._preview.plan, work)

    def check_files(self) -> Iterator[Finding]:
        targets = [target.path for target in self._snapshot.targets] if self._snapshot else []
        folders = [os.path.dirname(path) for path in targets]
        state, path = [self._paths.folder, self._paths.spool], self._settings.roles
        # The directory of a symbolic link, and that of its target.
        roles_folders = [os.path.dirname(resolve(path)) for resolve in (os.path.abspath, os.path.realpath)]
        yield from files.check_permissions([path, *roles_folders, *targets, *folders, *state, self._paths.members])
        yield from files.check_writable([*folders, *state], daemon.find_lock_holder(self._paths.watch_lock))
        yield from files.check_replaceable(targets)

    def check_agent(self) -> Iterator[Finding]:
        self._agent = agent.find_running_agent()
        found = serf.fetch_info()
        if isinstance(found, Finding):
            yield found
            return
        self._agent_info = found
        yield from serf.check_encryption(found)
        yield serf.check_role_tag(found, self._roles)

    def check_handlers(self) -> Iterator[Finding]:
        if self._agent_info is None:
            return
        running = self._agent
        found = [
            *serf.check_handlers(
                self._handlers,
                lambda command: serf.calls_lbagent(command, running),
                lambda command: serf.finds_program(command, running),
                self._written_handlers if running and running.complete else None,
            )
        ]
        account = self._serf_account
        if running and account and not has_error(found):
            for command in self._lbagent_commands:
                found += serf.check_handler_version(command, running, account)
        found += serf.check_running_handlers(running)
        has_other = any(one.severity is not Severity.OK for one in found)
        yield from (one for one in found if one.severity is not Severity.OK or not has_other)

    def check_peers(self) -> Iterator[Finding]:
        """Check the other load balancers and the members. Raises TryAgain."""
        if self._agent_info is None:
            return
        joins = list_join_addresses(self._agent.settings) if self._agent else []
        names = [*self._roles.roles] if self._roles else []
        members = agent.fetch_members()
        yield from serf.check_peers(self._agent_info, members, joins, names, has_peer=haproxy.has_peer(self._sections))
        yield from serf.check_members(members)

    def check_access(self) -> Iterator[Finding]:
        """Check what Serf's user may read and write, where it is not root."""
        account = self._serf_account
        if account is not None and account.user != 0:
            configs = [target.path for target in self._snapshot.targets] if self._snapshot else []
            programs = [serf.find_program(command, self._agent) for command in self._lbagent_commands]
            program = next((one for one in programs if one), None)
            yield from files.check_access(account, self._paths, program, [self._settings.roles, *configs])

    def check_settings(self) -> Iterator[Finding]:
        process = self._agent.process if self._agent else None
        watch = daemon.find_lock_holder(self._paths.watch_lock)
        yield from daemon.check_settings(self._settings, self._lbagent_commands, process, watch)

    @property
    def _haproxy_settings(self) -> HaproxySettings | None:
        """HAProxy's settings in roles.yml; while it is invalid, those of its last valid version."""
        if self._roles is not None:
            return self._roles.haproxy
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            cached = json.loads(untrusted_files.read_whole_file(self._paths.roles))
            return model.deserialize_roles(json.loads(cached["state"])).haproxy
        return None

    @property
    def _global_lines(self) -> list[list[str]]:
        return self._snapshot.document.settings if self._snapshot else []

    @functools.cached_property
    def _sections(self) -> Sequence[haproxy.Section]:
        """The sections of haproxy.cfg; none where it cannot be read."""
        return haproxy.read_sections(self._snapshot.document) if self._snapshot else ()

    @property
    def _serf_account(self) -> Account | None:
        """The account that runs Serf's event handlers; None where the agent's process is not visible."""
        return files.find_account(self._agent.process) if self._agent else None

    @property
    def _handlers(self) -> serf.Handlers:
        if self._agent_info is None:
            return []
        return serf.merge_handlers(self._agent_info.handlers, self._written_handlers)

    @property
    def _written_handlers(self) -> serf.Handlers:
        """The handlers in the agent's settings."""
        return serf.parse_handler_specs(list_event_handlers(self._agent.settings)) if self._agent else []

    @property
    def _lbagent_commands(self) -> list[str]:
        """The handler commands that are `lbagent handle`."""
        return list(dict.fromkeys(command for _, command in self._handlers if serf.names_lbagent(command)))

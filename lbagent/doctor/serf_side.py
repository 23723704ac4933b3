"""Serf's agent, looked at from what it says to what stands in its files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from lbagent.doctor import agent_process, agent_seen, agent_settings, cluster
from lbagent.doctor import handlers as judged
from lbagent.doctor.agent_process import Agent
from lbagent.doctor.finding import Finding, Kind, unseen, warning
from lbagent.roles import Roles
from lbagent.serf import agent
from lbagent.serf.listing import Info


class SerfSide:
    """What each look has found out for the next ones."""

    def __init__(self, roles: Callable[[], Roles | None], has_peers: Callable[[], bool]) -> None:
        """Nothing is known yet; `roles`, and whether haproxy.cfg `has_peers`, are asked for when they are needed."""
        self._roles, self._has_peers = roles, has_peers
        self._info: Info | None = None
        self._running: Agent | None = None

    @property
    def running(self) -> Agent | None:
        """The agent's process, once it was looked for."""
        return self._running

    def agent(self) -> Iterator[Finding]:
        """What the agent says of itself."""
        self._running = agent_process.running()
        info = agent_seen.info()
        if isinstance(info, Finding):
            yield info
            return
        self._info = info
        yield from cluster.agent(info)
        yield cluster.role(info, self._roles())

    def handlers(self) -> Iterator[Finding]:
        """Whether lbagent is called for all it needs."""
        if self._info is None:
            return
        written = judged.of_specs(agent_settings.specs(self._running.settings)) if self._running else []
        yield from judged.judge(
            judged.merged(self._info.handlers, written),
            lambda command: agent_seen.calls(command, self._running),
            lambda command: agent_seen.exists(command, self._running),
        )

    def peers(self) -> Iterator[Finding]:
        """The other load balancers. Raises TryAgain."""
        if self._info is not None:
            named = agent_settings.joined(self._running.settings) if self._running else []
            yield from cluster.peers(self._info, agent.members(), named, declared=self._has_peers())

    def settings(self) -> Iterator[Finding]:
        """The agent's own files and command line."""
        running = self._running
        if running is None:
            if self._info is not None:
                what = "cannot be looked at: no `serf agent` process with this RPC address is shown here"
                made = unseen if os.geteuid() else warning
                yield made(Kind.AGENT_FILES, "Serf's settings", what, "run this as root, on the load balancer itself")
            return
        yield from running.findings
        if not running.complete:
            return
        yield from agent_settings.judge(running.settings, running.files, running.process.argv)
        yield from agent_seen.environment(running)

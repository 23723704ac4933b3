"""The scenes of the demo: nodes join, one is paused, rebooted and resumed, one leaves, under a client's requests."""

from __future__ import annotations

import time
from collections.abc import Callable

from demo.client import Client
from demo.cluster import LB, NODES, Cluster
from demo.processes import DemoFailed, wait_for
from demo.screen import Screen, Traffic

_BEFORE, _AFTER = 0.8, 1.2
"""Seconds of traffic to show before and after a change."""


class Scenes:
    """All scenes, in order."""

    def __init__(self, cluster: Cluster, screen: Screen) -> None:
        """`cluster` has its files; none of its programs runs yet."""
        self._cluster, self._screen = cluster, screen
        self._client = Client(LB, cluster.port)
        self._marks: list[tuple[float, str]] = []
        self._number = 0

    def play(self) -> int:
        """Play all scenes. Returns 0 if no request failed, else 1."""
        try:
            self._start_load_balancer()
            self._join_nodes()
            self._patch_node()
            self._remove_node()
        finally:
            self._client.stop()
        return self._report()

    def _start_load_balancer(self) -> None:
        cluster, screen = self._cluster, self._screen
        screen.show_title("lbagent", "one load balancer, three web nodes, real Serf and HAProxy, on loopback")
        roles = (cluster.folder / "roles.yml").read_text().splitlines()
        config = cluster.config.read_text().splitlines()
        screen.show_side_by_side(["roles.yml", *roles[2:]], ["haproxy.cfg", *config[config.index("listen shop") :]])
        screen.show_line()
        screen.show_command("lb01", "haproxy -W -f haproxy.cfg")
        screen.show_command("lb01", "serf agent -event-handler 'lbagent handle' …")
        cluster.start_load_balancer()
        wait_for("member-join of lb01", lambda: bool(cluster.list_events()), cluster.log("lb01"))

    def _join_nodes(self) -> None:
        self._begin("Two web nodes boot", "Their Serf agents join the cluster. Nobody edits the load balancer.")
        self._boot("web01", "web02")
        self._client.start()
        self._begin("A third node joins", "From here on a client sends requests all the time and never retries.")
        self._watch(lambda: self._boot("web03"))

    def _patch_node(self) -> None:
        self._begin("Pause web02 to patch it", "It gets no new request until it is resumed.")
        self._watch(lambda: self._send("pause", "web02"))
        self._begin("web02 reboots", "It leaves, boots, joins again, and is still paused.")
        self._watch(self._reboot)
        self._begin("Resume web02", "Its server line is written again.")
        self._watch(lambda: self._send("resume", "web02"))

    def _remove_node(self) -> None:
        self._begin("Shut web03 down", "Its Serf agent leaves the cluster, and its server line is removed.")
        self._watch(lambda: self._shut_down("web03"))

    def _begin(self, title: str, explanation: str) -> None:
        self._number += 1
        self._screen.show_heading(f"{self._number}. {title}", explanation)

    def _watch(self, scene: Callable[[], object]) -> None:
        """Play a scene and show the client's requests meanwhile."""
        self._marks = []
        begin = time.monotonic()
        time.sleep(_BEFORE)
        scene()
        self._screen.show_progress("counting the client's requests …")
        time.sleep(_AFTER)
        end = time.monotonic()
        self._screen.show_traffic(Traffic(self._client.between(begin, end), list(NODES), begin, end, self._marks))

    def _boot(self, *nodes: str) -> None:
        for node in nodes:
            self._screen.show_command(node, "serf agent -tag role=web -join lb01 …")
        mark = "boot" if self._client.running else ""
        self._change("member-join", nodes, lambda: self._cluster.boot(*nodes), mark)

    def _shut_down(self, node: str) -> None:
        self._screen.show_command(node, "shutdown")
        self._change("member-leave", (node,), lambda: self._cluster.shut_down(node), "shutdown")

    def _reboot(self) -> None:
        self._shut_down("web02")
        self._screen.show_line()
        self._boot("web02")

    def _send(self, verb: str, node: str) -> None:
        words = ("event", "-coalesce=false", verb, node)
        self._screen.show_command(node, f"serf {' '.join(words)}")
        self._change(f"user {verb}", (node,), lambda: self._cluster.run_serf(node, *words), verb)

    def _change(self, event: str, nodes: tuple[str, ...], action: Callable[[], object], mark: str) -> None:
        """Run `action`, wait until lbagent has applied its event, and show the event and the change."""
        cluster = self._cluster
        text = cluster.config.read_text()
        handled, known = len(cluster.list_events()), len(cluster.read_history())
        if mark:
            self._marks.append((time.monotonic(), mark))
        self._screen.show_progress("waiting for Serf …")
        action()

        def is_handled() -> bool:
            new = cluster.list_events()[handled:]
            return set(nodes) <= {line.split()[0] for kind, lines in new if kind == event for line in lines}

        wait_for(f"{event} of {' and '.join(nodes)}", is_handled, cluster.log("lb01"))
        for kind, lines in cluster.list_events()[handled:]:
            for line in lines:
                self._screen.show_fact("Serf", f"{kind:<14} {'  '.join(line.split())}")
        runs = cluster.read_history()[known:]
        if not runs or runs[-1]["outcome"] != "applied":
            raise DemoFailed(f"{event}: not applied: {runs[-1] if runs else 'history.jsonl has no new line'}")
        for run in runs:
            self._screen.show_fact("lbagent", f"{run['ms']} ms: {run['words'].rpartition('; ')[2]}")
        self._screen.show_diff(text, cluster.config.read_text())

    def _report(self) -> int:
        client, screen = self._client, self._screen
        requests, failed, changes = len(client.answers), len(client.failures), self._cluster.read_history()[1:]
        reloads = sum(run["reloaded"] for run in changes)
        during = f"{len(changes)} changes and {reloads} reloads of HAProxy"
        screen.show_rule()
        screen.show_result(good=not failed, text=f"{requests} requests through {during}: {failed} failed.")
        for why in sorted(set(client.failures))[:5]:
            screen.show_line(f"  {why}")
        return 1 if failed else 0

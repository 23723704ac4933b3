"""The demo: nodes join, one is paused, rebooted and resumed, one leaves, while a client sends requests."""

from __future__ import annotations

import time
from collections.abc import Callable

from demo.client import Client
from demo.processes import Stuck, wait_for
from demo.screen import Picture, Screen
from demo.stage import LB, NODES, Stage

_BEFORE, _AFTER = 0.8, 1.2
"""Seconds of traffic to show before the first thing happens and after the last."""


class Story:
    """The acts, in order."""

    def __init__(self, stage: Stage, screen: Screen) -> None:
        """Start nothing yet."""
        self._stage, self._screen = stage, screen
        self._client = Client(LB, stage.port)
        self._marks: list[tuple[float, str]] = []
        self._acts = 0

    def tell(self) -> int:
        """Play all scenes. Returns 0 if no request failed, else 1."""
        try:
            self._opening()
            self._joins()
            self._patch_day()
            self._farewell()
        finally:
            self._client.stop()
        return self._end()

    def _opening(self) -> None:
        stage, screen = self._stage, self._screen
        screen.title("lbagent", "one load balancer, three web nodes, real Serf and HAProxy, on loopback")
        roles = (stage.folder / "roles.yml").read_text().splitlines()
        config = stage.config.read_text().splitlines()
        screen.side_by_side(["roles.yml", *roles[2:]], ["haproxy.cfg", *config[config.index("listen shop") :]])
        screen.line()
        screen.typed("lb01", "haproxy -W -f haproxy.cfg")
        screen.typed("lb01", "serf agent -event-handler 'lbagent handle' …")
        stage.start_load_balancer()
        wait_for("the load balancer's own join", lambda: bool(stage.told()), stage.log("lb01"))

    def _joins(self) -> None:
        self._act("Two web nodes boot", "Their Serf agents join the cluster. Nobody touches the load balancer.")
        self._boot("web01", "web02")
        self._client.start()
        self._act("A third one joins", "A client now sends requests without a break, and retries none.")
        self._look(lambda: self._boot("web03"))

    def _patch_day(self) -> None:
        self._act("web02 is to be patched: pause it", "It gets no new request until it is resumed.")
        self._look(lambda: self._say("pause", "web02"))
        self._act("The patches reboot web02", "It leaves, boots, joins again, and is still paused.")
        self._look(self._reboot)
        self._act("web02 is patched: resume it", "Its server line is back.")
        self._look(lambda: self._say("resume", "web02"))

    def _farewell(self) -> None:
        self._act("web03 is shut down for good", "Its Serf agent leaves the cluster, and lbagent removes its line.")
        self._look(lambda: self._shut_down("web03"))

    def _act(self, title: str, why: str) -> None:
        self._acts += 1
        self._screen.act(f"{self._acts}. {title}", why)

    def _look(self, scene: Callable[[], object]) -> None:
        """Play a scene, and show the answers that the client got meanwhile."""
        self._marks = []
        begin = time.monotonic()
        time.sleep(_BEFORE)
        scene()
        self._screen.waiting("counting the client's answers …")
        time.sleep(_AFTER)
        end = time.monotonic()
        self._screen.traffic(Picture(self._client.between(begin, end), list(NODES), begin, end, self._marks))

    def _boot(self, *nodes: str) -> None:
        for node in nodes:
            self._screen.typed(node, "serf agent -tag role=web -join lb01 …")
        mark = "boot" if self._client.running else ""
        self._change("member-join", nodes, lambda: self._stage.boot(*nodes), mark)

    def _shut_down(self, node: str) -> None:
        self._screen.typed(node, "shutdown")
        self._change("member-leave", (node,), lambda: self._stage.shut_down(node), "shutdown")

    def _reboot(self) -> None:
        self._shut_down("web02")
        self._screen.line()
        self._boot("web02")

    def _say(self, verb: str, node: str) -> None:
        words = ("event", "-coalesce=false", verb, node)
        self._screen.typed(node, f"serf {' '.join(words)}")
        self._change(f"user {verb}", (node,), lambda: self._stage.serf(node, *words), verb)

    def _change(self, event: str, nodes: tuple[str, ...], action: Callable[[], object], mark: str) -> None:
        """Do `action`, wait until lbagent has applied the events of it, and show both. Raises Stuck."""
        stage = self._stage
        text, told, known = stage.config.read_text(), len(stage.told()), len(stage.history())
        if mark:
            self._marks.append((time.monotonic(), mark))
        self._screen.waiting("Serf spreads the event …")
        action()

        def heard() -> bool:
            said = [line.split()[0] for kind, lines in stage.told()[told:] if kind == event for line in lines]
            return set(nodes) <= set(said)

        wait_for(f"{event} of {' and '.join(nodes)}", heard, stage.log("lb01"))
        for kind, lines in stage.told()[told:]:
            for line in lines:
                self._screen.fact("Serf", f"{kind:<14} {'  '.join(line.split())}")
        done = stage.history()[known:]
        if not done or done[-1]["outcome"] != "applied":
            raise Stuck(f"lbagent has not applied it: {done[-1] if done else 'history.jsonl has no new line'}")
        for run in done:
            self._screen.fact("lbagent", f"{run['outcome']} in {run['ms']} ms, {run['words'].rpartition('; ')[2]}")
        self._screen.diff(text, stage.config.read_text())

    def _end(self) -> int:
        client, screen = self._client, self._screen
        asked, failed, changes = len(client.answers), len(client.failures), self._stage.history()[1:]
        reloads = sum(run["reloaded"] for run in changes)
        passed = f"{len(changes)} changes and {reloads} reloads of HAProxy"
        screen.rule()
        screen.verdict(good=not failed, text=f"{asked} requests through {passed}: {failed} failed.")
        for why in sorted(set(client.failures))[:5]:
            screen.line(f"  {why}")
        return 1 if failed else 0

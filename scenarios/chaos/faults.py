"""Faults of nodes, load balancers, network, disks and clocks. Requests that they cost are counted apart."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from scenarios.chaos.site import DISKS, Balancer
from scenarios.chaos.storm import Registry, Storm, Unfit

action = Registry()


@action("kill -9 of a web server", 2)
def kill_backend(storm: Storm) -> str:
    """A web server is killed, and started again later."""
    one = storm.choose_node(lambda node: node.agent == "alive" and node.backend and storm.can_spare(node))
    node, reason = storm.node(one), "web server killed"
    one.busy, one.backend = True, False
    storm.begin_fault(one.name, reason)
    node.backend.kill()

    def restart() -> None:
        node.backend.start()
        one.backend = True
        storm.end_fault(one.name, reason)

    storm.later(f"web server of {one.name} started", restart)
    return one.name


@action("kill -9 of an agent", 2)
def kill_agent(storm: Storm) -> str:
    """A Serf agent is killed; the web server serves on. The agent is started again in another action."""
    one = storm.choose_node(lambda node: node.agent == "alive")
    one.busy, one.agent = True, "dead"
    storm.node(one).serf.kill()
    return one.name


@action("start of a killed agent", 2)
def start_agent(storm: Storm) -> str:
    """A killed agent is started."""
    one = storm.choose_node(lambda node: node.agent == "dead")
    one.busy, one.agent = True, "alive"
    storm.node(one).serf.start()
    return one.name


@action("freeze of a node", 2)
def freeze(storm: Storm) -> str:
    """All processes of a node stop (SIGSTOP), and continue later."""
    one = storm.choose_node(lambda node: node.agent == "alive" and storm.can_spare(node))
    node, reason = storm.node(one), "node frozen"
    one.busy = True
    storm.begin_fault(one.name, reason)
    node.serf.freeze()
    node.backend.freeze()

    def thaw() -> None:
        node.serf.thaw()
        node.backend.thaw()
        storm.end_fault(one.name, reason)

    storm.later(f"freeze of {one.name}", thaw)
    return one.name


@action("freeze of an agent", 1)
def freeze_agent(storm: Storm) -> str:
    """A Serf agent stops, and continues later; the web server serves on."""
    one = storm.choose_node(lambda node: node.agent == "alive")
    serf = storm.node(one).serf
    one.busy = True
    serf.freeze()
    storm.later(f"freeze of the agent of {one.name}", serf.thaw)
    return one.name


@action("many nodes killed", 0.5)
def kill_nodes(storm: Storm) -> str:
    """Agent and web server of several nodes are killed at once; later they boot."""
    found = [node for node in storm.model.nodes.values() if not node.busy and node.agent == "alive" and node.backend]
    chosen = storm.dice.sample(found, min(len(found), storm.dice.randint(2, 7)))
    if not chosen or not storm.can_spare_all(chosen):
        raise Unfit
    reason = "node killed"
    for one in chosen:
        one.busy, one.agent, one.backend = True, "dead", False
        storm.begin_fault(one.name, reason)
        storm.node(one).serf.kill()
        storm.node(one).backend.kill()

    def boot() -> None:
        for one in chosen:
            one.agent, one.backend = "alive", True
            storm.node(one).backend.start()
            storm.node(one).serf.start()
            storm.end_fault(one.name, reason)

    names = " ".join(one.name for one in chosen)
    storm.later(f"killed nodes boot: {names}", boot)
    return names


# Faults of load balancers


@action("HAProxy killed", 1)
def kill_haproxy(storm: Storm) -> str:
    """Master and workers are killed; later they are started, as systemd does."""
    balancer = storm.choose_balancer(lambda one: one.name not in storm.broken and not storm.is_killed(one.haproxy))
    reason = "HAProxy killed"
    storm.begin_fault(balancer.name, reason)
    storm.disturb(balancer, deaf=False)
    storm.kill(balancer.haproxy)

    def restart() -> None:
        storm.start(balancer.haproxy)
        balancer.wait_for_haproxy()
        storm.settle(balancer, deaf=False)
        storm.end_fault(balancer.name, reason)

    storm.later(f"HAProxy of {balancer.name} killed", restart)
    return balancer.name


@action("HAProxy frozen", 0.7)
def freeze_haproxy(storm: Storm) -> str:
    """HAProxy stops, and continues later."""
    balancer = storm.choose_balancer(lambda one: not storm.is_killed(one.haproxy))
    reason = "HAProxy frozen"
    storm.begin_fault(balancer.name, reason)
    storm.disturb(balancer, deaf=False)
    storm.freeze(balancer.haproxy)

    def thaw() -> None:
        storm.thaw(balancer.haproxy)
        storm.settle(balancer, deaf=False)
        storm.end_fault(balancer.name, reason)

    storm.later(f"HAProxy of {balancer.name} frozen", thaw)
    return balancer.name


@action("daemon killed", 2)
def kill_daemon(storm: Storm) -> str:
    """`lbagent watch` is killed, and started later."""
    balancer = storm.choose_balancer(lambda one: not storm.is_killed(one.watch))
    storm.disturb(balancer, deaf=False)
    storm.kill(balancer.watch)

    def restart() -> None:
        storm.start(balancer.watch)
        storm.settle(balancer, deaf=False)

    storm.later(f"daemon of {balancer.name} killed", restart)
    return balancer.name


@action("daemon frozen", 1)
def freeze_daemon(storm: Storm) -> str:
    """`lbagent watch` stops, and continues later."""
    balancer = storm.choose_balancer(lambda one: not storm.is_killed(one.watch))
    storm.disturb(balancer, deaf=False)
    storm.freeze(balancer.watch)

    def thaw() -> None:
        storm.thaw(balancer.watch)
        storm.settle(balancer, deaf=False)

    storm.later(f"daemon of {balancer.name} frozen", thaw)
    return balancer.name


@action("agent of a load balancer killed", 1)
def kill_balancer_agent(storm: Storm) -> str:
    """The Serf agent of a load balancer is killed, and started later."""
    balancer = storm.choose_balancer(lambda one: not storm.is_killed(one.serf) and storm.may_be_deaf(one))
    storm.disturb(balancer, deaf=True)
    storm.kill(balancer.serf)

    def restart() -> None:
        storm.start(balancer.serf)
        storm.settle(balancer, deaf=True)
        storm.must_start_agents = True

    storm.later(f"agent of {balancer.name} killed", restart)
    return balancer.name


@action("handlers killed", 1)
def kill_handlers(storm: Storm) -> str:
    """All handlers on a load balancer are killed; their events may be lost there."""
    balancer = storm.choose_balancer(storm.may_be_deaf)
    storm.disturb(balancer, deaf=True)
    for pid in balancer.machine.list_processes("lbagent"):
        with contextlib.suppress(OSError):
            if b"\0handle" in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)
    storm.later(f"handlers of {balancer.name} killed", lambda: storm.settle(balancer, deaf=True))
    return balancer.name


@action("load balancer rebooted", 0.7)
def reboot_balancer(storm: Storm) -> str:
    """All programs of a load balancer are killed and its address is gone; later they are started."""
    return _reboot(storm, "load balancer rebooted", lambda _: None)


@action("load balancer replaced", 0.5)
def replace_balancer(storm: Storm) -> str:
    """A load balancer starts anew, with the operator's haproxy.cfg, without any state of lbagent and Serf."""

    def clear(balancer: Balancer) -> None:
        balancer.clear_state()
        balancer.edit("haproxy/haproxy.cfg", lambda _: storm.model.config, in_place=False)

    return _reboot(storm, "load balancer replaced", clear)


def _reboot(storm: Storm, reason: str, prepare: Callable[[Balancer], None]) -> str:
    balancer = storm.choose_balancer(
        lambda one: (
            one.name not in storm.broken and storm.may_be_deaf(one) and not any(map(storm.is_killed, one.programs))
        )
    )
    storm.begin_fault(balancer.name, reason)
    storm.disturb(balancer, deaf=True)
    for program in balancer.programs:
        storm.kill(program)
    balancer.drop_address()

    def boot() -> None:
        prepare(balancer)
        for program in balancer.programs:
            storm.start(program)
        balancer.wait_for_haproxy()
        storm.settle(balancer, deaf=True)
        storm.end_fault(balancer.name, reason)
        storm.must_start_agents = True

    storm.later(f"reboot of {balancer.name}", boot)
    return balancer.name


@action("address moved", 0.7)
def stop_keepalived(storm: Storm) -> str:
    """The keepalived of one load balancer stops, and starts later; the address moves."""
    balancer = storm.choose_balancer(lambda one: not storm.is_killed(one.keepalived))
    if any(storm.is_killed(one.keepalived) for one in storm.site.balancers.values()):
        raise Unfit
    reason = "address moved"
    storm.begin_fault(balancer.name, reason)
    storm.killed.add(balancer.keepalived)
    balancer.keepalived.stop()

    def restart() -> None:
        storm.start(balancer.keepalived)
        storm.end_fault(balancer.name, reason)

    storm.later(f"keepalived of {balancer.name} stopped", restart)
    return balancer.name


# Disks and clocks


@action("disk full", 1)
def fill_disk(storm: Storm) -> str:
    """The state directory or the folder of haproxy.cfg of a load balancer is full for a while."""
    folder = storm.dice.choice(DISKS)
    balancer = storm.choose_balancer(storm.may_be_deaf)
    if storm.is_full(folder) or storm.broken:
        raise Unfit
    storm.disturb(balancer, deaf=True)
    storm.full.add(folder)
    balancer.fill_disk(folder)

    def clear() -> None:
        balancer.clear_disk(folder)
        storm.full.remove(folder)
        storm.settle(balancer, deaf=True)

    storm.later(f"disk full: {folder} of {balancer.name}", clear)
    return f"{folder} of {balancer.name}"


@action("disk slow", 1)
def slow_disk(storm: Storm) -> str:
    """Each write to the disk of a load balancer takes up to a second for a while."""
    return _use_shim(storm, "disk slow", 0, storm.dice.uniform(0.05, 0.7))


@action("clock stepped", 1)
def step_clock(storm: Storm) -> str:
    """The clock of a load balancer jumps by up to twenty minutes, and back later."""
    return _use_shim(storm, "clock stepped", storm.dice.randint(-1200, 1200), 0)


def _use_shim(storm: Storm, name: str, clock: int, disk: float) -> str:
    balancer = storm.choose_balancer(lambda one: one.name not in storm.shimmed)
    storm.shimmed.add(balancer.name)
    balancer.set_shim(clock, disk)

    def restore() -> None:
        balancer.set_shim()
        storm.shimmed.remove(balancer.name)

    storm.later(f"{name} of {balancer.name}", restore)
    return f"{balancer.name}: clock {clock:+d} s, {disk:.2f} s per write"


# Network


SERF = "meta l4proto { tcp, udp } th dport 7946"
VRRP = "ip protocol vrrp"


@action("nodes cut off", 1.5)
def cut_nodes(storm: Storm) -> str:
    """Some nodes lose the whole network, or one direction of it."""
    found = [node for node in storm.model.nodes.values() if not node.busy and node.agent != "left"]
    chosen = storm.dice.sample(found, min(len(found), storm.dice.randint(1, 5)))
    chosen = [node for node in chosen if storm.can_spare(node)]
    if not chosen or storm.cuts or not storm.can_spare_all(chosen):
        raise Unfit
    reason, direction = "node cut off", storm.dice.choice(["both", "to", "from"])
    group = _set(node.address for node in chosen)
    rules = [f"ip saddr {group}"] * (direction != "to") + [f"ip daddr {group}"] * (direction != "from")
    for node in chosen:
        node.busy = True
        storm.begin_fault(node.name, reason)

    def heal() -> None:
        for node in chosen:
            storm.end_fault(node.name, reason)

    names = " ".join(node.name for node in chosen)
    _cut(storm, f"{names}: {direction}", rules, heal)
    return f"{names}, direction {direction}"


@action("gossip cut", 1)
def cut_gossip(storm: Storm) -> str:
    """The Serf agents are split in two groups, in both directions or in one; requests go on."""
    if storm.cuts or +storm.deaf:
        raise Unfit
    names = sorted(storm.site.hosts)
    ours = storm.dice.sample(names, storm.dice.randint(1, len(names) - 1))
    one_way = storm.dice.random() < 0.4
    mine, other = (_set(storm.site.hosts[name].address for name in group) for group in (ours, set(names) - set(ours)))
    rules = [f"ip saddr {mine} ip daddr {other} {SERF}"]
    rules += [] if one_way else [f"ip saddr {other} ip daddr {mine} {SERF}"]
    # A node without a load balancer on its side cannot announce a change for certain.
    reached = {"lb01", "lb02"} & set(ours), {"lb01", "lb02"} - set(ours)
    for name in storm.site.nodes:
        if one_way or not reached[name not in ours]:
            storm.model.nodes[name].busy = True
    for balancer in storm.site.balancers.values():
        storm.disturb(balancer, deaf=True)

    def heal() -> None:
        for balancer in storm.site.balancers.values():
            storm.settle(balancer, deaf=True)

    words = f"{' '.join(sorted(ours))} from the others, {'one way' if one_way else 'both ways'}"
    _cut(storm, words, rules, heal)
    return words


@action("load balancers cut from each other", 1)
def cut_balancers(storm: Storm) -> str:
    """The load balancers lose each other: gossip, VRRP, or everything, in both directions or in one."""
    if storm.cuts or +storm.deaf:
        raise Unfit
    what, one_way = storm.dice.choice([SERF, VRRP, ""]), storm.dice.random() < 0.4
    rules = [f"ip saddr 10.0.0.11 ip daddr 10.0.0.12 {what}"]
    rules += [] if one_way else [f"ip saddr 10.0.0.12 ip daddr 10.0.0.11 {what}"]
    reason = "both load balancers have the address"
    for balancer in storm.site.balancers.values():
        storm.disturb(balancer, deaf=True)
        if what != SERF:
            storm.begin_fault(balancer.name, reason)

    def heal() -> None:
        for balancer in storm.site.balancers.values():
            storm.settle(balancer, deaf=True)
            if what != SERF:
                storm.end_fault(balancer.name, reason)

    words = f"{what or 'everything'}, {'one way' if one_way else 'both ways'}"
    _cut(storm, words, rules, heal)
    return words


@action("load balancer cut from nodes", 1)
def cut_balancer(storm: Storm) -> str:
    """A load balancer and some nodes lose each other, in both directions or in one; the other reaches all."""
    balancer = storm.choose_balancer(storm.may_be_deaf)
    found = [node for node in storm.model.nodes.values() if not node.busy]
    if storm.cuts or not found:
        raise Unfit
    chosen = storm.dice.sample(found, storm.dice.randint(1, min(len(found), 12)))
    one_way, reason = storm.dice.random() < 0.4, "node cut from a load balancer"
    group = _set(node.address for node in chosen)
    rules = [f"ip saddr {balancer.address} ip daddr {group}"]
    rules += [] if one_way else [f"ip saddr {group} ip daddr {balancer.address}"]
    storm.disturb(balancer, deaf=True)
    for node in chosen:
        storm.begin_fault(node.name, reason)

    def heal() -> None:
        storm.settle(balancer, deaf=True)
        for node in chosen:
            storm.end_fault(node.name, reason)

    words = f"{balancer.name} and {' '.join(node.name for node in chosen)}, {'one way' if one_way else 'both ways'}"
    _cut(storm, words, rules, heal)
    return words


@action("network loses packets", 1)
def lose_packets(storm: Storm) -> str:
    """A tenth of the gossip is lost."""
    if storm.cuts:
        raise Unfit
    _cut(storm, "a tenth of the gossip lost", [f"{SERF} numgen random mod 10 < 1"], lambda: None)
    return "a tenth of the gossip"


def _set(addresses: Iterable[str]) -> str:
    return f"{{ {', '.join(sorted(addresses))} }}"


def _cut(storm: Storm, words: str, rules: Sequence[str], heal: Callable[[], None]) -> None:
    """Drop the packets of these rules until the fault ends; one such fault at a time."""
    storm.cuts += 1
    storm.site.drop_packets("chaos", rules)

    def accept() -> None:
        storm.site.accept_packets("chaos")
        storm.cuts -= 1
        heal()

    storm.later(f"cut: {words}", accept)

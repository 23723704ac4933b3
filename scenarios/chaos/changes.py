"""Changes of nodes and files: they must not cost a request."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable

from scenarios.chaos.model import Node as NodeModel
from scenarios.chaos.site import render_roles
from scenarios.chaos.storm import Registry, Storm, Unfit
from tests.helpers.real_programs import wait_until

action = Registry()


@action("join", 4)
def join(storm: Storm) -> str:
    """A node that is not in the cluster joins."""
    one = storm.choose_node(lambda node: node.agent == "left" and node.backend)
    one.busy, one.agent = True, "alive"
    storm.node(one).serf.start()
    return one.name


@action("leave", 3)
def leave(storm: Storm) -> str:
    """A node leaves; its web server runs on."""
    one = storm.choose_node(lambda node: node.agent == "alive" and storm.can_spare(node))
    one.busy, one.agent = True, "left"
    storm.start_command(storm.node(one), "serf", "leave")
    return one.name


@action("reboot", 2)
def reboot(storm: Storm) -> str:
    """A node shuts down and boots: its web server stops when no load balancer sends it requests any more."""
    if +storm.disturbed:
        raise Unfit
    one = storm.choose_node(lambda node: node.agent == "alive" and node.backend and storm.can_spare(node))
    one.busy, one.agent = True, "left"
    node = storm.node(one)
    storm.start_command(node, "serf", "leave")

    def boot() -> None:
        node.serf.wait()
        wait_until(lambda: not _find_serving(storm, one.name), 150)
        node.backend.stop()
        node.backend.start()
        one.agent = "alive"
        node.serf.start()

    storm.later(f"reboot of {one.name}", boot)
    return one.name


def _find_serving(storm: Storm, name: str) -> list[str]:
    """Return the load balancers whose HAProxy may send new requests to the node; without an answer it sends none."""
    return [
        balancer.name
        for balancer in storm.site.balancers.values()
        for servers in balancer.find_servers().values()
        if name in servers and servers[name].state != "MAINT"
    ]


def _choose_pausable(storm: Storm) -> NodeModel:
    return storm.choose_node(lambda node: node.is_known and not node.is_out and storm.can_spare(node))


@action("pause by user event", 2)
def pause_by_event(storm: Storm) -> str:
    """A node sends the user event `pause`."""
    one = _choose_pausable(storm)
    sender = storm.choose_other_node(one)
    storm.start_command(sender, "serf", "event", "-coalesce=false", "pause", one.name)
    one.busy = one.paused = True
    return f"{one.name} from {sender.name}"


@action("resume by user event", 2)
def resume_by_event(storm: Storm) -> str:
    """A node sends the user event `resume`."""
    one = storm.choose_node(lambda node: node.is_known and node.paused)
    sender = storm.choose_other_node(one)
    storm.end_promises(one)
    storm.start_command(sender, "serf", "event", "-coalesce=false", "resume", one.name)
    one.busy, one.paused = True, False
    return f"{one.name} from {sender.name}"


@action("lbagent pause", 2)
def pause_on_balancer(storm: Storm) -> str:
    """An operator pauses a node on a load balancer."""
    one = _choose_pausable(storm)
    balancer = storm.choose_balancer(lambda balancer: not storm.deaf[balancer.name])
    storm.start_pause(one, balancer, "lbagent", "pause", one.name, "--reason", "chaos")
    one.busy = one.paused = True
    return f"{one.name} on {balancer.name}"


@action("lbagent resume", 2)
def resume_on_balancer(storm: Storm) -> str:
    """An operator resumes a node on a load balancer."""
    one = storm.choose_node(lambda node: node.is_known and node.paused)
    balancer = storm.choose_balancer(lambda balancer: not storm.deaf[balancer.name])
    storm.end_promises(one)
    storm.start_command(balancer, "lbagent", "resume", one.name)
    one.busy, one.paused = True, False
    return f"{one.name} on {balancer.name}"


RELOAD = ["sh", "-c", "kill -USR2 $(cat /run/haproxy.pid)"]


@action("reload by hand", 1)
def reload_by_hand(storm: Storm) -> str:
    """An operator reloads HAProxy."""
    balancer = storm.choose_balancer(lambda one: not storm.is_killed(one.haproxy))
    storm.start_command(balancer, *RELOAD)
    return balancer.name


@action("pause by tag", 2)
def pause_by_tag(storm: Storm) -> str:
    """A node sets its tag `lbagent=paused`."""
    one = storm.choose_node(lambda node: node.agent == "alive" and not node.is_out and storm.can_spare(node))
    storm.start_command(storm.node(one), "serf", "tags", "-set", "lbagent=paused")
    one.busy = one.tagged = True
    return one.name


@action("resume by tag", 2)
def resume_by_tag(storm: Storm) -> str:
    """A node deletes its tag `lbagent=paused`."""
    one = storm.choose_node(lambda node: node.agent == "alive" and node.tagged)
    storm.end_promises(one)
    storm.start_command(storm.node(one), "serf", "tags", "-delete", "lbagent")
    one.busy, one.tagged = True, False
    return one.name


QUERY = ["serf", "query", "-relay-factor", "2", "-tag", "role=lb", "-timeout", "4s"]
"""How common.bat asks the load balancers."""


@action("pause.bat", 2)
def pause_by_script(storm: Storm) -> str:
    """A node does what pause.bat does: it sets its tag and asks the load balancers."""
    one = storm.choose_node(lambda node: node.agent == "alive" and not node.is_out and storm.can_spare(node))
    query = " ".join([*QUERY, "pause", f"'{one.name} reason=patches '"])
    storm.start_pause(one, storm.node(one), "sh", "-c", f"serf tags -set lbagent=paused; {query}")
    one.busy = one.tagged = one.paused = True
    return one.name


@action("resume.bat", 2)
def resume_by_script(storm: Storm) -> str:
    """A node does what resume.bat does: it deletes its tag and asks the load balancers."""
    one = storm.choose_node(lambda node: node.agent == "alive" and node.tagged)
    query = " ".join([*QUERY, "resume", one.name])
    storm.end_promises(one)
    storm.start_command(storm.node(one), "sh", "-c", f"serf tags -delete lbagent; {query}")
    one.busy, one.tagged, one.paused = True, False, False
    return one.name


@action("pause that ends by itself", 1)
def pause_for_a_while(storm: Storm) -> str:
    """A node sends a pause with an end a few seconds ahead."""
    one = _choose_pausable(storm)
    sender = storm.choose_other_node(one)
    payload = f"{one.name} until={int(time.time()) + storm.dice.randint(5, 30)}"
    storm.start_command(sender, "serf", "event", "-coalesce=false", "pause", payload)
    one.busy = True
    return f"{payload} from {sender.name}"


@action("role changed", 2)
def change_role(storm: Storm) -> str:
    """A node gets another role, or gets its first one back."""
    away = [one for one in storm.model.nodes.values() if one.role != one.home]
    one = storm.choose_node(
        lambda node: node.agent == "alive" and storm.can_spare(node) and (len(away) < 4 or node in away)
    )
    role = one.home if one in away else storm.dice.choice([*sorted({*storm.model.services, "idle"} - {one.home})])
    storm.start_command(storm.node(one), "serf", "tags", "-set", f"role={role}")
    words = f"{one.name}: {one.role} becomes {role}"
    one.busy, one.role = True, role
    return words


@action("addresses swapped", 1)
def swap_addresses(storm: Storm) -> str:
    """Two nodes that have left, in an earlier minute, exchange their addresses; they join later."""
    if +storm.disturbed:
        raise Unfit
    one, two = storm.choose_node(_has_left), storm.choose_node(_has_left)
    if one is two:
        raise Unfit
    one.address, two.address = two.address, one.address
    one.busy = two.busy = True
    storm.node(one).drop_network()
    for node in (two, one):
        storm.node(node).set_address(node.address)
    return f"{one.name} and {two.name}"


def _has_left(node: NodeModel) -> bool:
    return node.agent == "left" and node.backend


def _order(storm: Storm, one: NodeModel, verb: str) -> str:
    """Send a command from the web page. While daemon or page start, nothing is sent."""
    balancer = storm.choose_balancer(lambda balancer: not storm.disturbed[balancer.name] and not storm.cuts)
    if why := balancer.send_order(one.name, verb):
        if not why.startswith(("400: ", "ConnectionRefusedError")):
            storm.wrong.append(f"web page of {balancer.name}: {verb} {one.name}: {why}")
        return f"{one.name} on {balancer.name}: not sent: {why}"
    one.busy, one.paused = True, verb == "pause"
    return f"{one.name} on {balancer.name}"


@action("pause on the web page", 1.5)
def pause_on_page(storm: Storm) -> str:
    """A user pauses a node on the web page."""
    return _order(storm, _choose_pausable(storm), "pause")


@action("resume on the web page", 1.5)
def resume_on_page(storm: Storm) -> str:
    """A user resumes a node on the web page."""
    one = storm.choose_node(lambda node: node.is_known and node.paused)
    storm.end_promises(one)
    return _order(storm, one, "resume")


# Edits of an operator


COMMENT = "# edited by the operator:"


@action("haproxy.cfg edited", 1.5)
def edit_config(storm: Storm) -> str:
    """An operator edits haproxy.cfg on both load balancers, and may reload HAProxy."""
    if storm.broken or storm.is_full("/etc/haproxy"):
        raise Unfit
    number, in_place = storm.dice.randint(1, 999), storm.dice.random() < 0.5
    seconds, reloads = storm.dice.randint(25, 35), storm.dice.random() < 0.5

    def change(text: str) -> str:
        lines = [line for line in text.splitlines(keepends=True) if not line.startswith(COMMENT)]
        changed = re.sub(r"timeout client \d+s", f"timeout client {seconds}s", "".join(lines))
        return changed.replace("defaults\n", f"{COMMENT} {number}\ndefaults\n", 1)

    storm.model.config = change(storm.model.config)
    for balancer in storm.site.balancers.values():
        balancer.edit("haproxy/haproxy.cfg", change, in_place=in_place)
        if reloads and not storm.disturbed[balancer.name]:
            storm.start_command(balancer, *RELOAD)
    return f"number {number}, {'in place' if in_place else 'by a rename'}, {'with' if reloads else 'without'} a reload"


BROKEN = "    timeout bogus 1s # a mistake of the operator\n"


@action("haproxy.cfg broken", 1)
def break_config(storm: Storm) -> str:
    """An operator makes a mistake in haproxy.cfg of one load balancer, and fixes it later."""
    balancer = storm.choose_balancer()
    if storm.broken or storm.is_full("/etc/haproxy") or storm.disturbed[balancer.name]:
        raise Unfit
    in_place, reloads = storm.dice.random() < 0.5, storm.dice.random() < 0.3
    storm.broken.add(balancer.name)
    storm.disturb(balancer, deaf=False)
    balancer.edit(
        "haproxy/haproxy.cfg",
        lambda text: text if BROKEN in text else text.replace("defaults\n", f"defaults\n{BROKEN}", 1),
        in_place=in_place,
    )
    if reloads:
        storm.start_command(balancer, *RELOAD)

    def fix() -> None:
        balancer.edit("haproxy/haproxy.cfg", lambda text: text.replace(BROKEN, ""), in_place=in_place)
        storm.broken.remove(balancer.name)
        storm.settle(balancer, deaf=False)

    storm.later(f"mistake in haproxy.cfg of {balancer.name}", fix)
    return f"{balancer.name}, {'with' if reloads else 'without'} a reload"


@action("roles.yml edited", 1)
def edit_roles(storm: Storm) -> str:
    """An operator adds or removes a role, or changes an interval, on both load balancers."""
    if "roles" in storm.broken:
        raise Unfit
    model = storm.model
    if storm.dice.random() < 0.5:
        if "idle" in model.services:
            del model.services["idle"]
        else:
            model.services["idle"], model.intervals["idle"] = ["iis"], "1s"
    else:
        model.intervals["both"] = "2s" if model.intervals["both"] == "1s" else "1s"
    text = render_roles(model.services, model.intervals)
    for balancer in storm.site.balancers.values():
        balancer.edit("lbagent/roles.yml", lambda _: text, in_place=storm.dice.random() < 0.5)
    return f"idle {'present' if 'idle' in model.services else 'missing'}, interval of both {model.intervals['both']}"


@action("roles.yml broken", 1)
def break_roles(storm: Storm) -> str:
    """An operator makes a mistake in roles.yml of one load balancer, and fixes it later."""
    balancer = storm.choose_balancer()
    if "roles" in storm.broken:
        raise Unfit
    storm.broken.add("roles")
    storm.disturb(balancer, deaf=False)
    balancer.edit("lbagent/roles.yml", lambda text: text.replace("services:", "servces:"), in_place=False)

    def fix() -> None:
        balancer.edit("lbagent/roles.yml", lambda text: text.replace("servces:", "services:"), in_place=False)
        storm.broken.remove("roles")
        storm.settle(balancer, deaf=False)

    storm.later(f"mistake in roles.yml of {balancer.name}", fix)
    return balancer.name


# Many changes at once, and changes of one node in a row


def _repeat(work: Callable[[], str], most: int) -> list[str]:
    """Do this `most` times, or until it does not fit any more; return what it returned. Raises Unfit for nothing."""
    done = [work()]
    with contextlib.suppress(Unfit):
        while len(done) < most:
            done.append(work())
    return done


@action("pauses and resumes in a row", 1.5)
def flap_pauses(storm: Storm) -> str:
    """A node sends several pauses and resumes of another one; the last one counts."""
    one = storm.choose_node(lambda node: node.is_known and not node.tagged and (node.is_out or storm.can_spare(node)))
    sender, verbs = storm.choose_other_node(one), storm.dice.choices(["pause", "resume"], k=storm.dice.randint(2, 6))
    kind = storm.dice.choice(["event -coalesce=false", "query -no-ack -timeout 1s -relay-factor 2 -tag role=lb"])
    storm.end_promises(one)
    storm.start_command(sender, "sh", "-c", "; ".join(f"serf {kind} {verb} {one.name}" for verb in verbs))
    one.busy, one.paused = True, verbs[-1] == "pause"
    return f"{one.name}: {' '.join(verbs)}, from {sender.name}"


@action("leave and join in a row", 1.5)
def flap_agent(storm: Storm) -> str:
    """An agent leaves and joins again at once; its web server runs on."""
    one = storm.choose_node(lambda node: node.agent == "alive" and storm.can_spare(node))
    one.busy = True
    storm.node(one).serf.stop()
    storm.node(one).serf.start()
    return one.name


@action("many leave", 0.5)
def leave_together(storm: Storm) -> str:
    """Up to ten nodes leave at once."""
    return " ".join(_repeat(lambda: leave(storm), storm.dice.randint(3, 10)))


@action("many join", 0.7)
def join_together(storm: Storm) -> str:
    """All nodes that are not in the cluster join at once."""
    return " ".join(_repeat(lambda: join(storm), len(storm.model.nodes)))


@action("lbagent pause of many", 0.7)
def pause_many(storm: Storm) -> str:
    """An operator pauses several nodes with one command."""
    balancer = storm.choose_balancer(lambda balancer: not storm.deaf[balancer.name])

    def choose() -> str:
        one = _choose_pausable(storm)
        one.busy = one.paused = True
        return one.name

    chosen = _repeat(choose, storm.dice.randint(2, 6))
    storm.start_command(balancer, "lbagent", "pause", *chosen)
    return f"{' '.join(chosen)} on {balancer.name}"


@action("lbagent resume of many", 0.7)
def resume_many(storm: Storm) -> str:
    """An operator resumes all paused nodes with one command."""
    chosen = [node for node in storm.model.nodes.values() if node.is_known and node.paused and not node.busy]
    balancer = storm.choose_balancer(lambda balancer: not storm.deaf[balancer.name])
    if not chosen:
        raise Unfit
    for one in chosen:
        storm.end_promises(one)
        one.busy, one.paused = True, False
    names = [one.name for one in chosen]
    storm.start_command(balancer, "lbagent", "resume", *names)
    return f"{' '.join(names)} on {balancer.name}"


GARBAGE = [
    "",
    " ",
    "nobody",
    "n01 until=yesterday",
    "n01 for=-1",
    "n 01",
    "../n01",
    "n01\nn02",
    "\u00fc" * 40,
    "x" * 200,
]
"""Payloads that pause and resume no node of the run."""


@action("garbage sent", 1)
def send_garbage(storm: Storm) -> str:
    """A node sends an event or a query that means nothing."""
    found = [node for node in storm.model.nodes.values() if node.agent == "alive" and not node.busy]
    if not found:
        raise Unfit
    sender, payload = storm.node(storm.dice.choice(found)), storm.dice.choice(GARBAGE)
    name = storm.dice.choice(["resume", "resume", "deploy", "lbagent-status", "lbagent-forget", "-x", "pa use"])
    kind = storm.dice.choice([["event", "-coalesce=false"], ["query", "-no-ack", "-timeout", "1s"]])
    storm.start_command(sender, "serf", *kind, "--", name, payload)
    return f"{kind[0]} {name} {payload!r} from {sender.name}"

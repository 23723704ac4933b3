"""examples/impala: what its files say of each other holds, and no client moves when a daemon joins."""

from __future__ import annotations

import configparser
import json
import re

import pytest

from lbagent.roles import loader
from scenarios.impala_site import EXAMPLE, Balancer, Daemon, Site, map_clients, measure_moved_share, replace_words
from tests.helpers.real_programs import Backend, free_port, member_line, wait_until

UNITS = {"s": 1, "m": 60, "h": 3_600}


def text(name: str) -> str:
    return (EXAMPLE / name).read_text(encoding="utf-8")


def directives(*name: str) -> list[list[str]]:
    """What follows these words on each line of haproxy.cfg that begins with them."""
    lines = (line.partition("#")[0].split() for line in text("haproxy.cfg").splitlines())
    return [words[len(name) :] for words in lines if words[: len(name)] == [*name]]


def seconds(time: str) -> int:
    return int(time[:-1]) * UNITS[time[-1]]


def port(proxy: str) -> str:
    """The port that haproxy.cfg gives to a proxy."""
    found = re.search(rf"^listen {proxy}\n    bind :(\d+)$", text("haproxy.cfg"), re.MULTILINE)
    assert found
    return found[1]


def settings(name: str) -> configparser.SectionProxy:
    """The section `impala` of a client's settings."""
    parser = configparser.ConfigParser()
    parser.read_string(text(name))
    return parser["impala"]


def test_a_session_outlasts_neither_the_table_nor_an_old_worker() -> None:
    [client, _], [server, _] = directives("timeout", "client"), directives("timeout", "server")
    [[hard_stop]], [table] = directives("hard-stop-after"), directives("stick-table")

    assert client == server
    assert seconds(client[0]) < seconds(hard_stop)
    assert seconds(client[0]) < seconds(table[table.index("expire") + 1])


def test_the_kernel_and_haproxy_keep_alive_alike() -> None:
    kernel = dict(line.split(" = ") for line in text("impala-keepalive.conf").splitlines() if " = " in line)

    for side in ("clitcpka", "srvtcpka"):
        [idle], [interval], [count] = (directives(f"{side}-{what}") for what in ("idle", "intvl", "cnt"))
        assert kernel == {
            "net.ipv4.tcp_keepalive_time": str(seconds(idle[0])),
            "net.ipv4.tcp_keepalive_intvl": str(seconds(interval[0])),
            "net.ipv4.tcp_keepalive_probes": count[0],
        }


def test_clients_are_led_to_their_proxies() -> None:
    hue, shell = settings("hue.ini"), settings("impalarc")

    assert hue["server_port"] == port("impalajdbc")
    assert shell["impalad"] == f"{hue['server_host']}:{port('impala')}"
    assert shell["protocol"] == "beeswax"
    longest = seconds(directives("timeout", "client")[0][0])
    assert int(hue["query_timeout_s"]) < int(hue["session_timeout_s"]) < longest


def test_the_agents_and_the_load_balancers_know_each_other() -> None:
    lb, daemon = (json.loads(text(f"serf-{name}.json")) for name in ("lb01", "impala01"))
    peers = {name: where.partition(":")[0] for name, where in directives("peer")}

    assert directives("localpeer") == [[lb["node_name"]]]
    assert lb["node_name"] in peers
    assert [*peers.values()] == lb["retry_join"] == daemon["retry_join"]
    roles = loader.parse_roles(text("roles.yml").encode(), "roles.yml").roles
    assert (daemon["tags"]["role"] in roles, lb["tags"]["role"] in roles) == (True, False)


@pytest.mark.real
def test_no_client_moves_when_a_daemon_joins() -> None:
    site = Site()
    names = {f"impala{number}": f"127.0.8.{number}" for number in (31, 32, 33)}
    daemons = [Daemon(name, address, site) for name, address in names.items()]
    *two, third = (member_line(name, address, "impala") for name, address in names.items())
    with daemons[0], daemons[1], daemons[2], Balancer(site) as one:
        one.lb.join(*two)
        at_first = map_clients(one.jdbc)

        one.lb.join(third)

        assert one.haproxy.find_serving("impalajdbc") == {*names}
        assert measure_moved_share(at_first, map_clients(one.jdbc)) == 0
        assert one.haproxy.reloads() == (0, 0)


@pytest.mark.real
def test_daemons_can_be_asked_how_they_are() -> None:
    site, web = Site(), free_port()
    asking = {
        "    # additional-lb-impala-server": "    option httpchk GET /healthz\n    # additional-lb-impala-server",
        "    stick on src\n": "    stick on src\n    option httpchk GET /healthz\n",
    }
    well, ill = (Daemon(f"impala{number}", f"127.0.8.{number}", site) for number in (34, 35))
    answering = Backend("OK", well.address, web)
    with well, ill, answering, Balancer(site, changed=asking) as one:
        one.lb.roles.write_text(replace_words(one.lb.roles.read_text(), {"check inter": f"check port {web} inter"}))

        one.lb.join(*(member_line(daemon.name, daemon.address, "impala") for daemon in (well, ill)))

        told = {well.name: "UP", ill.name: "DOWN"}
        wait_until(lambda: [one.haproxy.servers(proxy) for proxy in ("impala", "impalajdbc")] == [told, told])
        assert one.haproxy.reloads() == (0, 0)
        assert answering.requests > 0

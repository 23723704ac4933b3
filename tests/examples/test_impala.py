"""examples/impala: its files are consistent, and each client keeps its server when a daemon joins."""

from __future__ import annotations

import configparser
import json
import re

import pytest

from lbagent.roles import loader
from scenarios.impala_site import EXAMPLE, Balancer, Daemon, Site, map_clients, measure_moved_share, replace_words
from tests.helpers.real_programs import Backend, free_port, member_line, wait_until

UNITS = {"s": 1, "m": 60, "h": 3_600}


def read_file(name: str) -> str:
    return (EXAMPLE / name).read_text(encoding="utf-8")


def read_directives(*name: str) -> list[list[str]]:
    """Return the rest of each line of haproxy.cfg that begins with these words."""
    lines = (line.partition("#")[0].split() for line in read_file("haproxy.cfg").splitlines())
    return [words[len(name) :] for words in lines if words[: len(name)] == [*name]]


def parse_seconds(time: str) -> int:
    return int(time[:-1]) * UNITS[time[-1]]


def find_port(proxy: str) -> str:
    """Return the port of a proxy in haproxy.cfg."""
    found = re.search(rf"^listen {proxy}\n    bind :(\d+)$", read_file("haproxy.cfg"), re.MULTILINE)
    assert found
    return found[1]


def read_settings(name: str) -> configparser.SectionProxy:
    """Return the section `impala` of a client's settings."""
    parser = configparser.ConfigParser()
    parser.read_string(read_file(name))
    return parser["impala"]


def test_a_session_is_shorter_than_the_table_and_an_old_worker() -> None:
    [client, _], [server, _] = read_directives("timeout", "client"), read_directives("timeout", "server")
    [[hard_stop]], [table] = read_directives("hard-stop-after"), read_directives("stick-table")

    assert client == server
    assert parse_seconds(client[0]) < parse_seconds(hard_stop)
    assert parse_seconds(client[0]) < parse_seconds(table[table.index("expire") + 1])


def test_the_kernel_and_haproxy_keep_alive_alike() -> None:
    kernel = dict(line.split(" = ") for line in read_file("impala-keepalive.conf").splitlines() if " = " in line)

    for side in ("clitcpka", "srvtcpka"):
        [idle], [interval], [count] = (read_directives(f"{side}-{what}") for what in ("idle", "intvl", "cnt"))
        assert kernel == {
            "net.ipv4.tcp_keepalive_time": str(parse_seconds(idle[0])),
            "net.ipv4.tcp_keepalive_intvl": str(parse_seconds(interval[0])),
            "net.ipv4.tcp_keepalive_probes": count[0],
        }


def test_each_client_uses_its_proxy() -> None:
    hue, shell = read_settings("hue.ini"), read_settings("impalarc")

    assert hue["server_port"] == find_port("impalajdbc")
    assert shell["impalad"] == f"{hue['server_host']}:{find_port('impala')}"
    assert shell["protocol"] == "beeswax"
    longest = parse_seconds(read_directives("timeout", "client")[0][0])
    assert int(hue["query_timeout_s"]) < int(hue["session_timeout_s"]) < longest


def test_the_agents_and_the_load_balancers_use_the_same_addresses() -> None:
    lb, daemon = (json.loads(read_file(f"serf-{name}.json")) for name in ("lb01", "impala01"))
    peers = {name: where.partition(":")[0] for name, where in read_directives("peer")}

    assert read_directives("localpeer") == [[lb["node_name"]]]
    assert lb["node_name"] in peers
    assert [*peers.values()] == lb["retry_join"] == daemon["retry_join"]
    roles = loader.parse_roles(read_file("roles.yml").encode(), "roles.yml").roles
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
def test_the_health_of_a_daemon_can_be_queried() -> None:
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

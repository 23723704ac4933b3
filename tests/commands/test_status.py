"""The report as a person reads it: at every width, without a terminal, and in the docs."""

# ruff: noqa: E501  # what is shown stands as it is shown

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from lbagent.commands import status
from lbagent.haproxy.config import Document
from lbagent.haproxy.runtime.state import ServerStats
from lbagent.membership.model import FAILED, Pause
from lbagent.membership.peers import Peer, Peers
from lbagent.metrics import Last
from lbagent.names import format_age
from lbagent.outcome import PastRun
from lbagent.planning import quarantine
from lbagent.status.nodes import State
from lbagent.status.report import FailedReload, Report, Served, Sources, SpoolState, StatsSocket, build_report
from tests.helpers.builders import NOW, POISON, dedent, member, membership_of, parse_roles_text, planned_text
from tests.status.test_report import keys

PAGE = (Path(__file__).parent.parent.parent / "docs" / "reference" / "status.md").read_text(encoding="utf-8")

FARM = parse_roles_text("""
    services:
      iis: {port: 80}
      mongo: {port: 27017}
    roles:
      web: {lb: [iis], mon: [mongo], networks: [10.0.0.0/8]}
""")

FARM_CFG = dedent("""
    global
        stats socket /run/haproxy/admin.sock
    listen lb-iis
        # additional-lb-iis-server
    backend mon-mongo
        # additional-mon-mongo-server
""")

DIGEST = "8c92426aa1a7ad68"
WORDS = "parsing [/etc/haproxy/haproxy.cfg:31] : 'server lb-iis/web04' : unknown keyword 'chekc'"


def example() -> Report:
    """The load balancer that the docs show."""
    nodes = {f"web0{at}": member(f"web0{at}", f"10.0.0.{at}") for at in (1, 2, 3, 4, 5)}
    nodes["web02"] = nodes["web02"]._replace(pause=Pause(NOW + 8000, "user event", "patches", NOW + 15000))
    nodes["web03"] = nodes["web03"]._replace(status=FAILED, changed=NOW + 10700)
    text = planned_text(FARM_CFG, FARM, membership_of(*(nodes[name] for name in ("web01", "web02", "web03", "web04"))))
    document = Document([("haproxy.cfg", text)])
    joined = nodes["web05"]._replace(changed=NOW + 10799)
    membership = membership_of(
        *(nodes[name] for name in ("web01", "web02", "web03", "web04")), joined, member("lb02", "10.0.0.252", "lb")
    )
    held = quarantine.quarantine_nodes(
        membership, {"web04": WORDS}, quarantine.fingerprint_context(document, FARM), NOW + 10600
    )
    said = {("lb-iis", "web01"): ServerStats("UP", 12), ("mon-mongo", "web01"): ServerStats("UP", 3)}
    said |= {(proxy, "web03"): ServerStats("DOWN", 0) for proxy in ("lb-iis", "mon-mongo")}
    said |= {(proxy, "web04"): ServerStats("UP", 0) for proxy in ("lb-iis", "mon-mongo")}
    run = PastRun(NOW + 10600, "member-update web04", "refused", f"web04: HAProxy refuses its line: {WORDS}")
    sources = Sources(
        NOW + 10800,
        said,
        StatsSocket("/run/haproxy/admin.sock", None),
        Served(document.compute_digest(), 4711, alive=True, failure=None),
        SpoolState(1, NOW + 10799),
        run,
        0,
        (),
        Last(NOW + 10780, 4, success=NOW + 9000, sync=NOW + 10780, words="unchanged: nothing to do"),
        Peers(
            NOW + 10780,
            "lb",
            (Peer("lb02", "10.0.0.252", "alive", DIGEST, equal=True, seen=NOW + 10780, answers=True),),
        ),
        daemon=True,
    )
    return build_report(sources, FARM, held, document)


def shown(found: Report, width: int, *, color: bool = False, height: int = 100, most: int | None = None) -> str:
    """What a terminal of that width is given."""
    file = io.StringIO()
    console = Console(
        file=file, width=width, height=height, force_terminal=color, color_system="standard" if color else None
    )
    console.print(status.make_view(found, width, most))
    return "\n".join(text.rstrip() for text in file.getvalue().split("\n"))


def test_the_docs_show_what_a_terminal_of_80_columns_shows() -> None:
    [block] = re.findall(r"^```text\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)

    assert shown(example(), 80) == block


def test_every_state_is_documented() -> None:
    assert [state.value for state in State if f"\n| `{state}` |" not in PAGE] == []


def test_every_column_is_documented() -> None:
    assert [name for name in (*status.COLUMNS, "WHY") if f"\n| {name} |" not in PAGE] == []


def test_every_key_of_the_json_object_is_documented_and_no_other() -> None:
    found = example()
    failed = Served("x", 1, alive=True, failure=FailedReload(NOW, 1, "no"))
    told = found._replace(sources=found.sources._replace(served=failed)).as_json()
    paths = keys(told).union(*(keys({"nodes": [node]}) for node in told["nodes"]))

    documented = re.findall(r"^\| `([a-z_.]+)` \|", PAGE.partition("\n## JSON\n")[2], re.MULTILINE)

    assert sorted(documented) == sorted(paths)


# --- on a terminal -----------------------------------------------------------------------------------------------


def test_at_140_columns_each_node_is_a_line_and_its_reason_another() -> None:
    assert shown(example(), 140).split("\n")[:8] == [
        f"quarantine  web04: {WORDS} (for 3m)",
        "",
        "NODE   ADDRESS   ROLE  WHERE              STATE        SINCE  HAPROXY  OPEN",
        "web01  10.0.0.1  web   lb-iis, mon-mongo  in              3h  UP         15",
        "web02  10.0.0.2  web   lb-iis, mon-mongo  paused         46m  -           -",
        "    by user event: patches, 70m left",
        "web03  10.0.0.3  web   lb-iis, mon-mongo  failed        100s  DOWN        0",
        "    its line is kept",
    ]


def test_on_a_narrow_terminal_the_proxies_wrap() -> None:
    assert shown(example(), 72).split("\n")[4:7] == [
        "web01  10.0.0.1  web   lb-iis,         in              3h  UP         15",
        "                       mon-mongo",
        "web02  10.0.0.2  web   lb-iis,         paused         46m  -           -",
    ]


def test_at_40_columns_each_node_is_a_paragraph() -> None:
    assert shown(example(), 40) == dedent("""
        quarantine  web04: parsing
                    [/etc/haproxy/haproxy.cfg:31
                    ] : 'server lb-iis/web04' :
                    unknown keyword 'chekc' (for
                    3m)

        web01     in 3h
        10.0.0.1  UP, 15 open
        web       lb-iis, mon-mongo
        web02     paused 46m: by user event:
        10.0.0.2  patches, 70m left
        web       lb-iis, mon-mongo
        web03     failed 100s: its line is kept
        10.0.0.3  DOWN, 0 open
        web       lb-iis, mon-mongo
        web04     quarantined 3m: parsing
        10.0.0.4  [/etc/haproxy/haproxy.cfg:31]
        web       : 'server lb-iis/web04' :
                  unknown keyword 'chekc'
                  UP, 0 open
                  lb-iis, mon-mongo
        web05     pending 1s: its lines will be
        10.0.0.5  added
        web

        nodes          6: 1 failed, 1 in, 1 load
                       balancer, 1 paused, 1
                       pending, 1 quarantined
        lines          digest 8c92426aa1a7ad68,
                       confirmed by HAProxy
                       worker 4711
        load balancer  lb02 10.0.0.252 alive,
                       same managed lines, last
                       answer 20s ago
        daemon         `lbagent watch` runs,
                       last sync 20s ago
        last run       20s ago, unchanged:
                       nothing to do
        last success   30m ago
        last change    3m ago, refused: web04:
                       HAProxy refuses its line:
                       parsing
                       [/etc/haproxy/haproxy.cfg
                       :31] : 'server
                       lb-iis/web04' : unknown
                       keyword 'chekc'
                       (member-update web04)
        waiting        1 event, the oldest for
                       1s
    """)


@pytest.mark.parametrize("width", [1, 2, 10, 20, 39, 79, 80, 81, 200])
def test_no_line_is_wider_than_the_terminal_and_no_node_is_lost(width: int) -> None:
    lines = shown(example(), width).split("\n")

    assert max(map(cell_len, lines)) <= width
    assert all(name in "".join(line[:5] for line in lines) for name in ("web01", "web05")) or width < 20


def hostile(words: str) -> Report:
    """A load balancer where whoever could say anything has said `words`."""
    membership = membership_of(member("web01", role=words), member("web02", "10.0.0.2", pause=Pause(NOW, words, words)))
    sources = example().sources._replace(
        stats_socket=StatsSocket(None, words),
        served=Served(words, 1, alive=False, failure=FailedReload(NOW, 1, words)),
        last_run=PastRun(NOW, words, words, words),
        problems=(words,),
    )
    found = build_report(sources, FARM, membership, Document([("haproxy.cfg", FARM_CFG)]))
    return found._replace(blocked=(words,), notes=(words,))


@given(st.text() | st.lists(st.sampled_from([*POISON, "[bold]", "[/]", ":smile:", "[link=x]"])).map("".join))
def test_hostile_text_is_neither_terminal_codes_nor_markup(words: str) -> None:
    found = hostile(words)
    texts = [shown(found, 80), shown(found, 30), *status.format_plain(found)]

    assert {one for text in texts for one in text.replace("\n", "") if not one.isprintable()} == set()
    json.loads(json.dumps(found.as_json()))


def test_markup_and_emoji_codes_are_printed_unchanged() -> None:
    assert "by x: [bold red]:smile:[/]?[31m" in shown(
        build_report(
            example().sources,
            FARM,
            membership_of(member("web01", pause=Pause(NOW, "x", "[bold red]:smile:[/]\x1b[31m"))),
            Document([("haproxy.cfg", FARM_CFG)]),
        ),
        100,
    )


def test_a_long_reason_is_cut_on_a_terminal_and_whole_elsewhere() -> None:
    membership = membership_of(member("web01", pause=Pause(NOW, "query", "x" * 300)))
    found = build_report(example().sources, FARM, membership, Document([("haproxy.cfg", FARM_CFG)]))

    assert shown(found, 1000).count("x") < 200
    assert shown(found, 1000).count("…") == 1
    assert "\n".join(status.format_plain(found)).count("x" * 300) == 1


def test_a_terminal_with_too_few_lines_leaves_out_nodes_that_are_in() -> None:
    members = [member(f"web{at}", f"10.0.0.{at}") for at in range(1, 201)]
    members[149] = members[149]._replace(status=FAILED)
    text = planned_text(FARM_CFG, FARM, membership_of(*members))
    sources = example().sources._replace(peers=None, last=Last(), daemon=None)
    found = build_report(sources, FARM, membership_of(*members), Document([("haproxy.cfg", text)]))
    file = io.StringIO()
    console = Console(file=file, width=80, height=14)

    console.print(status.fit_view(found, console))

    lines = file.getvalue().split("\n")
    assert len(lines) - 1 <= 14
    assert [line.split()[0] for line in lines[1:5]] == ["web1", "web2", "web150", "its"]
    assert "not shown  197 more nodes (the terminal has too few lines)" in [line.rstrip() for line in lines]


def test_nodes_of_other_roles_are_counted_on_a_terminal_and_listed_otherwise() -> None:
    roles = [*["spark"] * 500, "vpn", "vpn", "wbe", "", *(f"role{number}" for number in range(8))]
    others = [member(f"node{at}", f"10.1.{at // 250}.{at % 250 + 1}", role) for at, role in enumerate(roles)]
    sources = example().sources._replace(peers=None, last=Last())
    found = build_report(sources, FARM, membership_of(*others), Document([("haproxy.cfg", FARM_CFG)]))

    assert shown(found, 400).split("\n")[0] == (
        "other roles  512 nodes, not in roles.yml: 500 spark, 2 vpn, 1 wbe, 1 without a role, 1 role0,"
        " 1 role1, 1 role2, 1 role3, 1 role4, 1 role5 and 2 more roles"
    )
    assert len(status.format_plain(found)) > len(found.as_json()["nodes"]) == 512


# --- without one -------------------------------------------------------------------------------------------------


def test_without_a_terminal_each_node_is_one_line() -> None:
    assert (
        status.format_plain(example())
        == dedent("""
        quarantine: web04: REFUSED (for 3m)

        NODE   ADDRESS     ROLE  WHERE              STATE          SINCE  HAPROXY  OPEN  WHY
        web01  10.0.0.1    web   lb-iis, mon-mongo  in             3h     UP       15
        web02  10.0.0.2    web   lb-iis, mon-mongo  paused         46m    -        -     by user event: patches, 70m left
        web03  10.0.0.3    web   lb-iis, mon-mongo  failed         100s   DOWN     0     its line is kept
        web04  10.0.0.4    web   lb-iis, mon-mongo  quarantined    3m     UP       0     REFUSED
        web05  10.0.0.5    web   -                  pending        1s     -        -     its lines will be added
        lb02   10.0.0.252  lb    -                  load balancer  3h     -        -

        nodes: 6: 1 failed, 1 in, 1 load balancer, 1 paused, 1 pending, 1 quarantined
        lines: digest 8c92426aa1a7ad68, confirmed by HAProxy worker 4711
        load balancer: lb02 10.0.0.252 alive, same managed lines, last answer 20s ago
        daemon: `lbagent watch` runs, last sync 20s ago
        last run: 20s ago, unchanged: nothing to do
        last success: 30m ago
        last change: 3m ago, refused: web04: HAProxy refuses its line: REFUSED (member-update web04)
        waiting: 1 event, the oldest for 1s
    """)
        .replace("REFUSED", WORDS)
        .split("\n")[:-1]
    )


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(-5, "0s"), (0, "0s"), (119, "119s"), (120, "2m"), (7199, "119m"), (7200, "2h"), (172799, "47h"), (172800, "2d")],
)
def test_an_age_is_short(seconds: int, told: str) -> None:
    assert format_age(seconds) == told


def test_without_a_terminal_wide_characters_take_two_columns() -> None:
    membership = membership_of(
        member("web01", pause=Pause(NOW, "query", "")), member("web02", "10.0.0.2", role="ウェブ")
    )
    found = build_report(example().sources, FARM, membership, Document([("haproxy.cfg", FARM_CFG)]))

    rows = [line for line in status.format_plain(found) if line.startswith(("NODE", "web0"))]

    starts = [
        cell_len(line[: line.index(word)]) for line, word in zip(rows, ("STATE", "pending", "unknown"), strict=True)
    ]
    assert len(set(starts)) == 1


@pytest.mark.parametrize(("height", "times"), [(40, 2), (500, 1)])
def test_faults_are_repeated_at_the_end_if_the_first_lines_scroll_away(height: int, times: int) -> None:
    members = membership_of(*(member(f"web{at:02}", f"10.0.0.{at}") for at in range(1, 61)))
    found = build_report(example().sources, FARM, members, Document([("haproxy.cfg", FARM_CFG)]))
    file = io.StringIO()
    console = Console(file=file, width=80, height=height)

    console.print(status.make_long_view(found, console))

    lines = [line.rstrip() for line in file.getvalue().splitlines() if line.startswith("last run  unchanged")]
    assert lines == ["last run  unchanged: nothing to do"] * times

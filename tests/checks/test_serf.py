"""`check` finds event handlers and settings of the Serf agent that keep events from lbagent."""

# ruff: noqa: E501  # a case of a table is on one line

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbagent.checks import serf
from lbagent.checks.finding import Kind
from lbagent.serf import agent
from lbagent.serf.agent import File
from lbagent.serf.member_list import AgentInfo, ListedMember, MemberList
from lbagent.serf.raw_event import RawEvent
from tests.checks.helpers import list_lines, list_problems
from tests.helpers.builders import parse_roles_text

# --- handlers -------------------------------------------------------------------------------------------------------

ALL = {"*:": "lbagent handle"}


def of_handlers(found: list[tuple[str, str]], *, exists: bool = True) -> list[str]:
    """Return the findings about handlers; those count that name lbagent."""
    return list_lines(serf.check_handlers(found, serf.names_lbagent, lambda _: exists))


def on(*names: str, command: str = "lbagent handle") -> list[tuple[str, str]]:
    """One command on several filters."""
    return [(name, command) for name in names]


MEMBERS = ("member-join:", "member-leave:", "member-failed:", "member-update:", "member-reap:")
CALLED = "ok handlers: serf info: 'lbagent handle' receives all events that lbagent needs"
WITHOUT = "write the handler without a filter: `lbagent handle`"


@pytest.mark.parametrize(
    ("found", "lines"),
    [
        (on("*:"), [CALLED]),
        (on(*MEMBERS, "user:", "query:"), [CALLED]),
        (on(*serf.NEEDED), [CALLED]),
        ([("*:", "echo"), *on(*MEMBERS, "user:", "query:")], [CALLED]),
        (on(*MEMBERS), [f"error handlers: serf info: lbagent does not receive user:pause, user:resume, query:pause, query:resume, query:lbagent-status, query:lbagent-forget; these events have no effect; {WITHOUT}"]),
        (on(*MEMBERS[1:], "user:", "query:"), [f"error handlers: serf info: lbagent does not receive member-join; these events have no effect; {WITHOUT}"]),
        (on(*MEMBERS, "user:pause", "query:"), [f"error handlers: serf info: lbagent does not receive user:resume; these events have no effect; {WITHOUT}"]),
        ([], ['error handlers: serf info: no event handler calls lbagent; Serf events have no effect; add `"event_handlers": ["lbagent handle"]` to the agent\'s settings']),
        (on("*:", command="deploy.sh handle"), ['error handlers: serf info: no event handler calls lbagent; Serf events have no effect; add `"event_handlers": ["lbagent handle"]` to the agent\'s settings']),
        (on("*:", "user:"), ["warning handlers: serf info: lbagent receives user:pause, user:resume more than once; keep one handler, without a filter: `lbagent handle`"]),
    ],
)  # fmt: skip
def test_lbagent_must_receive_each_event_once(found: list[tuple[str, str]], lines: list[str]) -> None:
    assert of_handlers(found) == lines


def test_what_this_user_cannot_see_is_not_an_error() -> None:
    assert list_lines(serf.check_handlers(on("*:"), lambda _: True, lambda _: None)) == [
        "warning handlers: serf info: not visible for this user whether 'lbagent' is in Serf's PATH; run `lbagent check` as root"
    ]
    assert list_lines(serf.check_handlers(on(*MEMBERS, command="events.sh"), lambda _: None, lambda _: None)) == [
        "warning handlers: serf info: not visible for this user whether 'events.sh' calls lbagent; run `lbagent check` as root"
    ]


@pytest.mark.parametrize("missing", serf.NEEDED)
def test_each_filter_that_is_missing_is_named(missing: str) -> None:
    found = on(*(need for need in serf.NEEDED if need != missing))

    assert of_handlers(found) == [
        f"error handlers: serf info: lbagent does not receive {missing.rstrip(':')}; these events have no effect; {WITHOUT}"
    ]


@pytest.mark.parametrize("need", serf.NEEDED)
def test_each_needed_event_is_one_that_the_handler_uses(need: str) -> None:
    kind, _, name = need.partition(":")

    assert RawEvent("", 0, kind, name, None, "", b"").is_relevant


def test_a_handler_without_a_program_is_an_error() -> None:
    assert of_handlers([("*:", "/opt/lbagent handle")], exists=False) == [
        "error handlers: serf info: the handler '/opt/lbagent handle' cannot run: Serf's PATH has no program '/opt/lbagent'; Serf events have no effect; write its full path in `event_handlers`"
    ]


@pytest.mark.parametrize(
    ("command", "program", "ours"),
    [
        ("lbagent handle", "lbagent", True),
        ("/usr/local/bin/lbagent --roles=/etc/roles.yml handle", "/usr/local/bin/lbagent", True),
        ("LBAGENT_ROLES=/x/y lbagent -v handle", "lbagent", True),
        ("'/opt/l b/lbagent' handle", "/opt/l b/lbagent", True),
        ("lbagent plan", "lbagent", False),
        ("/usr/local/bin/events.sh", "/usr/local/bin/events.sh", False),
        ("lbagent 'handle", "lbagent", False),
        ("", "", False),
        ("A=b", "", False),
    ],
)
def test_the_program_of_a_handler_is_its_first_word(command: str, program: str, ours: bool) -> None:  # noqa: FBT001
    assert serf.find_program_name(command) == program
    assert serf.names_lbagent(command) == ours


@pytest.mark.parametrize(
    ("spec", "found"),
    [
        ("lbagent handle", [("*:", "lbagent handle")]),
        ("*=lbagent --roles=/x handle", [("*:", "lbagent --roles=/x handle")]),
        ("member-join,user:pause,query=x y", [("member-join:", "x y"), ("user:pause", "x y"), ("query:", "x y")]),
        ("=x", [("*:", "x")]),
        ("lbagent --roles=/x handle", []),
    ],
)
def test_specs_are_read_as_serf_reads_them(spec: str, found: list[tuple[str, str]]) -> None:
    assert serf.parse_handler_specs([spec]) == found


def test_a_second_handler_of_a_filter_counts_although_serf_info_omits_it() -> None:
    written = serf.parse_handler_specs(["lbagent handle", "echo", "user:deploy=lbagent handle"])

    assert serf.merge_handlers({"*:": "echo"}, written) == [("*:", "echo"), ("*:", "lbagent handle")]


@pytest.mark.parametrize(
    ("spec", "wrong"),
    [
        ("lbagent --roles=/x handle", "lbagent --roles"),
        ("member-join, user:pause=x", " user:pause"),
        ("member-joined=x", "member-joined"),
        ("member-join:web=x", "member-join:web"),
    ],
)
def test_a_handler_that_keeps_the_agent_from_starting_is_an_error(spec: str, wrong: str) -> None:
    lines = list_lines(
        serf.check_handler_specs([spec, "lbagent handle", "*=lbagent --roles=/x handle"], "/etc/serf/lb.json")
    )

    fix = "write EVENT,EVENT=COMMAND without blanks; if the command contains `=`, put `*=` before it"
    expected = f"error handler-spec: /etc/serf/lb.json: the agent does not start with the handler {spec!r}: {wrong!r} is not an event; {fix}"
    assert lines == [expected]


# --- the agent and its cluster --------------------------------------------------------------------------------------

INFO = AgentInfo("lb01", "lb", encrypted=True, clocks={}, handlers=ALL)
ROLES = parse_roles_text("""
    services: {iis: {port: 80}}
    roles: {web: {lb: [iis]}, lb: {lb: [none]}}
""")


@pytest.mark.parametrize(
    ("info", "lines"),
    [
        (INFO, ["ok serf: the agent lb01 answers", "ok encryption: the cluster is encrypted"]),
        (
            INFO._replace(encrypted=False),
            [
                "ok serf: the agent lb01 answers",
                "error encryption: the cluster is not encrypted; anyone who can reach it can add, pause or fail servers; create a key with `serf keygen`, and set it as `encrypt_key` on every node",
            ],
        ),
        (INFO._replace(name="lb\x1b[2J\n"), ["ok serf: the agent lb?[2J? answers", "ok encryption: the cluster is encrypted"]),
    ],
)  # fmt: skip
def test_an_agent_that_is_not_encrypted_is_an_error(info: AgentInfo, lines: list[str]) -> None:
    assert list_lines(serf.check_encryption(info)) == lines


@pytest.mark.parametrize(
    ("role", "line"),
    [
        ("lb", "ok role-tag: lb01: its role is lb"),
        ("balancer", "ok role-tag: lb01: its role is balancer"),
        ("", 'warning role-tag: lb01: the agent has no role tag; the load balancers cannot find each other; add `"tags": {"role": "lb"}` to its settings'),
        ("web", "error role-tag: lb01: roles.yml has services for its role web; the other load balancer becomes a server; give the load balancers their own role, for example `lb`"),
    ],
)  # fmt: skip
def test_a_load_balancer_has_a_role_of_its_own(role: str, line: str) -> None:
    assert list_lines([serf.check_role_tag(INFO._replace(role=role), ROLES)]) == [line]


def test_without_roles_yml_any_role_is_ok() -> None:
    assert list_lines([serf.check_role_tag(INFO._replace(role="web"), None)]) == ["ok role-tag: lb01: its role is web"]


def listed(name: str, role: str = "lb", status: str = "alive") -> ListedMember:
    """A member."""
    return ListedMember(name, "10.0.0.1", role, {}, status)


@pytest.mark.parametrize(
    ("members", "refused", "lines"),
    [
        ([listed("lb01"), listed("web01", "web")], (), ["ok peers: serf members: 0 other load balancers"]),
        ([listed("lb01"), listed("lb03"), listed("lb02")], (), ["ok peers: serf members: 2 other load balancers: lb02, lb03"]),
        ([listed("lb02", status="left")], (), ["ok peers: serf members: 0 other load balancers"]),
        (
            [listed("lb02", status="failed"), listed("lb03")],
            (),
            [
                "warning peers: serf members: 1 other load balancer failed: lb02; start its agent, or remove it with `serf force-leave`",
                "ok peers: serf members: 1 other load balancer: lb03",
            ],
        ),
        ([listed("lb02", status="failed")], (), ["error peers: serf members: 1 other load balancer failed: lb02; start its agent, or remove it with `serf force-leave`"]),
        (
            [],
            tuple(f"serf members: bad {number}" for number in range(7)),
            [
                "ok peers: serf members: 0 other load balancers",
                *(f"warning members: serf members: bad {number}; correct the node's name or address" for number in range(5)),
                "warning members: serf members: 2 more members with an invalid name or address; see the output of `serf members`",
            ],
        ),
    ],
)  # fmt: skip
def test_the_other_load_balancers_are_listed(
    members: list[ListedMember], refused: tuple[str, ...], lines: list[str]
) -> None:
    listing = MemberList(tuple(members), frozenset(), refused)

    assert list_lines([*serf.check_peers(INFO, listing), *serf.check_members(listing)]) == lines


@pytest.mark.parametrize(
    ("role", "status", "severity"),
    [("lb", "left", "error"), ("lb", "failed", "error"), ("lb", "alive", "ok"), ("web", "left", "ok")],
)
@pytest.mark.parametrize("joined", ["lb02", "10.0.0.2", "10.0.0.2:7946"])
def test_a_load_balancer_that_has_left_is_missing_where_the_settings_join_it(
    role: str, status: str, severity: str, joined: str
) -> None:
    members = MemberList((ListedMember("lb02", "10.0.0.2", role, {}, status),), frozenset({"lb02"}), ())

    [finding] = serf.check_peers(INFO, members, [joined], {"web"})

    assert (finding.severity, finding.kind) == (severity, "peers")


# --- settings -------------------------------------------------------------------------------------------------------

GOOD: dict[str, Any] = {
    "encrypt_key": "k",
    "snapshot_path": "/s",
    "replay_on_join": True,
    "rejoin_after_leave": True,
    "leave_on_terminate": True,
    "rpc_auth": "t",
    "event_handlers": ["lbagent handle"],
}


def of_settings(without: str = "", argv: tuple[str, ...] = (), mode: int = 0o100600, **more: Any) -> list[str]:  # noqa: ANN401  # JSON
    """Return the findings about an agent with the settings GOOD, some of them changed."""
    table = {key: value for key, value in {**GOOD, **more}.items() if key != without}
    file = File("/etc/serf/lb.json", json.dumps(table).encode(), mode)
    words = ("serf", "agent", "-config-file=/etc/serf/lb.json", *argv)
    return list_lines(serf.check_agent_settings(agent.merge_settings(words, [table]), [file], words))


def test_settings_with_all_a_load_balancer_needs_are_ok() -> None:
    assert of_settings() == [
        "ok replay: /etc/serf/lb.json: after a restart the agent receives the events it has missed",
        "ok leave: /etc/serf/lb.json: the agent leaves the cluster on SIGTERM",
        "ok key: /etc/serf/lb.json: other users cannot read the key",
        "ok rpc: /etc/serf/lb.json: 127.0.0.1:7373 requires a token",
    ]


AT = "/etc/serf/lb.json"


@pytest.mark.parametrize(
    ("given", "lines"),
    [
        ({"without": "snapshot_path"}, [f'warning replay: {AT}: no `snapshot_path`; after a restart the agent does not rejoin its cluster and forgets which events it has seen; add `"snapshot_path": "/var/lib/serf/snapshot"`']),
        ({"without": "replay_on_join"}, [f'warning replay: {AT}: no `replay_on_join`; pauses that were sent while this load balancer was down are lost; add `"replay_on_join": true`']),
        ({"without": "rejoin_after_leave"}, [f'warning replay: {AT}: no `rejoin_after_leave`; after a stop with a leave the agent ignores its snapshot; add `"rejoin_after_leave": true`']),
        ({"without": "leave_on_terminate"}, [f'warning leave: {AT}: on SIGTERM the agent does not leave; the other load balancers count it as failed and wait for its answers; add `"leave_on_terminate": true`']),
        ({"leave_on_terminate": False}, [f'warning leave: {AT}: on SIGTERM the agent does not leave; the other load balancers count it as failed and wait for its answers; add `"leave_on_terminate": true`']),
        ({"mode": 0o100644}, [f"error key: {AT}: every user of this host can read the key (mode 0644); run `chmod 0600` on the file, and change the key"]),
        ({"mode": 0o100640}, []),
        ({"mode": 0o100644, "without": "encrypt_key"}, []),
        ({"argv": ("-encrypt", "SECRET")}, ["error key: serf agent -encrypt: the key is on the agent's command line; every user of this host can read it; move it to `encrypt_key` in a file of mode 0600"]),
        ({"argv": ("-encrypt=SECRET",)}, ["error key: serf agent -encrypt: the key is on the agent's command line; every user of this host can read it; move it to `encrypt_key` in a file of mode 0600"]),
        ({"rpc_addr": "0.0.0.0:7373"}, [f'error rpc: {AT}: anyone who can reach 0.0.0.0:7373 can control the agent; set `"rpc_addr": "127.0.0.1:7373"`']),
        ({"argv": ("-rpc-addr=10.0.0.1:1",)}, [f'error rpc: {AT}: anyone who can reach 10.0.0.1:1 can control the agent; set `"rpc_addr": "127.0.0.1:7373"`']),
        ({"rpc_addr": "[::1]:7373"}, []),
        ({"rpc_addr": "localhost:7373"}, []),
        ({"without": "rpc_auth"}, [f'warning rpc: {AT}: every user of this host can control the agent through 127.0.0.1:7373; set `"rpc_auth": "TOKEN"`, and start the agent with SERF_RPC_AUTH=TOKEN for its handlers']),
        ({"event_handlers": ["lbagent --roles=x handle"]}, [f"error handler-spec: {AT}: the agent does not start with the handler 'lbagent --roles=x handle': 'lbagent --roles' is not an event; write EVENT,EVENT=COMMAND without blanks; if the command contains `=`, put `*=` before it"]),
        ({"without": "rejoin_after_leave", "argv": ("-rejoin",)}, []),
        ({"without": "snapshot_path", "argv": ("-snapshot", "/s")}, []),
        ({"without": "replay_on_join", "argv": ("--replay=true",)}, []),
    ],
)  # fmt: skip
def test_each_wrong_setting_is_found(given: dict[str, Any], lines: list[str]) -> None:
    assert [line for line in of_settings(**given) if not line.startswith("ok ")] == lines


def test_a_key_on_the_command_line_is_never_printed() -> None:
    assert "SECRET" not in "".join(of_settings(argv=("-encrypt=SECRET",)))


def test_a_keyring_that_other_users_can_read_is_an_error() -> None:
    files = [File("/etc/serf/lb.json", b"{}", 0o100600), File("/etc/serf/keyring", b"", 0o100644)]

    lines = list_problems(
        serf.check_agent_settings({**GOOD, "keyring_file": "/etc/serf/keyring"}, files, ("serf", "agent"))
    )

    assert lines == [
        "error key: /etc/serf/keyring: every user of this host can read the key (mode 0644); run `chmod 0600` on the file, and change the key"
    ]


def test_an_agent_without_files_is_checked_by_its_command_line() -> None:
    words = ("serf", "agent", "-rejoin", "-replay", "-snapshot=/s", "-rpc-addr", "127.0.0.1:9")

    assert list_lines(serf.check_agent_settings(agent.merge_settings(words, []), [], words)) == [
        "ok replay: serf agent: after a restart the agent receives the events it has missed",
        'warning leave: serf agent: on SIGTERM the agent does not leave; the other load balancers count it as failed and wait for its answers; add `"leave_on_terminate": true`',
        'warning rpc: serf agent: every user of this host can control the agent through 127.0.0.1:9; set `"rpc_auth": "TOKEN"`, and start the agent with SERF_RPC_AUTH=TOKEN for its handlers',
    ]


def test_files_are_merged_in_order_then_the_command_line_and_lists_are_concatenated() -> None:
    files = [
        {"rpc_addr": "a:1", "replay_on_join": True, "event_handlers": ["one"]},
        {"rpc_addr": "b:2", "replay_on_join": False, "event_handlers": ["two"]},
    ]
    argv = ("serf", "agent", "-event-handler", "three", "-rpc-addr=c:3")

    assert agent.merge_settings(argv, files) == {
        "rpc_addr": "c:3",
        "replay_on_join": True,
        "event_handlers": ["one", "two", "three"],
    }


def test_only_options_are_options() -> None:
    argv = ["serf", "agent", "x", "--", "-", "-rejoin", "-node", "lb01", "--snapshot=/s", "-X=1"]

    assert agent.parse_options(argv) == [("rejoin", "true"), ("node", "lb01"), ("snapshot", "/s"), ("X", "1")]


@pytest.mark.parametrize("name", ["disable-compression", "rejoin", "replay", "syslog"])
def test_a_switch_takes_no_value(name: str) -> None:
    assert agent.parse_options(["serf", "agent", f"-{name}", "-node", "lb01"]) == [(name, "true"), ("node", "lb01")]


@pytest.mark.parametrize(
    ("option", "settings"),
    [
        ("-encrypt=k", {"encrypt_key": "k"}),
        ("-event-handler=h", {"event_handlers": ["h"]}),
        ("-join=a", {"start_join": ["a"]}),
        ("-keyring-file=k", {"keyring_file": "k"}),
        ("-node=lb01", {"node_name": "lb01"}),
        ("-rejoin", {"rejoin_after_leave": True}),
        ("-replay=false", {"replay_on_join": None}),
        ("-retry-join=a", {"retry_join": ["a"]}),
        ("-rpc-addr=a:1", {"rpc_addr": "a:1"}),
        ("-snapshot=/s", {"snapshot_path": "/s"}),
        ("-log-level=debug", {}),
    ],
)
def test_an_option_is_the_setting_of_a_file(option: str, settings: dict[str, object]) -> None:
    assert agent.merge_settings(["serf", "agent", option], []) == settings


def test_an_option_at_the_end_has_an_empty_value() -> None:
    assert agent.parse_options(["serf", "agent", "-rejoin", "-node"]) == [("rejoin", "true"), ("node", "")]


def test_addresses_to_join_are_in_files_and_on_the_command_line() -> None:
    settings = agent.merge_settings(
        ["serf", "agent", "-join=a", "-retry-join=c", "-join", "b"], [{"start_join": ["z", 5], "retry_join": "d"}]
    )

    assert agent.list_join_addresses(settings) == ["z", "a", "b", "c"]


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b'{"a": 1}', {"a": 1}),
        (b"[]", "not a JSON object"),
        (b"{", "invalid JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
    ],
)
def test_an_invalid_file_is_reported_with_the_reason(content: bytes, found: object) -> None:
    assert agent.parse_agent_file(File("f", content, 0)) == found


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(st.dictionaries(st.sampled_from([*GOOD, "rpc_addr", "keyring_file"]), JSON), st.lists(st.text()))
def test_any_settings_can_be_checked(table: dict[str, Any], words: list[str]) -> None:
    argv = ["serf", "agent", *words]
    file = File("f", json.dumps(table).encode(), 0o644)

    lines = list_lines(serf.check_agent_settings(agent.merge_settings(argv, [table]), [file], argv))

    assert all(line.isprintable() for line in lines)
    assert {Kind.REPLAY, Kind.LEAVE, Kind.RPC} <= {line.split()[1].rstrip(":") for line in lines}


@given(st.lists(st.tuples(st.text(), st.text())))
def test_any_handlers_can_be_checked(found: list[tuple[str, str]]) -> None:
    assert all(
        line.isprintable()
        for line in [*of_handlers(found), *list_lines(serf.check_handler_specs([one for one, _ in found], "f"))]
    )

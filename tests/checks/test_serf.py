"""doctor: what is found in a Serf agent's words, handlers and settings, said in exact lines."""

# ruff: noqa: E501  # a case of a table stands on one line

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbagent.checks import serf
from lbagent.checks.finding import Kind
from lbagent.serf import agent_process
from lbagent.serf.agent_process import File
from lbagent.serf.member_list import AgentInfo, ListedMember, MemberList
from lbagent.serf.raw_event import RawEvent
from tests.checks.test_haproxy import bad, told
from tests.helpers.builders import reading

# --- handlers -------------------------------------------------------------------------------------------------------

ALL = {"*:": "lbagent handle"}


def of_handlers(found: list[tuple[str, str]], *, exists: bool = True) -> list[str]:
    """What is found of handlers, of which those count as lbagent's that name it."""
    return told(serf.handlers_judge(found, serf.names_lbagent, lambda _: exists))


def on(*names: str, command: str = "lbagent handle") -> list[tuple[str, str]]:
    """One command on several filters."""
    return [(name, command) for name in names]


MEMBERS = ("member-join:", "member-leave:", "member-failed:", "member-update:", "member-reap:")
CALLED = "ok handlers: serf info: 'lbagent handle' is called for all that lbagent needs"
WITHOUT = "call it for all, without a filter: `lbagent handle`"


@pytest.mark.parametrize(
    ("found", "lines"),
    [
        (on("*:"), [CALLED]),
        (on(*MEMBERS, "user:", "query:"), [CALLED]),
        (on(*serf.NEEDED), [CALLED]),
        ([("*:", "echo"), *on(*MEMBERS, "user:", "query:")], [CALLED]),
        (on(*MEMBERS), [f"error handlers: serf info: lbagent is not called for user:pause, user:resume, query:pause, query:resume, query:lbagent-status, query:lbagent-forget: {WITHOUT}"]),
        (on(*MEMBERS[1:], "user:", "query:"), [f"error handlers: serf info: lbagent is not called for member-join: {WITHOUT}"]),
        (on(*MEMBERS, "user:pause", "query:"), [f"error handlers: serf info: lbagent is not called for user:resume: {WITHOUT}"]),
        ([], ['error handlers: serf info: no handler of the agent calls lbagent: nothing that happens is heard of: write `"event_handlers": ["lbagent handle"]`']),
        (on("*:", command="deploy.sh handle"), ['error handlers: serf info: no handler of the agent calls lbagent: nothing that happens is heard of: write `"event_handlers": ["lbagent handle"]`']),
        (on("*:", "user:"), ["warning handlers: serf info: lbagent is called more than once for user:pause, user:resume: one handler without a filter is enough"]),
    ],
)  # fmt: skip
def test_a_handler_has_to_be_called_for_all_and_once(found: list[tuple[str, str]], lines: list[str]) -> None:
    assert of_handlers(found) == lines


def test_what_this_user_cannot_see_is_no_error() -> None:
    assert told(serf.handlers_judge(on("*:"), lambda _: True, lambda _: None)) == [
        "warning handlers: serf info: whether 'lbagent' is a program in the agent's PATH cannot be looked at by this user: run this as root"
    ]
    assert told(serf.handlers_judge(on(*MEMBERS, command="events.sh"), lambda _: None, lambda _: None)) == [
        "warning handlers: serf info: whether 'events.sh' calls lbagent cannot be looked at by this user: run this as root"
    ]


@pytest.mark.parametrize("missing", serf.NEEDED)
def test_each_filter_that_is_missing_is_named(missing: str) -> None:
    found = on(*(need for need in serf.NEEDED if need != missing))

    assert of_handlers(found) == [
        f"error handlers: serf info: lbagent is not called for {missing.rstrip(':')}: {WITHOUT}"
    ]


@pytest.mark.parametrize("need", serf.NEEDED)
def test_what_is_asked_for_is_what_the_handler_wants(need: str) -> None:
    kind, _, name = need.partition(":")

    assert RawEvent("", 0, kind, name, None, "", b"").is_relevant


def test_a_handler_whose_program_is_not_there_is_told() -> None:
    assert of_handlers([("*:", "/opt/lbagent handle")], exists=False) == [
        "error handlers: serf info: the handler '/opt/lbagent handle' cannot be run: '/opt/lbagent' is no program in the agent's PATH: give its whole path"
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
    assert serf.program(command) == program
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
    assert serf.of_specs([spec]) == found


def test_a_second_handler_on_the_same_filter_counts_though_serf_info_does_not_tell_it() -> None:
    written = serf.of_specs(["lbagent handle", "echo", "user:deploy=lbagent handle"])

    assert serf.handlers_merged({"*:": "echo"}, written) == [("*:", "echo"), ("*:", "lbagent handle")]


@pytest.mark.parametrize(
    ("spec", "wrong"),
    [
        ("lbagent --roles=/x handle", "lbagent --roles"),
        ("member-join, user:pause=x", " user:pause"),
        ("member-joined=x", "member-joined"),
        ("member-join:web=x", "member-join:web"),
    ],
)
def test_a_spec_with_which_the_agent_would_not_start_is_told(spec: str, wrong: str) -> None:
    lines = told(serf.handlers_specs([spec, "lbagent handle", "*=lbagent --roles=/x handle"], "/etc/serf/lb.json"))

    fix = "write EVENT,EVENT=COMMAND without blanks; a command that holds a `=` needs `*=` in front"
    expected = f"error handler-spec: /etc/serf/lb.json: the agent does not start with the handler {spec!r}: {wrong!r} is no event: {fix}"
    assert lines == [expected]


# --- the agent and its cluster --------------------------------------------------------------------------------------

INFO = AgentInfo("lb01", "lb", encrypted=True, clocks={}, handlers=ALL)
ROLES = reading("""
    services: {iis: {port: 80}}
    roles: {web: {lb: [iis]}, lb: {lb: [none]}}
""")


@pytest.mark.parametrize(
    ("info", "lines"),
    [
        (INFO, ["ok serf: the agent lb01 answers", "ok encryption: what the agents say is encrypted"]),
        (
            INFO._replace(encrypted=False),
            [
                "ok serf: the agent lb01 answers",
                "error encryption: the cluster is not encrypted: whoever reaches it can enrol a server, pause one, or call it failed: make a key with `serf keygen`, and set `encrypt_key` on every node",
            ],
        ),
        (INFO._replace(name="lb\x1b[2J\n"), ["ok serf: the agent lb?[2J? answers", "ok encryption: what the agents say is encrypted"]),
    ],
)  # fmt: skip
def test_an_agent_that_is_not_encrypted_is_an_error(info: AgentInfo, lines: list[str]) -> None:
    assert told(serf.cluster_agent(info)) == lines


@pytest.mark.parametrize(
    ("role", "line"),
    [
        ("lb", "ok role-tag: lb01: its role is lb"),
        ("balancer", "ok role-tag: lb01: its role is balancer"),
        ("", 'warning role-tag: lb01: the agent has no role: the other load balancers cannot be told from any node: write `"tags": {"role": "lb"}`'),
        ("web", "error role-tag: lb01: its role web is one that roles.yml serves: the other load balancer becomes a server: give the load balancers a role of their own, as `lb`"),
    ],
)  # fmt: skip
def test_a_load_balancer_has_a_role_of_its_own(role: str, line: str) -> None:
    assert told([serf.role(INFO._replace(role=role), ROLES)]) == [line]


def test_without_a_roles_yml_any_role_will_do() -> None:
    assert told([serf.role(INFO._replace(role="web"), None)]) == ["ok role-tag: lb01: its role is web"]


def listed(name: str, role: str = "lb", status: str = "alive") -> ListedMember:
    """A member."""
    return ListedMember(name, "10.0.0.1", role, {}, status)


@pytest.mark.parametrize(
    ("members", "refused", "lines"),
    [
        ([listed("lb01"), listed("web01", "web")], (), ["ok peers: serf members: 0 other load balancers there"]),
        ([listed("lb01"), listed("lb03"), listed("lb02")], (), ["ok peers: serf members: 2 other load balancers there: lb02, lb03"]),
        ([listed("lb02", status="left")], (), ["ok peers: serf members: 0 other load balancers there"]),
        (
            [listed("lb02", status="failed"), listed("lb03")],
            (),
            [
                "warning peers: serf members: 1 other load balancer failed: lb02: start its agent, or `serf force-leave` it",
                "ok peers: serf members: 1 other load balancer there: lb03",
            ],
        ),
        ([listed("lb02", status="failed")], (), ["error peers: serf members: 1 other load balancer failed: lb02: start its agent, or `serf force-leave` it"]),
        (
            [],
            tuple(f"serf members: bad {number}" for number in range(7)),
            [
                "ok peers: serf members: 0 other load balancers there",
                *(f"warning members: serf members: bad {number}: mend that node's name, or its address" for number in range(5)),
                "warning members: serf members: 2 more members of no use: see `serf members`",
            ],
        ),
    ],
)  # fmt: skip
def test_the_other_load_balancers_are_told(
    members: list[ListedMember], refused: tuple[str, ...], lines: list[str]
) -> None:
    assert told(serf.peers(INFO, MemberList(tuple(members), frozenset(), refused))) == lines


# --- settings -------------------------------------------------------------------------------------------------------

FINE: dict[str, Any] = {
    "encrypt_key": "k",
    "snapshot_path": "/s",
    "replay_on_join": True,
    "rejoin_after_leave": True,
    "leave_on_terminate": True,
    "rpc_auth": "t",
    "event_handlers": ["lbagent handle"],
}


def of_settings(without: str = "", argv: tuple[str, ...] = (), mode: int = 0o100600, **more: Any) -> list[str]:  # noqa: ANN401  # JSON
    """What is found of an agent with the settings FINE, but one."""
    table = {key: value for key, value in {**FINE, **more}.items() if key != without}
    file = File("/etc/serf/lb.json", json.dumps(table).encode(), mode)
    words = ("serf", "agent", "-config-file=/etc/serf/lb.json", *argv)
    return told(serf.judge(agent_process.merge_settings(words, [table]), [file], words))


def test_settings_with_all_a_load_balancer_needs_are_ok() -> None:
    assert of_settings() == [
        "ok replay: /etc/serf/lb.json: what was sent while this load balancer was down is heard afterwards",
        "ok leave: /etc/serf/lb.json: ended by SIGTERM, the agent leaves",
        "ok key: /etc/serf/lb.json: others cannot read the key",
        "ok rpc: /etc/serf/lb.json: 127.0.0.1:7373 asks for a token",
    ]


AT = "/etc/serf/lb.json"


@pytest.mark.parametrize(
    ("given", "lines"),
    [
        ({"without": "snapshot_path"}, [f'warning replay: {AT}: no `snapshot_path`: a load balancer that was down finds its cluster, and knows what it has heard, by this file: write `"snapshot_path": "/var/lib/serf/snapshot"`']),
        ({"without": "replay_on_join"}, [f'warning replay: {AT}: no `replay_on_join`: pauses sent while the load balancer was down are lost without it: write `"replay_on_join": true`']),
        ({"without": "rejoin_after_leave"}, [f'warning replay: {AT}: no `rejoin_after_leave`: after a stop that was a leave, the snapshot is forgotten without it: write `"rejoin_after_leave": true`']),
        ({"without": "leave_on_terminate"}, [f'warning leave: {AT}: ended by SIGTERM (an init script) it counts as failed, and the others wait for its answer: write `"leave_on_terminate": true`']),
        ({"leave_on_terminate": False}, [f'warning leave: {AT}: ended by SIGTERM (an init script) it counts as failed, and the others wait for its answer: write `"leave_on_terminate": true`']),
        ({"mode": 0o100644}, [f"error key: {AT}: the key can be read by every user of this host (mode 0644): chmod 0600, and change the key"]),
        ({"mode": 0o100640}, []),
        ({"mode": 0o100644, "without": "encrypt_key"}, []),
        ({"argv": ("-encrypt", "SECRET")}, ["error key: serf agent -encrypt: the key stands on the agent's command line, where every user of this host sees it: put `encrypt_key` into a file of mode 0600"]),
        ({"argv": ("-encrypt=SECRET",)}, ["error key: serf agent -encrypt: the key stands on the agent's command line, where every user of this host sees it: put `encrypt_key` into a file of mode 0600"]),
        ({"rpc_addr": "0.0.0.0:7373"}, [f'error rpc: {AT}: whoever reaches 0.0.0.0:7373 commands the agent: write `"rpc_addr": "127.0.0.1:7373"`']),
        ({"argv": ("-rpc-addr=10.0.0.1:1",)}, [f'error rpc: {AT}: whoever reaches 10.0.0.1:1 commands the agent: write `"rpc_addr": "127.0.0.1:7373"`']),
        ({"rpc_addr": "[::1]:7373"}, []),
        ({"rpc_addr": "localhost:7373"}, []),
        ({"without": "rpc_auth"}, [f'warning rpc: {AT}: every user of this host commands the agent through 127.0.0.1:7373: write `"rpc_auth": "TOKEN"`, and give the agent SERF_RPC_AUTH=TOKEN for its handlers']),
        ({"event_handlers": ["lbagent --roles=x handle"]}, [f"error handler-spec: {AT}: the agent does not start with the handler 'lbagent --roles=x handle': 'lbagent --roles' is no event: write EVENT,EVENT=COMMAND without blanks; a command that holds a `=` needs `*=` in front"]),
        ({"without": "rejoin_after_leave", "argv": ("-rejoin",)}, []),
        ({"without": "snapshot_path", "argv": ("-snapshot", "/s")}, []),
        ({"without": "replay_on_join", "argv": ("--replay=true",)}, []),
    ],
)  # fmt: skip
def test_each_setting_that_is_amiss_is_told(given: dict[str, Any], lines: list[str]) -> None:
    assert [line for line in of_settings(**given) if not line.startswith("ok ")] == lines


def test_a_key_on_the_command_line_is_never_said() -> None:
    assert "SECRET" not in "".join(of_settings(argv=("-encrypt=SECRET",)))


def test_a_keyring_that_others_read_is_told() -> None:
    files = [File("/etc/serf/lb.json", b"{}", 0o100600), File("/etc/serf/keyring", b"", 0o100644)]

    lines = bad(serf.judge({**FINE, "keyring_file": "/etc/serf/keyring"}, files, ("serf", "agent")))

    assert lines == [
        "error key: /etc/serf/keyring: the key can be read by every user of this host (mode 0644): chmod 0600, and change the key"
    ]


def test_an_agent_without_files_is_judged_by_its_command_line() -> None:
    words = ("serf", "agent", "-rejoin", "-replay", "-snapshot=/s", "-rpc-addr", "127.0.0.1:9")

    assert told(serf.judge(agent_process.merge_settings(words, []), [], words)) == [
        "ok replay: serf agent: what was sent while this load balancer was down is heard afterwards",
        'warning leave: serf agent: ended by SIGTERM (an init script) it counts as failed, and the others wait for its answer: write `"leave_on_terminate": true`',
        'warning rpc: serf agent: every user of this host commands the agent through 127.0.0.1:9: write `"rpc_auth": "TOKEN"`, and give the agent SERF_RPC_AUTH=TOKEN for its handlers',
    ]


def test_files_come_in_order_then_the_command_line_and_lists_add_up() -> None:
    files = [
        {"rpc_addr": "a:1", "replay_on_join": True, "event_handlers": ["one"]},
        {"rpc_addr": "b:2", "replay_on_join": False, "event_handlers": ["two"]},
    ]
    argv = ("serf", "agent", "-event-handler", "three", "-rpc-addr=c:3")

    assert agent_process.merge_settings(argv, files) == {
        "rpc_addr": "c:3",
        "replay_on_join": True,
        "event_handlers": ["one", "two", "three"],
    }


def test_only_options_are_options() -> None:
    argv = ["serf", "agent", "x", "--", "-", "-rejoin", "-node", "lb01", "--snapshot=/s"]

    assert agent_process.parse_options(argv) == [("rejoin", "true"), ("node", "lb01"), ("snapshot", "/s")]


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b'{"a": 1}', {"a": 1}),
        (b"[]", "not a JSON object"),
        (b"{", "invalid JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
    ],
)
def test_a_file_is_a_table_or_a_reason(content: bytes, found: object) -> None:
    assert agent_process.parse_agent_file(File("f", content, 0)) == found


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(st.dictionaries(st.sampled_from([*FINE, "rpc_addr", "keyring_file"]), JSON), st.lists(st.text()))
def test_any_settings_are_judged(table: dict[str, Any], words: list[str]) -> None:
    argv = ["serf", "agent", *words]
    file = File("f", json.dumps(table).encode(), 0o644)

    lines = told(serf.judge(agent_process.merge_settings(argv, [table]), [file], argv))

    assert all(line.isprintable() for line in lines)
    assert {Kind.REPLAY, Kind.LEAVE, Kind.RPC} <= {line.split()[1].rstrip(":") for line in lines}


@given(st.lists(st.tuples(st.text(), st.text())))
def test_any_handlers_are_judged(found: list[tuple[str, str]]) -> None:
    assert all(
        line.isprintable() for line in [*of_handlers(found), *told(serf.handlers_specs([one for one, _ in found], "f"))]
    )

"""haproxy.cfg is a sequence of lines: which servers HAProxy has, which lines compete, and what changes a digest."""

# ruff: noqa: E501  # a case of a table is on one line

from __future__ import annotations

import pytest

from lbagent.haproxy.config import (
    Document,
    Edit,
    Marker,
    OperatorServer,
    ServerTemplate,
    explain_damage,
    find_endpoint,
    find_indentation,
    find_paused_servers,
    is_paused_server,
    is_stray,
    list_uncertain_servers,
    parse_change,
    predict_servers,
    split_server_line,
)
from lbagent.haproxy.reader import Environment
from tests.helpers.builders import dedent, member, membership_of, parse_roles_text, plan_for

WEB1 = "server web1 10.0.0.1:80 check # lbagent role=web"
COMMENT = "# lbagent paused web2 10.0.0.2 role=web"
CFG = dedent(f"""
    global
        log stdout local0
    backend farm
        server mine 10.0.0.9:80
        server-template more 1-2 10.0.0.8:80
        {WEB1}
        {COMMENT}
        # additional-lb-iis-server
    backend other
        server alone 10.0.0.7:80
""")
ROLES = parse_roles_text("services: {iis: {port: 80}}\nroles: {web: {lb: [iis]}}")


def document(text: str, environment: dict[str, str] | None = None) -> Document:
    """Return haproxy.cfg; `environment` is that of the running HAProxy."""
    return Document([("haproxy.cfg", text)], lambda: Environment(environment))


# --- branches of .if --------------------------------------------------------------------------------------------------

BRANCHES = dedent("""
    backend farm
    .if defined(A)
        # additional-lb-iis-server
    .else
        # additional-lb-iis-server
    .endif
        # additional-lb-iis-server
    .if 0
        # additional-lb-iis-server
    .endif
""")


@pytest.mark.parametrize(
    ("one", "other", "exclusive"),
    [(2, 4, True), (2, 6, False), (4, 6, False), (2, 2, False), (6, 8, True), (8, 8, False)],
)
def test_lines_of_two_branches_are_exclusive(one: int, other: int, exclusive: bool) -> None:  # noqa: FBT001
    read = document(BRANCHES)

    assert read.are_exclusive(one, other) is read.are_exclusive(other, one) is exclusive


@pytest.mark.parametrize(("line", "never"), [(2, False), (4, False), (6, False), (8, True)])
def test_a_line_in_a_branch_that_is_always_false_is_never_read(line: int, never: bool) -> None:  # noqa: FBT001
    assert document(BRANCHES).is_never_read(line) is never


def test_a_line_below_a_branch_without_a_section_before_it_is_in_no_section() -> None:
    read = document(f".if 0\nbackend farm\n.endif\n    balance source\n    {COMMENT}\n")

    assert [one.hashes for one in read.proxies] == [False]
    assert read.damaged == [(4, COMMENT, "it is in no section")]


def test_a_marker_below_branches_is_misplaced_if_a_section_of_one_has_no_servers() -> None:
    text = ".if defined(A)\nfrontend front\n.else\nbackend farm\n.endif\n    # additional-lb-iis-server\n"

    assert document(text).misplaced == [(5, "it is in frontend front, which cannot hold servers")]
    assert document(text.replace("frontend", "backend")).misplaced == []


def test_without_a_condition_every_line_may_be_read() -> None:
    assert [document(CFG).is_never_read(line) for line in range(len(CFG.splitlines()))] == [False] * 10


@pytest.mark.parametrize(
    ("line", "conditional"),
    [
        ("backend 'a$b'", False),
        ('backend "$B"', True),
        ('backend farm "$B"', False),
        ('    balance "$B"', False),
        ('    "$B" on', True),
        ("    '$B' on", False),
        ("    disabled", True),
        ("    enabled", True),
        (".if 1", True),
    ],
)
def test_a_document_is_conditional_if_a_line_may_change_what_is_read(line: str, conditional: bool) -> None:  # noqa: FBT001
    assert document(f"backend farm\n{line}\n    server a 10.0.0.1:80\n").is_conditional is conditional


def test_in_a_branch_that_is_never_read_only_server_lines_are_listed() -> None:
    text = "backend farm\n.if 0\n    balance source\n    server-template more 3 10.0.0.8:80\n    server a 10.0.0.1:80\n.endif\n"
    [proxy] = document(text).proxies

    assert (proxy.hashes, proxy.templates, [one.name for one in proxy.operator_servers]) == (False, [], ["a"])


def test_without_a_condition_no_lines_are_exclusive() -> None:
    assert document(CFG).are_exclusive(3, 5) is False


def test_a_node_has_a_line_in_each_branch() -> None:
    text = (
        "backend farm\n.if defined(A)\n    # additional-lb-iis-server\n.else\n    # additional-lb-iis-server\n.endif\n"
    )

    after = plan_for(text, ROLES, membership_of(member("web1"))).after[0]

    assert after.count("server web1 10.0.0.1:80 check inter 2s rise 2 fall 2 # lbagent role=web\n") == 2


# --- digests ----------------------------------------------------------------------------------------------------------


def test_each_digest_covers_its_own_lines_only() -> None:
    before = document(CFG)
    operators = document(CFG.replace("10.0.0.9", "10.0.0.6"))
    managed = document(CFG.replace("10.0.0.1:", "10.0.0.6:"))

    assert operators.compute_digest() == before.compute_digest() != managed.compute_digest()
    assert managed.compute_operator_digest() == before.compute_operator_digest() != operators.compute_operator_digest()


def test_a_digest_covers_bytes_that_are_not_utf_8() -> None:
    assert document("# \udc83\n").compute_operator_digest() != document("# \udc84\n").compute_operator_digest()


# --- edits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("edits", "after"),
    [
        ([], ("a\n", "b\n")),
        ([Edit(0, 0, ["x"])], ("x\na\n", "b\n")),
        ([Edit(0, 1, ["x", "y"])], ("x\ny\n", "b\n")),
        ([Edit(2, 2, ["x"])], ("a\n", "x\nb\n")),
        ([Edit(2, 3, []), Edit(0, 1, [])], ("", "")),
    ],
)
def test_an_edit_changes_its_own_file_only(edits: list[Edit], after: tuple[str, str]) -> None:
    assert Document([("a.cfg", "a\n"), ("b.cfg", "b\n")]).apply_edits(edits) == after


@pytest.mark.parametrize(
    ("before", "after"), [("a\nb", "x\nb\n"), ("a\r\nb", "x\nb\r\n"), ("a\r\nb\r", "x\nb\r\n"), ("a", "x\n")]
)
def test_an_edit_ends_the_last_line_as_the_file_ends_its_lines(before: str, after: str) -> None:
    assert Document([("haproxy.cfg", before)]).apply_edits([Edit(0, 1, ["x"])]) == (after,)
    assert Document([("haproxy.cfg", before)]).apply_edits([]) == (before,)


# --- servers ----------------------------------------------------------------------------------------------------------


def test_the_managed_servers_are_those_of_proxies_with_a_known_name() -> None:
    text = CFG + f'backend "$NAME"\n    {WEB1}\n    # additional-lb-iis-server\n'
    unknown, bound = document(text), document(text).bind_environment(lambda: Environment({"NAME": "named"}))

    assert unknown.managed_servers == {("farm", "web1"): WEB1}
    assert list_uncertain_servers(unknown) == {("$NAME", "web1"): WEB1}
    assert bound.managed_servers == {("farm", "web1"): WEB1, ("named", "web1"): WEB1}
    assert list_uncertain_servers(bound) == {}


def test_a_document_that_was_read_is_read_again_with_the_environment_of_haproxy() -> None:
    read = document(CFG + f'backend "$NAME"\n    {WEB1}\n    # additional-lb-iis-server\n')
    assert ("named", "web1") not in read.managed_servers

    assert ("named", "web1") in read.bind_environment(lambda: Environment({"NAME": "named"})).managed_servers
    assert document(CFG).bind_environment(Environment).managed_servers == {("farm", "web1"): WEB1}


def test_the_environment_of_haproxy_is_read_only_if_the_text_depends_on_it() -> None:
    def fail() -> Environment:
        raise AssertionError

    read = Document([("haproxy.cfg", CFG)], fail)

    assert read.settings == [["log", "stdout", "local0"]]
    assert read.managed_servers == {("farm", "web1"): WEB1}
    assert len([*read.read_directives()]) == 5
    assert read.bind_environment(fail) is read


def test_a_variable_in_an_operators_line_binds_the_environment() -> None:
    read = document('backend farm\n    server mine "$HOST":80\n')
    bound = read.bind_environment(lambda: Environment({"HOST": "10.0.0.9"}))
    [line] = bound.proxies[0].operator_servers

    assert read.resolve_operator_server(line) == line
    assert bound.resolve_operator_server(line).endpoint == "10.0.0.9:80"


def test_an_operators_line_without_an_address_stays_as_written() -> None:
    read = document('backend farm\n    server mine "$HOST"\n', {"HOST": ""})
    [line] = read.proxies[0].operator_servers

    assert read.resolve_operator_server(line) == line


def test_a_variable_that_global_sets_is_known_while_the_text_is_read() -> None:
    read = document('global\n    setenv HOST 10.0.0.9\nbackend farm\n    server mine "$HOST":80\n')

    assert read.proxies[-1].operator_servers == [
        OperatorServer(3, 0, 'server mine "$HOST":80', "mine", "10.0.0.9:80", None)
    ]


def test_a_proxy_is_found_by_the_name_that_haproxy_gives_it() -> None:
    text = f'backend "$NAME"\n    {WEB1}\n.if 0\nbackend unread\n    {WEB1}\n.endif\nfrontend f\n    mode tcp\n'
    read = document(text, {"NAME": "named"})
    [first, *_] = read.proxies

    assert (read.find_name(first), document(text).find_name(first)) == ("named", "$NAME")
    assert [read.find_proxies(name) for name in ("named", "$NAME", "unread", "f")] == [[first], [], [], []]


def test_a_proxy_of_a_text_without_conditions_is_found_by_its_name() -> None:
    read = document(f"{CFG}listen farm\n    mode tcp\nfrontend front\n    mode tcp\n")

    assert [str(one) for one in read.find_proxies("farm")] == ["backend farm", "listen farm"]
    assert [read.find_proxies(name) for name in ("front", "absent")] == [[], []]
    assert read.find_name(read.proxies[1]) == "farm"


@pytest.mark.parametrize(
    ("words", "servers"),
    [("disabled", []), ("disabled\n    enabled", ["web1"]), ("enabled\n    disabled", []), ("enabled", ["web1"])],
)
def test_a_disabled_proxy_has_no_servers(words: str, servers: list[str]) -> None:
    read = document(f"backend farm\n    {words}\n    {WEB1}\n")

    assert [name for _, name in read.managed_servers] == servers


def test_an_operators_line_is_resolved_with_the_variables_of_global() -> None:
    text = 'global\n    setenv HOST "$BASE.9"\nbackend farm\n    server mine "$HOST":80\n'
    read = document(text, {"BASE": "10.0.0"})
    [line] = read.proxies[-1].operator_servers

    assert line.endpoint == "$HOST:80"
    assert read.resolve_operator_server(line).endpoint == "10.0.0.9:80"


def test_a_condition_ends_with_its_file() -> None:
    read = Document([("a.cfg", "backend x\n.if 0\n"), ("b.cfg", f"backend farm\n    {WEB1}\n")])

    assert read.managed_servers == {("farm", "web1"): WEB1}


def test_a_branch_that_is_never_read_ends_with_its_file() -> None:
    read = Document([("a.cfg", "backend x\n.if 0\n"), ("b.cfg", "backend farm\n    balance source\n")])

    assert [one.hashes for one in read.proxies] == [False, True]


@pytest.mark.parametrize(
    ("balance", "hashes"),
    [
        ("source", True),
        ("hdr(Host)", True),
        ("url_param userid check_post 64", True),
        ("roundrobin", False),
        ("", False),
    ],
)
def test_a_balance_by_a_hash_is_known_by_its_first_word(balance: str, hashes: bool) -> None:  # noqa: FBT001
    [proxy] = document(f"backend farm\n    balance {balance}\n").proxies

    assert (proxy.hashes, proxy.templates) == (hashes, [])


@pytest.mark.parametrize("line", ["server a", "server-template more 3", "server"])
def test_a_server_line_without_an_address_makes_no_server(line: str) -> None:
    [proxy] = document(f"backend farm\n    {line}\n").proxies

    assert (proxy.operator_servers, proxy.templates) == ([], [])


@pytest.mark.parametrize(
    ("defaults", "hashes"),
    [
        ("defaults\n    balance source\n", True),
        ("defaults\n    balance source\ndefaults\n    mode tcp\n", False),
        ("defaults a\n    balance source\ndefaults b\n    mode tcp\n", False),
        ("defaults a\n    balance source\ndefaults b from a\n    mode tcp\n", True),
        ("defaults a\n    balance source\ndefaults b from a\n    balance roundrobin\n", False),
        ("", False),
    ],
)
def test_a_proxy_has_the_balance_of_the_defaults_before_it(defaults: str, hashes: bool) -> None:  # noqa: FBT001
    assert document(f"{defaults}backend farm\n    server a 10.0.0.1:80\n").proxies[-1].hashes is hashes


@pytest.mark.parametrize(
    ("key", "stray"),
    [
        (("farm", "web1"), False),
        (("farm", "mine"), False),
        (("farm", "more2"), False),
        (("farm", "more3"), True),
        (("farm", "web2"), True),
        (("farm", "web9"), True),
        (("other", "web9"), False),
        (("absent", "web9"), False),
    ],
)
def test_a_server_without_a_line_is_stray_in_a_proxy_that_lbagent_manages(key: tuple[str, str], stray: bool) -> None:  # noqa: FBT001
    assert is_stray(document(CFG), key) is stray


@pytest.mark.parametrize("line", ["# additional-lb-iis-server", WEB1])
def test_lbagent_manages_a_proxy_with_a_marker_or_a_managed_line(line: str) -> None:
    assert is_stray(document(f"backend farm\n    {line}\n"), ("farm", "web9")) is True


def test_a_server_is_uncertain_in_a_proxy_whose_name_cannot_be_sent() -> None:
    read = document(f"{CFG}backend 'a$b'\n    {WEB1}\n    {COMMENT}\n")

    assert (read.managed_servers, list_uncertain_servers(read)) == (
        {("farm", "web1"): WEB1},
        {("a$b", "web1"): WEB1},
    )


def test_the_paused_servers_follow_the_changes_of_a_plan() -> None:
    here, node3 = document(CFG), COMMENT.replace("web2", "web3")

    assert find_paused_servers(here, ((), ())) == {("farm", "web2")}
    assert find_paused_servers(here, ((f"backend farm: {node3}",), ())) == {("farm", "web2"), ("farm", "web3")}
    assert find_paused_servers(here, ((f"backend farm: {WEB1}",), (f"backend farm: {COMMENT}",))) == set()
    assert find_paused_servers(here, ((f"backend farm: {COMMENT}",), (f"backend farm: {COMMENT}",))) == {
        ("farm", "web2")
    }


@pytest.mark.parametrize(
    ("name", "paused"), [("web2", True), ("web2.iis", True), ("web2.iis.x", False), ("web", False), ("iis", False)]
)
def test_a_paused_node_has_servers_of_its_name_and_of_each_service(name: str, paused: bool) -> None:  # noqa: FBT001
    assert is_paused_server(("farm", name), {("farm", "web2")}) is paused


def test_the_servers_after_a_change_are_predicted() -> None:
    web3 = WEB1.replace("web1 10.0.0.1", "web3 10.0.0.3")
    after = CFG.replace(WEB1, f"# lbagent paused web1 10.0.0.1 role=web\n    {web3}")
    changed = (
        (f"backend farm: {web3}", "backend farm: # lbagent paused web1 10.0.0.1 role=web"),
        (f"backend farm: {WEB1}",),
    )

    assert predict_servers(document(CFG), [after], changed) == {("farm", "web3"): web3}
    assert predict_servers(document(f".if 1\n.endif\n{CFG}"), [f".if 1\n.endif\n{after}"], changed) == {
        ("farm", "web3"): web3
    }
    removed = CFG.replace(f"    {WEB1}\n", "")
    assert predict_servers(document(CFG), [removed], ((), (f"backend farm: {WEB1}",))) == {}
    assert predict_servers(document(CFG), [CFG], ((), ())) == {("farm", "web1"): WEB1}


# --- lines ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "key", "line"),
    [
        (f"backend farm: {WEB1}", ("farm", "web1"), WEB1),
        (f"listen a:b: {WEB1}", ("a:b", "web1"), WEB1),
        (f"backend farm: {COMMENT}", ("farm", "web2"), ""),
    ],
)
def test_a_change_of_a_plan_names_proxy_and_server(change: str, key: tuple[str, str], line: str) -> None:
    assert parse_change(change) == (key, line)


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        (WEB1, "10.0.0.1:80"),
        ("server web1 [fd00::1]:80", "[fd00::1]:80"),
        (COMMENT, ""),
        ("server web1", ""),
        ("server", ""),
        ("", ""),
    ],
)
def test_a_comment_has_no_endpoint(text: str, endpoint: str) -> None:
    assert find_endpoint(text) == endpoint


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (WEB1, ("10.0.0.1", 80, ["check"])),
        ("server web1 [fd00::1]:81 # lbagent role=web", ("fd00::1", 81, [])),
        ("server web1 10.0.0.1:x check", ("10.0.0.1", 0, ["check"])),
        ("server web1", ("", 0, [])),
    ],
)
def test_a_line_is_split_into_address_port_and_options(text: str, parts: tuple[str, int, list[str]]) -> None:
    assert split_server_line(text) == parts


@pytest.mark.parametrize(
    ("count", "low", "high"), [("3", 1, 3), ("2-4", 2, 4), ("x", 1, 0), ("1-x", 1, 0), ("x-3", 1, 0), ("-3", 1, 0)]
)
def test_a_server_template_has_a_count_or_a_range(count: str, low: int, high: int) -> None:
    [proxy] = document(f"backend farm\n    server-template more {count} 10.0.0.8:80 check\n").proxies

    assert proxy.templates == [ServerTemplate(1, "more", low, high, "10.0.0.8:80")]


def test_a_server_template_makes_numbered_servers() -> None:
    template = ServerTemplate(7, "more", 2, 3, "10.0.0.8:80")

    assert [*template.servers()] == [
        OperatorServer(7, 0, "", "more2", "10.0.0.8:80", None),
        OperatorServer(7, 0, "", "more3", "10.0.0.8:80", None),
    ]
    assert [one.name for one in template._replace(last=2000).servers()][-1] == "more1002"


@pytest.mark.parametrize(
    ("name", "taken"),
    [
        ("more2", True),
        ("MORE3", True),
        ("more1", False),
        ("more4", False),
        ("more02", False),
        ("morex", False),
        ("more", False),
        ("less2", False),
        ("xmore2", False),
        ("more2x", False),
    ],
)
def test_a_server_template_has_the_names_of_its_servers(name: str, taken: bool) -> None:  # noqa: FBT001
    assert ServerTemplate(7, "More", 2, 3, "10.0.0.8:80").names(name) is taken


@pytest.mark.parametrize(
    ("before", "why"),
    [
        ("", "it is in no section"),
        ("global\n", "it is in global, which cannot hold servers"),
        (f"backend farm\n    {WEB1}\nfrontend front\n", "it is in frontend front, which cannot hold servers"),
    ],
)
def test_no_line_of_a_section_without_servers_is_managed(before: str, why: str) -> None:
    read = document(f"{before}{WEB1}\n{COMMENT}\n# additional-lb-iis-server\n")
    at = before.count("\n")

    assert read.damaged == [(at, WEB1, why), (at + 1, COMMENT, why)]
    assert read.misplaced == [(at + 2, why)]
    assert list(read.managed_servers) == ([("farm", "web1")] if "farm" in before else [])


@pytest.mark.parametrize(
    ("written", "endpoint"),
    [
        ("10.0.0.1:80", "10.0.0.1:80"),
        ("ipv4@10.0.0.1:80", "10.0.0.1:80"),
        ("ipv6@[FD00::1]:80", "[fd00::1]:80"),
        ("fd00::1:80", "[fd00::1]:80"),
        ("127.11:80", "127.0.0.11:80"),
        ("0x7f00000b:80", "127.0.0.11:80"),
        ("1.2.3.999:80", "1.2.3.999:80"),
        ("X10.0.0.1:80", "X10.0.0.1:80"),
        ("web.example.com:80", "web.example.com:80"),
        ("'10.1 x:80'", "10.1 x:80"),
    ],
)
def test_an_operators_address_is_read_as_haproxy_reads_it(written: str, endpoint: str) -> None:
    [proxy] = document(f"backend farm\n    server a {written} check\n").proxies

    assert [one.endpoint for one in proxy.operator_servers] == [endpoint]


@pytest.mark.parametrize(
    ("options", "number"),
    [("id 5", 5), ("check id 5 weight 1", 5), ("check id", None), ("id x", None), ("cookie id", None), ("", None)],
)
def test_an_operators_line_may_have_an_id(options: str, number: int | None) -> None:
    [proxy] = document(f"backend farm\n    server id 10.0.0.1:80 {options}\n").proxies

    assert [one.id for one in proxy.operator_servers] == [number]


@pytest.mark.parametrize(
    ("text", "markers"),
    [
        ("backend farm\n  # additional-lb-iis-server\n", [Marker(1, "lb-iis", "  ", "")]),
        ("backend farm\n\t# additional-lb-iis-server\r\n", [Marker(1, "lb-iis", "\t", "\r")]),
        ("backend farm\r\n# additional-lb-iis-server", [Marker(1, "lb-iis", "", "\r")]),
        ("backend farm\n# additional-lb iis-server\n", []),
        ("backend farm\n# additional_lb_iis_server\n", []),
    ],
)
def test_a_marker_has_indentation_and_line_ending(text: str, markers: list[Marker]) -> None:
    read = document(text)

    assert (read.proxies[0].markers, read.near_markers) == (markers, [] if markers else [1])


@pytest.mark.parametrize(("line", "blanks"), [(" \t a b", " \t "), ("a b", ""), ("X a", ""), ("  ", "  ")])
def test_indentation_is_blanks_and_tabs(line: str, blanks: str) -> None:
    assert find_indentation(line) == blanks


@pytest.mark.parametrize(("name", "role"), [("X1", "webX"), (f"{'n' * 63}.{'s' * 63}", "web"), ("web1.iis", "a.b-c_d")])
def test_a_managed_line_has_name_address_and_role(name: str, role: str) -> None:
    comment = f"# lbagent paused {name[:63]} fd00::1 role={role}"
    read = document(f"backend farm\n  server {name} [fd00::1]:80 check # lbagent role={role}\n{comment}\n")
    [line, paused] = read.proxies[0].managed

    assert (line.name, line.endpoint, line.address, line.role) == (name, "[fd00::1]:80", "fd00::1", role)
    assert (paused.name, paused.endpoint, paused.address, paused.role) == (name[:63], "", "fd00::1", role)
    assert [one.is_paused for one in (line, paused)] == [False, True]
    assert read.damaged == []


def test_a_line_without_a_similar_comment_is_not_damaged() -> None:
    assert explain_damage("server web1 10.0.0.1:80 # from lbagent") == ""


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("server web1 web01.example.com:80 # lbagent role=web", "it is not `server NAME IP-ADDRESS:PORT OPTIONS`"),
        ("server web1 10.0.0.1:80 # lbagent role=", "its comment is not `# lbagent role=ROLE`"),
        ("# lbagent paused web1 10.0.0 role=web", "not NAME ADDRESS role=ROLE"),
    ],
)
def test_a_line_that_looks_managed_is_the_operators_with_the_reason(line: str, why: str) -> None:
    read = document(f"backend farm\n    {line}\n    # additional-lb-iis-server\n")

    assert [one.why for one in read.damaged] == [why]
    assert read.has_managed_lines is False


def test_directives_are_all_lines_but_servers_comments_and_conditions() -> None:
    text = "global\n    # note\n    daemon\n.if 1\nbackend farm\n    balance source\n    server a 10.0.0.1:80\n.endif\n.if 0\n    mode tcp\n.endif\n"

    assert [one.words for one, _ in document(text).read_directives()] == [
        ["global"],
        ["daemon"],
        ["backend", "farm"],
        ["balance", "source"],
    ]

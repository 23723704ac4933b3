"""The output of `serf members`, `serf info` and `serf query` is parsed; anything invalid is an error."""

# ruff: noqa: E501  # a case of a table is in one line

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pytest_mock import MockerFixture

from lbagent.names import NAME, NAME_RULE, canonical_address
from lbagent.serf import member_list
from lbagent.serf.member_list import (
    AgentInfo,
    ListedMember,
    MemberList,
    explain_no_query,
    find_peers,
    find_unreachable_peers,
    parse_answers,
    parse_info,
    parse_member_list,
)
from tests.helpers.builders import nearly_valid

SERF = Path(__file__).parent.parent / "fixtures" / "serf"

LB01 = AgentInfo("lb01", "lb", encrypted=True, clocks={}, handlers={})


def row(name: object = "web01", addr: object = "10.0.0.1:7946", status: object = "alive", **tags: object) -> Any:  # noqa: ANN401
    """A member as JSON has it."""
    return {"name": name, "addr": addr, "port": 7946, "tags": {"role": "web", **tags}, "status": status}


def said(*rows: Any) -> str:  # noqa: ANN401
    """An answer of `serf members`."""
    return json.dumps({"members": list(rows)})


def test_captured_output_of_serf_members_is_parsed() -> None:
    found = parse_member_list((SERF / "members.json").read_text())

    assert sorted(found.members) == [
        ListedMember("lb01", "127.0.0.1", "lb", {}, "alive"),
        ListedMember("norole01", "127.0.0.5", "", {}, "alive"),
        ListedMember("web01", "127.0.0.2", "web", {}, "alive"),
        ListedMember("web02", "127.0.0.3", "A", {"dc": "tokyo"}, "left"),
        ListedMember("web03", "127.0.0.4", "B", {}, "failed"),
    ]
    assert found.refused == ()


def test_captured_output_of_serf_info_is_parsed() -> None:
    assert parse_info((SERF / "info.json").read_text()) == AgentInfo("lb01", "lb", False, {"user": 1, "query": 1}, {})  # noqa: FBT003


def test_handlers_are_listed_by_filter() -> None:
    told = {"agent": {"name": "lb01"}, "serf": {"encrypted": "true"}, "event_handlers": {"*:": "lbagent handle"}}

    assert parse_info(json.dumps(told)) == AgentInfo("lb01", "", True, {}, {"*:": "lbagent handle"})  # noqa: FBT003


def test_an_ipv6_address_loses_its_brackets_and_port() -> None:
    assert parse_member_list(said(row(addr="[fd00::5]:7946"))).members == (
        ListedMember("web01", "fd00::5", "web", {}, "alive"),
    )


def test_a_comma_in_a_tag_value_is_not_a_separator() -> None:
    [one] = parse_member_list(said(row(a="1,role=lb", b="x=y,z"))).members

    assert (one.role, one.tags) == ("web", {"a": "1,role=lb", "b": "x=y,z"})


def test_an_empty_list_of_members_is_valid() -> None:
    assert parse_member_list('{"members": null}') == MemberList((), frozenset(), ())


@pytest.mark.parametrize(
    ("one", "why"),
    [
        (
            row(name="web 01"),
            "serf members: invalid node name 'web 01'; use at most 63 letters, digits, '.', '-' and '_', beginning with a letter or digit",
        ),
        (
            row(name=""),
            "serf members: invalid node name ''; use at most 63 letters, digits, '.', '-' and '_', beginning with a letter or digit",
        ),
        (row(addr=":80"), "serf members: node web01: ':80' is not an IP address and a port"),
        (row(addr="?616263:80"), "serf members: node web01: '?616263:80' is not an IP address and a port"),
        (row(addr="X10.0.0.1X:80"), "serf members: node web01: 'X10.0.0.1X:80' is not an IP address and a port"),
        (row(addr="10.0.0.1"), "serf members: node web01: '10.0.0.1' is not an IP address and a port"),
    ],
)
def test_a_member_that_is_refused_is_named_and_not_missing(one: Any, why: str) -> None:  # noqa: ANN401
    found = parse_member_list(said(one, row(name="web02")))

    assert [member.name for member in found.members] == ["web02"]
    assert found.names == {one["name"], "web02"}
    assert found.refused == (why,)
    assert found.strays == {one["name"]: "web"}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (f'"{"x" * 99}"', f"'\"{'x' * 39}' is not a JSON object"),
        ("[" * 100_000, "the JSON is nested too deeply"),
        (f'{{"members": "{"x" * 99}"}}', f"`members` is '{'x' * 40}', not a list"),
        (f'{{"members": ["{"x" * 99}"]}}', f"'{'x' * 40}' is not a JSON object"),
        (said(row(name=["x" * 99])), f"'name' is \"['{'x' * 38}\", not text"),
    ],
)
def test_an_invalid_answer_is_described_with_its_beginning(text: str, why: str) -> None:
    with pytest.raises(ValueError) as raised:  # noqa: PT011  # its whole text is compared
        parse_member_list(text)

    assert str(raised.value) == why


def test_a_long_name_or_address_is_cut_in_the_message() -> None:
    long = "x" * 99

    assert parse_member_list(said(row(name=f"/{long}"), row(addr=long))).refused == (
        f"serf members: invalid node name '/{long[:79]}'; use {NAME_RULE}",
        f"serf members: node web01: '{long[:60]}' is not an IP address and a port",
    )


WRONG = ["", "Error connecting", "[]", "7", "null", '"x"', "{}", "NaN", '{"members": [7]}', '{"members": [null, []]}']
WRONG += [f'{{"members": {value}}}' for value in ("5", "0", "true", "false", '""', '"abc"', "{}", '{"name": "web01"}')]
ODD: tuple[Any, ...] = (5, None, ["web01"], {}, True)
WRONG += [said(row(**{key: value})) for key in ("name", "addr", "status", "role", "dc") for value in ODD]
WRONG += [said({**row(), "tags": value}) for value in ([], "", 0, "role=web", ["role"])]


@pytest.mark.parametrize("text", WRONG)
def test_output_that_is_not_a_list_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        parse_member_list(text)


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "7", "null", "{}", '{"agent": 5}', '{"agent": {}}', '{"agent": {"name": 5}}'),
        *(f'{{"agent": {{"name": "lb01"}}, {more}}}' for more in ('"serf": 5', '"serf": {"event_time": 5}')),
        *(f'{{"agent": {{"name": "lb01"}}, {more}}}' for more in ('"serf": {"event_time": "x"}', '"tags": []')),
        '{"agent": {"name": "lb01"}, "tags": {"role": 5}}',
        '{"agent": {"name": "lb01"}, "event_handlers": "x"}',
    ],
)
def test_info_without_a_name_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        parse_info(text)


def test_an_agent_without_a_name_is_described() -> None:
    with pytest.raises(ValueError, match=r"^the agent has no name$"):
        parse_info('{"agent": {"name": ""}}')


@given(nearly_valid(st.just("web01")), nearly_valid(st.just("10.0.0.1:7946")), st.text(max_size=5))
def test_every_listed_member_has_a_valid_name_and_address(name: str, addr: str, tag: str) -> None:
    for one in parse_member_list(said(row(name, addr, tag, dc=tag))).members:
        assert NAME.fullmatch(one.name)
        assert canonical_address(one.address) == one.address


def test_the_first_answer_of_each_node_is_used() -> None:
    text = (
        "Query 'pause' dispatched\nResponse from 'lb01': done\nResponse from 'lb02': refused: x': y\n"
        "Response from 'lb01': queued\nResponse from 'lb03': done\nTotal Responses: 3"
    )

    assert parse_answers(text, ["lb01", "lb02"]) == {"lb01": "done", "lb02": "refused: x': y"}


def test_other_load_balancers_have_the_role_of_this_one() -> None:
    rows = [row(name, role=role) for name, role in (("lb01", "lb"), ("lb02", "lb"), ("web01", "web"), ("edge", "edge"))]
    listed = parse_member_list(
        said(*rows, row("lb03", role="lb", status="left"), row("lb04", role="lb", status="failed"))
    )

    assert [one.name for one in find_peers(listed, LB01)] == ["lb02", "lb04"]
    assert [one.name for one in find_peers(listed, LB01._replace(role=""))] == ["lb02", "lb04"]
    assert [one.name for one in find_peers(listed, LB01._replace(role="edge"))] == ["edge"]


def test_thousands_of_valid_members_are_not_checked_one_by_one(mocker: MockerFixture) -> None:
    checked = mocker.spy(member_list, "canonical_address")

    assert len(parse_member_list(said(*(row(f"web{number}") for number in range(20)))).members) == 20
    assert checked.call_count == 0


def test_load_balancers_with_an_invalid_name_or_address_are_not_queried() -> None:
    rows = [row(name, role=role, addr="-") for name, role in (("lb01", "lb"), ("lb02", "web,lb"), ("web01", "web"))]

    assert find_unreachable_peers(parse_member_list(said(*rows)), LB01) == ("lb02",)


@pytest.mark.parametrize(
    ("status", "why"), [("alive", ""), ("failed", "not asked: failed in Serf"), ("left", "not asked: left in Serf")]
)
def test_only_an_alive_load_balancer_gets_a_query(status: str, why: str) -> None:
    assert explain_no_query(status) == why


def test_an_answer_is_cut_at_1024_characters() -> None:
    assert parse_answers(f"Response from 'lb02': {'x' * 2000}", ["lb02"]) == {"lb02": "x" * 1024}


@pytest.mark.parametrize(
    "words",
    [
        '{"members": 5}', '{"members": "web01"}', '{"members": true}', '{"members": {"name": "web01"}}', '{"members": [5]}',
        '{"members": [null, "x"]}', '{"members": [{"name": "web01", "tags": [1]}]}', "[" * 100_000, "[]", "5", '"x"', "",
    ],
)  # fmt: skip
def test_any_invalid_list_raises_value_error(words: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # json's words, or ours
        parse_member_list(words)


def test_of_several_roles_the_first_is_the_role_of_load_balancers() -> None:
    rows = [{"name": name, "addr": "10.0.0.1:7946", "tags": {"role": role}, "status": "alive"}
            for name, role in (("lb01", "lb,web"), ("lb02", "lb"), ("lb03", "web,lb"), ("web01", "web"), ("x", "lbx"))]  # fmt: skip
    listed = parse_member_list(json.dumps({"members": rows}))

    assert [one.name for one in find_peers(listed, LB01._replace(name="lb01", role="lb,web"))] == ["lb02", "lb03"]


@given(
    st.lists(
        st.tuples(
            st.from_regex(r"[a-z]{1,3}[0-9]{1,2}", fullmatch=True),
            st.sampled_from(["10.0.0.1:7946", "10.0.0.2:7946"]),
            st.dictionaries(st.sampled_from(["role", "dc", "a"]), st.sampled_from(["web", "", "x=y,z"])),
        )
    )
)
def test_many_members_are_parsed_as_each_of_them_beside_one_that_is_refused(
    members: list[tuple[str, str, dict[str, str]]],
) -> None:
    rows = [{"name": name, "addr": addr, "tags": tags, "status": "alive"} for name, addr, tags in members]

    together = parse_member_list(said(*rows)).members

    assert parse_member_list(said(*rows, row(name="web 99"))).members == together

"""Templates are filled with valid values only, and roles map to markers."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbagent.roles.model import PLACEHOLDERS, HaproxySettings, MissingTag, Pair, Role, Roles, Service, Template
from tests.helpers.builders import nearly_valid, parse_roles_text

VALUES = {"name": "web01", "role": "web", "interval": "60s"}


@pytest.mark.parametrize(
    ("template", "tags", "text"),
    [
        ("check", {}, "check"),
        ("check inter {interval}", {}, "check inter 60s"),
        ("cookie {name} # ".replace("#", "").strip(), {}, "cookie web01"),
        ("{role}-{name}", {}, "web-web01"),
        ("weight {tag:weight}", {"weight": "5"}, "weight 5"),
        ("weight {tag:weight|100}", {}, "weight 100"),
        ("weight {tag:weight|100}", {"weight": "5"}, "weight 5"),
        ("{tag:dc|}", {}, ""),
        ("{tag:role}", {"role": "other"}, "web"),
        ("{tag:x.y-z_1|a.b}", {}, "a.b"),
        ("  check   inter  2s ", {}, "check   inter  2s"),
    ],
)
def test_a_template_is_filled_with_the_values_of_a_node(template: str, tags: dict[str, str], text: str) -> None:
    assert Template(template).fill(VALUES, tags) == text


@pytest.mark.parametrize(
    ("text", "constant", "needs_tags", "same_for_role"),
    [
        ("check", True, False, True),
        ("{interval} {role}", False, False, True),
        ("{name}", False, False, False),
        ("{server}", False, False, False),
        ("{tag:a|b}", False, True, False),
    ],
)
def test_a_template_knows_its_placeholders(
    text: str,
    constant: bool,  # noqa: FBT001
    needs_tags: bool,  # noqa: FBT001
    same_for_role: bool,  # noqa: FBT001
) -> None:
    template = Template(text)

    assert (template.constant, template.needs_tags, template.same_for_role) == (constant, needs_tags, same_for_role)


@pytest.mark.parametrize("text", ["check # note", "a\nb", "a\tb", "é", "a\r", "\0", "#"])
def test_a_template_of_more_than_printable_ascii_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^not printable ASCII, or contains '#'$"):
        Template(text)


@pytest.mark.parametrize(
    "text", ["{", "}", "{}", "{intervall}", "{tag:}", "{tag:a b}", "{tag:a|b c}", "{{name}}", "${HOME}", "{tag:a|b|c}"]
)
def test_a_brace_without_a_placeholder_is_refused(text: str) -> None:
    with pytest.raises(
        ValueError,
        match=f"^a brace outside of {re.escape(PLACEHOLDERS)}$",
    ):
        Template(text)


def test_a_tag_that_is_not_set_counts_as_missing() -> None:
    with pytest.raises(MissingTag, match=r"^its tag 'weight' is not set$"):
        Template("weight {tag:weight}").fill(VALUES, {})


def test_a_tag_with_an_invalid_value_counts_as_missing() -> None:
    with pytest.raises(
        MissingTag,
        match=r"^its tag 'weight' is invalid: '5 backup'; use at most 64 letters, digits, '\.', '-' and '_'$",
    ):
        Template("weight {tag:weight|1}").fill(VALUES, {"weight": "5 backup"})


@given(nearly_valid(st.sampled_from(["80", "tokyo", "a-b.c_d"])))
def test_a_tag_value_never_adds_a_word_to_the_line(value: str) -> None:
    try:
        text = Template("weight {tag:weight}").fill(VALUES, {"weight": value})
    except MissingTag:
        return
    assert text.isascii()
    assert len(text.split()) == 2
    assert "#" not in text


def service(port: str) -> Service:
    """A service listening on `port`."""
    return Service("iis", Template(port), Template("check"))


@pytest.mark.parametrize(("tag", "port"), [("1", 1), ("80", 80), ("65535", 65535)])
def test_a_port_may_come_from_a_tag(tag: str, port: int) -> None:
    assert service("{tag:port}").find_port(VALUES, {"port": tag}) == port


@pytest.mark.parametrize(
    "tag",
    [
        "0", "65536", "-1", "8O", "8.0", "080", "00080", "99999999999999999999", "",
        "0000099999",
    ],
)  # fmt: skip
def test_a_tag_that_is_not_a_port_counts_as_missing(tag: str) -> None:
    with pytest.raises(MissingTag):
        service("{tag:port}").find_port(VALUES, {"port": tag})


def test_an_invalid_port_is_named() -> None:
    with pytest.raises(MissingTag, match=r"^invalid port 'x'; use 1 to 65535$"):
        service("{tag:port}").find_port(VALUES, {"port": "x"})


def test_the_placeholders_of_a_node_are_its_names_and_those_of_its_role() -> None:
    role = Role("web", {}, interval="60s")

    assert role.build_values("web01") == {"name": "web01", "role": "web", "interval": "60s", "server": "web01"}
    assert role.build_values("web01", "web01-b") == {
        "name": "web01",
        "role": "web",
        "interval": "60s",
        "server": "web01-b",
    }


def test_long_values_of_a_tag_are_cut_in_messages() -> None:
    value, role = "x" * 64, Role("web", {}, address=Template("{tag:ip}"))

    with pytest.raises(MissingTag, match=f"^its tag 'w' is invalid: '{'x' * 40}'; use "):
        Template("{tag:w}").fill(VALUES, {"w": f"{value}x"})
    with pytest.raises(MissingTag, match=f"^invalid port '{'x' * 40}'; use 1 to 65535$"):
        service("{tag:port}").find_port(VALUES, {"port": value})
    with pytest.raises(MissingTag, match=f"^address '{'x' * 60}' is not an IP address$"):
        role.find_address("web01", "10.0.0.1", {"ip": value})


ROLES = parse_roles_text("""
    services: {iis: {port: 80}, a-b: {port: 81}}
    roles:
      web: {lb: [iis, a-b], lb-2: [iis]}
      app: {lb: [iis], monitor: [none]}
""")


def test_every_section_and_service_has_a_marker() -> None:
    assert ROLES.list_pairs() == {
        "lb-iis": Pair("lb", "iis"),
        "lb-a-b": Pair("lb", "a-b"),
        "lb-2-iis": Pair("lb-2", "iis"),
    }


def test_a_marker_has_every_role_with_its_section_and_service() -> None:
    assert [role.name for role in ROLES.map_pairs_to_roles()[Pair("lb", "iis")]] == ["web", "app"]
    assert [role.name for role in ROLES.map_pairs_to_roles()[Pair("lb-2", "iis")]] == ["web"]
    assert Pair("monitor", "iis") not in ROLES.map_pairs_to_roles()


def test_the_defaults_are_the_documented_ones() -> None:
    role = Role("web", {})

    assert HaproxySettings() == (("/etc/haproxy/haproxy.cfg",), None, True, 30.0, 2.0)
    assert (role.interval, role.networks, role.options, role.remove_failed, role.max) == ("2s", (), None, False, 1000)
    assert (
        parse_roles_text("services: {iis: {port: 80}}\nroles: {web: {lb: [iis]}}").services["iis"].options.text
        == "check inter {interval} rise 2 fall 2"
    )


def test_roles_are_values() -> None:
    assert isinstance(ROLES, Roles)
    assert hash(Pair("a", "b")) == hash(Pair("a", "b"))

"""Names, addresses, roles and tag values are valid or refused, and names are sorted in natural order."""

# ruff: noqa: E501  # one line per case of a table

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbagent.names import (
    NAME,
    SERVICE,
    TAG_VALUE,
    canonical_address,
    explain_refused_address,
    format_count,
    make_printable,
    natural_key,
    sort_names,
)
from tests.helpers.builders import nearly_valid


@pytest.mark.parametrize("name", ["a", "0", "web01", "WEB-01", "web09.example.co.jp", "a..b", "x" * 63, "a_-."])
def test_a_name_that_serf_and_haproxy_accept_is_valid(name: str) -> None:
    assert NAME.fullmatch(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".a",
        "-a",
        "_a",
        "a b",
        "a\n",
        "a\r",
        "a\0",
        "ウェブ",
        "x" * 64,
        "../etc/x",
        "a;b",
        "a#",
        "a:80",
        "a\u2028",
        "\udc83",
        "\uff11",
        "a${b}",
    ],
)
def test_an_ambiguous_text_is_not_a_name(name: str) -> None:
    assert not NAME.fullmatch(name)


def test_a_service_has_no_dot() -> None:
    assert SERVICE.fullmatch("web_service-a")
    assert not SERVICE.fullmatch("a.b")


@given(nearly_valid(st.sampled_from(["web01", "a", "app-1.example"])))
def test_one_bad_character_makes_a_name_invalid(name: str) -> None:
    allowed = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")

    assert bool(NAME.fullmatch(name)) is (set(name) <= allowed and name[0] not in "._-")


@pytest.mark.parametrize("value", ["80", "a.b-c_d", "x" * 64])
def test_a_plain_word_is_a_valid_tag_value(value: str) -> None:
    assert TAG_VALUE.fullmatch(value)


@pytest.mark.parametrize("value", ["", "a b", "80\n", "x" * 65, "a=b", "é", "#"])
def test_anything_else_is_not_a_valid_tag_value(value: str) -> None:
    assert not TAG_VALUE.fullmatch(value)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("10.0.0.5", "10.0.0.5"),
        ("255.255.255.255", "255.255.255.255"),
        ("2001:DB8:0:0::5", "2001:db8::5"),
        ("::1", "::1"),
        ("::ffff:127.0.0.1", "127.0.0.1"),
        ("::FFFF:10.0.0.5", "10.0.0.5"),
    ],
)
def test_an_address_has_one_canonical_form(text: str, canonical: str) -> None:
    assert canonical_address(text) == canonical


@pytest.mark.parametrize(
    "text",
    [
        "", "<nil>", "?616263", "?0a00000102", "1.2.3", "1.2.3.4.5", "01.2.3.4", "1.2.3.256", "1.2.3.4 ", " 1.2.3.4", "1.2.3.4\n",
        "1.2.3.4:80", "[::1]", "fe80::1%eth0", "::1\n", ":::", "localhost", "\uff11.2.3.4", "0x7f.1", "1.2.3.4/32", "2130706433", "1,2,3,4",
    ],
)  # fmt: skip
def test_a_text_that_is_not_an_address_has_no_canonical_form(text: str) -> None:
    assert canonical_address(text) is None


@given(nearly_valid(st.sampled_from(["10.0.0.5", "2001:db8::5", "::1"])))
def test_a_canonical_address_contains_nothing_else(text: str) -> None:
    found = canonical_address(text)

    assert found is None or (str(ipaddress.ip_address(found)) == found and canonical_address(found) == found)


@given(st.ip_addresses())
def test_every_address_has_a_canonical_form(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None

    assert canonical_address(address.exploded) == str(mapped or address)


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("0.0.0.0", "0.0.0.0 is an unspecified address"),
        ("127.0.0.1", "127.0.0.1 is a loopback address that is not in the role's networks"),
        ("169.254.1.1", "169.254.1.1 is a link-local address"),
        ("224.0.0.1", "224.0.0.1 is a multicast address"),
        ("239.1.1.1", "239.1.1.1 is a multicast address"),
        ("240.0.0.1", "240.0.0.1 is a broadcast address"),
        ("255.255.255.255", "255.255.255.255 is a broadcast address"),
        ("::", ":: is an unspecified address"),
        ("::1", "::1 is a loopback address that is not in the role's networks"),
        ("ff02::1", "ff02::1 is a multicast address"),
        ("fe80::1", "fe80::1 is a link-local address"),
    ],
)
def test_an_address_that_cannot_be_a_server_is_refused(address: str, why: str) -> None:
    assert explain_refused_address(address) == why


@pytest.mark.parametrize(
    "address", ["10.0.0.5", "192.0.2.66", "223.255.255.255", "126.0.0.1", "128.0.0.1", "2001:db8::5", "fd00::1"]
)
def test_any_other_address_is_accepted_without_networks(address: str) -> None:
    assert explain_refused_address(address) is None


def test_another_network_does_not_allow_loopback_addresses() -> None:
    assert (
        explain_refused_address("127.0.0.1", ["0.0.0.0/0"])
        == "127.0.0.1 is a loopback address that is not in the role's networks"
    )
    assert explain_refused_address("::1", ["::/0"]) == "::1 is a loopback address that is not in the role's networks"


@pytest.mark.parametrize("networks", [["0.0.0.0/0"], ["224.0.0.0/4"], ["169.254.0.0/16"], ["255.255.255.255/32"]])
def test_no_network_allows_an_address_that_cannot_be_a_server(networks: list[str]) -> None:
    assert [
        explain_refused_address(address, networks) is None
        for address in ("224.0.0.1", "169.254.0.1", "255.255.255.255", "0.0.0.0")
    ] == [False] * 4


@given(st.ip_addresses(v=4), st.integers(0, 32), st.ip_addresses(v=4))
def test_ipv4_networks_agree_with_ipaddress(
    base: ipaddress.IPv4Address, bits: int, address: ipaddress.IPv4Address
) -> None:
    network = ipaddress.ip_network(f"{base}/{bits}", strict=False)
    outside = f"{address} is outside the role's networks"

    assert (explain_refused_address(str(address), [str(network)]) == outside) is (
        explain_refused_address(str(address)) is None and address not in network
    )


@given(st.ip_addresses(v=6), st.integers(0, 128), st.ip_addresses(v=6))
def test_ipv6_networks_agree_with_ipaddress(
    base: ipaddress.IPv6Address, bits: int, address: ipaddress.IPv6Address
) -> None:
    network = ipaddress.ip_network(f"{base}/{bits}", strict=False)
    outside = f"{address} is outside the role's networks"

    assert (explain_refused_address(str(address), [str(network)]) == outside) is (
        explain_refused_address(str(address)) is None and address not in network
    )


def test_a_network_of_the_other_family_contains_no_address() -> None:
    assert explain_refused_address("10.0.0.5", ["::/0"]) == "10.0.0.5 is outside the role's networks"
    assert explain_refused_address("2001:db8::5", ["0.0.0.0/0"]) == "2001:db8::5 is outside the role's networks"


def test_web2_comes_before_web10() -> None:
    names = ["web10", "web2", "web1", "a", "web02", "10", "9", "web2b3", "web2b20"]

    assert sorted(names, key=natural_key) == ["9", "10", "a", "web1", "web02", "web2", "web2b3", "web2b20", "web10"]


@given(st.lists(st.from_regex(NAME, fullmatch=True), max_size=6, unique=True))
def test_any_names_have_one_order(names: list[str]) -> None:
    assert sorted(names, key=natural_key) == sorted(set(names), key=natural_key)


shaped = st.from_regex(r"(web|Web|db-|a)[0-9]{0,4}([.-][0-9a-b]{1,3})?", fullmatch=True)


@given(st.lists(shaped | st.from_regex(NAME, fullmatch=True), max_size=12, unique=True))
def test_sorting_many_names_agrees_with_sorting_pairs(names: list[str]) -> None:
    assert sort_names(names) == sorted(names, key=natural_key)


@given(st.text())
def test_control_characters_are_replaced(words: str) -> None:
    assert make_printable(words).isprintable()
    assert len(make_printable(words)) == len(words)


def test_printable_text_is_unchanged() -> None:
    assert make_printable("web01 は \x1b[2J\n") == "web01 は ?[2J?"


def test_a_count_has_the_right_plural() -> None:
    assert [format_count(number, "line") for number in (0, 1, 2)] == ["0 lines", "1 line", "2 lines"]


@pytest.mark.parametrize("address", ["10.1.2.3", "10.1.2.255", "127.0.0.1", "169.254.1.1", "100.1.2.3", "10.10.2.3"])
@pytest.mark.parametrize(
    "network", ["10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "127.0.0.0/8", "0.0.0.0/0", "10.1.2.0/25"]
)
def test_a_network_of_whole_octets_allows_what_ipaddress_says(address: str, network: str) -> None:
    plain = not address.startswith(("127.", "169.254."))
    loopback = address.startswith("127.") and network.startswith("127.")
    inside = ipaddress.ip_address(address) in ipaddress.ip_network(network)

    assert (explain_refused_address(address, [network]) is None) == (inside and (plain or loopback))

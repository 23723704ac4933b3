"""roles.yml is read as the operator typed it, or refused with file, line, key path and the right form."""

# ruff: noqa: E501  # one line per case of a table

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbagent.errors import RolesRefused
from lbagent.roles import loader
from lbagent.roles.model import HaproxySettings, Roles, Template
from tests.helpers.builders import POISON, dedent, parse_roles_text

GOOD = dedent("""
    haproxy:
      config: /etc/haproxy/haproxy.cfg
      reload: [systemctl, reload, haproxy]
    services:
      iis: {port: 80}
      web_service_a: {port: 1111, options: "check inter {interval} rise 2 fall 2"}
      mongo: {port: 27017}
    roles:
      web:
        lb: [iis]
        monitor: [none]
        interval: 60s
        networks: [10.0.0.0/8]
      test: {lb: [none], monitor: [iis, mongo], interval: 300s}
""")


def refusal(text: str | bytes) -> str:
    """The words in which a roles.yml is refused."""
    content = text if isinstance(text, bytes) else dedent(text).encode()
    with pytest.raises(RolesRefused) as refused:
        loader.parse_roles(content, "roles.yml")
    return "\n".join(refused.value.mistakes)


def plain(roles: Roles) -> object:
    """Roles as values that can be compared."""
    return (
        roles.haproxy,
        {name: (one.port.text, one.options.text) for name, one in roles.services.items()},
        {name: [one.text if isinstance(one, Template) else one for one in role] for name, role in roles.roles.items()},
    )


# --- what is read -------------------------------------------------------------------------------------------------


def test_the_documented_example_is_read() -> None:
    assert plain(parse_roles_text(GOOD)) == (
        HaproxySettings(("/etc/haproxy/haproxy.cfg",), ("systemctl", "reload", "haproxy")),
        {
            "iis": ("80", "check inter {interval} rise 2 fall 2"),
            "web_service_a": ("1111", "check inter {interval} rise 2 fall 2"),
            "mongo": ("27017", "check inter {interval} rise 2 fall 2"),
        },
        {
            "web": ["web", {"lb": ("iis",), "monitor": ()}, "60s", ("10.0.0.0/8",), None, False, 1000, None, False],
            "test": ["test", {"lb": (), "monitor": ("iis", "mongo")}, "300s", (), None, False, 1000, None, False],
        },
    )


def test_the_older_form_with_roles_at_the_top_level_is_read() -> None:
    older = """
        haproxy: {config: /x.cfg}
        services: {iis: {port: 80}}
        web: {lb: [iis], interval: 60s}
        test: {lb: [none]}
    """
    newer = """
        haproxy: {config: /x.cfg}
        services: {iis: {port: 80}}
        roles:
          web: {lb: [iis], interval: 60s}
          test: {lb: [none]}
    """

    assert plain(parse_roles_text(older)) == plain(parse_roles_text(newer))


def test_every_key_of_a_role_is_read() -> None:
    roles = parse_roles_text("""
        services: {iis: {port: "{tag:port|8080}", options: ""}}
        roles:
          web: {lb: [iis], interval: 500ms, networks: [10.0.0.0/8, "2001:DB8::/32", 127.0.0.1], options: check weight 5, on_failed: remove, max: 20000}
    """)

    assert roles.services["iis"].options.text == ""
    web = roles.roles["web"]
    assert web.options is not None
    assert web.options.text == "check weight 5"
    assert (web.interval, web.networks, web.remove_failed, web.max) == (
        "500ms",
        ("10.0.0.0/8", "2001:db8::/32", "127.0.0.1/32"),
        True,
        20000,
    )


def test_every_key_of_haproxy_is_read() -> None:
    roles = parse_roles_text("""
        haproxy: {config: [/a.cfg, /conf.d], runtime: off, timeout: 2m, min_reload_interval: 500ms}
        services: {iis: {port: 80}}
        roles: {web: {lb: [iis]}}
    """)

    assert roles.haproxy == HaproxySettings(
        ("/a.cfg", "/conf.d"), None, runtime=False, timeout=120.0, min_reload_interval=0.5
    )


@pytest.mark.parametrize(("text", "seconds"), [("500ms", 0.5), ("5s", 5.0), ("2m", 120.0), ("1h", 3600.0)])
def test_a_time_is_converted_to_seconds(text: str, seconds: float) -> None:
    roles = parse_roles_text(
        f"haproxy: {{timeout: {text}}}\nservices: {{iis: {{port: 80}}}}\nroles: {{web: {{lb: [iis]}}}}"
    )

    assert roles.haproxy.timeout == seconds


@pytest.mark.parametrize(
    ("keys", "remove_failed", "drain"),
    [
        ("on_failed: keep, on_pause: remove", False, False),
        ("on_failed: remove, on_pause: drain", True, True),
    ],
)
def test_what_a_failed_and_a_paused_node_lose_is_read(keys: str, remove_failed: bool, drain: bool) -> None:  # noqa: FBT001
    web = parse_roles_text(f"services: {{iis: {{port: 80}}}}\nroles: {{web: {{lb: [iis], {keys}}}}}").roles["web"]

    assert (web.remove_failed, web.drain) == (remove_failed, drain)


@pytest.mark.parametrize(
    ("word", "on"),
    [("on", True), ("yes", True), ("true", True), ("On", True), ("off", False), ("no", False), ("FALSE", False)],
)
def test_runtime_is_on_or_off(word: str, on: bool) -> None:  # noqa: FBT001
    assert (
        parse_roles_text(
            f"haproxy: {{runtime: {word}}}\nservices: {{iis: {{port: 80}}}}\nroles: {{web: {{lb: [iis]}}}}"
        ).haproxy.runtime
        is on
    )


@pytest.mark.parametrize(
    "name", ["no", "yes", "on", "off", "null", "~1".replace("~", ""), "1e3", "0x10", "12:30:45", "2026-01-01", "true"]
)
def test_role_names_are_kept_as_typed(name: str) -> None:
    if ":" in name:
        assert "invalid role name" in refusal(f"services: {{iis: {{port: 80}}}}\nroles:\n  {name}: {{lb: [iis]}}\n")
        return
    assert list(parse_roles_text(f'services: {{iis: {{port: 80}}}}\nroles:\n  "{name}": {{lb: [iis]}}\n').roles) == [
        name
    ]
    if name != "null":
        assert list(parse_roles_text(f"services: {{iis: {{port: 80}}}}\nroles:\n  {name}: {{lb: [iis]}}\n").roles) == [
            name
        ]


def test_a_service_called_no_is_valid() -> None:
    assert parse_roles_text("services: {no: {port: 80}}\nroles: {web: {lb: [no]}}").roles["web"].sections == {
        "lb": ("no",)
    }


@pytest.mark.parametrize("prefix", [b"\xef\xbb\xbf", b"# \xe8\xa8\xad\xe5\xae\x9a\n", b"---\n", b"\n\n"])
def test_a_byte_order_mark_and_comments_are_accepted(prefix: bytes) -> None:
    assert plain(loader.parse_roles(prefix + GOOD.encode(), "x")) == plain(parse_roles_text(GOOD))


def test_crlf_line_ends_are_accepted() -> None:
    assert plain(loader.parse_roles(GOOD.replace("\n", "\r\n").encode(), "x")) == plain(parse_roles_text(GOOD))


def test_a_yaml_alias_is_resolved() -> None:
    roles = parse_roles_text("""
        services: {iis: &same {port: 80}, other: *same}
        roles:
          web: &role {lb: [iis]}
          app: *role
    """)

    assert plain(roles) == plain(
        parse_roles_text("services: {iis: {port: 80}, other: {port: 80}}\nroles: {web: {lb: [iis]}, app: {lb: [iis]}}")
    )


def test_a_yaml_alias_to_its_own_parent_is_refused() -> None:
    assert refusal("services: {iis: {port: 80}}\nroles: &me\n  web: *me\n").startswith("roles.yml:2:8: roles.web.web: ")


def test_nested_yaml_aliases_are_read_quickly() -> None:
    bomb = "services: {iis: {port: 80}}\na: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{name}: &{name} [{','.join([f'*{last}'] * 9)}]\n" for last, name in zip("abcdefgh", "bcdefghi", strict=True)
    )

    assert refusal(bomb).startswith("roles.yml:2:1: a: is a list, not a role; ")


def test_the_digest_changes_with_the_bytes() -> None:
    assert loader.parse_roles(GOOD.encode(), "x").digest != loader.parse_roles(f"{GOOD}#".encode(), "x").digest
    assert loader.parse_roles(GOOD.encode(), "x").digest == loader.parse_roles(GOOD.encode(), "y").digest


def test_the_shipped_roles_yml_is_read() -> None:
    example = Path(__file__).parent.parent.parent / "roles.yml"

    assert loader.parse_roles(example.read_bytes(), "roles.yml").roles


# --- what is refused ----------------------------------------------------------------------------------------------


def test_an_ambiguous_marker_is_refused() -> None:
    words = refusal("""
        services: {c: {port: 80}, b-c: {port: 81}}
        roles:
          web: {a-b: [c]}
          app: {a: [b-c]}
    """)

    assert words == (
        "roles.yml:4:9: roles.app.a: marker '# additional-a-b-c-server' is ambiguous, it could mean section a, service b-c"
        " or section a-b, service c; rename one"
    )


def test_an_ambiguous_marker_is_reported_at_its_section() -> None:
    words = refusal("""
        services: {c: {port: 80}, b-c: {port: 81}}
        web: {a-b: [c]}
        app:
          interval: 60s
          a: [b-c]
    """)

    assert words.startswith("roles.yml:5:3: app.a: marker '# additional-a-b-c-server' is ambiguous, it could mean ")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"# \x83E\x83F\x83u\nroles: {}\n", ":1:3: is not UTF-8 text; save it as UTF-8"),
        (b"\xff\xfe\x00", ":1:3: is not UTF-8 text; save it as UTF-8"),
        (b"roles:\n  web: \x07\n", ":2:8: contains a control character; remove it"),
        (b"\x7fELF\x02\x01\x01\0\0\0\0\0", ":1:1: contains a control character; remove it"),
        (b"\0" * 100, ":1:1: contains a control character; remove it"),
        (b"\n\x07", ":2:1: contains a control character; remove it"),
    ],
)
def test_bytes_that_are_not_text_are_refused(content: bytes, words: str) -> None:
    assert refusal(content) == f"roles.yml{words}"


def test_deep_nesting_is_refused() -> None:
    assert refusal("roles: " + "[" * 20_000 + "]" * 20_000).startswith("roles.yml")


@given(st.integers(0, len(GOOD)), st.sampled_from(POISON), st.integers(0, 3))
def test_a_text_with_one_bad_character_is_read_or_refused(at: int, bad: str, cut: int) -> None:
    content = (GOOD[:at] + bad + GOOD[at + cut :]).encode("utf-8", "surrogateescape")

    roles, words = None, ["roles.yml: "]
    try:
        roles = loader.parse_roles(content, "roles.yml")
    except RolesRefused as error:
        words = [str(error), *error.mistakes]

    assert [one for one in words if not one.startswith("roles.yml") or "\n" in one] == []
    texts = [one.options.text for one in roles.services.values()] if roles else []
    assert all(text.isascii() and text.isprintable() for text in texts)


@given(st.binary(max_size=80))
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    with pytest.raises(RolesRefused) as refused:
        loader.parse_roles(content, "roles.yml")

    assert "\n" not in str(refused.value)

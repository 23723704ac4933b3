"""rolesfile: roles.yml is read as it was meant, or refused with file, line, key path and what would be right."""

# ruff: noqa: E501  # a case of a table stands on one line

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbagent import rolesfile
from lbagent.errors import RolesRefused
from lbagent.roles import HaproxySettings, Roles
from tests.building import POISON, dedent, reading

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
        rolesfile.parse(content, "roles.yml")
    return str(refused.value)


def plain(roles: Roles) -> object:
    """Roles as values that can be compared."""
    return (
        roles.haproxy,
        {name: (one.port.text, one.options.text) for name, one in roles.services.items()},
        {name: (*one[:4], one.options and one.options.text, *one[5:]) for name, one in roles.roles.items()},
    )


# --- what is read -------------------------------------------------------------------------------------------------


def test_the_documented_example_is_read() -> None:
    assert plain(reading(GOOD)) == (
        HaproxySettings(("/etc/haproxy/haproxy.cfg",), ("systemctl", "reload", "haproxy")),
        {
            "iis": ("80", "check inter {interval} rise 2 fall 2"),
            "web_service_a": ("1111", "check inter {interval} rise 2 fall 2"),
            "mongo": ("27017", "check inter {interval} rise 2 fall 2"),
        },
        {
            "web": ("web", {"lb": ("iis",), "monitor": ()}, "60s", ("10.0.0.0/8",), None, False, 1000, False),
            "test": ("test", {"lb": (), "monitor": ("iis", "mongo")}, "300s", (), None, False, 1000, False),
        },
    )


def test_the_older_form_has_its_roles_at_the_top_level() -> None:
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

    assert plain(reading(older)) == plain(reading(newer))


def test_every_key_of_a_role_is_read() -> None:
    roles = reading("""
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
    roles = reading("""
        haproxy: {config: [/a.cfg, /conf.d], runtime: off, timeout: 2m, min_reload_interval: 500ms}
        services: {iis: {port: 80}}
        roles: {web: {lb: [iis]}}
    """)

    assert roles.haproxy == HaproxySettings(
        ("/a.cfg", "/conf.d"), None, runtime=False, timeout=120.0, min_reload_interval=0.5
    )


@pytest.mark.parametrize(
    ("word", "on"),
    [("on", True), ("yes", True), ("true", True), ("On", True), ("off", False), ("no", False), ("FALSE", False)],
)
def test_runtime_is_a_switch(word: str, on: bool) -> None:  # noqa: FBT001
    assert (
        reading(
            f"haproxy: {{runtime: {word}}}\nservices: {{iis: {{port: 80}}}}\nroles: {{web: {{lb: [iis]}}}}"
        ).haproxy.runtime
        is on
    )


@pytest.mark.parametrize(
    "name", ["no", "yes", "on", "off", "null", "~1".replace("~", ""), "1e3", "0x10", "12:30:45", "2026-01-01", "true"]
)
def test_a_role_is_called_what_the_operator_typed(name: str) -> None:
    if ":" in name:
        assert "a role's name is" in refusal(f"services: {{iis: {{port: 80}}}}\nroles:\n  {name}: {{lb: [iis]}}\n")
        return
    assert list(reading(f'services: {{iis: {{port: 80}}}}\nroles:\n  "{name}": {{lb: [iis]}}\n').roles) == [name]
    if name != "null":
        assert list(reading(f"services: {{iis: {{port: 80}}}}\nroles:\n  {name}: {{lb: [iis]}}\n").roles) == [name]


def test_a_service_called_no_is_served() -> None:
    assert reading("services: {no: {port: 80}}\nroles: {web: {lb: [no]}}").roles["web"].sections == {"lb": ("no",)}


@pytest.mark.parametrize("prefix", [b"\xef\xbb\xbf", b"# \xe8\xa8\xad\xe5\xae\x9a\n", b"---\n", b"\n\n"])
def test_a_byte_order_mark_and_comments_are_no_harm(prefix: bytes) -> None:
    assert plain(rolesfile.parse(prefix + GOOD.encode(), "x")) == plain(reading(GOOD))


def test_crlf_is_read() -> None:
    assert plain(rolesfile.parse(GOOD.replace("\n", "\r\n").encode(), "x")) == plain(reading(GOOD))


def test_an_alias_is_what_it_stands_for() -> None:
    roles = reading("""
        services: {iis: &same {port: 80}, other: *same}
        roles:
          web: &role {lb: [iis]}
          app: *role
    """)

    assert plain(roles) == plain(
        reading("services: {iis: {port: 80}, other: {port: 80}}\nroles: {web: {lb: [iis]}, app: {lb: [iis]}}")
    )


def test_an_alias_into_itself_is_refused() -> None:
    assert refusal("services: {iis: {port: 80}}\nroles: &me\n  web: *me\n").startswith("roles.yml:2: roles.web.web: ")


def test_many_aliases_cost_no_time() -> None:
    bomb = "services: {iis: {port: 80}}\na: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{name}: &{name} [{','.join([f'*{last}'] * 9)}]\n" for last, name in zip("abcdefgh", "bcdefghi", strict=True)
    )

    assert refusal(bomb) == "roles.yml:2: a: is not a mapping of keys to values"


def test_the_digest_changes_with_the_bytes() -> None:
    assert rolesfile.parse(GOOD.encode(), "x").digest != rolesfile.parse(f"{GOOD}#".encode(), "x").digest
    assert rolesfile.parse(GOOD.encode(), "x").digest == rolesfile.parse(GOOD.encode(), "y").digest


def test_the_example_that_is_delivered_is_read() -> None:
    example = Path(__file__).parent.parent / "roles.yml"

    assert rolesfile.parse(example.read_bytes(), "roles.yml").roles


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "roles.yml: is empty (a `roles:` with at least one role is needed)"),
        ("# nothing\n", "roles.yml: is empty (a `roles:` with at least one role is needed)"),
        ("just words\n", "roles.yml:1: the file: is not a mapping of keys to values"),
        ("- a\n- b\n", "roles.yml:1: the file: is not a mapping of keys to values"),
        ("haproxy: {}\n", "roles.yml:1: roles: no role is declared"),
        ("services: {iis: {port: 80}}\n", "roles.yml:1: roles: no role is declared"),
        ("services: {iis: {port: 80}}\nroles: {}\n", "roles.yml:2: roles: no role is declared"),
        ("services: {iis: {port: 80}}\nroles:\n", "roles.yml:2: roles: is not a mapping of keys to values"),
        ("services: {iis: {port: 80}}\nroles: [web]\n", "roles.yml:2: roles: is not a mapping of keys to values"),
        (
            "services: {iis: {port: 80}}\nroles: {web: {lb: [iis]}}\nservice: {}\n",
            "roles.yml:3: service: unknown key (known: haproxy, services, roles)",
        ),
        ("roles: {web: {}}\nroles: {app: {}}\n", "roles.yml:2: roles: stands twice"),
        ("haproxy: x\nroles: {web: {}}\n", "roles.yml:1: haproxy: is not a mapping of keys to values"),
        ("haproxy:\nroles: {web: {}}\n", "roles.yml:1: haproxy: is not a mapping of keys to values"),
        (
            "haproxy: {conf: /x}\nroles: {web: {}}\n",
            "roles.yml:1: haproxy.conf: unknown key (known: config, reload, runtime, timeout, min_reload_interval)",
        ),
        (
            "haproxy: {config: x.cfg}\nroles: {web: {}}\n",
            "roles.yml:1: haproxy.config: 'x.cfg' is not an absolute path",
        ),
        (
            "haproxy:\n  config:\n  - /a\n  - b\nroles: {web: {}}\n",
            "roles.yml:3: haproxy.config: 'b' is not an absolute path",
        ),
        ("haproxy: {config: {}}\nroles: {web: {}}\n", "roles.yml:1: haproxy.config: is not a path or a list of paths"),
        ("haproxy: {config: []}\nroles: {web: {}}\n", "roles.yml:1: haproxy.config: is not a path or a list of paths"),
        ("haproxy: {config: }\nroles: {web: {}}\n", "roles.yml:1: haproxy.config: is not a path"),
        (
            "haproxy: {reload: systemctl reload haproxy}\nroles: {web: {}}\n",
            'roles.yml:1: haproxy.reload: is not a list such as ["systemctl", "reload", "haproxy"]',
        ),
        ("haproxy: {runtime: maybe}\nroles: {web: {}}\n", "roles.yml:1: haproxy.runtime: 'maybe' is not on or off"),
        (
            "haproxy: {timeout: 30}\nroles: {web: {}}\n",
            "roles.yml:1: haproxy.timeout: '30' is not a time with its unit, as in 30s",
        ),
        (
            "haproxy: {timeout: soon}\nroles: {web: {}}\n",
            "roles.yml:1: haproxy.timeout: 'soon' is not a time with its unit, as in 30s",
        ),
        (
            "haproxy: {min_reload_interval: -2s}\nroles: {web: {}}\n",
            "roles.yml:1: haproxy.min_reload_interval: '-2s' is not a time with its unit, as in 30s",
        ),
        ("services: [iis]\nroles: {web: {}}\n", "roles.yml:1: services: is not a mapping of keys to values"),
        ("services:\n  iis:\nroles: {web: {}}\n", "roles.yml:2: services.iis: is not a mapping of keys to values"),
        ("services:\n  iis: 80\nroles: {web: {}}\n", "roles.yml:2: services.iis: is not a mapping of keys to values"),
        ("services:\n  iis: {}\nroles: {web: {}}\n", "roles.yml:2: services.iis: `port` is missing, as in {port: 80}"),
        (
            "services:\n  iis: {prt: 80}\nroles: {web: {}}\n",
            "roles.yml:2: services.iis.prt: unknown key (known: port, options)",
        ),
        (
            "services:\n  a.b: {port: 80}\nroles: {web: {}}\n",
            "roles.yml:2: services.a.b: a service's name is [A-Za-z0-9][A-Za-z0-9_-]{0,62}, and not `none`",
        ),
        (
            "services:\n  none: {port: 80}\nroles: {web: {}}\n",
            "roles.yml:2: services.none: a service's name is [A-Za-z0-9][A-Za-z0-9_-]{0,62}, and not `none`",
        ),
        ("services: {iis: {port: 80}, iis: {port: 81}}\nroles: {web: {}}\n", "roles.yml:1: services.iis: stands twice"),
        (
            "services:\n  iis:\n    port: 080\nroles: {web: {}}\n",
            "roles.yml:3: services.iis.port: '080' is not 1 to 65535, or \"{tag:port|8080}\"",
        ),
        (
            "services:\n  iis:\n    port: 0\nroles: {web: {}}\n",
            "roles.yml:3: services.iis.port: '0' is not 1 to 65535, or \"{tag:port|8080}\"",
        ),
        (
            "services:\n  iis:\n    port: 65536\nroles: {web: {}}\n",
            "roles.yml:3: services.iis.port: '65536' is not 1 to 65535, or \"{tag:port|8080}\"",
        ),
        (
            "services:\n  iis:\n    port: 0x50\nroles: {web: {}}\n",
            "roles.yml:3: services.iis.port: '0x50' is not 1 to 65535, or \"{tag:port|8080}\"",
        ),
        (
            "services:\n  iis:\n    port: 80.0\nroles: {web: {}}\n",
            "roles.yml:3: services.iis.port: '80.0' is not 1 to 65535, or \"{tag:port|8080}\"",
        ),
        ("services:\n  iis:\n    port: [80]\nroles: {web: {}}\n", "roles.yml:3: services.iis.port: is not text"),
        (
            'services:\n  iis:\n    port: "{tag:port"\nroles: {web: {}}\n',
            "roles.yml:3: services.iis.port: '{tag:port': a brace outside of {interval}, {name}, {role}, {tag:NAME} and {tag:NAME|default}",
        ),
        (
            'services:\n  iis:\n    port: 80\n    options: "check # x"\nroles: {web: {}}\n',
            "roles.yml:4: services.iis.options: 'check # x': only printable ASCII without '#' can stand in a server line",
        ),
        (
            'services:\n  iis:\n    port: 80\n    options: "check\\nserver evil 6.6.6.6:80"\nroles: {web: {}}\n',
            "roles.yml:4: services.iis.options: 'check\\nserver evil 6.6.6.6:80' is empty, too long or holds control characters",
        ),
        (
            "services: {iis: {port: 80}}\nroles:\n  web:\n    lb: iis\n",
            "roles.yml:4: roles.web.lb: a section is a list of services, as in [iis] (other keys: interval, networks, options, on_failed, on_pause, max)",
        ),
        (
            "services: {iis: {port: 80}}\nroles:\n  web:\n    intervall: 60s\n",
            "roles.yml:4: roles.web.intervall: a section is a list of services, as in [iis] (other keys: interval, networks, options, on_failed, on_pause, max)",
        ),
        (
            "services: {iis: {port: 80}, b: {port: 81}}\nroles:\n  web:\n    lb:\n    - b\n    - iss\n",
            "roles.yml:6: roles.web.lb: service 'iss' is not declared in `services:` (known: iis, b)",
        ),
        (
            "roles:\n  web: {lb: [iis]}\n",
            "roles.yml:2: roles.web.lb: service 'iis' is not declared in `services:` (known: none is declared)",
        ),
        (
            "web: {lb: [iis]}\n",
            "roles.yml:1: web.lb: service 'iis' is not declared in `services:` (known: none is declared)",
        ),
        (
            "services: {iis: {port: 80}}\nroles:\n  web: {lb: [iis, iis]}\n",
            "roles.yml:3: roles.web.lb: service 'iis' stands twice",
        ),
        (
            "services: {iis: {port: 80}}\nroles:\n  web: {lb: [[iis]]}\n",
            "roles.yml:3: roles.web.lb: is not a list of services, as in [iis]",
        ),
        (
            "services: {iis: {port: 80}}\nroles:\n  web: {lb: [iis], lb: [iis]}\n",
            "roles.yml:3: roles.web.lb: stands twice",
        ),
        (
            "services: {iis: {port: 80}}\nroles:\n  w b: {lb: [iis]}\n",
            "roles.yml:3: roles.w b: a role's name is [A-Za-z0-9][A-Za-z0-9._-]{0,62}",
        ),
        (
            "services: {iis: {port: 80}}\nroles:\n  web: {l b: [iis]}\n",
            "roles.yml:3: roles.web.l b: a section's name is [A-Za-z0-9][A-Za-z0-9._-]{0,62}",
        ),
        ("services: {iis: {port: 80}}\nroles:\n  web:\n", "roles.yml:3: roles.web: is not a mapping of keys to values"),
        (
            "services: {iis: {port: 80}}\nroles:\n  web: {interval: 60}\n",
            "roles.yml:3: roles.web.interval: '60' is not a time with its unit, as in 60s",
        ),
        (
            "services: {iis: {port: 80}}\nroles:\n  web: {interval: 1h30m}\n",
            "roles.yml:3: roles.web.interval: '1h30m' is not a time with its unit, as in 60s",
        ),
        (
            "services: {iis: {port: 80}}\nroles:\n  web: {interval: s}\n",
            "roles.yml:3: roles.web.interval: 's' is not a time with its unit, as in 60s",
        ),
        (
            "services: {iis: {port: 80}}\nroles:\n  web: {networks: 10.0.0.0/8}\n",
            "roles.yml:3: roles.web.networks: is not a list such as [10.0.0.0/8]",
        ),
        (
            "services: {iis: {port: 80}}\nroles:\n  web: {networks: []}\n",
            "roles.yml:3: roles.web.networks: is not a list such as [10.0.0.0/8]",
        ),
        (
            "services: {iis: {port: 80}}\nroles:\n  web: {networks: [10.0.0.1/8]}\n",
            "roles.yml:3: roles.web.networks: 10.0.0.1/8 has host bits set (a network is written 10.0.0.0/8)",
        ),
        (
            "services: {iis: {port: 80}}\nroles:\n  web:\n    networks:\n    - 10.0.0.0/8\n    - intranet\n",
            "roles.yml:6: roles.web.networks: 'intranet' does not appear to be an IPv4 or IPv6 network (a network is written 10.0.0.0/8)",
        ),
        (
            "services: {iis: {port: 80}}\nroles:\n  web: {on_failed: drop}\n",
            "roles.yml:3: roles.web.on_failed: 'drop' is not keep or remove",
        ),
        (
            "services: {iis: {port: 80}}\nroles:\n  web: {max: 0}\n",
            "roles.yml:3: roles.web.max: '0' is not a number from 1 to 20000",
        ),
        (
            "services: {iis: {port: 80}}\nroles:\n  web: {max: many}\n",
            "roles.yml:3: roles.web.max: 'many' is not a number from 1 to 20000",
        ),
        (
            "services: {iis: {port: 80}}\nroles:\n  web: {max: 20001}\n",
            "roles.yml:3: roles.web.max: '20001' is not a number from 1 to 20000",
        ),
        (
            "services: {iis: {port: 80}}\nroles:\n  web: {max: '0001000000'}\n",
            "roles.yml:3: roles.web.max: '0001000000' is not a number from 1 to 20000",
        ),
        (
            "services: {iis: {port: 80}}\nroles:\n  web: {options: [check]}\n",
            "roles.yml:3: roles.web.options: is not text",
        ),
        ("roles: {1: {}, ? [a] : {}}\n", "roles.yml:1: roles: is not a mapping whose keys are words"),
    ],
)
def test_what_cannot_be_meant_is_refused(text: str, words: str) -> None:
    assert refusal(text) == words


def test_a_marker_that_could_mean_two_pairs_is_refused() -> None:
    words = refusal("""
        services: {c: {port: 80}, b-c: {port: 81}}
        roles:
          web: {a-b: [c]}
          app: {a: [b-c]}
    """)

    assert words == (
        "roles.yml:4: roles.app: '# additional-a-b-c-server' could mean section a, service b-c"
        " or section a-b, service c: rename one"
    )


def test_of_an_ambiguous_marker_the_line_of_the_section_is_told() -> None:
    words = refusal("""
        services: {c: {port: 80}, b-c: {port: 81}}
        web: {a-b: [c]}
        app:
          interval: 60s
          a: [b-c]
    """)

    assert words.startswith("roles.yml:5: app: '# additional-a-b-c-server' could mean ")


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"roles:\n\tweb: {}\n", ":2"),
        (b"roles:\n  web: {lb: [iis}\n", ":2"),
        (b"roles:\n  web: {\n", ":3"),
        (b"roles:\n  web: 'x\n", ":3"),
        (b"roles: *nobody\n", ":1"),
        (b"a: 1\n---\nb: 2\n", ":2"),
        (b"roles: @x\n", ":1"),
        (b"# \x83E\x83F\x83u\nroles: {}\n", ""),
        (b"\xff\xfe\x00", ""),
        (b"\x7fELF\x02\x01\x01\0\0\0\0\0", ""),
        (b"\0" * 100, ""),
        (bytes(range(256)), ""),
    ],
)
def test_what_is_not_yaml_is_refused_in_one_line(content: bytes, line: str) -> None:
    words = refusal(content)

    assert words.startswith(f"roles.yml{line}: is not YAML: ")
    assert "\n" not in words


def test_a_depth_beyond_reason_is_refused_too() -> None:
    assert refusal("roles: " + "[" * 20_000 + "]" * 20_000).startswith("roles.yml")


@given(st.integers(0, len(GOOD)), st.sampled_from(POISON), st.integers(0, 3))
def test_one_bad_character_is_read_or_refused(at: int, bad: str, cut: int) -> None:
    content = (GOOD[:at] + bad + GOOD[at + cut :]).encode("utf-8", "surrogateescape")

    roles, words = None, "roles.yml: "
    try:
        roles = rolesfile.parse(content, "roles.yml")
    except RolesRefused as error:
        words = str(error)

    assert words.startswith("roles.yml")
    assert "\n" not in words
    texts = [one.options.text for one in roles.services.values()] if roles else []
    assert all(text.isascii() and text.isprintable() for text in texts)


@given(st.binary(max_size=80))
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    with pytest.raises(RolesRefused) as refused:
        rolesfile.parse(content, "roles.yml")

    assert "\n" not in str(refused.value)

"""Roles survive the JSON cache unchanged; an invalid cache is an error, never an invalid line."""

# ruff: noqa: E501  # one line per case of a table

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbagent.haproxy.config import Document
from lbagent.planning.plan import make_plan
from lbagent.roles.model import Roles, Template, deserialize_roles, serialize_roles
from tests.helpers.builders import member, membership_of, parse_roles_text

TEXTS = [
    "services: {iis: {port: 80}}\nroles: {web: {lb: [iis]}}",
    "services: {iis: {port: 80}}\nweb: {lb: [iis], monitor: [none]}",
    """
    haproxy: {config: [/a.cfg, /b.d], reload: [service, haproxy, reload], runtime: off, timeout: 5s, min_reload_interval: 0s}
    services: {a: {port: "{tag:port|8080}", options: ""}, b: {port: 1, options: "check weight {tag:w}"}}
    roles:
      web: {lb: [a, b], interval: 60s, networks: [10.0.0.0/8, "::1"], options: "check {name} {role}", on_failed: remove, max: 3}
      app: {lb: [a], m: [b], options: "", address: "{tag:ip}"}
    """,
]


def through_json(roles: Roles) -> Roles:
    """The roles as the next run reads them."""
    return deserialize_roles(json.loads(json.dumps(serialize_roles(roles))))


def told(roles: Roles) -> object:
    """Roles as values that can be compared."""
    services = {name: (one.name, one.port.text, one.options.text) for name, one in roles.services.items()}
    kept = {
        name: {field: one.text if isinstance(one, Template) else one for field, one in role._asdict().items()}
        for name, role in roles.roles.items()
    }
    return services, kept


@pytest.mark.parametrize("text", TEXTS)
def test_roles_survive_the_cache_unchanged(text: str) -> None:
    roles = parse_roles_text(text)

    again = through_json(roles)

    assert again.haproxy == roles.haproxy
    assert again.digest == roles.digest
    assert again.list_pairs() == roles.list_pairs()
    assert told(again) == told(roles)
    assert [type(one) for one in again] == [type(one) for one in roles]
    assert {name: tuple(map(type, role)) for name, role in again.roles.items()} == {
        name: tuple(map(type, role)) for name, role in roles.roles.items()
    }


def test_the_cache_names_every_field() -> None:
    roles = parse_roles_text(TEXTS[0])

    assert serialize_roles(roles) == {
        "haproxy": {
            "config": ("/etc/haproxy/haproxy.cfg",),
            "reload": None,
            "runtime": True,
            "timeout": 30.0,
            "min_reload_interval": 2.0,
        },
        "services": {
            "iis": {
                "name": "iis",
                "port": {"template": "80"},
                "options": {"template": "check inter {interval} rise 2 fall 2"},
            }
        },
        "roles": {
            "web": {
                "name": "web",
                "sections": {"lb": ("iis",)},
                "interval": "2s",
                "networks": (),
                "options": None,
                "remove_failed": False,
                "max": 1000,
                "address": None,
                "drain": False,
            }
        },
        "digest": roles.digest,
    }


@pytest.mark.parametrize("text", TEXTS)
def test_cached_roles_give_the_same_plan(text: str) -> None:
    roles = parse_roles_text(text)
    markers = "".join(f"# additional-{middle}-server\n" for middle in roles.list_pairs())
    document = Document([("haproxy.cfg", f"backend a\n{markers}")])
    members = membership_of(
        *(
            member(f"n{at}", f"10.0.0.{at + 1}", role, {"port": "81", "w": "5"})
            for at, role in enumerate(["web", "app", "web", "web", "web"])
        )
    )

    assert make_plan(document, through_json(roles), members) == make_plan(document, roles, members)


@pytest.mark.parametrize(
    "state",
    [None, 0, "x", "abcd", [], {}, [[], {}, {}, ""], [1, 2, 3, 4], [[[], None], {}, {}], [[[]], {"a": ["80"]}, {}, ""]],
)
def test_an_invalid_cache_raises_an_error_that_the_engine_catches(state: Any) -> None:  # noqa: ANN401
    with pytest.raises((ValueError, TypeError, KeyError)):
        deserialize_roles(state)


@pytest.mark.parametrize(
    ("haproxy", "why"),
    [
        (5, "'int' object has no attribute 'items'"),
        ({"timeout": "x"}, "timeout is 'x'"),
        ({"config": 5}, "config is 5"),
    ],
)
def test_an_invalid_cache_is_described(haproxy: object, why: str) -> None:
    with pytest.raises(ValueError, match=f"^not a cached roles.yml: {why}$"):
        deserialize_roles({"haproxy": haproxy, "services": {}, "roles": {}, "digest": ""})


leaves = (
    st.none()
    | st.booleans()
    | st.integers(-5, 70_000)
    | st.sampled_from(["", "web", "{", "check\nserver evil 6.6.6.6:80", "#", "80", "é"])
)


@given(st.data())
def test_an_invalid_cache_cannot_produce_an_invalid_line(data: st.DataObject) -> None:
    state = json.loads(json.dumps(serialize_roles(parse_roles_text(TEXTS[2]))))
    spot: Any = state
    for _ in range(data.draw(st.integers(1, 5))):
        keys = list(spot) if isinstance(spot, dict) else list(range(len(spot)))
        if not keys:
            break
        key = data.draw(st.sampled_from(keys))
        if not isinstance(spot[key], dict | list):
            spot[key] = data.draw(leaves)
            break
        spot = spot[key]

    try:
        roles = deserialize_roles(state)
    except (ValueError, TypeError, KeyError):
        return
    assert all(one.options.text.isprintable() and "#" not in one.options.text for one in roles.services.values())

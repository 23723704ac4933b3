"""members.json is read as it was written, also by and from older versions; anything else is reported as damage."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbagent.membership.model import FAILED, LEFT, Membership, Pause, Quarantine
from lbagent.serf.events import Command, parse_event
from lbagent.serf.raw_event import RawEvent
from lbagent.state import store
from tests.helpers.builders import (
    NOW,
    command_event,
    drop_expired_of,
    join_event,
    member,
    membership_of,
    parse_roles_text,
    paused_names,
    updated_membership,
)

CONFIG = "backend farm\n    # additional-lb-iis-server\n"
ROLES = parse_roles_text("services: {iis: {port: 80}}\nroles: {web: {lb: [iis]}}\n")

KNOWN = updated_membership(
    membership_of(
        member("web01", tags={"dc": "tokyo"}),
        member("web02", "10.0.0.2", quarantine=Quarantine(NOW, "refused", "key")),
        member("web03", "::5", status=FAILED),
        member("web04", "10.0.0.4", status=LEFT)._replace(elsewhere=("10.0.0.8",)),
    ),
    command_event("pause", f"web01 until={NOW + 60} reason=patches", 5),
    command_event("resume", "web02", 3, "query"),
    command_event("pause", "web02", None, "typed"),
    command_event("pause", "web99", 6),
)._replace(peers_asked_at=NOW, missed={"web03": NOW})

OLDER = {
    "version": 1,
    "clocks": {"user": 7},
    "folded": ["d69f1204"],
    "missed": {},
    "members": {
        "name": ["web1", "web2", "web3", "web4"],
        "address": ["10.0.0.1", "10.0.0.2", "10.0.0.3", ""],
        "role": ["web", "web", "web", ""],
        "status": ["alive", "alive", "alive", "unknown"],
        "changed": [NOW] * 4,
    },
    "more": {
        "web2": {
            "tags": {},
            "pause": {"since": NOW, "by": "user event", "reason": "x", "until": None},
            "ltimes": {
                "user": {"ltime": 7, "digests": ["d9fb55ed"], "paused": True},
                "query": {"ltime": 3, "digests": ["11111111"], "paused": False},
            },
            "quarantine": None,
        },
        "web3": {
            "tags": None,
            "pause": None,
            "ltimes": {"user": {"ltime": 6, "digests": ["22222222"], "paused": True}},
            "quarantine": {"since": NOW, "reason": "why", "key": "key"},
        },
        "web4": {
            "tags": None,
            "pause": {"since": NOW, "by": "query", "reason": "", "until": NOW + 60},
            "ltimes": {},
            "quarantine": None,
        },
    },
}
"""As lbagent wrote it before commands had an end of their own."""


def test_membership_survives_members_json_unchanged() -> None:
    found = store.parse_membership(store.serialize_membership(KNOWN))

    assert found == KNOWN
    assert found.members["web01"].pause == Pause(NOW, "user event", "patches", NOW + 60)


def digest(raw: RawEvent) -> str:
    """Identity of the event."""
    event = parse_event(raw)
    assert isinstance(event, Command)
    return event.digest


def test_a_file_of_an_older_version_is_read_and_decides_as_before() -> None:
    ended, resumed = command_event("pause", "web3 for=1h", 6), command_event("resume", "web2", 3, "query")
    text = json.dumps(OLDER).replace("22222222", digest(ended)).replace("11111111", digest(resumed))
    found = store.parse_membership(text.encode())

    assert paused_names(found) == ["web2", "web4"]
    # The pause of web3 had ended: a replay at its LTime does not revive it. That of web2 came after the resume.
    after = updated_membership(found, ended, resumed)
    assert paused_names(after) == ["web2", "web4"]
    assert paused_names(updated_membership(after, command_event("resume", "web2", 4, "query"))) == ["web4"]


def test_an_older_version_can_read_the_file() -> None:
    state = json.loads(store.serialize_membership(KNOWN))

    [row] = state["more"]["web01"]["ltimes"].values()
    assert {key: row[key] for key in ("ltime", "paused")} == {"ltime": 5, "paused": True}
    assert row["digests"] == [one["digest"] for one in row["commands"]]


def changed(path: str, value: object) -> bytes:
    """members.json with another value at `path`."""
    state = json.loads(store.serialize_membership(KNOWN))
    *folders, last = path.split("/")
    at: Any = state
    for name in folders:
        at = at[int(name)] if isinstance(at, list) else at[name]
    at[int(last) if isinstance(at, list) else last] = value
    return json.dumps(state).encode()


JUNK: tuple[object, ...] = (None, 5, -1, "", "x", [], {}, [1], {"x": 1}, True, 1.5, 10**30)

MUST: dict[str, tuple[object, ...]] = {
    "members/address/0": ("", "10.0.0", "10.0.0.1:80", "010.0.0.1", None, 5),
    "members/address/2": ("", "::0005"),
    "members/name/0": ("", "web 01", "web02", None, 5),
    "members/role/0": (None, 5, []),
    "members/status/0": ("", "gone", None, []),
    "members/changed/0": (None, "1", True, 1.5, -1, 10**30),
    "members/name": (None, {}, [], "web01"),
    "more": (None, [], 5),
    "more/web01": (None, [], 5, {}),
    "more/nobody": ({"tags": {}, "pause": None, "ltimes": {}, "quarantine": None},),
    "more/web01/tags": ([], "", 0, False, {"a": 1}, ["a"]),
    "more/web01/pause": ([], "", 0, False, {}, "until"),
    "more/web01/pause/since": (None, "", True, -1, 10**30),
    "more/web01/pause/until": ("", True, -1, 1.5, 10**30),
    "more/web01/pause/by": (None, 5),
    "more/web01/ltimes": (None, [], 5, {"user": None}, {"user": {}}),
    "more/web01/ltimes/user/ltime": (None, "5", -1, True, 10**30),
    "more/web01/ltimes/user/digests": (None, {}, ""),
    "more/web01/ltimes/user/commands": (None, {}, [], [None], [{}]),
    "more/web01/ltimes/user/commands/0/pauses": (None, 0, "p"),
    "more/web01/ltimes/user/commands/0/until": ("", -1, True, 10**30),
    "more/web01/ltimes/user/commands/0/after": (None, [1], [["user"]], [["user", "1"]], [["user", -1]]),
    "more/web01/ltimes/user/commands/0/address": (None, "x", 5),
    "more/web02/quarantine": ([], "", 0, False, {}),
    "more/web02/quarantine/since": (None, "", -1),
    "more/web04/elsewhere": (None, "10.0.0.1", ["x"], [5]),
    "clocks": (None, [], {"user": "1"}, {"user": -1}, {"user": True}),
    "folded": (None, {}, "abc", [5]),
    "missed": (None, [], {"web03": None}),
    "marks": (None, {}, [1], [[1]], [[1, "x"]]),
    "met": (None, "", -1, True),
}


@pytest.mark.parametrize(("path", "value"), [(path, value) for path, values in MUST.items() for value in values])
def test_a_value_that_lbagent_never_writes_is_reported_as_damage(path: str, value: object) -> None:
    with pytest.raises(store.Damaged):
        store.parse_membership(changed(path, value))


PATHS = st.sampled_from(sorted({*MUST, "more/web02/tags", "more/web03", "version", "members"}))


@given(PATHS, st.sampled_from(JUNK))
def test_any_wrong_value_is_damage_or_harmless(path: str, value: object) -> None:
    try:
        found = store.parse_membership(changed(path, value)) if path != "more/web03" else store.parse_membership(b"")
    except store.Damaged:
        return
    work(found)


SOUND = store.serialize_membership(KNOWN)


@given(
    st.lists(
        st.tuples(st.integers(0, len(SOUND) - 1), st.sampled_from(b'019-"[]{},:.xA\xff\x00')), min_size=1, max_size=3
    )
)
def test_a_few_wrong_bytes_are_damage_or_harmless(wrong: list[tuple[int, int]]) -> None:
    content = bytearray(SOUND)
    for at, byte in wrong:
        content[at] = byte
    try:
        found = store.parse_membership(bytes(content))
    except store.Damaged:
        return
    work(found)


def work(membership: Membership) -> None:
    """Do with it what a run does."""
    after = updated_membership(
        membership,
        join_event("web01\t10.0.0.1\tweb\t"),
        command_event("pause", "web02 for=1h", 9),
        command_event("resume", "web03", 9),
    )
    assert store.parse_membership(store.serialize_membership(drop_expired_of(after, NOW))) == drop_expired_of(
        after, NOW
    )


def test_the_undamaged_text_is_valid() -> None:
    assert store.parse_membership(SOUND) == KNOWN


@pytest.mark.parametrize("value", [{}, [], None, 0, False])
def test_an_address_that_is_not_text_is_damage_even_where_it_is_false(value: object) -> None:
    found = json.loads(store.serialize_membership(KNOWN))
    assert "" in found["members"]["address"]
    found["members"]["address"][found["members"]["name"].index("web04")] = value

    with pytest.raises(store.Damaged):
        store.parse_membership(json.dumps(found).encode())

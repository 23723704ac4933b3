"""Events are parsed from what Serf passes to its handler; invalid lines and payloads are refused with a message."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbagent.names import NAME, NAME_RULE, canonical_address
from lbagent.serf.events import (
    QUERIES,
    Command,
    Ignored,
    Malformed,
    MemberEvent,
    MemberLine,
    StatusQuery,
    can_send_reason,
    fold_tags_as_stdin,
    parse_duration,
    parse_event,
    parse_time,
)
from lbagent.serf.raw_event import RawEvent, read_handler_event
from tests.helpers.builders import NOW, command_event, join_event, member_event, nearly_valid

SERF = Path(__file__).parent.parent / "fixtures" / "serf"

WEB01 = MemberLine("web01", "127.0.0.2", "web", {})


def captured(case: str) -> RawEvent:
    """An event as a real Serf agent handed it over."""
    environ = {
        key.encode(): value.encode() for key, value in json.loads((SERF / case / "env.json").read_text()).items()
    }
    return read_handler_event(environ, (SERF / case / "stdin.bin").read_bytes(), NOW * 1000, "id")


def command(verb: str, name: str, address: str | None = None, until: int | None = None, reason: str = "") -> Command:
    """The command, as far as it does not depend on clocks."""
    return Command(verb, "user", None, name, address, until, reason, "")


def members(raw: RawEvent) -> tuple[MemberLine, ...]:
    """Return the members of a member event, without the role, which has a field of its own, among the tags."""
    event = parse_event(raw)
    assert isinstance(event, MemberEvent)
    return tuple(
        one._replace(tags={key: value for key, value in one.tags.items() if key != "role"}) for one in event.members
    )


def refused(raw: RawEvent) -> tuple[str, ...]:
    """Return the messages about invalid lines of a member event."""
    event = parse_event(raw)
    assert isinstance(event, MemberEvent)
    return event.refused


def parse_pause(payload: str) -> Command | Malformed:
    """Parse a `pause` with this payload; without LTime and digest."""
    event = parse_event(command_event("pause", payload))
    assert isinstance(event, Command | Malformed)
    return event._replace(digest="") if isinstance(event, Command) else event


# --- captured from a real Serf ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "told"),
    [
        ("member-join-one", (WEB01,)),
        (
            "member-join-five",
            (
                MemberLine("web06", "127.0.0.7", "B", {}),
                MemberLine("web03", "127.0.0.4", "A", {}),
                MemberLine("web02", "127.0.0.3", "web", {}),
                MemberLine("web05", "127.0.0.6", "B", {}),
                MemberLine("web04", "127.0.0.5", "A", {}),
            ),
        ),
        ("member-join-ipv6", (MemberLine("web01", "::1", "web", {}),)),
        ("member-join-self", ()),
        ("member-leave-self", ()),
        (
            "member-join-multitag",
            (MemberLine("multi01", "127.0.0.11", "web", {"drain": "", "dc": "tokyo", "port": "8080"}),),
        ),
        ("member-join-name-dots", (MemberLine("web09.example.co.jp", "127.0.0.14", "web", {}),)),
        ("member-join-norole", (MemberLine("norole01", "127.0.0.12", "", {}),)),
        ("member-join-role-empty", (MemberLine("roleempty01", "127.0.0.13", "", {}),)),
        ("member-update-role", (MemberLine("web01", "127.0.0.2", "B", {}),)),
        ("hostile-advertise-addr", (MemberLine("attacker", "192.0.2.66", "web", {}),)),
        ("hostile-addr-zero", (MemberLine("zero", "0.0.0.0", "web", {}),)),
        (
            "hostile-tag-newline",
            (MemberLine("ev3", "127.0.0.45", "web", {"x": "1\\nweb99\\t6.6.6.6\\tweb\\trole=web"}),),
        ),
    ],
)
def test_members_are_read_as_serf_sends_them(case: str, told: tuple[MemberLine, ...]) -> None:
    raw = captured(case)

    assert members(raw) == told
    assert refused(raw) == ()


@pytest.mark.parametrize(
    ("case", "why"),
    [
        ("member-join-name-space", f"member-join: invalid node name 'WEB 10 x'; use {NAME_RULE}"),
        ("member-join-name-utf8", f"member-join: invalid node name 'ウェブ11'; use {NAME_RULE}"),
        ("hostile-name-empty", f"member-join: invalid node name ''; use {NAME_RULE}"),
        ("hostile-name-cr", f"member-join: invalid node name 'cr\\rname'; use {NAME_RULE}"),
        ("hostile-name-nonutf8", f"member-join: invalid node name 'sjis\\udc83E\\udcff'; use {NAME_RULE}"),
        ("hostile-name-literal-backslash-n", f"member-join: invalid node name 'x\\\\n lit'; use {NAME_RULE}"),
        ("hostile-name-newline", f"member-join: invalid node name 'x\\\\n server evil 6.6.6.6:80'; use {NAME_RULE}"),
        ("hostile-space", f"member-join: invalid node name 'ev6 backup; reload'; use {NAME_RULE}"),
        ("hostile-addr-nil", "member-join: node addr0: '<nil>' is not an IP address"),
        ("hostile-addr-3bytes", "member-join: node addr3: '?616263' is not an IP address"),
    ],
)
def test_a_hostile_line_is_refused_with_a_message(case: str, why: str) -> None:
    assert parse_event(captured(case)) == MemberEvent("member-join", (), (why,))


@pytest.mark.parametrize("case", ["hostile-role-crlf", "hostile-role-newline"])
def test_a_hostile_role_is_kept_as_an_unknown_role(case: str) -> None:
    event = parse_event(captured(case))

    assert isinstance(event, MemberEvent)
    assert [NAME.fullmatch(one.role) for one in event.members] == [None]


def test_a_tag_that_appears_twice_is_dropped() -> None:
    event = parse_event(join_event("web12\t127.0.0.17\tweb\trole=web,a=1,role=lb,b=x=y,z"))

    assert event == MemberEvent(
        "member-join", (MemberLine("web12", "127.0.0.17", "web", {"a": "1", "b": "x=y", "z": ""}),), ()
    )


def test_tags_are_folded_as_stdin_shows_them() -> None:
    assert fold_tags_as_stdin({"a": "1", "b": "x,c=2", "d": "y,a=3"}) == {"b": "x", "c": "2", "d": "y"}


@pytest.mark.parametrize(
    ("case", "wanted"),
    [
        ("user-pause", command("pause", "web01", "127.0.0.2")),
        ("user-pause-coalesce", command("pause", "web01", "127.0.0.2")),
        ("user-pause-trailing-newline", command("pause", "web01", "127.0.0.2")),
        ("user-pause-empty-ip", command("pause", "web01")),
        ("user-pause-utf8", command("pause", "ウェブ01", "127.0.0.2")),
        ("user-pause-cp932", command("pause", "\udc83E\udc83F\udc83u01", "127.0.0.2")),
        ("user-resume", command("resume", "web01", "127.0.0.2")),
        ("win-user-pause", command("pause", "VM", "127.0.0.2")),
        ("win-user-resume", command("resume", "vm", "127.0.0.2")),
    ],
)
def test_commands_are_read_as_serf_sends_them(case: str, wanted: Command) -> None:
    event = parse_event(captured(case))

    assert isinstance(event, Command)
    assert event._replace(ltime=None, digest="") == wanted


@pytest.mark.parametrize("case", ["user-pause-empty-payload", "user-pause-no-payload", "user-pause-hostile"])
def test_an_invalid_captured_command_is_malformed(case: str) -> None:
    assert isinstance(parse_event(captured(case)), Malformed)


@pytest.mark.parametrize("case", ["user-deploy", "user-name-newline", "query-with-payload"])
def test_events_for_other_handlers_are_ignored(case: str) -> None:
    assert parse_event(captured(case)) == Ignored()


# --- member lines -------------------------------------------------------------------------------------------------


def test_an_incomplete_last_line_is_dropped() -> None:
    raw = join_event("web01\t127.0.0.2\tweb\trole=web")

    assert members(raw._replace(payload=raw.payload + b"web02\t127.0.0.3\tweb\trole=we")) == (WEB01,)


@pytest.mark.parametrize("payload", [b"", b"web01\t127.0.0.2\tweb\trole=web"])
def test_an_agent_that_stops_passes_no_line_or_an_incomplete_one(payload: bytes) -> None:
    assert parse_event(join_event()._replace(payload=payload)) == MemberEvent("member-join", (), ())


def test_the_line_of_the_load_balancer_itself_is_ignored() -> None:
    assert members(member_event("member-leave", "lb01\t127.0.0.1\tlb\t", "web01\t127.0.0.2\tweb\trole=web")) == (WEB01,)


def test_without_serf_self_name_no_line_is_ignored() -> None:
    event = parse_event(member_event("member-join", "\t127.0.0.2\tweb\t", self_name=""))

    assert event == MemberEvent(
        "member-join",
        (),
        (f"member-join: invalid node name ''; use {NAME_RULE}",),
    )


@pytest.mark.parametrize(
    "line", ["", "web01", "web01\t127.0.0.2\tweb", "web01\t127.0.0.2\tweb\t\t", "web01 127.0.0.2 web role=web"]
)
def test_an_invalid_line_is_refused_and_the_next_one_read(line: str) -> None:
    raw, fields = join_event(line, "web01\t127.0.0.2\tweb\trole=web"), line.split("\t")

    assert members(raw) == (WEB01,)
    count = "1 field" if len(fields) == 1 else f"{len(fields)} fields"
    assert refused(raw) == (f"member-join: invalid line {line!r}: {count} instead of 4",)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("x" * 99, f"invalid line '{'x' * 40}': 1 field instead of 4"),
        (f"/{'x' * 99}\t10.0.0.5\tweb\t", f"invalid node name '/{'x' * 79}'; use {NAME_RULE}"),
        (f"web01\t{'x' * 99}\tweb\t", f"node web01: '{'x' * 60}' is not an IP address"),
    ],
)
def test_a_long_line_name_or_address_is_cut_in_the_message(line: str, why: str) -> None:
    assert refused(join_event(line)) == (f"member-join: {why}",)


def test_lines_end_at_lf_only() -> None:
    event = parse_event(
        join_event(
            "a\u2028b\t10.0.0.1\tweb\t", "a\x0bb\t10.0.0.1\tweb\t", "a\rb\t10.0.0.1\tweb\t", "a\x85b\t10.0.0.1\tweb\t"
        )
    )

    assert isinstance(event, MemberEvent)
    assert event.members == ()
    assert len(event.refused) == 4


@given(
    st.lists(
        st.lists(
            nearly_valid(st.sampled_from(["web01", "10.0.0.5", "web", "role=web,port=80"])), min_size=3, max_size=5
        ).map("\t".join),
        max_size=5,
    )
)
def test_no_line_makes_a_member_with_a_bad_name_or_address(lines: list[str]) -> None:
    event = parse_event(join_event(*lines))

    assert isinstance(event, MemberEvent)
    assert all(NAME.fullmatch(one.name) and canonical_address(one.address) == one.address for one in event.members)


@given(
    st.sampled_from(["member-join", "user", "query", "typed", "other"]),
    st.sampled_from(["pause", "resume", "lbagent-status", "", "x"]),
    st.binary(max_size=200),
)
def test_any_bytes_are_parsed_without_an_error(kind: str, name: str, payload: bytes) -> None:
    assert parse_event(RawEvent("id", NOW * 1000, kind, name, 1, "lb01", payload)) is not None


# --- commands -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("payload", "wanted"),
    [
        ("web01", command("pause", "web01")),
        ("web01\n", command("pause", "web01")),
        ("web01\r\n", command("pause", "web01")),
        ("  web01   10.0.0.5  web ", command("pause", "web01", "10.0.0.5")),
        ("web01\t10.0.0.5\tweb", command("pause", "web01", "10.0.0.5")),
        ("web01 2001:DB8::5 web", command("pause", "web01", "2001:db8::5")),
        ("web01 web", command("pause", "web01")),
        ("web01 10.0.0.5 web by=lb01", command("pause", "web01", "10.0.0.5")._replace(by="lb01")),
        ("web01 until=1700009999", command("pause", "web01", until=1_700_009_999)),
        ("web01 until=99999999999", command("pause", "web01", until=99_999_999_999)),
        ("web01 for=2h", command("pause", "web01", until=NOW + 7200)._replace(duration=7200)),
        (
            "web01 for=90s reason=patch Tuesday for=3h",
            command("pause", "web01", until=NOW + 90, reason="patch Tuesday for=3h")._replace(duration=90),
        ),
        (
            "web01 10.0.0.5 web for=1d reason=更新\u202e",
            command("pause", "web01", "10.0.0.5", NOW + 86400, "更新?")._replace(duration=86400),
        ),
        ("web01 reason=" + "x" * 300, command("pause", "web01", reason="x" * 200)),
        ("web01 reason=", command("pause", "web01")),
    ],
)
def test_a_payload_names_a_node_an_address_an_end_and_a_reason(payload: str, wanted: Command) -> None:
    assert parse_pause(payload) == wanted


@pytest.mark.parametrize(
    ("payload", "why"),
    [
        ("", "pause: invalid payload ''; send NAME [ADDRESS] [ROLE] [for=2h] [reason=…]"),
        ("\n", "pause: invalid payload ''; send NAME [ADDRESS] [ROLE] [for=2h] [reason=…]"),
        ("reason=x", "pause: invalid payload 'reason=x'; send NAME [ADDRESS] [ROLE] [for=2h] [reason=…]"),
        ("a b c d", "pause: invalid payload 'a b c d'; send NAME [ADDRESS] [ROLE] [for=2h] [reason=…]"),
        (
            f"a b c {'d' * 99}",
            f"pause: invalid payload 'a b c {'d' * 74}'; send NAME [ADDRESS] [ROLE] [for=2h] [reason=…]",
        ),
        ("web01 by=", "pause: invalid payload 'web01 by='; send NAME [ADDRESS] [ROLE] [for=2h] [reason=…]"),
        ("web01\nweb02\n", "pause: the payload contains control characters"),
        ("web01\0", "pause: the payload contains control characters"),
        ("web01 \x1b[31m", "pause: the payload contains control characters"),
        ("web01 for=2h until=1", "pause: both 'for=2h' and 'until=1'; give one of them"),
        (
            "web01 for=2w",
            "pause: invalid time 'for=2w'; use until=EPOCH, or for= with a time such as 90s, 15m, 2h or 7d",
        ),
        ("web01 for=", "pause: invalid time 'for='; use until=EPOCH, or for= with a time such as 90s, 15m, 2h or 7d"),
        (
            "web01 for=-2h",
            "pause: invalid time 'for=-2h'; use until=EPOCH, or for= with a time such as 90s, 15m, 2h or 7d",
        ),
        (
            "web01 for=\u0662h",
            "pause: invalid time 'for=\u0662h'; use until=EPOCH, or for= with a time such as 90s, 15m, 2h or 7d",
        ),
        (
            "web01 until=x",
            "pause: invalid time 'until=x'; use until=EPOCH, or for= with a time such as 90s, 15m, 2h or 7d",
        ),
        (
            "web01 until=" + "9" * 12,
            "pause: invalid time 'until=999999999999'; use until=EPOCH, or for= with a time such as 90s, 15m, 2h or 7d",
        ),
        (
            "web01 for=" + "9" * 99,
            f"pause: invalid time 'for={'9' * 36}'; use until=EPOCH, or for= with a time such as 90s, 15m, 2h or 7d",
        ),
    ],
)
def test_an_invalid_payload_is_refused_with_a_message(payload: str, why: str) -> None:
    assert parse_pause(payload) == Malformed(why)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("15m", 900),
        ("2h", 7200),
        ("7d", 604_800),
        ("9999999s", 9_999_999),
        ("", None),
        ("s", None),
        ("2", None),
        ("2.5h", None),
        ("1" * 8 + "s", None),
    ],
)
def test_a_duration_needs_a_unit(text: str, seconds: int | None) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "seconds"), [("0s", None), ("1s", 1), ("3650d", 315_360_000), ("3651d", None), ("1w", None)]
)
def test_an_operator_enters_a_time_of_1_s_to_ten_years(text: str, seconds: int | None) -> None:
    assert parse_time(text) == seconds


@pytest.mark.parametrize(
    ("reason", "can_be_sent"),
    [
        ("patch day", True),
        ("x" * 200, True),
        ("x" * 201, False),
        ("é" * 200, True),
        ("é" * 199 + "更", False),
        ("更" * 134, False),
        ("\x1b", False),
        ("\udc83", False),
    ],
)
def test_a_reason_is_printable_and_fits_into_a_query(reason: str, can_be_sent: bool) -> None:  # noqa: FBT001
    assert can_send_reason(reason) is can_be_sent


def test_the_digest_is_that_of_other_load_balancers_and_versions() -> None:
    event = parse_event(command_event("pause", "web01 10.0.0.5"))

    assert isinstance(event, Command)
    assert event.digest == f"{zlib.crc32(b'pause web01 10.0.0.5'):08x}"


def test_the_digest_covers_the_whole_payload() -> None:
    one, same, other, verb = (
        parse_event(command_event(*words))
        for words in (("pause", "web01"), ("pause", "web01\n"), ("pause", "web01 "), ("resume", "web01"))
    )

    assert isinstance(one, Command)
    assert isinstance(same, Command)
    assert isinstance(other, Command)
    assert isinstance(verb, Command)
    assert one.digest == same.digest
    assert len({one.digest, other.digest, verb.digest}) == 3


def test_of_two_senders_the_first_counts() -> None:
    event = parse_event(command_event("pause", "web01 by=alice@lb01 by=lb02 reason=by=lb03"))

    assert isinstance(event, Command)
    assert (event.name, event.by, event.reason) == ("web01", "alice@lb01", "by=lb03")


@pytest.mark.parametrize("verb", ["pause", "resume", "forget"])
def test_the_query_of_each_verb_is_parsed_as_that_verb(verb: str) -> None:
    event = parse_event(command_event(QUERIES[verb], "web01", 1, "query"))

    assert isinstance(event, Command)
    assert event.verb == verb


def test_a_status_query_is_parsed() -> None:
    assert parse_event(command_event("lbagent-status", " pauses\tx\n", 1, "query")) == StatusQuery(("pauses", "x"))


def test_a_status_request_as_user_event_is_ignored() -> None:
    assert parse_event(command_event("lbagent-status", "", 1, "user")) == Ignored()


@pytest.mark.parametrize(
    ("word", "why"),
    [
        (f"until={NOW}", f"'until={NOW}' is 0 s in the past here; compare the clocks of both hosts"),
        (f"until={NOW - 10}", f"'until={NOW - 10}' is 10 s in the past here; compare the clocks of both hosts"),
        ("for=0s", "invalid time 'for=0s'; use until=EPOCH, or for= with a time such as 90s, 15m, 2h or 7d"),
    ],
)
def test_a_query_whose_pause_has_ended_is_malformed(word: str, why: str) -> None:
    # After an answer `done`, an operator would patch a node that still serves.
    assert parse_event(command_event("pause", f"web01 {word}", 1, "query")) == Malformed(f"pause: {why}")


def test_a_user_event_whose_pause_has_ended_is_a_command() -> None:
    # Serf replays user events: that this pause has ended must not be forgotten.
    event = parse_event(command_event("pause", f"web01 until={NOW - 10}", 1))

    assert isinstance(event, Command)
    assert event.until == NOW - 10


@pytest.mark.parametrize(
    ("payload", "name", "force"),
    [
        ("web01", "web01", False),
        ("web01 force", "web01", True),
        ("web01 10.0.0.5 force", "web01", True),
        ("web01 10.0.0.5 web force", "web01", True),
        ("force force", "force", True),
        ("web01 force by=lb01", "web01", True),
    ],
)
def test_force_as_the_last_word_of_a_forget_is_not_a_name(payload: str, name: str, force: bool) -> None:  # noqa: FBT001
    event = parse_event(command_event("lbagent-forget", payload, 1, "query"))

    assert isinstance(event, Command)
    assert (event.verb, event.name, event.force) == ("forget", name, force)


def test_force_without_a_name_is_malformed() -> None:
    assert isinstance(parse_event(command_event("lbagent-forget", "force", 1, "query")), Malformed)


def test_force_is_a_node_name_in_a_pause() -> None:
    event = parse_event(command_event("pause", "force", 1))

    assert isinstance(event, Command)
    assert (event.name, event.force) == ("force", False)

"""An event is read from the environment and stdin as it is, and survives its spool record."""

# ruff: noqa: E501  # one line per case of a table

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbagent.serf.raw_event import RECORD_LIMIT, STDIN_LIMIT, RawEvent, parse_record, read_handler_event

JOIN = RawEvent(
    "0123456789abcdef", 1_700_000_000_123, "member-join", "", None, "lb01", b"web01\t10.0.0.5\tweb\trole=web\n"
)


def test_a_member_event_is_read_from_environment_and_stdin() -> None:
    raw = read_handler_event(
        {b"SERF_EVENT": b"member-join", b"SERF_SELF_NAME": b"lb01"}, b"web01\t10.0.0.5\tweb\t\n", 5, "id"
    )

    assert raw == RawEvent("id", 5, "member-join", "", None, "lb01", b"web01\t10.0.0.5\tweb\t\n")


@pytest.mark.parametrize(
    ("kind", "word", "clock"), [("user", "USER_EVENT", "USER_LTIME"), ("query", "QUERY_NAME", "QUERY_LTIME")]
)
def test_user_events_and_queries_have_a_name_and_an_ltime(kind: str, word: str, clock: str) -> None:
    environ = {b"SERF_EVENT": kind.encode(), f"SERF_{word}".encode(): b"pause", f"SERF_{clock}".encode(): b"7"}

    assert read_handler_event(environ, b"web01\n", 5, "id") == RawEvent("id", 5, kind, "pause", 7, "", b"web01\n")


@pytest.mark.parametrize("kind", ["user", "query", "member-join", ""])
def test_what_serf_does_not_give_is_empty(kind: str) -> None:
    assert read_handler_event({b"SERF_EVENT": kind.encode()}, b"", 5, "id") == RawEvent(
        "id", 5, kind, "", None, "", b""
    )


def test_an_event_without_variables_has_empty_fields() -> None:
    assert read_handler_event({}, b"x", 5, "id") == RawEvent("id", 5, "", "", None, "", b"x")


def test_a_name_that_is_not_utf_8_is_kept() -> None:
    environ = {b"SERF_EVENT": b"user", b"SERF_USER_EVENT": b"\x83E", b"SERF_SELF_NAME": b"lb\xff"}

    raw = read_handler_event(environ, b"", 5, "id")

    assert (raw.name, raw.self_name) == ("\udc83E", "lb\udcff")
    assert parse_record(next(raw.split_records())) == raw._replace(id="id0000")


def test_a_member_event_has_no_name() -> None:
    environ = {b"SERF_EVENT": b"member-join", b"SERF_QUERY_NAME": b"pause", b"SERF_USER_EVENT": b"pause"}

    assert read_handler_event(environ, b"", 5, "id") == RawEvent("id", 5, "member-join", "", None, "", b"")


def test_the_largest_ltime_of_64_bits_is_read() -> None:
    environ = {b"SERF_EVENT": b"user", b"SERF_USER_EVENT": b"pause", b"SERF_USER_LTIME": b"9" * 19}

    assert read_handler_event(environ, b"", 5, "id").ltime == 10**19 - 1


def test_a_query_does_not_use_the_name_of_a_user_event() -> None:
    environ = {b"SERF_EVENT": b"query", b"SERF_USER_EVENT": b"pause", b"SERF_USER_LTIME": b"7"}

    assert read_handler_event(environ, b"", 5, "id") == RawEvent("id", 5, "query", "", None, "", b"")


@pytest.mark.parametrize("ltime", [b"", b"-1", b"1.0", b"x", b" 1", b"9" * 20, "\u0663".encode()])
def test_an_invalid_ltime_is_none(ltime: bytes) -> None:
    environ = {b"SERF_EVENT": b"user", b"SERF_USER_EVENT": b"pause", b"SERF_USER_LTIME": ltime}

    assert read_handler_event(environ, b"", 5, "id").ltime is None


@pytest.mark.parametrize(
    ("kind", "name", "wanted"),
    [
        ("member-join", "", True),
        ("member-leave", "", True),
        ("member-failed", "", True),
        ("member-update", "", True),
        ("member-reap", "", True),
        ("user", "pause", True),
        ("user", "resume", True),
        ("query", "pause", True),
        ("query", "resume", True),
        ("query", "lbagent-status", True),
        ("user", "lbagent-status", False),
        ("user", "deploy", False),
        ("user", "pause ", False),
        ("user", "Pause", False),
        ("user", "pa use\nSERF_X=1", False),
        ("query", "lbstatus", False),
        ("member-join ", "", False),
        ("member-", "", False),
        ("", "pause", False),
        ("typed", "pause", False),
    ],
)
def test_other_events_are_not_relevant(kind: str, name: str, wanted: bool) -> None:  # noqa: FBT001
    assert JOIN._replace(kind=kind, name=name).is_relevant is wanted


@pytest.mark.parametrize("raw", [JOIN, JOIN._replace(kind="user", name="pause", ltime=7, payload=b"web01")])
def test_a_record_is_parsed_into_the_same_event(raw: RawEvent) -> None:
    (record,) = raw.split_records()

    assert parse_record(record) == raw._replace(id=f"{raw.id}0000")


def test_a_record_has_the_fields_in_the_order_that_other_versions_read() -> None:
    assert list(JOIN.split_records()) == [
        b"lbagent 1\x000123456789abcdef0000\x001700000000123\0member-join\0\0\0lb01\0web01\t10.0.0.5\tweb\trole=web\n"
    ]


words = st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), max_size=40) | st.binary(
    max_size=40
).map(lambda word: word.replace(b"\0", b"").decode("utf-8", "surrogateescape"))


@given(words, words, words, st.none() | st.integers(0, 10**18), st.binary(max_size=200))
def test_any_event_survives_its_record(kind: str, name: str, self_name: str, ltime: int | None, payload: bytes) -> None:
    raw = RawEvent("id", 5, kind, name, ltime, self_name, payload)

    (record,) = raw.split_records()

    assert parse_record(record) == raw._replace(id="id0000")


@pytest.mark.parametrize("length", [200, 30_000])
def test_a_member_event_too_long_for_a_record_is_split_at_its_lines(length: int) -> None:
    lines = [b"web%05d\t10.0.0.5\tweb\trole=web,cr=\r,x=%s\n" % (at, b"y" * length) for at in range(400)]

    records = list(JOIN._replace(payload=b"".join(lines), self_name="l" * 5000).split_records())

    pieces = [parse_record(record) for record in records]
    assert all(len(record) <= RECORD_LIMIT for record in records)
    assert b"".join(piece.payload for piece in pieces) == b"".join(lines)
    assert all(piece.payload.endswith(b"\n") for piece in pieces)
    assert len({piece.id for piece in pieces}) == len(pieces) > 1


@pytest.mark.parametrize(
    ("lines", "pieces"),
    [
        ([57_344], [57_344]),
        ([28_672, 28_672, 28_672], [57_344, 28_672]),
        ([100, 57_344, 100], [100, 57_344, 100]),
        ([28_672, 28_673], [28_672, 28_673]),
    ],
)
def test_a_record_has_up_to_57_344_bytes_of_lines(lines: list[int], pieces: list[int]) -> None:
    payload = b"".join(b"x" * (length - 1) + b"\n" for length in lines)

    records = JOIN._replace(payload=payload).split_records()

    assert [len(parse_record(record).payload) for record in records] == pieces


def test_an_event_that_fits_into_a_record_is_stored_as_it_is() -> None:
    (record,) = JOIN._replace(payload=b"x" * 57_344).split_records()

    assert parse_record(record).payload == b"x" * 57_344


def test_stdin_of_16_mib_has_room_for_20_000_members_with_full_tags() -> None:
    assert STDIN_LIMIT == 1 << 24
    assert 20_000 * len(b"\t".join([b"n" * 63, b"a" * 39, b"r" * 100, b"t" * 512, b"\n"])) < STDIN_LIMIT


def test_a_line_longer_than_a_record_is_dropped_and_the_others_are_kept() -> None:
    first, monster, last = b"a\t10.0.0.1\tweb\t\n", b"m" * 70_000 + b"\t10.0.0.2\tweb\t\n", b"b\t10.0.0.3\tweb\t\n"

    records = list(JOIN._replace(payload=first + monster + last).split_records())

    assert b"".join(parse_record(record).payload for record in records) == first + last


def test_a_payload_too_long_for_a_record_is_cut() -> None:
    (record,) = JOIN._replace(kind="user", name="pause", payload=b"x" * 100_000).split_records()

    assert parse_record(record).payload == b"x" * 57_344
    assert len(record) <= RECORD_LIMIT


def test_the_longest_fields_leave_room_for_the_payload() -> None:
    long = "x" * 5000
    raw = RawEvent(long, 5, long, long, 7, long, b"y" * 100_000)

    (record,) = raw.split_records()

    assert len(record) <= RECORD_LIMIT
    assert parse_record(record).self_name == "x" * 1024


@pytest.mark.parametrize(
    ("record", "at"),
    [
        (b"lbagent 1\0id\0%d\0user\0pause\0007\0lb01\0web01" % 10**14, 10**14),
        (b"lbagent 1\0id\0%d\0user\0pause\0007\0lb01\0web01" % 10**15, None),
        (b"lbagent 2\0id\0005\0user\0pause\0007\0lb01\0web01", None),
        (b"lbagent 1\0id\0x\0user\0pause\0007\0lb01\0web01", None),
        (b"lbagent 1\0id\0005\0user\0pause\0007\0lb01", None),
        (b"lbagent 1\0id\0005\0user", None),
        (b"", None),
    ],
)
def test_a_record_has_all_fields_and_a_time_of_arrival(record: bytes, at: int | None) -> None:
    if at is None:
        with pytest.raises(ValueError, match=r"^not a spool record$"):
            parse_record(record)
    else:
        assert parse_record(record) == RawEvent("id", at, "user", "pause", 7, "lb01", b"web01")


@given(st.binary(max_size=200) | st.binary(max_size=60).map(lambda rest: b"lbagent 1\0id\0005\0user\0pause\0" + rest))
def test_any_bytes_are_a_record_or_raise_value_error(content: bytes) -> None:
    with contextlib.suppress(ValueError):
        raw = parse_record(content)

        assert content.startswith(b"lbagent 1\0")
        assert content.endswith(raw.payload)


@given(st.dictionaries(st.sampled_from([b"SERF_EVENT", b"SERF_USER_EVENT", b"SERF_QUERY_NAME", b"SERF_USER_LTIME", b"SERF_SELF_NAME"]),
                       st.binary(max_size=30) | st.sampled_from([b"user", b"query", b"member-join"])), st.binary(max_size=100))  # fmt: skip
def test_any_environment_is_read_without_an_error(environ: dict[bytes, bytes], stdin: bytes) -> None:
    assert read_handler_event(environ, stdin, 5, "id").payload == stdin

"""An invalid answer of `serf` means exit status 75, no traceback, and an unchanged haproxy.cfg."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.helpers.real_programs import LoadBalancer, member_line, wait_until

INFO = {
    "agent": {"name": "lb01"},
    "serf": {"event_time": "9", "query_time": "9", "encrypted": "true"},
    "tags": {"role": "lb"},
    "event_handlers": {},
}
WEB01 = {"name": "web01", "addr": "127.0.0.11:7946", "port": 7946, "tags": {"role": "web"}, "status": "alive"}
SOUND = json.dumps({"members": [WEB01]})

WRONG = [
    '{"members": 5}',
    '{"members": {"web01": {}}}',
    '{"members": "web01"}',
    '{"members": [5]}',
    '{"members": 0}',
    "{}",
    "[]",
    "null",
    "5",
    "",
    "[" * 100_000,
    json.dumps({"members": [{**WEB01, "tags": ["role"]}]}),
    json.dumps({"members": [{**WEB01, "name": 5}]}),
    json.dumps({"members": [{**WEB01, "status": None}]}),
]


def answering(lb: LoadBalancer, members: str, info: str = json.dumps(INFO)) -> None:
    """From now on `serf` answers so."""
    (lb.folder / "members").write_text(members)
    (lb.folder / "info").write_text(info)
    script = lb.bin / "serf"
    script.write_text(f'#!/bin/sh\n[ "$1" = query ] || cat {lb.folder}/"$1"\n')
    script.chmod(0o755)


@pytest.fixture
def lb() -> Iterator[LoadBalancer]:
    with LoadBalancer() as made:
        answering(made, SOUND)
        made.join(member_line("web01", "127.0.0.11"))
        assert made.run("sync").returncode == 0
        yield made


@pytest.mark.parametrize("text", WRONG, ids=lambda text: text[:40])
def test_sync_with_an_invalid_list_exits_with_75(lb: LoadBalancer, text: str) -> None:
    before = lb.text
    answering(lb, text)

    done = lb.run("sync")

    assert done.returncode == 75
    assert b"Traceback" not in done.stderr
    assert done.stderr.startswith(b"lbagent: Serf agent: invalid answer to `serf members`: ")
    assert lb.text == before


@pytest.mark.parametrize("text", ["5", "{}", '{"agent": 5}', '{"agent": {"name": "lb01"}, "serf": {"event_time": 5}}'])
def test_sync_with_invalid_info_exits_with_75(lb: LoadBalancer, text: str) -> None:
    before = lb.text
    answering(lb, SOUND, text)

    done = lb.run("sync")

    assert (done.returncode, lb.text) == (75, before)
    assert b"Traceback" not in done.stderr


def test_watch_continues_after_an_invalid_list(lb: LoadBalancer) -> None:
    asked = lb.folder / "asked"
    answering(lb, '{"members": 5}')
    (lb.bin / "serf").write_text(f'#!/bin/sh\necho "$1" >>{asked}\ncat {lb.folder}/"$1"\n')

    process = lb.start("watch")
    try:
        wait_until(lambda: asked.exists() and asked.read_text().count("members") > 1)
        lb.join(member_line("web02", "127.0.0.12"))
        wait_until(lambda: len(lb.managed) == 2 and lb.idle)
    finally:
        process.terminate()
        _, said = process.communicate(timeout=60)

    assert process.returncode == 0
    assert b"Traceback" not in said


def test_a_pause_is_applied_where_no_other_load_balancer_can_be_queried(lb: LoadBalancer) -> None:
    answering(lb, '{"members": 5}', "5")

    assert lb.send_command("pause", "web01", 5).returncode == 0

    assert lb.managed == ["# lbagent paused web01 127.0.0.11 role=web"]


def test_a_long_answer_of_another_load_balancer_is_cut(lb: LoadBalancer) -> None:
    other = {"name": "lb02", "addr": "127.0.0.10:7946", "port": 7946, "tags": {"role": "lb"}, "status": "alive"}
    answering(lb, json.dumps({"members": [WEB01, other]}))
    script = lb.bin / "serf"
    script.write_text(
        f'#!/bin/sh\n[ "$1" = query ] || exec cat {lb.folder}/"$1"\n'
        "printf \"Response from 'lb02': \"; head -c 1000000 /dev/zero | tr '\\0' x\n"
    )

    ended = lb.run("pause", "web01", "--force")

    assert (ended.returncode, ended.stderr) == (1, b"")
    assert ended.stdout.splitlines()[1] == b"lb02  " + 1024 * b"x"

"""A HiveServer2 client on a source address of its own: SQL in, rows out, a line of JSON each.

Runs in the environment that has impyla. It connects once and never again: `opened` tells of a connection anew.
"""

from __future__ import annotations

import itertools
import json
import socket
import sys
from typing import Any

from impala.dbapi import connect  # type: ignore[import-not-found]
from thrift.transport.TSocket import TSocket  # type: ignore[import-not-found]


def main(port: int, source: str) -> None:
    """Answer each line of stdin until there is none."""
    opened: list[int] = []

    def bound(_: object, family: int, kind: int) -> socket.socket:
        one = socket.socket(family, kind)
        one.bind((source, 0))
        opened.append(one.getsockname()[1])
        return one

    TSocket._do_open = bound  # thrift has no other place for a source address
    cursor: Any = None

    def answer(line: str) -> list[tuple[object, ...]]:
        nonlocal cursor
        if cursor is None:
            cursor = connect("127.0.0.1", port, auth_mechanism="NOSASL", retries=1).cursor()
            return []
        cursor.execute(json.loads(line))
        rows: list[tuple[object, ...]] = cursor.fetchall()
        return rows

    for line in itertools.chain([""], sys.stdin):
        say: dict[str, Any]
        try:
            say = {"rows": answer(line)}
        except Exception as error:  # noqa: BLE001  # whatever it is, it is told
            say = {"error": repr(error)}
        print(json.dumps({**say, "opened": len(opened)}), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])

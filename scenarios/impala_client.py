"""A HiveServer2 client with its own source address. It reads SQL and writes rows, each as one line of JSON.

It runs in the environment that has impyla. It connects once; `opened` in each answer counts the connections.
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
    """Answer each line of stdin, until it ends."""
    opened: list[int] = []

    def open_socket(_: object, family: int, kind: int) -> socket.socket:
        client = socket.socket(family, kind)
        client.bind((source, 0))
        opened.append(client.getsockname()[1])
        return client

    TSocket._do_open = open_socket  # thrift has no option for the source address
    cursor: Any = None

    def run_query(line: str) -> list[tuple[object, ...]]:
        nonlocal cursor
        if cursor is None:
            cursor = connect("127.0.0.1", port, auth_mechanism="NOSASL", retries=1).cursor()
            return []
        cursor.execute(json.loads(line))
        rows: list[tuple[object, ...]] = cursor.fetchall()
        return rows

    for line in itertools.chain([""], sys.stdin):
        answer: dict[str, Any]
        try:
            answer = {"rows": run_query(line)}
        except Exception as error:  # noqa: BLE001  # the caller gets every error
            answer = {"error": repr(error)}
        print(json.dumps({**answer, "opened": len(opened)}), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])

"""The web server of one node, which answers with the node's name: `python web.py NAME ADDRESS PORT`."""

from __future__ import annotations

import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar


class _Node(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # one packet per answer
    answer: ClassVar[bytes]

    def do_GET(self) -> None:  # the name that http.server calls
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.answer)))
        self.end_headers()
        self.wfile.write(self.answer)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # its name in the base class
        """Log nothing."""


def main() -> None:
    """Serve until killed."""
    name, address, port = sys.argv[1:]
    _Node.answer = name.encode()
    ThreadingHTTPServer((address, int(port)), _Node).serve_forever()


if __name__ == "__main__":
    main()

"""Substitutes for Zeppelin and Grafana: python -m scenarios.platform.substitutes zeppelin|grafana NAME.

Neither Debian nor PyPI has a package of them. Each substitute uses the program's own port. Zeppelin has the REST
version and a websocket that echoes. Grafana has the health and a page below /grafana/.
"""

from __future__ import annotations

import http.server
import importlib
import json
import sys
from typing import Any


def zeppelin(name: str) -> None:
    """Serve like Zeppelin on port 8080. A websocket echoes each message after the name of the node."""
    server: Any = importlib.import_module("websockets.sync.server")

    def page(connection: Any, request: Any) -> Any:  # noqa: ANN401  # types of websockets, if it is installed
        if request.path == "/ws":
            return None
        return connection.respond(200, json.dumps({"status": "OK", "body": {"version": "0.11.2", "node": name}}))

    def echo(connection: Any) -> None:  # noqa: ANN401
        for message in connection:
            connection.send(f"{name} {message}")

    server.serve(echo, "0.0.0.0", 8080, process_request=page).serve_forever()


def grafana(_: str) -> None:
    """Serve like Grafana with `serve_from_sub_path` on port 3000."""
    pages = {"/api/health": '{"database": "ok"}', "/grafana/api/health": '{"database": "ok"}'}

    class Answer(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = pages.get(self.path, "<title>Grafana</title>").encode()
            self.send_response(200 if self.path in pages or self.path == "/grafana/login" else 302)
            self.send_header("Location", "/grafana/login")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the name in the base class
            pass

    http.server.ThreadingHTTPServer(("0.0.0.0", 3000), Answer).serve_forever()


if __name__ == "__main__":
    {"zeppelin": zeppelin, "grafana": grafana}[sys.argv[1]](sys.argv[2])

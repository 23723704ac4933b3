"""The web application: paths, the answers to them, and the rules that every request has to keep."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import lbagent
from lbagent.errors import UsageError
from lbagent.names import NAME, format_age, make_printable, sort_names
from lbagent.serf.events import QUERIES
from lbagent.system.log import Log, format_error
from lbagent.web import access, orders
from lbagent.web.access import Session
from lbagent.web.model import Balancer, Daemon, Entry, Node, OtherBalancer, Snapshot, drop_outdated

FOLDER = os.path.dirname(__file__)

ROWS = 500
"""Nodes on one page; more are reached by the filter."""

_HIDDEN = ("load balancer", "unknown role")
"""States of nodes that are not for this load balancer; listed only where the filter asks for them."""

HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "img-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",  # with `no-referrer` browsers send `Origin: null` with our own forms
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
"""On every answer."""

FORM_LIMIT = 8192
"""Bytes of a form."""

_STATIC = {"style.css": "text/css", "live.js": "text/javascript", "icon.svg": "image/svg+xml"}

_LOOK = 0.3
"""Seconds between two looks for news, for those who listen to /events."""

_KEEP_ALIVE = 15.0
"""Seconds after which a silent stream sends a comment, so that no proxy ends it."""

_HISTORY = 200
"""Most entries in an answer of /api/history."""

_RENDERED = 64
"""Pages that are kept rendered, for many viewers of one moment."""

_COMPRESSED = 1400
"""Bytes above which a page is compressed: what fits into one packet."""


class Site(NamedTuple):
    """The settings of the page."""

    socket: str
    """Path of the daemon's status socket."""
    name: str
    """Name of this load balancer until the daemon reports it."""
    prefix: str
    hosts: access.Hosts
    users: access.Users | None
    peers: tuple[str, ...]
    """URLs of the pages of other load balancers."""
    is_stopping: Callable[[], bool]
    """Returns whether the server wants to end: then streams end, too."""
    log: Log


def build_app(site: Site) -> ASGIApp:
    """Return the application. Raises UsageError, OSError."""
    web = _Web(site)
    routes = [
        Route("/", web.show_now),
        Route("/history", web.show_history),
        Route("/nodes/{name}", web.show_node),
        Route("/events", web.stream_events),
        Route("/healthz", web.show_health),
        Route("/metrics", web.show_metrics),
        Route("/api/status", web.send_status),
        Route("/api/history", web.send_history),
        Route("/api/nodes/{name}", web.send_node),
        Route("/api/openapi.json", web.send_openapi),
        Route("/static/{name}", web.send_static),
    ]
    if site.users:
        routes += [
            Route("/login", web.show_login),
            Route("/login", web.log_in, methods=["POST"]),
            Route("/logout", web.log_out, methods=["POST"]),
            Route("/nodes/{name}/{verb}", web.start_order, methods=["POST"]),
            Route("/orders/{key}", web.show_order),
        ]
    # Starlette's own log of an unexpected error is a traceback; ours is one line.
    handlers: Mapping[Any, Any] = {HTTPException: web.show_error, Exception: web.show_defect}
    return _Gate(Starlette(routes=routes, exception_handlers=handlers), site)


class _Gate:
    """What holds for every request: the Host is ours, the prefix is taken off, and the headers are on the answer."""

    def __init__(self, app: ASGIApp, site: Site) -> None:
        self._app, self._site = app, site

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = {name.lower() for name, _ in message["headers"]}
                added = [
                    (name.encode(), value.encode()) for name, value in HEADERS.items() if name.encode() not in given
                ]
                message = {**message, "headers": [*message["headers"], *added]}
            await send(message)

        if refusal := self._refuse(scope):
            await refusal(scope, receive, send_with_headers)
            return
        prefix, path = self._site.prefix, scope["path"]
        if prefix and path.startswith(f"{prefix}/"):
            path = path[len(prefix) :]
            scope = {**scope, "path": path, "raw_path": path.encode()}
        await self._app({**scope, "root_path": ""}, receive, send_with_headers)

    def _refuse(self, scope: Scope) -> Response | None:
        hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        local = (scope.get("server") or ("", 0))[0]
        if len(hosts) != 1 or not self._site.hosts.accept(hosts[0], local):
            shown = hosts[0][:80] if hosts else ""
            words = f"Host {shown!r}: not a name of this page; start `lbagent web` with --host NAME\n"
            return PlainTextResponse(words, 421)
        if scope["path"] == self._site.prefix != "":
            return RedirectResponse(f"{self._site.prefix}/", 308)
        return None


class _Web:
    def __init__(self, site: Site) -> None:
        self._site, self._log = site, site.log
        self._daemon = Daemon(site.socket, site.name)
        self._others = [OtherBalancer(url) for url in site.peers]
        self._pages = Pages()
        self._files = {name: _read_file("static", name) for name in _STATIC}
        self._files["openapi.json"] = _read_file("openapi.json")
        self._sessions = access.Sessions()
        self._failures = access.FailureLimit()
        self._checking = asyncio.Semaphore(2)
        self._orders = orders.Orders(site.log)
        self._rendered: dict[tuple[str, ...], bytes] = {}

    # --- pages for all users ------------------------------------------------------------------------------------------

    async def show_now(self, request: Request) -> Response:
        """All nodes, on all load balancers."""
        words, state = (request.query_params.get(key, "")[:200] for key in ("q", "state"))
        links = [one.url for one in self._others]
        return await self._show(
            request,
            lambda viewer, seen: self._pages.render_now(viewer, [one.balancer for one in seen], links, words, state),
        )

    async def show_history(self, request: Request) -> Response:
        """The last changes, of one node if `node` is given."""
        node = request.query_params.get("node", "")[:100]
        return await self._show(
            request, lambda viewer, seen: self._pages.render_history(viewer, seen[0].balancer, node)
        )

    async def show_node(self, request: Request) -> Response:
        """One node; 404 where nothing is known of it, and the daemon runs."""
        name = request.path_params["name"]
        seen = await self._look()
        known = any(one.balancer.status and name in one.balancer.status.nodes for one in seen)
        gone = not known and seen[0].balancer.status is not None and not select_entries(seen[0].balancer, name)
        if gone or not NAME.fullmatch(name):
            raise HTTPException(404, "No load balancer knows a node of this name.")
        return await self._show(
            request, lambda viewer, seen: self._pages.render_node(viewer, [one.balancer for one in seen], name, {})
        )

    async def stream_events(self, request: Request) -> Response:
        """Server-sent events: one whenever a page would look different."""
        session = self._find_session(request)
        return StreamingResponse(self._list_news(session), media_type="text/event-stream")

    async def _list_news(self, session: access.Session | None) -> AsyncIterator[bytes]:
        shown, silent = "", 0.0
        yield b"retry: 2000\n\n"
        while not self._site.is_stopping():
            version = self._find_version(await self._look(), session)
            if version != shown:
                shown, silent = version, 0.0
                yield f"data: {version}\n\n".encode()
            elif silent >= _KEEP_ALIVE:
                silent = 0.0
                yield b": still here\n\n"
            await asyncio.sleep(_LOOK)
            silent += _LOOK

    async def show_health(self, _: Request) -> Response:
        """200 where events take effect on this load balancer; else 503, with the reasons."""
        faults = (await self._daemon.look()).balancer.list_faults()
        return PlainTextResponse("\n".join(faults or ["ok"]) + "\n", 503 if faults else 200)

    async def show_metrics(self, _: Request) -> Response:
        """metrics.prom, as the daemon published it."""
        text = (await self._daemon.look()).raw.get("metrics")
        if not isinstance(text, str):
            return PlainTextResponse("# no metrics: the daemon does not run\n", 503)
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    async def send_status(self, _: Request) -> Response:
        """The status of this load balancer."""
        snapshot = await self._daemon.look()
        return _make_json(_describe(snapshot), 503 if snapshot.balancer.status is None else 200)

    async def send_history(self, request: Request) -> Response:
        """The last changes, newest first."""
        given = request.query_params.get("limit", str(_HISTORY))
        if not (given.isascii() and given.isdigit() and len(given) < 6 and int(given) > 0):  # noqa: PLR2004  # digits
            raise HTTPException(400, "limit is not a positive number")
        snapshot = await self._daemon.look()
        node = request.query_params.get("node", "")
        entries = [one._asdict() for one in select_entries(snapshot.balancer, node)]
        status = 503 if not snapshot.raw else 200
        return _make_json({**_describe(snapshot, status=False), "history": entries[: int(given)]}, status)

    async def send_node(self, request: Request) -> Response:
        """One node, as every load balancer sees it, and its last changes."""
        name, seen = request.path_params["name"], await self._look()
        views = [{**_describe(one, status=False), "node": _find_node(one, name)} for one in seen]
        if seen[0].balancer.status is not None and not any(view["node"] for view in views):
            raise HTTPException(404, "no load balancer knows a node of this name")
        entries = [one._asdict() for one in select_entries(seen[0].balancer, name)]
        status = 503 if seen[0].balancer.status is None else 200
        return _make_json({"name": name, "load_balancers": views, "history": entries}, status)

    async def send_openapi(self, _: Request) -> Response:
        """The description of the API, OpenAPI 3.1."""
        return Response(self._files["openapi.json"], media_type="application/json")

    async def send_static(self, request: Request) -> Response:
        """The style sheet, the script and the icon."""
        name = request.path_params["name"]
        if name not in _STATIC:
            raise HTTPException(404, "No such file.")
        # Browsers request it again after each upgrade, because the pages name it with a version.
        return Response(self._files[name], media_type=_STATIC[name], headers={"cache-control": "max-age=86400"})

    # --- what takes a log-in ------------------------------------------------------------------------------------------

    async def show_login(self, request: Request) -> Response:
        """The form."""
        return await self._ask_to_log_in(request, _find_node_name(request.query_params))

    async def log_in(self, request: Request) -> Response:
        """Begin a session for the right password."""
        form = await self._read_form(request)
        user, address = form.get("user", "")[:64], request.client.host if request.client else ""
        keys = (f"address {address}", f"user {user}")
        if seconds := self._failures.seconds_left(*keys):
            words = f"Too many failed log-ins. Try again in {seconds} s."
            answer = await self._ask_to_log_in(request, _find_node_name(form), words, 429)
            answer.headers["retry-after"] = str(seconds)
            return answer
        # Counted before the password is checked: many attempts at once must not pass the limit.
        self._failures.add(*keys)
        async with self._checking:
            right = await run_in_threadpool(self._check_password, user, form.get("password", ""))
        if not right:
            self._log.warning(f"web: log-in of {user!r} from {address} failed")
            return await self._ask_to_log_in(request, _find_node_name(form), "User or password is wrong.", 403)
        self._failures.forget(*keys)
        self._log.info(f"web: {user} logged in from {address}")
        node = _find_node_name(form)
        answer = RedirectResponse(f"{self._site.prefix}/{node and f'nodes/{node}'}", 303)
        answer.set_cookie(
            access.COOKIE,
            self._sessions.begin(user),
            max_age=access.SESSION_SECONDS,
            path=f"{self._site.prefix}/",
            secure=request.url.scheme == "https",
            httponly=True,
            samesite="strict",
        )
        return answer

    async def log_out(self, request: Request) -> Response:
        """End the session."""
        session, _ = await self._authorize(request)
        self._sessions.end(session)
        answer = RedirectResponse(f"{self._site.prefix}/", 303)
        answer.delete_cookie(access.COOKIE, path=f"{self._site.prefix}/")
        return answer

    async def start_order(self, request: Request) -> Response:
        """Send a command to all load balancers; the page that it leads to shows their answers."""
        name, verb = request.path_params["name"], request.path_params["verb"]
        if verb not in QUERIES or not NAME.fullmatch(name):
            raise HTTPException(404, "No such command.")
        session, form = await self._authorize(request)
        try:
            await self._check_order(name, verb, form)
            order = self._orders.start(verb, name, session.user, orders.parse_form(verb, form, int(time.time())))
        except orders.BadForm as bad:
            seen = await self._look()
            viewer = self._find_viewer(request, seen)
            balancers = [one.balancer for one in seen]
            page = self._pages.render_node(viewer, balancers, name, form, str(bad))
            return Response(page, 400, media_type="text/html")
        except orders.TooManyOrders:
            raise HTTPException(503, "Other commands are under way. Try again in a few seconds.") from None
        return RedirectResponse(f"{self._site.prefix}/orders/{order.id}", 303)

    async def show_order(self, request: Request) -> Response:
        """The answers of the load balancers to a command, as they arrive."""
        order = self._orders.get(request.path_params["key"])
        if self._find_session(request) is None:
            return RedirectResponse(f"{self._site.prefix}/login", 303)
        if order is None:
            raise HTTPException(404, "This command is not known any more. The node's history shows what it did.")
        return await self._show(request, lambda viewer, _: self._pages.render("order.html", viewer, order=order))

    async def _check_order(self, name: str, verb: str, form: Mapping[str, str]) -> None:
        """Raise BadForm for a pause that would leave a service without any server, unless that is confirmed.

        Raises HTTPException for a node that no load balancer knows: the pause would be remembered for it.
        """
        seen = [one.balancer for one in await self._look()]
        balancer = seen[0]
        if balancer.status is None:
            raise orders.BadForm(f"Nothing was sent: {balancer.error}")
        if not any(one.status and name in one.status.nodes for one in seen):
            raise HTTPException(404, "No load balancer knows a node of this name.")
        unserved = balancer.list_unserved(name) if verb == "pause" else []
        if unserved and not form.get("force"):
            raise orders.BadForm(f"No other server of {', '.join(unserved)} takes requests. Confirm that below.")

    async def _authorize(self, request: Request) -> tuple[access.Session, Mapping[str, str]]:
        """Return who sends a form, and its fields. Raises HTTPException."""
        form = await self._read_form(request)
        session = self._find_session(request)
        if session is None:
            raise HTTPException(403, "Your session has ended. Log in again.")
        if not access.is_token(session, form.get("token", "")):
            raise HTTPException(403, "The form is not of this session. Open the page again.")
        return session, form

    async def _read_form(self, request: Request) -> Mapping[str, str]:
        """Return the fields of a form that a page of this site sent. Raises HTTPException."""
        if not access.is_same_origin(request.headers):
            self._log.warning(f"web: refused a form from another site: Origin {request.headers.get('origin')!r}")
            raise HTTPException(403, "The form was not sent by this page.")
        kind = request.headers.get("content-type", "").partition(";")[0].strip()
        if kind != "application/x-www-form-urlencoded":
            raise HTTPException(415, "Not a form.")
        content = b""
        async for piece in request.stream():
            content += piece
            if len(content) > FORM_LIMIT:
                raise HTTPException(413, "The form is too large.")
        try:
            return dict(parse_qsl(content.decode(), keep_blank_values=True, max_num_fields=20, errors="strict"))
        except ValueError:
            raise HTTPException(400, "The form cannot be read.") from None

    def _check_password(self, user: str, password: str) -> bool:
        try:
            return self._site.users is not None and self._site.users.check(user, password)
        except (UsageError, OSError) as error:
            self._log.error(f"web: {format_error(error)}")
            return False

    def _find_session(self, request: Request) -> access.Session | None:
        """Return the session of a user who is still in the users file."""
        if self._site.users is None or access.COOKIE not in request.cookies:
            return None
        session = self._sessions.find(request.cookies[access.COOKIE])
        try:
            return session if session and session.user in self._site.users.read() else None
        except (UsageError, OSError) as error:
            self._log.error(f"web: {format_error(error)}")
            return None

    async def _ask_to_log_in(self, request: Request, node: str, error: str = "", status: int = 200) -> Response:
        viewer = self._find_viewer(request, await self._look())
        page = self._pages.render("login.html", viewer, node=node, error=error)
        return Response(page, status, media_type="text/html")

    # --- what all pages have in common --------------------------------------------------------------------------------

    async def show_error(self, request: Request, error: Exception) -> Response:
        """Return an error as a page, or as JSON below /api."""
        assert isinstance(error, HTTPException)  # noqa: S101  # registered for these only
        headers = dict(error.headers or {})
        if request.url.path.startswith("/api/"):
            return _make_json({"error": error.detail}, error.status_code, headers)
        page = self._pages.render("error.html", self._find_viewer(request, []), words=error.detail)
        return Response(page, error.status_code, headers, media_type="text/html")

    async def show_defect(self, request: Request, error: Exception) -> Response:
        """Return and log an unexpected error."""
        self._log.error(f"web: {request.url.path}: this is a defect of lbagent: {type(error).__name__}: {error}")
        return PlainTextResponse("This is a defect of lbagent; its log has the details.\n", 500)

    async def _look(self) -> list[Snapshot]:
        """Return what is known of every load balancer, the local one first."""
        return list(await asyncio.gather(self._daemon.look(), *(one.look() for one in self._others)))

    def _find_version(self, seen: list[Snapshot], session: access.Session | None) -> str:
        versions = (f"{one.version:x}" for one in seen)
        return "-".join([*versions, *([f"{self._orders.version:x}", session.key] if session else [])])

    def _find_viewer(self, request: Request, seen: list[Snapshot]) -> Viewer:
        session = self._find_session(request)
        return Viewer(self._site.prefix, session, self._site.users is not None, self._find_version(seen, session))

    async def _show(self, request: Request, render: Callable[[Viewer, list[Snapshot]], str]) -> Response:
        seen = await self._look()
        viewer = self._find_viewer(request, seen)
        # Ages are as old as the second in which the page was rendered.
        key = (request.url.path, request.url.query, viewer.version, str(int(time.time())))
        # A compressed page with a secret in it, and with words of the request, would reveal the secret by its length.
        small = viewer.session is None and "gzip" in request.headers.get("accept-encoding", "")
        if small and key in self._rendered:
            content = self._rendered[key]
        else:
            content = render(viewer, seen).encode("utf-8", "replace")
            small = small and len(content) > _COMPRESSED
            if small:
                content = await run_in_threadpool(gzip.compress, content, 5)
                self._rendered[key] = content
                while len(self._rendered) > _RENDERED:
                    del self._rendered[next(iter(self._rendered))]
        headers = {"vary": "Accept-Encoding, Cookie", **({"content-encoding": "gzip"} if small else {})}
        return Response(content, headers=headers, media_type="text/html")


def _read_file(*names: str) -> bytes:
    with open(os.path.join(FOLDER, *names), "rb") as file:
        return file.read()


def _find_node_name(form: Mapping[str, str]) -> str:
    """Return the node to whose page a log-in leads; empty for the first page."""
    name = form.get("node", "")
    return name if NAME.fullmatch(name) else ""


def _describe(snapshot: Snapshot, *, status: bool = True) -> dict[str, Any]:
    """Return a load balancer as JSON: the daemon's own object, without what has a path of its own."""
    raw, balancer = snapshot.raw, snapshot.balancer
    found: dict[str, Any] = {
        "version": 1,
        "name": balancer.name,
        "at": raw.get("at", balancer.seen),
        "heartbeat": raw.get("heartbeat"),
        "busy": balancer.busy,
        "faults": balancer.list_faults(),
        "error": balancer.error or None,
    }
    return {**found, "status": raw.get("status")} if status else found


def _find_node(snapshot: Snapshot, name: str) -> Any:  # noqa: ANN401  # JSON
    nodes = (snapshot.raw.get("status") or {}).get("nodes", ())
    return next((node for node in nodes if node["name"] == name), None)


def _make_json(content: Mapping[str, Any], status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(json.dumps(content), status, dict(headers or {}), media_type="application/json")


class Viewer(NamedTuple):
    """The user, and the place of the page."""

    prefix: str
    """Before each path, such as /lbagent; empty at the root."""
    session: Session | None
    may_log_in: bool
    """Whether there is a users file."""
    version: str
    """What is shown; another one means that the page is old."""


class Row(NamedTuple):
    """A node on all load balancers."""

    name: str
    nodes: Sequence[Node | None]
    """By load balancer, the local one first; None where it is not known there."""

    @property
    def first(self) -> Node:
        """The node on the first load balancer that knows it."""
        return next(node for node in self.nodes if node)


class Pages:
    """Renders the templates."""

    def __init__(self) -> None:
        """Templates are compiled when they are first used."""
        self._environment = Environment(
            loader=FileSystemLoader(os.path.join(FOLDER, "templates")),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.globals["release"] = lbagent.__version__
        self._environment.filters.update(age=format_age, stamp=format_stamp, iso=format_iso, plain=make_printable)

    def render(self, template: str, viewer: Viewer, **values: Any) -> str:  # noqa: ANN401  # as the template wants them
        """Return a page."""
        return self._environment.get_template(template).render(viewer=viewer, now=time.time(), **values)

    def render_now(
        self, viewer: Viewer, balancers: Sequence[Balancer], links: Sequence[str], words: str, state: str
    ) -> str:
        """Return the page of all nodes that match the filter; `links` lead to the pages of all but the first."""
        balancers = drop_outdated(balancers)
        rows = list_rows(balancers)
        counts = Counter(row.first.state for row in rows if row.first.state != "load balancer")
        found = [row for row in rows if _matches(row, words, state)]
        return self.render(
            "now.html",
            viewer,
            balancers=balancers,
            links=links,
            asked=[one.name for one in balancers[1:]],
            rows=found[:ROWS],
            hidden=len(found) - len(found[:ROWS]),
            counts=sorted(counts.items(), key=lambda one: (-one[1], one[0])),
            words=words,
            state=state,
        )

    def render_history(self, viewer: Viewer, balancer: Balancer, node: str) -> str:
        """Return the page of the last changes, of one node if it is named."""
        entries = select_entries(balancer, node)
        names = list(balancer.status.nodes) if balancer.status else []
        return self.render("history.html", viewer, balancer=balancer, entries=entries, node=node, names=names)

    def render_node(
        self, viewer: Viewer, balancers: Sequence[Balancer], name: str, form: Mapping[str, str], error: str = ""
    ) -> str:
        """Return the page of one node; `form` and `error` belong to a refused command."""
        nodes = [one.status and one.status.nodes.get(name) for one in balancers]
        return self.render(
            "node.html",
            viewer,
            balancers=balancers,
            name=name,
            nodes=nodes,
            node=next((one for one in nodes if one), None),
            entries=select_entries(balancers[0], name)[:20],
            unserved=balancers[0].list_unserved(name),
            form=form,
            error=error,
        )


def list_rows(balancers: Sequence[Balancer]) -> list[Row]:
    """Return a row for each node that any of the load balancers knows, in natural order."""
    tables = [one.status.nodes if one.status else {} for one in balancers]
    names = {name for table in tables for name in table}
    return [Row(name, [table.get(name) for table in tables]) for name in sort_names(names)]


def select_entries(balancer: Balancer, node: str) -> list[Entry]:
    """Return the history, newest first; with a node, what concerns it."""
    return [one for one in balancer.history if not node or one.concerns(node)]


def format_stamp(at: float) -> str:
    """Return epoch seconds as date and time in UTC, to the second."""
    return _convert(at).strftime("%Y-%m-%d %H:%M:%S UTC")


def format_iso(at: float) -> str:
    """Return epoch seconds for the attribute `datetime`."""
    return _convert(at).strftime("%Y-%m-%dT%H:%M:%SZ")


def _convert(at: float) -> datetime:
    try:
        return datetime.fromtimestamp(at, UTC)
    except (ValueError, OverflowError, OSError):  # a pause until the year 99999
        return datetime.max.replace(tzinfo=UTC)


def _matches(row: Row, words: str, state: str) -> bool:
    states = {node.state for node in row.nodes if node}
    if state:
        return state in states
    if not words:
        return not states <= {*_HIDDEN}
    node = row.first
    texts = (row.name, node.role or "", node.address or "", *states)
    return all(any(word.lower() in text.lower() for text in texts) for word in words.split())

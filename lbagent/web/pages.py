"""The HTML pages, rendered from what is known of the load balancers. Everything foreign is escaped by Jinja2."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined

import lbagent
from lbagent.names import format_age, make_printable, sort_names
from lbagent.web.access import Session
from lbagent.web.model import Balancer, Entry, Node, drop_outdated

FOLDER = os.path.dirname(__file__)

ROWS = 500
"""Nodes on one page; more are reached by the filter."""

_HIDDEN = ("load balancer", "unknown role")
"""States of nodes that are not for this load balancer; listed only where the filter asks for them."""


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

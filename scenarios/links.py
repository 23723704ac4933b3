"""A link checker: fetches every page below a path, and collects links to other places."""

from __future__ import annotations

import html.parser
import http.client
import urllib.parse
from collections.abc import Iterator
from typing import NamedTuple

Key = tuple[str, tuple[str, ...]]


class CrawlResult(NamedTuple):
    """The pages that links lead to."""

    pages: dict[str, int]
    """The status of each page after redirects. Pages that differ only in the values of their query are fetched once."""

    outside: set[str]
    """Links to another host, or outside the path."""


class _LinkParser(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("a", "link", "script", "img"):
            self.found += [value for name, value in attrs if name in ("href", "src") and value]


def crawl(host: str, path: str) -> CrawlResult:
    """Follow all links from `http://host` + `path`."""
    start = f"http://{host}{path}"
    pages, outside, fetched, waiting = dict[str, int](), set[str](), set[Key](), [start]
    while waiting:
        url = waiting.pop()
        if not url.startswith(start):
            outside.add(url)
        elif _make_key(url) not in fetched:
            fetched.add(_make_key(url))
            pages[url], links = _fetch_page(host, url)
            waiting += links
    return CrawlResult(pages, outside)


def _make_key(url: str) -> Key:
    parts = urllib.parse.urlsplit(url)
    return parts.path, tuple(sorted(urllib.parse.parse_qs(parts.query, keep_blank_values=True)))


def _fetch_page(host: str, url: str) -> tuple[int, list[str]]:
    connection = http.client.HTTPConnection(host, timeout=30)
    try:
        connection.request("GET", url.removeprefix(f"http://{host}"))
        answer = connection.getresponse()
        body = answer.read().decode("utf-8", "replace")
    finally:
        connection.close()
    location = answer.getheader("Location")
    if location:
        return http.client.OK, [urllib.parse.urljoin(url, location)]
    is_page = "html" in answer.getheader("Content-Type", "")
    return answer.status, list(_find_links(url, body)) if is_page else []


def _find_links(url: str, body: str) -> Iterator[str]:
    parser = _LinkParser()
    parser.feed(body)
    for link in parser.found:
        target, _ = urllib.parse.urldefrag(urllib.parse.urljoin(url, link))
        if target.startswith("http"):
            yield target.replace(" ", "%20")  # as a browser does

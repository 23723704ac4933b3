"""What a link checker finds: every page below a path, and every link that leads nowhere or elsewhere."""

from __future__ import annotations

import html.parser
import http.client
import urllib.parse
from collections.abc import Iterator
from typing import NamedTuple

Key = tuple[str, tuple[str, ...]]


class Found(NamedTuple):
    """Where the links have led."""

    pages: dict[str, int]
    """The status of each, redirects followed; of pages that differ only in the values of their query, of one."""

    outside: set[str]
    """Links to another host, or past the path."""


class _Links(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("a", "link", "script", "img"):
            self.found += [value for name, value in attrs if name in ("href", "src") and value]


def crawl(host: str, path: str) -> Found:
    """Follow every link from `http://host` + `path`."""
    start = f"http://{host}{path}"
    pages, outside, asked, waiting = dict[str, int](), set[str](), set[Key](), [start]
    while waiting:
        url = waiting.pop()
        if not url.startswith(start):
            outside.add(url)
        elif _key(url) not in asked:
            asked.add(_key(url))
            pages[url], links = _page(host, url)
            waiting += links
    return Found(pages, outside)


def _key(url: str) -> Key:
    parts = urllib.parse.urlsplit(url)
    return parts.path, tuple(sorted(urllib.parse.parse_qs(parts.query, keep_blank_values=True)))


def _page(host: str, url: str) -> tuple[int, list[str]]:
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
    return answer.status, list(_links(url, body)) if is_page else []


def _links(url: str, body: str) -> Iterator[str]:
    parser = _Links()
    parser.feed(body)
    for link in parser.found:
        target, _ = urllib.parse.urldefrag(urllib.parse.urljoin(url, link))
        if target.startswith("http"):
            yield target.replace(" ", "%20")  # as a browser does

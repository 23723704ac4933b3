"""Hooks of MkDocs: pictures follow the colours that the reader chooses, and no page loads anything from another host.

The pages are also read as plain Markdown. There, `<picture>` follows the colours of the system.
"""

from __future__ import annotations

import re

from mkdocs.exceptions import PluginError
from mkdocs.structure.pages import Page

_PICTURE = re.compile(
    r'<picture>\s*<source media="\(prefers-color-scheme: dark\)" srcset="([^"]+)">\s*'
    r'<img ([^>]*)src="([^"]+)"([^>]*)>\s*</picture>'
)
_FOREIGN = re.compile(r'(?:<(?:script|img|iframe|source)[^>]* src(?:set)?|<link[^>]* href)="(?:https?:)?//[^"]*"')


def on_page_content(html: str, **_: object) -> str:
    """Return the page with each `<picture>` as two images. Material shows the one for its colours."""
    return _PICTURE.sub(
        r'<img \2src="\3#only-light"\4><img \2src="\1#only-dark"\4>',
        html,
    )


def on_post_page(output: str, *, page: Page, **_: object) -> str:
    """Return the page unchanged. Raises PluginError if it loads a file from another host."""
    found = _FOREIGN.findall(output)
    if found:
        raise PluginError(f"{page.file.src_uri}: loads {found[0]}; the site has to work offline")
    return output

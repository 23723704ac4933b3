"""Hook of MkDocs: a picture of a page follows the colours that the reader has chosen on the site.

The pages are Markdown that is read without the site too. There, `<picture>` follows the colours of the system.
"""

from __future__ import annotations

import re

_PICTURE = re.compile(
    r'<picture>\s*<source media="\(prefers-color-scheme: dark\)" srcset="([^"]+)">\s*'
    r'<img ([^>]*)src="([^"]+)"([^>]*)>\s*</picture>'
)


def on_page_content(html: str, **_: object) -> str:
    """The page with each `<picture>` as two images, of which Material shows the one for its colours."""
    return _PICTURE.sub(
        r'<img \2src="\3#only-light"\4><img \2src="\1#only-dark"\4>',
        html,
    )

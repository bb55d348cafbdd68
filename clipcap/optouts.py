"""The headers of a page in, whether its owner keeps machines from learning of it out.

`X-Robots-Tag` as the makers of data sets read it: `noai` and `noimageai` forbid training, and who
forbids to index a page or its images does not want it in a collection either. An agent may stand
before its directives (`googlebot: noindex`); those count if the agent is everybody (`*`) or us.
robots.txt is not asked for: it speaks to those who walk from link to link, not of single images.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

AGENT: Final = "clipcap"
_FORBIDDEN: Final = frozenset(("noai", "noimageai", "noindex", "noimageindex", "none"))
_WITH_VALUE: Final = frozenset(
    ("unavailable_after", "max-snippet", "max-image-preview", "max-video-preview")
)  # a colon in these does not follow an agent


def has_opted_out(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Tell whether any `X-Robots-Tag` keeps us from using a page."""
    return any(
        _forbids(value.decode("latin-1"))
        for name, value in headers
        if name.lower() == b"x-robots-tag"
    )


def _forbids(tag: str) -> bool:
    agent = "*"
    for part in tag.lower().split(","):
        before, colon, after = (text.strip() for text in part.partition(":"))
        directive = before
        if colon and before not in _WITH_VALUE:
            agent, directive = before, after
        if agent in ("*", AGENT) and directive in _FORBIDDEN:
            return True
    return False

"""A page of HTML in; its tags, its texts, and whatever is not closed out."""

from __future__ import annotations

from html.parser import HTMLParser

from clipcap import report
from clipcap.outcomes import Night

VOID = {"meta", "link", "img", "input", "br", "hr"}


class Page(HTMLParser):
    """A page's text and its tags with their attributes; a tag closed in the wrong place fails."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open[-1:]):
            self.texts.append(data)

    @property
    def text(self) -> str:
        """What a person reads."""
        return " ".join(" ".join(self.texts).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """Return the attributes of every tag of a name."""
        return [attributes for name, attributes in self.tags if name == tag]


def render(night: Night, *, images: int = 200) -> Page:
    """Render the report of a night and parse it."""
    return Page(report.render(night, images=images))

"""What a source says of an image before its bytes are read: where they lie, version, captions."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

Form = Literal[
    "", "copy", "absent", "zip", "parquet", "web", "web-private", "web-any", "web-private-any"
]
"""How bytes are packed: not at all, as a member of a zip, in a Parquet file (`clipcap.packed`).

`copy`: not packed, but the etag that was listed is that of another store's object.

`absent`: there are none, nothing need be asked to see that they are not found.

`web` is a page whose address came from a stranger: `private` if it need not be public, `any` if it
is taken whatever its owner says (`clipcap.web`).
"""


def caption_text(text: str) -> str:
    """Return a caption as tables can hold it: no blanks around it, `?` for half a character."""
    return text.strip().encode("utf-8", "replace").decode()


@dataclass(frozen=True, slots=True)
class Bytes:
    """Where some bytes lie: a whole object, or a range of one; `form` says how they are packed."""

    url: str
    offset: int = 0
    length: int | None = None
    form: Form = ""


@dataclass(frozen=True, slots=True)
class Sidecar:
    """A file beside an image that says something of it: `suffix` is `txt` or `json`."""

    suffix: str
    at: Bytes


@dataclass(frozen=True, slots=True)
class Sample:
    """One listed image.

    `etag` is the version of everything the sample is made from: the object's own etag (or its size
    and time), then those of its sidecars and captions. The same etag: need not be read again.
    """

    source_uri: str
    etag: str
    size_bytes: int
    at: Bytes
    modified_at: datetime | None = None
    captions: tuple[str, ...] = ()
    sidecars: tuple[Sidecar, ...] = field(default=())

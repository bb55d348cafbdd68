"""An output in, what was taken out of it and must not come back, out; and what is being taken out.

Each record is a small object, named by what it says and never changed. It holds hashes: of the
image's URI (`image_id`) and of its bytes; of a whole prefix its text. What is being taken out
stands with its names in a journal, from before the first change until nothing is left: a killed run
goes on.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from datetime import datetime
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from clipcap import ahead, keys, layout, storage
from clipcap.errors import NotFoundError, SettingsError
from clipcap.settings import digest
from clipcap.storage import ObjectInfo

FORMAT: Final = 1
KEPT_BYTES: Final = 16 * 2**20
"""What a process keeps of the records that it has read: about 150,000 images, in 70 MB."""


class Record(BaseModel):
    """What one call kept out: each image or prefix with the digests of its contents."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    at: datetime
    """When, in UTC."""
    images: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """By `image_id`."""
    prefixes: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """By the beginning of source URIs."""
    format: int = Field(default=FORMAT, ge=1, le=FORMAT)
    """Version of this object's layout."""

    @property
    def name(self) -> str:
        """What the object is called by: the digest of what it keeps out."""
        return digest([self.images, self.prefixes])


@dataclass(frozen=True, slots=True, order=True)
class Image:
    """The names of one image; empty what is not known of it."""

    image_id: str
    key: str = ""
    source_uri: str = ""
    content_sha256: str = ""


@dataclass(frozen=True, slots=True)
class KeptOut:
    """Everything that must not come back into an output."""

    image_ids: frozenset[str] = frozenset()
    prefixes: tuple[str, ...] = ()
    contents: frozenset[str] = frozenset()
    records: tuple[str, ...] = ()
    """URLs of the records that say so."""

    def __bool__(self) -> bool:
        """Tell whether anything is kept out."""
        return bool(self.records)

    def holds(self, source_uri: str) -> bool:
        """Tell whether an object must not come in, by its name."""
        return source_uri.startswith(self.prefixes) or (
            bool(self.image_ids) and keys.image_id(source_uri) in self.image_ids
        )

    def is_meant(self, row: Mapping[str, Any]) -> bool:
        """Tell whether a row of a manifest must not be there, by its name or its content."""
        return row["content_sha256"] in self.contents or self.holds(row["source_uri"])


@dataclass(frozen=True, slots=True)
class Journal:
    """Images that are being taken out, with their names, and what shall be kept out."""

    url: str
    images: tuple[Image, ...]
    record: Record
    dates: frozenset[str] = frozenset()
    """Those that the images lay in: what is derived of these goes, whoever takes the rows out."""


_kept: Final[dict[tuple[str, str], Record]] = {}
"""Of the output that was asked last: records by URL and etag, for they are never changed."""


def load(out: str) -> KeptOut:
    """Return what is kept out of an output.

    Raises:
        SettingsError: a record cannot be read; then nobody knows what must stay out.
    """
    found = records(out)
    return KeptOut(
        image_ids=frozenset(name for record in found.values() for name in record.images),
        prefixes=tuple(sorted({text for record in found.values() for text in record.prefixes})),
        contents=frozenset(
            content
            for record in found.values()
            for held in (record.images, record.prefixes)
            for contents in held.values()
            for content in contents
        ),
        records=tuple(found),
    )


def records(out: str) -> dict[str, Record]:
    """Return every record by its URL.

    Raises:
        SettingsError: one cannot be read.
    """
    infos = _listed(out)
    found = list(ahead.mapped(_record, infos, threads=storage.IN_FLIGHT))
    _keep(infos, found)
    return {
        info.url: record for info, record in zip(infos, found, strict=True) if record is not None
    }


def _keep(infos: Sequence[ObjectInfo], found: Sequence[Record | None]) -> None:
    """Keep the records that there are now, as far as there is room; no others."""
    room, now = KEPT_BYTES, {}
    for info, record in zip(infos, found, strict=True):
        if record is not None and info.size_bytes <= room:
            room -= info.size_bytes
            now[info.url, info.etag] = record
    if now.keys() != _kept.keys():  # whoever looks in between reads them anew
        _kept.clear()
        _kept.update(now)


def has_changed(out: str, kept_out: KeptOut) -> bool:
    """Tell whether there are other records now; one listing."""
    return tuple(info.url for info in _listed(out)) != kept_out.records


def _listed(out: str) -> list[ObjectInfo]:
    inside = f"{layout.unfinished(out)}/"
    found = storage.listed(layout.forgotten(out))
    return [
        info for info in found if info.url.endswith(".json") and not info.url.startswith(inside)
    ]


def _record(info: ObjectInfo) -> Record | None:
    if kept := _kept.get((info.url, info.etag)):
        return kept
    try:
        return Record.model_validate_json(storage.read(info.url))
    except NotFoundError:  # let back in a moment ago
        return None
    except ValidationError as error:
        problem = error.errors(include_input=False)[0]
        raise SettingsError(
            f"The record {info.url} of what must stay out cannot be read ({problem['msg']}). "
            "Put it back as it was: without it, images that were taken out would come back."
        ) from None


def keep_out(out: str, record: Record) -> None:
    """Write down what must not come back, with the digests of its contents, if it is new."""
    held = records(out).values()
    new = record.model_copy(
        update={
            "images": _new(record.images, [one.images for one in held]),
            "prefixes": _new(record.prefixes, [one.prefixes for one in held]),
        }
    )
    if new.images or new.prefixes:
        storage.write(layout.forgotten_record(out, new.name), new.model_dump_json().encode())


def _new(
    wanted: Mapping[str, Iterable[str]], held: Iterable[Mapping[str, tuple[str, ...]]]
) -> dict[str, tuple[str, ...]]:
    """Return the names, each with its contents, that are not held with all of them already."""
    known: dict[str, set[str]] = {}
    for one in held:
        for name, contents in one.items():
            known.setdefault(name, set()).update(contents)
    return {
        name: tuple(sorted(set(contents)))
        for name, contents in sorted(wanted.items())
        if name not in known or not set(contents) <= known[name]
    }


def let_in(out: str, names: Iterable[str]) -> list[str]:
    """Take images (by `image_id`) and prefixes from the records; return those that were there."""
    wanted, gone = set(names), set[str]()
    for url, record in records(out).items():
        there = wanted & {*record.images, *record.prefixes}
        if not there:
            continue
        gone |= there
        rest = record.model_copy(
            update={
                "images": {k: v for k, v in record.images.items() if k not in there},
                "prefixes": {k: v for k, v in record.prefixes.items() if k not in there},
            }
        )
        if rest.images or rest.prefixes:  # first: what stays out is never without a record
            storage.write(layout.forgotten_record(out, rest.name), rest.model_dump_json().encode())
        storage.delete(url)
    return sorted(gone)


def begin(out: str, images: Iterable[Image], record: Record, dates: Iterable[str]) -> Journal:
    """Write down what shall be taken out, with its names, before anything is changed."""
    listed = tuple(sorted(set(images)))
    names, days = [list(astuple(one)) for one in listed], sorted(set(dates))
    url = f"{layout.unfinished(out)}/{digest([names, record.name, days])[:32]}.json"
    held = {"images": names, "record": record.model_dump(mode="json"), "dates": days}
    storage.write(url, json.dumps(held).encode())
    return Journal(url, listed, record, frozenset(days))


def unfinished(out: str) -> list[Journal]:
    """Return what killed runs were taking out.

    Raises:
        SettingsError: a journal cannot be read.
    """
    return [_journal(info.url) for info in storage.listed(layout.unfinished(out))]


def _journal(url: str) -> Journal:
    try:
        found = json.loads(storage.read(url))
        images = tuple(Image(*map(str, one)) for one in found["images"])
        dates = frozenset(map(str, found.get("dates", ())))
        return Journal(url, images, Record.model_validate(found["record"]), dates)
    except (ValueError, KeyError, TypeError) as error:
        raise SettingsError(
            f"The journal {url} must say what is being taken out, but cannot be read "
            f"({type(error).__name__}). Remove it, and forget the same images again."
        ) from None

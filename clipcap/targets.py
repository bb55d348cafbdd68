"""Words that name images, and an output, in; the images that are meant, and where they lie, out."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from clipcap import ahead, credentials, keys, manifest, storage, tables
from clipcap.errors import NotFoundError, SettingsError
from clipcap.forgotten import Image, Record
from clipcap.layout import Shard, shard_of
from clipcap.storage import ObjectInfo

_IMAGE_ID: Final = re.compile(rf"[0-9a-f]{{{keys.IMAGE_ID_LENGTH}}}")
_LIVE: Final = ["image_id", "key", "source_uri", "content_sha256"]
_REJECTED: Final = ["image_id", "key", "source_uri"]


@dataclass(frozen=True, slots=True)
class Wanted:
    """Images by `image_id`, by key, by the beginning of their URI, and by content."""

    image_ids: frozenset[str] = frozenset()
    keys: frozenset[str] = frozenset()
    prefixes: tuple[str, ...] = ()
    contents: frozenset[str] = frozenset()
    uris: frozenset[str] = frozenset()
    """Source URIs among the images."""


@dataclass(frozen=True, slots=True)
class Found:
    """Images of an output that were meant, and those with the same bytes under other names."""

    images: tuple[Image, ...] = ()
    twins: tuple[Image, ...] = ()
    live: dict[Shard, set[str]] = field(default_factory=dict)
    """By shard, the `image_id` of its live images."""
    rejects: dict[Shard, set[str]] = field(default_factory=dict)
    """By shard, the `image_id` of its rejects."""
    in_place: dict[str, int] = field(default_factory=dict)
    """By tar of the source, how many of them lie there."""

    @property
    def shards(self) -> list[Shard]:
        """The shards that lose something."""
        return sorted({*self.live, *self.rejects})


def wanted(targets: Sequence[str]) -> Wanted:
    """Return what words of a person stand for.

    A word is an `image_id`, a key, a source URI or local path, or, with `/` or `*` at its end, what
    all of these begin with.

    Raises:
        SettingsError: a word is none of these.
    """
    image_ids, names, prefixes, uris = set[str](), set[str](), set[str](), set[str]()
    for text in targets:
        if _IMAGE_ID.fullmatch(text):
            image_ids.add(text)
        elif text.endswith(("/", "*")):
            prefixes.add(_prefix(text))
        elif keys.is_key(text):
            names.add(text)
        elif text:
            uris |= _uris(text)
        else:
            raise SettingsError("What is to be forgotten must be named, but is empty.")
    image_ids |= set(map(keys.image_id, uris))
    prefix = tuple(sorted(prefixes))
    return Wanted(frozenset(image_ids), frozenset(names), prefix, uris=frozenset(uris))


def _uris(text: str) -> set[str]:
    """Return the URIs that a word may be: as it is too, since that is how a listing tells a key."""
    try:
        return {storage.canonical(text), *([text] if "://" in text else [])}
    except SettingsError:
        if credentials.has_login(text) or not credentials.carries(text):
            raise
        return {text}  # only its hash is written down


def _prefix(text: str) -> str:
    if credentials.has_login(text):  # it stands in the record as it is
        raise SettingsError(credentials.REFUSAL)
    bare = text.removesuffix("*")
    if "://" not in bare and bare:
        bare = storage.canonical(bare) + "/" * bare.endswith("/")
    if not bare.partition("://")[2].strip("/"):
        raise SettingsError(
            f"A prefix must name at least a bucket or a folder, but is {text!r}. If the whole "
            "output is meant, remove its folder or bucket."
        )
    return bare


def find(out: str, chosen: Wanted) -> Found:
    """Return the images of an output, live or rejected, that are meant; reads every manifest."""
    found = Found()
    images: set[Image] = set()
    manifests = manifest.objects(out, "manifest")
    for info, table in _read(manifests, _LIVE):
        images |= _take(info, table.filter(_meant(table, chosen)), found.live, found)
    for info, table in _read(manifest.objects(out, "rejects"), _REJECTED):
        images |= _take(info, table.filter(_meant(table, chosen)), found.rejects, found)
    contents = {one.content_sha256 for one in images if one.content_sha256} | chosen.contents
    ids = pa.array([one.image_id for one in images], pa.string())
    twins: set[Image] = set()
    if contents:
        same = pa.array(sorted(contents), pa.string())
        for info, table in _read(manifests, _LIVE):
            is_same = pc.is_in(table["content_sha256"], same)
            is_twin = pc.and_(is_same, pc.invert(pc.is_in(table["image_id"], ids)))
            twins |= _take(info, table.filter(is_twin), found.live, found)
    return Found(
        tuple(sorted(images)), tuple(sorted(twins)), found.live, found.rejects, found.in_place
    )


def _read(found: Iterable[ObjectInfo], columns: list[str]) -> Iterator[tuple[ObjectInfo, pa.Table]]:
    def read(info: ObjectInfo) -> tuple[ObjectInfo, pa.Table]:
        try:
            return info, tables.read(info.url, columns)
        except NotFoundError:  # a run retired it meanwhile
            return info, pa.table({name: pa.array([], pa.string()) for name in columns})

    return ahead.mapped(read, found, threads=storage.IN_FLIGHT)


def _meant(table: pa.Table, chosen: Wanted) -> pa.ChunkedArray:
    meant = pc.or_(
        pc.is_in(table["image_id"], pa.array(sorted(chosen.image_ids), pa.string())),
        pc.is_in(table["key"], pa.array(sorted(chosen.keys), pa.string())),
    )
    for prefix in chosen.prefixes:
        meant = pc.or_(meant, pc.starts_with(table["source_uri"], prefix))
    return meant


def _take(
    info: ObjectInfo, rows: pa.Table, leaving: dict[Shard, set[str]], found: Found
) -> set[Image]:
    """Note which images leave a shard, and return them."""
    if rows.num_rows == 0:
        return set()
    shard, ids = shard_of(info.url), rows["image_id"].to_pylist()
    leaving.setdefault(shard, set()).update(ids)
    source = manifest.source_tar(tables.metadata(rows))
    if source is not None:
        found.in_place[source.url] = found.in_place.get(source.url, 0) + rows.num_rows
    return {Image(**row) for row in rows.to_pylist()}


def unknown(chosen: Wanted, images: Iterable[Image], known: Collection[str]) -> list[str]:
    """Return the keys that no image has; `known` are ends of keys that count as well."""
    there = {one.key for one in images}
    return sorted(key for key in chosen.keys - there if keys.key_tail(key) not in known)


def require_no_folder(out: str, chosen: Wanted, found: Found) -> None:
    """Refuse the address of a folder without its `/`: it would keep out nothing that is there.

    Raises:
        SettingsError: no image has the URI, but some lie below it.
    """
    named = {one.image_id for one in found.images}
    folders = [f"{uri}/" for uri in sorted(chosen.uris) if keys.image_id(uri) not in named]
    below = find(out, Wanted(prefixes=tuple(folders))).images if folders else ()
    for one in below:
        folder = next(text for text in folders if one.source_uri.startswith(text))
        raise SettingsError(
            f"No image of {out} is {folder[:-1]}, but {len(below):,} lie below it, such as "
            f"{one.source_uri}. If they are meant, name the folder with / at its end."
        )


def record(chosen: Wanted, found: Found, others: Iterable[Record]) -> Record:
    """Return what shall be kept out: what was chosen, with its contents, and other records."""
    images: dict[str, set[str]] = {one: set() for one in chosen.image_ids}
    prefixes: dict[str, set[str]] = {one: set() for one in chosen.prefixes}
    for one in found.images:
        own = [text for text in chosen.prefixes if one.source_uri.startswith(text)]
        held = [prefixes[text] for text in own]
        if one.image_id in chosen.image_ids or one.key in chosen.keys:
            held.append(images.setdefault(one.image_id, set()))
        for contents in held if one.content_sha256 else ():
            contents.add(one.content_sha256)
    for other in others:
        for name, texts in other.images.items():
            images.setdefault(name, set()).update(texts)
        for name, texts in other.prefixes.items():
            prefixes.setdefault(name, set()).update(texts)
    return Record(at=datetime.now(UTC), images=_sorted(images), prefixes=_sorted(prefixes))


def _sorted(held: dict[str, set[str]]) -> dict[str, tuple[str, ...]]:
    return {name: tuple(sorted(held[name])) for name in sorted(held)}

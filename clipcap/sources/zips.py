"""Zip archives in, one sample per file inside out: the bytes of a member, packed as they lie.

Only the directory at the end of an archive is read. One that is cut, spread over several files, or
whose members overlap, lead out of it or have one name twice, is refused as a whole: it becomes one
sample with the archive's own URL, which the shard stage rejects as `not_an_image`, and the log says
why. A member that is encrypted, or packed by another method than deflate, becomes a reject of its
own (`unsupported_format`). A store that refuses ends the listing: images that cannot be listed
would be taken for deleted ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final
from urllib.parse import quote

from clipcap import ahead, metadata, packed, storage, zipfiles
from clipcap import containers as found_at
from clipcap import settings as base
from clipcap.errors import ImageError, NotFoundError
from clipcap.files import OURS
from clipcap.sample import Sample, Sidecar
from clipcap.storage import ObjectInfo
from clipcap.zipfiles import Member, ZipError

_SIDECARS: Final = ("txt", "json")
_METADATA: Final = ("metadata.csv", "metadata.jsonl")
_Members = dict[str, Member]


class Settings(base.Settings):
    """Which archives are looked at."""

    url: str
    """A `.zip`, a folder of them, or a pattern: `s3://bucket/zips/*.zip`; `*` crosses folders."""
    leave_out: str | tuple[str, ...] = ()
    """URLs of folders below the source that are not looked at; an output inside of it never is."""


def containers(settings: Settings) -> list[ObjectInfo]:
    """Return the archives; what one holds is read only where its etag is new.

    Raises:
        StorageError: the archives are not there or may not be listed.
        SettingsError: `url` names an object that does not end in `.zip`.
    """
    return found_at.archives(settings.url, ".zip", leave_out=settings.leave_out)


def samples(settings: Settings) -> Iterator[Sample]:
    """Yield every file once, sorted by URI (`{zip}#{name}`, percent-encoded).

    As in a folder, a `.txt` or `.json` rides with the file it lies beside (`cat.jpg`: `cat.txt` or
    `cat.jpg.txt`). A `metadata.csv` or `metadata.jsonl` with a column `file_name` gives captions.
    Hidden names and `__MACOSX` are not looked at.

    Raises:
        StorageError: the archives are not there or may not be read.
        SettingsError: `url` names an object that does not end in `.zip`.
    """
    for found in ahead.mapped(members, containers(settings), threads=storage.IN_FLIGHT):
        yield from found


def members(archive: ObjectInfo) -> list[Sample]:
    """Return the samples of one archive, sorted by URI; a refused one is one that is no image."""
    try:
        inside = _named(archive)
        tables, captions = _captions(inside)
    except (ZipError, NotFoundError) as error:
        return found_at.refused(archive, error)
    found = [
        Sample(
            source_uri=f"{archive.url}#{quote(name, safe='/', errors='surrogateescape')}",
            etag=f"{archive.etag}+{inside[name].at.offset}+{inside[name].at.length}",
            size_bytes=inside[name].size_bytes,
            at=inside[name].at,
            modified_at=archive.modified_at,
            captions=captions.get(name, ()),
            sidecars=sidecars,
        )
        for name, sidecars in _with_sidecars(inside)
        if name not in tables
    ]
    return sorted(found, key=lambda sample: sample.source_uri)


def _named(archive: ObjectInfo) -> _Members:
    """Return the members that are looked at, by name.

    Raises:
        ZipError: a name is there twice.
    """
    inside: _Members = {}
    for member in zipfiles.members(archive):
        if member.name in inside:
            raise ZipError(f"the name {member.name!r} is there twice.")
        inside[member.name] = member
    return {
        name: member
        for name, member in inside.items()
        if not found_at.is_hidden(name)
        and not name.endswith(OURS)
        and (member.is_file or found_at.is_image(name))
    }


def _with_sidecars(inside: _Members) -> Iterator[tuple[str, tuple[Sidecar, ...]]]:
    """Yield every member that is no sidecar of another, with those of its own."""
    texts: dict[tuple[str, str], str] = {}
    for name in inside:
        stem, _, ending = name.rpartition(".")
        if ending.lower() in _SIDECARS:
            texts[stem, ending.lower()] = name
    alone = set(texts.values())
    for name in inside.keys() - alone:
        own = []
        for ending in _SIDECARS:
            beside = texts.get((name, ending)) or texts.get((_stem(name), ending))
            if beside:
                own.append(Sidecar(ending, inside[beside].at))
                alone.discard(beside)
        yield name, tuple(own)
    for name in alone:
        yield name, ()


def _stem(name: str) -> str:
    folder, slash, last = name.rpartition("/")
    return f"{folder}{slash}{last.rpartition('.')[0] or last}"


def _captions(inside: _Members) -> tuple[set[str], dict[str, tuple[str, ...]]]:
    """Return the names of the metadata files, and what they say of the others.

    Raises:
        ZipError: one cannot be read.
    """
    tables: set[str] = set()
    captions: dict[str, tuple[str, ...]] = {}
    for name, member in inside.items():
        folder, slash, last = name.rpartition("/")
        if last not in _METADATA or not member.is_file:
            continue
        try:
            data = packed.Reader().read(member.at, metadata.MOST_BYTES)
            found = metadata.by_file(last, data)
        except (ImageError, *metadata.BROKEN) as error:
            raise ZipError(f"{name!r} cannot be read: {error}.") from error
        if found is not None:
            tables.add(name)
            captions |= {f"{folder}{slash}{file}": texts for file, texts in found.items()}
    return tables, captions

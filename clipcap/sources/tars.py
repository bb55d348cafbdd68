"""Existing WebDataset tars in, one sample per image member out: a byte range of its tar.

Only headers are read. A tar that is cut, compressed, or whose samples a WebDataset reader would
merge or lose is refused as a whole: it becomes one sample with the tar's own URL, which the shard
stage rejects as `not_an_image`, and the log says why. A store that refuses ends the listing: images
that cannot be listed would be taken for deleted ones.
"""

from __future__ import annotations

import logging
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final
from urllib.parse import quote

from clipcap import ahead, storage
from clipcap import containers as found_at
from clipcap import settings as base
from clipcap.errors import ClipcapError, NotFoundError, SettingsError
from clipcap.sample import Bytes, Sample, Sidecar
from clipcap.storage import ObjectInfo

_LOG = logging.getLogger(__name__)
_BLOCK: Final = 512
_LOCAL_WINDOW: Final = 16 * 2**10  # bytes a read: spares an open per small member
_REMOTE_WINDOW: Final = (
    2**20
)  # as long in transfer as a request takes to answer; larger images are skipped
_MAX_HEADER: Final = 2**20  # a longer name or pax record is an attack
_MAX_PADDING: Final = 2**20  # zeros after the end: 10 KiB by GNU tar, 512 KiB on tapes
_MAX_TEXT: Final = 2**20  # a caption file of more is none
_CONTIGUOUS: Final = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_PAX: Final = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_NOTES: Final = (*_PAX, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_LENGTH: Final = re.compile(rb"([0-9]{1,7}) ")
_TEXTS: Final = (("txt", "txt"), ("caption", "txt"), ("json", "json"))
"""Extensions with captions, best first, and the suffix they are kept under."""


class Settings(base.Settings):
    """Which tars are looked at."""

    url: str
    """A `.tar`, a folder of them, or a pattern: `s3://bucket/tars/*.tar`; `*` crosses folders."""
    leave_out: str | tuple[str, ...] = ()
    """URLs of folders below the source that are not looked at; an output inside of it never is."""


class _TarError(ClipcapError):
    """This tar cannot be taken as samples; the text completes "The tar X is refused: "."""


@dataclass(frozen=True, slots=True)
class _Member:
    """One entry of a tar; `is_file` is false for a link, which has no bytes of its own."""

    name: str
    at: Bytes
    is_file: bool

    @property
    def key(self) -> str:
        """What WebDataset readers put into one sample: the path up to the first dot of the name."""
        folder, slash, name = self.name.rpartition("/")
        return f"{folder}{slash}{name.partition('.')[0]}"

    @property
    def extension(self) -> str:
        """All behind that dot, in small letters."""
        return self.name.rpartition("/")[2].partition(".")[2].lower()

    @property
    def is_image(self) -> bool:
        """Whether its name says so; its bytes are looked at later."""
        return found_at.is_image(self.extension)


def containers(settings: Settings) -> list[ObjectInfo]:
    """Return the tars; what one holds is read only where its etag is new.

    Raises:
        StorageError: the tars are not there or may not be listed.
        SettingsError: `url` names an object that does not end in `.tar`.
    """
    return found_at.archives(settings.url, ".tar", leave_out=settings.leave_out)


def samples(settings: Settings) -> Iterator[Sample]:
    """Yield every image member once, sorted by URI (`{tar}#{member}`, percent-encoded).

    A member is an image by its extension; in a sample without one, every member that is no caption
    file is taken, so that nothing is left out unseen. Hidden names and `__x__` are not looked at. A
    sample's `.txt` (or else `.caption`) and `.json` ride with each of its images.

    Raises:
        StorageError: the tars are not there or may not be read.
        SettingsError: `url` names an object that does not end in `.tar`.
    """
    for found in ahead.mapped(members, containers(settings), threads=storage.IN_FLIGHT):
        yield from found


def members(tar: ObjectInfo) -> list[Sample]:
    """Return the samples of one tar, sorted by URI; a refused tar is one that is no image."""
    try:
        groups = _groups(_members(tar))
    except (_TarError, NotFoundError) as error:
        return found_at.refused(tar, error)
    found = [sample for group in groups.values() for sample in _of_group(group, tar)]
    return sorted(found, key=lambda sample: sample.source_uri)


def texts(tar: ObjectInfo) -> Iterator[tuple[list[str], list[tuple[str, bytes]]]]:
    """Yield the caption files of each sample that has some, as (suffix, bytes).

    Before them the names of its files, first what they have in common. One pass over the tar.

    Raises:
        SettingsError: it is not a whole, plain tar.
        StorageError: the store refused.
    """
    window = _Window(tar)
    try:
        for key, group in groupby(_members(tar, window), key=lambda member: member.key):
            names, found = [key], []
            for member in group:
                if found_at.is_hidden(member.name):
                    continue
                names.append(member.name)
                suffix = dict(_TEXTS).get(member.extension)
                length = member.at.length or 0
                if suffix and member.is_file and length <= _MAX_TEXT:
                    found.append((suffix, window.read(member.at.offset, length)))
            if found:
                yield names, found
    except _TarError as error:
        raise SettingsError(f"The captions in {tar.url} cannot be read: {error}") from error


def _groups(members: Iterator[_Member]) -> dict[str, list[_Member]]:
    """Return the members by sample.

    Raises:
        _TarError: a name that is unsafe or there twice, or a sample that is torn apart.
    """
    groups: dict[str, list[_Member]] = {}
    last = None
    for member in members:
        parts = member.name.split("/")
        if ".." in parts or not parts[0]:
            raise _TarError(f"the name {member.name!r} leads out of it.")
        is_hidden = found_at.is_hidden(member.name)
        is_of_tool = len(parts) == 1 and re.fullmatch(r"__.*__", member.name, re.DOTALL)
        if is_hidden or is_of_tool or not (member.is_file or member.is_image):
            continue
        if member.key != last and member.key in groups:
            raise _TarError(f"the sample {member.key!r} lies in two places ({member.name!r}).")
        group = groups.setdefault(member.key, [])
        if any(member.name == other.name for other in group):
            raise _TarError(f"the name {member.name!r} is there twice.")
        group.append(member)
        last = member.key
    return groups


def _of_group(group: Sequence[_Member], tar: ObjectInfo) -> Iterator[Sample]:
    group = [member for member in group if not member.extension.startswith("clipcap.")]
    texts: dict[str, Sidecar] = {}
    for extension, suffix in _TEXTS:
        text = next((one for one in group if one.extension == extension and one.is_file), None)
        if text is not None and suffix not in texts:
            texts[suffix] = Sidecar(suffix, text.at)
    captions = [member for member in group if member.extension in dict(_TEXTS)]
    images = [member for member in group if member.is_image]
    others = [member for member in group if member not in captions]
    for member in images or others or captions:
        at = member.at
        yield Sample(
            source_uri=f"{tar.url}#{quote(member.name, safe='/', errors='surrogateescape')}",
            etag=f"{tar.etag}+{at.offset}+{at.length}",
            size_bytes=at.length or 0,
            at=at,
            modified_at=tar.modified_at,
            sidecars=tuple(texts.values()) if images or others else (),
        )


class _Window:
    """The part of a tar that was read last: headers of small members come many at a time."""

    def __init__(self, tar: ObjectInfo) -> None:
        self._tar = tar
        self._step = _REMOTE_WINDOW if storage.local_path(tar.url) is None else _LOCAL_WINDOW
        self._start, self._data = 0, b""

    def read(self, at: int, length: int) -> bytes:
        """Return `length` bytes, or fewer at the end of the tar."""
        end = min(at + length, self._tar.size_bytes)
        if end <= at:
            return b""
        if not self._start <= at <= end <= self._start + len(self._data):
            wanted = min(max(length, self._step), self._tar.size_bytes - at)
            self._start, self._data = at, storage.read_range(self._tar.url, at, wanted)
        return self._data[at - self._start : end - self._start]


def _members(tar: ObjectInfo, window: _Window | None = None) -> Iterator[_Member]:
    """Walk the headers of a ustar, GNU or pax tar; `window` is what reads it.

    The standard library's own walk ends without a word at a broken header, and in older versions a
    negative size makes it run for ever; so only its reading of a single header is used here.

    Raises:
        _TarError: it is not a whole, plain tar.
    """
    window, at = window or _Window(tar), 0
    told: dict[str, str] = {}
    while (block := window.read(at, _BLOCK)).strip(b"\0"):
        header = _header(block, at)
        is_note, is_file = header.type in _NOTES, header.type in _CONTIGUOUS
        size = header.size if is_note else _size(told.get("size"), header)
        has_data = is_note or is_file or header.type not in tarfile.SUPPORTED_TYPES
        start = at + _BLOCK
        if size < 0 or (has_data and start + size > tar.size_bytes):
            raise _TarError(f"{header.name!r} at byte {at} has {size} bytes, more than there are.")
        if is_note and size > _MAX_HEADER:
            raise _TarError(f"the header at byte {at} has {size} bytes.")
        if is_note:
            told |= _told(header, window.read(start, size))
        elif header.type == tarfile.GNUTYPE_SPARSE or "GNU.sparse.major" in told:
            raise _TarError(f"{header.name!r} is a sparse file.")
        else:
            own = Bytes(tar.url, start, size) if is_file else Bytes(tar.url, at, _BLOCK)
            if not header.isdir():
                yield _Member(told.get("path", header.name), own, is_file)
            told = {}
        at = start + (size + -size % _BLOCK if has_data else 0)
    _require_end(tar, window, at)


def _header(block: bytes, at: int) -> tarfile.TarInfo:
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        packed = " It is compressed; unpack it first." if block[:2] == b"\x1f\x8b" else ""
        raise _TarError(f"there is no tar header at byte {at} ({error}).{packed}") from error


def _size(told: str | None, header: tarfile.TarInfo) -> int:
    if told is None:
        return header.size
    if not re.fullmatch(r"[0-9]{1,15}", told, re.ASCII):
        raise _TarError(f"{header.name!r} says that its size is {told[:40]!r}.")
    return int(told)


def _told(header: tarfile.TarInfo, data: bytes) -> dict[str, str]:
    """Return what an extra header says of the member after it: its `path`, its `size`."""
    if header.type == tarfile.GNUTYPE_LONGNAME:
        return {"path": data.partition(b"\0")[0].decode("utf-8", "surrogateescape")}
    found: dict[str, str] = {}
    at = 0
    while header.type in _PAX and at < len(data):
        length = _LENGTH.match(data, at)
        end = at + int(length[1]) if length else 0
        if length is None or not length.end() < end <= len(data):
            raise _TarError(f"{header.name!r} is a broken pax header.")
        name, _, value = data[length.end() : end - 1].partition(b"=")
        found[name.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        at = end
    return found


def _require_end(tar: ObjectInfo, window: _Window, at: int) -> None:
    """Refuse a tar with more behind its end; one without two empty blocks is taken, and told."""
    rest = tar.size_bytes - at
    if tar.size_bytes == 0:
        raise _TarError("it has no bytes.")
    if rest > _MAX_PADDING or window.read(at, max(rest, 0)).strip(b"\0"):
        raise _TarError(f"it ends at byte {at}, but {rest} bytes follow.")
    if rest <= 0:
        _LOG.warning("The tar %s has no end mark: it may have been cut at a member.", tar.url)

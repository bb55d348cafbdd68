"""A zip archive in, its members out: by the directory at its end, and the bytes of each unpacked.

Plain and Zip64, with or without bytes before it. Names are UTF-8 where they say so, or can be; else
cp437.
"""

from __future__ import annotations

import re
import stat
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from clipcap import storage
from clipcap.errors import ClipcapError, ImageError
from clipcap.sample import Bytes
from clipcap.storage import ObjectInfo

_TAIL: Final = 2**18  # bytes read first: the end, and the directory of a few thousand members
_PIECE: Final = 2**24
_MAX_DIRECTORY: Final = 2**28  # two million members
_MAX_COMMENT: Final = 0xFFFF
_END: Final = struct.Struct("<4s4H2IH")
_LOCATOR: Final = struct.Struct("<4sIQI")
_END_64: Final = struct.Struct("<4sQ2H2I4Q")
_ENTRY: Final = struct.Struct("<4s6H3I5H2I")
_HEADER: Final = struct.Struct("<4s5H3I2H")
_DESCRIPTORS: Final = tuple(map(struct.Struct, ("<4xIII", "<4xIQQ", "<III", "<IQQ")))
_SIGNED: Final = b"PK\7\x08"
_AROUND: Final = 24 + 2 * 0xFFFF  # most bytes of a member besides its data and its header
_IN_EXTRA: Final = 0xFFFFFFFF  # of a size: it has 64 bits and stands elsewhere
_MAX_SIZE: Final = 2**62
_STORED, _DEFLATED = 0, 8
_IS_ENCRYPTED: Final = 0x2041
_HAS_DESCRIPTOR: Final = 0x08  # crc and sizes stand behind the data
_IS_UTF8: Final = 0x800
_DOS: Final = (0, 10)  # systems whose tools wrote `\` between folders
_UNIX: Final = (3, 19)
_ZIP64: Final = 1
_UNICODE_NAME: Final = 0x7075


class ZipError(ClipcapError):
    """This archive cannot be taken; the text completes "X is refused: "."""


@dataclass(frozen=True, slots=True)
class Member:
    """One file of an archive; a link, or another thing without bytes of its own, is no file."""

    name: str
    at: Bytes
    size_bytes: int
    is_file: bool


@dataclass(frozen=True, slots=True)
class _Entry:
    """One entry of the directory: `start` and `end` hold its header and data, at the least."""

    name: str
    start: int
    end: int
    size_bytes: int
    is_readable: bool
    mode: int


def members(archive: ObjectInfo) -> list[Member]:
    """Return the files of an archive, in the order in which they lie in it.

    Raises:
        ZipError: it is cut or damaged, or its members overlap.
        StorageError: the store refused.
    """
    entries, end = _directory(archive)
    entries.sort(key=lambda entry: (entry.start, entry.end))
    ends = [*(entry.start for entry in entries), end][1:]
    found = []
    for entry, next_start in zip(entries, ends, strict=True):
        if entry.end > next_start:
            raise ZipError(f"{entry.name!r} overlaps what comes after it.")
        if entry.name.endswith("/") or stat.S_ISDIR(entry.mode):
            continue
        is_file = stat.S_IFMT(entry.mode) in (0, stat.S_IFREG)
        length = min(next_start - entry.start, entry.end - entry.start + _AROUND)
        if not (is_file and entry.is_readable):
            length = _HEADER.size  # enough to see that it is not read
        at = Bytes(archive.url, entry.start, length, "zip" if is_file else "")
        found.append(Member(entry.name, at, entry.size_bytes if is_file else length, is_file))
    return found


def _directory(archive: ObjectInfo) -> tuple[list[_Entry], int]:
    """Return the entries, and where the directory begins."""
    if archive.size_bytes == 0:
        raise ZipError("it has no bytes.")
    tail_bytes = min(_TAIL, archive.size_bytes)
    tail_at = archive.size_bytes - tail_bytes
    tail = storage.read_range(archive.url, tail_at, tail_bytes)
    at = _end(tail)
    _, disk, first_disk, _, count, size, offset, _ = _END.unpack_from(tail, at)
    is_long = tail[max(at - _LOCATOR.size, 0) : at].startswith(b"PK\6\7")
    if is_long:
        at -= _LOCATOR.size + _END_64.size
        if at < 0 or not tail.startswith(b"PK\6\6", at):
            raise ZipError("the end of it is broken.")
        _, _, _, _, disk, first_disk, _, count, size, offset = _END_64.unpack_from(tail, at)
    if disk or first_disk:
        raise ZipError("it is one of several files that hold an archive together.")
    start = tail_at + at - size
    before = start - offset
    if before < 0 or size > _MAX_DIRECTORY:
        raise ZipError(f"its directory of {size} bytes is more than there is, or can be.")
    data = tail[start - tail_at : at] if start >= tail_at else _read(archive.url, start, size)
    entries = list(_entries(data, before))
    if len(entries) != count if is_long else len(entries) % 2**16 != count:
        raise ZipError(f"it says that it has {count} members, but has {len(entries)}.")
    return entries, start


def _end(tail: bytes) -> int:
    """Return where the end record is: its comment reaches to the last byte, else the file is cut.

    A looser search would find the end of an archive inside of this one.
    """
    at = len(tail)
    while (at := tail.rfind(b"PK\5\6", 0, at)) >= 0 and len(tail) - at <= _END.size + _MAX_COMMENT:
        if at + _END.size <= len(tail):
            comment = _END.unpack_from(tail, at)[-1]
            if at + _END.size + comment == len(tail):
                return at
    raise ZipError("it has no end: it was cut, or is no zip archive.")


def _read(url: str, start: int, size: int) -> bytes:
    pieces = range(start, start + size, _PIECE)
    return b"".join(storage.read_range(url, at, min(_PIECE, start + size - at)) for at in pieces)


def _entries(data: bytes, before: int) -> Iterator[_Entry]:
    at = 0
    while at < len(data):
        if len(data) - at < _ENTRY.size or not data.startswith(b"PK\1\2", at):
            raise ZipError(f"its directory is broken at byte {at}.")
        fields = _ENTRY.unpack_from(data, at)
        _, made_by, _, flags, method, _, _, _, packed_bytes, size, *lengths = fields[:13]
        name_end = at + _ENTRY.size + lengths[0]
        extra_end = name_end + lengths[1]
        extra = dict(_extra(data[name_end:extra_end]))
        raw = data[at + _ENTRY.size : name_end]
        at = extra_end + lengths[2]
        if at > len(data):
            raise ZipError("its directory is cut.")
        name = _name(raw, extra, is_utf8=bool(flags & _IS_UTF8), system=made_by >> 8)
        sizes = _sizes([size, packed_bytes, fields[-1]], extra.get(_ZIP64, b""), name)
        start = before + sizes[2]
        yield _Entry(
            name=name,
            start=start,
            end=start + _HEADER.size + len(raw) + sizes[1],
            size_bytes=sizes[0],
            is_readable=method in (_STORED, _DEFLATED) and not flags & _IS_ENCRYPTED,
            mode=fields[-2] >> 16 if made_by >> 8 in _UNIX else 0,
        )


def _extra(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 4 <= len(data):
        kind, length = struct.unpack_from("<HH", data, at)
        yield kind, data[at + 4 : at + 4 + length]
        at += 4 + length


def _sizes(found: list[int], long: bytes, name: str) -> list[int]:
    """Return size, packed size and offset; those of 64 bits stand in an extra field, in order."""
    for which, value in enumerate(found):
        if value == _IN_EXTRA:
            if len(long) < 8:
                raise ZipError(f"the size of {name!r} is missing.")
            found[which], long = int.from_bytes(long[:8], "little"), long[8:]
    if max(found) > _MAX_SIZE:
        raise ZipError(f"{name!r} says that it has {max(found)} bytes.")
    return found


def _name(raw: bytes, extra: dict[int, bytes], *, is_utf8: bool, system: int) -> str:
    """Return a member's name.

    Raises:
        ZipError: it leads out of the archive, or is none.
    """
    told = extra.get(_UNICODE_NAME, b"")
    if told[1:5] == zlib.crc32(raw).to_bytes(4, "little"):
        raw, is_utf8 = told[5:], True
    try:
        name = raw.decode("utf-8", "surrogateescape" if is_utf8 else "strict")
    except UnicodeDecodeError:
        name = raw.decode("cp437")
    name = name.replace("\\", "/") if system in _DOS else name
    parts = name.split("/")
    if ".." in parts or not parts[0] or "\0" in name or re.match("[A-Za-z]:/", name):
        raise ZipError(f"the name {name!r} leads out of it.")
    return name


def unzipped(data: bytes, most: int) -> bytes:
    """Return the bytes of a zip member, at most `most`; `data` begins at its header.

    Raises:
        ImageError: it is encrypted or of another method, damaged, or longer.
    """
    if len(data) < _HEADER.size or not data.startswith(b"PK\3\4"):
        raise ImageError("truncated", "There is no header of a zip member.")
    _, _, flags, method, _, _, crc, _, size, name, extra = _HEADER.unpack_from(data)
    if flags & _IS_ENCRYPTED or method not in (_STORED, _DEFLATED):
        what = "encrypted" if flags & _IS_ENCRYPTED else f"packed by method {method}"
        raise ImageError("unsupported_format", f"The zip member is {what}; repack it by deflate.")
    start = _HEADER.size + name + extra
    if method == _DEFLATED:
        found, rest = _inflated(data[start:], most)
    elif flags & _HAS_DESCRIPTOR:
        found, rest = _up_to_descriptor(data[start:])
    else:
        size = size if size != _IN_EXTRA else _long_size(data[start - extra : start])
        found, rest = data[start : start + size], b""
    if flags & _HAS_DESCRIPTOR:
        crc = int.from_bytes(rest[4:8] if rest.startswith(_SIGNED) else rest[:4], "little")
    if len(found) > most:
        raise ImageError("decompression_bomb", f"The zip member has more than {most} bytes.")
    if zlib.crc32(found) != crc:
        raise ImageError("decode_failed", "The zip member is cut, or its checksum is wrong.")
    return found


def _inflated(packed: bytes, most: int) -> tuple[bytes, bytes]:
    """Return the bytes, one more than `most` at the most, and what lies behind their end."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        found = inflater.decompress(packed, most + 1)
    except zlib.error as error:
        raise ImageError("decode_failed", f"The zip member: {error}.") from error
    if len(found) <= most and not inflater.eof:
        raise ImageError("truncated", "The zip member is cut.")
    return found, inflater.unused_data


def _up_to_descriptor(data: bytes) -> tuple[bytes, bytes]:
    """Return stored bytes whose size is only said behind them, and what lies there."""
    for form in _DESCRIPTORS:
        end = len(data) - form.size
        if end >= 0 and form.unpack_from(data, end)[1:] == (end, end):
            return data[:end], data[end:]
    raise ImageError("decode_failed", "The zip member does not say where it ends.")


def _long_size(extra: bytes) -> int:
    return int.from_bytes(dict(_extra(extra)).get(_ZIP64, b"")[:8], "little")

"""Samples' bytes in, one WebDataset tar out, the same bytes for the same input; and members back.

Headers are packed by hand: 4 microseconds a member against 47 of webdataset's writer, whose tars
also differ from run to run (modification time) and whose exit finishes a half-written tar.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from clipcap.errors import SettingsError
from clipcap.keys import is_key

BLOCK: Final = 512
END: Final = bytes(2 * BLOCK)
"""What every tar ends with."""
_NAME_LENGTH: Final = 100
_FILE: Final = b"0"
_EMPTIED: Final = "__forgotten_"
_OCTAL_LIMIT: Final = 8**11  # a ustar size field has eleven octal digits


@dataclass(frozen=True, slots=True)
class Member:
    """One file in a tar: `key.extension`, where its bytes start, and how many there are."""

    name: str
    offset: int
    length: int


def pack(files: Sequence[tuple[str, str, bytes]]) -> tuple[bytes, list[Member]]:
    """Return a tar as one piece, and its members; see `parts`."""
    pieces, members = parts(files)
    return b"".join(pieces), members


def parts(files: Sequence[tuple[str, str, bytes]]) -> tuple[list[bytes], list[Member]]:
    """Return a tar of `(key, extension, bytes)`, in order of key, then extension; and its members.

    The pieces are to be written one behind the other; the files among them are not copied.

    Raises:
        SettingsError: a key with other signs than letters, digits, `_` and `-`, or a name twice.
    """
    pieces: list[bytes] = []
    members: list[Member] = []
    at = 0
    for key, extension, data in sorted(files, key=lambda file: (file[0], file[1])):
        name = f"{key}.{extension}"
        if not is_key(key):
            raise SettingsError(
                f"`key` must be letters, digits, `_` or `-`, but is {key!r} instead."
            )
        if members and members[-1].name == name:
            raise SettingsError(f"A tar must hold each name once, but holds {name!r} twice.")
        padding = bytes(-len(data) % BLOCK)
        pieces += (header(name, len(data)), data, padding)
        members.append(Member(name, at + BLOCK, len(data)))
        at += BLOCK + len(data) + len(padding)
    return [*pieces, END], members


def header(name: str, size: int) -> bytes:
    """Return one ustar header: owner 0, time 0, mode 0644."""
    encoded = name.encode("ascii")
    if len(encoded) > _NAME_LENGTH or size >= _OCTAL_LIMIT:
        raise SettingsError(
            f"A tar member must have a short name and under 8 GiB, but is {name!r}."
        )
    header = bytearray(BLOCK)
    header[0 : len(encoded)] = encoded
    header[100:108] = b"0000644\0"
    header[108:116] = header[116:124] = b"0000000\0"
    header[124:136] = b"%011o\0" % size
    header[136:148] = b"00000000000\0"
    header[148:156] = b"        "
    header[156:157] = _FILE
    header[257:265] = b"ustar\x0000"
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def members(tar: bytes) -> Iterator[Member]:
    """Yield the members of a tar that `pack` made, without copying their bytes.

    Raises:
        SettingsError: the tar is cut or not of this form.
    """
    at = 0
    while at + BLOCK <= len(tar) and tar[at] != 0:
        name, length = named(tar[at : at + BLOCK], at)
        if at + BLOCK + length > len(tar):
            break
        yield Member(name, at + BLOCK, length)
        at += BLOCK + length + (-length % BLOCK)
    if tar[at:] != END:
        raise SettingsError(
            f"A tar must end with two empty blocks, but this one ends at byte {at}."
        )


def kept(chunks: Iterable[bytes], keys: Collection[str]) -> Iterator[tuple[Member, bytes]]:
    """Yield the members of some keys, each with its whole block: header, bytes and padding.

    All else is passed over: members of other keys, comments, what stands behind the end.

    Args:
        chunks: A tar, piece by piece; one piece is held at a time.
        keys: The keys that are wanted.

    Raises:
        SettingsError: the tar is cut, or not of the form that `pack` writes.
    """
    tape, at = _Tape(chunks), 0
    while (header := tape.take(BLOCK))[0] != 0:
        try:
            name, size = header[:_NAME_LENGTH].rstrip(b"\0").decode(), int(header[124:135], 8)
        except ValueError as error:
            raise SettingsError(f"The tar header at byte {at} is not one of ours.") from error
        length = size + (-size % BLOCK)
        if header[156:157] == _FILE and name.partition(".")[0] in keys:
            yield Member(name, at + BLOCK, size), tape.take(length, header)
        else:
            tape.skip(length)
        at += BLOCK + length


class _Tape:
    """Bytes that come in pieces, read from the start to the end."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._piece = memoryview(b"")

    def take(self, count: int, before: bytes = b"") -> bytes:
        """Return the next bytes, behind those that were taken before."""
        return b"".join((before, *self._pieces(count)))

    def skip(self, count: int) -> None:
        """Pass over the next bytes."""
        for _ in self._pieces(count):
            pass

    def _pieces(self, count: int) -> Iterator[memoryview]:
        while count:
            if not self._piece:
                try:
                    self._piece = memoryview(next(self._chunks))
                except StopIteration:
                    raise SettingsError(
                        "A tar must end with two empty blocks, but is cut."
                    ) from None
            piece, self._piece = self._piece[:count], self._piece[count:]
            count -= len(piece)
            yield piece


def joined(blocks: Iterable[tuple[Member, bytes]]) -> tuple[list[bytes], dict[str, Member]]:
    """Return blocks of `kept` as one tar, in order of key, then extension; its members by name.

    The pieces are to be written one behind the other.
    """
    pieces: list[bytes] = []
    members: dict[str, Member] = {}
    at = 0
    for member, block in sorted(blocks, key=lambda one: one[0].name.split(".", 1)):
        members[member.name] = Member(member.name, at + BLOCK, member.length)
        pieces.append(block)
        at += len(block)
    return [*pieces, END], members


def named(block: bytes, at: int) -> tuple[str, int]:
    """Return the name and length in a header, if every byte of it is as we write it.

    Raises:
        SettingsError: it is another one.
    """
    try:
        name, length = block[:_NAME_LENGTH].rstrip(b"\0").decode("ascii"), int(block[124:135], 8)
        if length >= 0 and block == header(name, length):
            return name, length
    except ValueError as error:
        raise SettingsError(f"The tar header at byte {at} is not one of ours: {error}.") from error
    raise SettingsError(f"The tar header at byte {at} is not one of ours.")


def emptied(tar: bytes, is_dead: Callable[[Member], bool]) -> bytes | None:
    """Return a tar of `pack` with zeros in the place of its dead members; None: none is dead.

    All others stay where they are. What is left of a dead one has a name that WebDataset readers
    pass over (`__forgotten_512__`); to all other readers it is a file of zeros.

    Raises:
        SettingsError: the tar is cut or not of this form.
    """
    dead = [found for found in members(tar) if is_dead(found)]
    if not dead:
        return None
    data = bytearray(tar)
    for found in dead:
        at = found.offset - BLOCK
        data[at : found.offset] = header(f"{_EMPTIED}{at}__", found.length)
        data[found.offset : found.offset + found.length] = bytes(found.length)
    return bytes(data)


def is_emptied(member: Member) -> bool:
    """Tell whether a member is what `emptied` leaves of one."""
    return member.name.startswith(_EMPTIED)

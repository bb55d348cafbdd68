"""A damaged tar and its manifest in; the tar as far as it can be read, and what is lost, out.

No image moves: what is good stays where the manifest says. What lies between images and cannot be
read becomes a member that WebDataset readers pass over.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

from clipcap import shards
from clipcap.errors import SettingsError
from clipcap.shards import BLOCK

LOST: Final = "__lost__/bytes"
"""Name of a member that stands for bytes nobody can read; `webdataset` skips names of this form."""
COLUMNS: Final = ["image_id", "member", "member_offset", "member_bytes", "content_sha256"]


def mended(data: bytes, rows: Sequence[Mapping[str, Any]]) -> tuple[bytes, set[str]]:
    """Return the tar as it should be, and the ids of the images whose bytes are lost.

    Args:
        data: The bytes that are there.
        rows: `COLUMNS` of every live image.
    """
    good = [row for row in rows if _is_good(data, row)]
    lost = {row["image_id"] for row in rows} - {row["image_id"] for row in good}
    if not good:
        return data, lost
    return (data if _is_whole(data, good) else _rebuilt(data, good)), lost


def _is_good(data: bytes, row: Mapping[str, Any]) -> bool:
    at, length = row["member_offset"], row["member_bytes"]
    found = memoryview(data)[at : at + length]
    is_there = at >= BLOCK and at % BLOCK == 0 and len(found) == length
    return bool(is_there and hashlib.sha256(found).hexdigest() == row["content_sha256"])


def _is_whole(data: bytes, good: Sequence[Mapping[str, Any]]) -> bool:
    """Tell whether a tar can be read to its end, with every good image where it must be."""
    try:
        packed = {found.name: (found.offset, found.length) for found in shards.members(data)}
    except (SettingsError, ValueError):
        return False
    return all(
        packed.get(row["member"]) == (row["member_offset"], row["member_bytes"]) for row in good
    )


def _rebuilt(data: bytes, good: Sequence[Mapping[str, Any]]) -> bytes:
    known = {row["member_offset"] - BLOCK: row for row in good}
    pieces: list[bytes] = []
    at = 0
    while (rest := [start for start in known if start >= at]) or at + BLOCK <= len(data):
        next_known = min(rest, default=len(data))
        found = (
            (known[at]["member"], known[at]["member_bytes"])
            if at in known
            else _named(data[at : at + BLOCK], at)
        )
        end = at + BLOCK + -(-found[1] // BLOCK) * BLOCK if found else 0
        if found is None or (at not in known and end > next_known):
            if not rest:
                break  # the end, or nothing that could be read
            found, end = (LOST, next_known - at - BLOCK), next_known
        body = data[at + BLOCK : at + BLOCK + found[1]]
        pieces += (shards.header(*found), body, bytes(end - at - BLOCK - len(body)))
        at = end
    return b"".join((*pieces, shards.END))


def _named(block: bytes, at: int) -> tuple[str, int] | None:
    try:
        return shards.named(block, at)
    except SettingsError:
        return None

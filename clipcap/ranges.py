"""Where images lie in an object in, the ranges of it that are read in one request each out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

MOST: Final = 8 * 2**20
"""Bytes of one request to a store, unless a single image has more."""
_GAP: Final = 2**16  # bytes between two images that are read along: a request costs more


def runs(places: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield the first and the next-to-last byte of what is read in one request."""
    start, end = -1, -1
    for offset, length in places:
        if start >= 0 and offset - end <= _GAP and offset + length - start <= MOST:
            end = max(end, offset + length)
            continue
        if start >= 0:
            yield start, end
        start, end = offset, offset + length
    if start >= 0:
        yield start, end

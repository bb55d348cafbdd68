"""Samples of a listing in, those whose bytes lie near each other out: one request reads them all.

The members of a tar are most often read one after the other; a request for each would wait for the
store as often as there are images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from clipcap import storage
from clipcap.errors import StorageError
from clipcap.packed import Reader
from clipcap.sample import Bytes, Sample
from clipcap.storage import Part

MOST: Final = 4 * 2**20
"""Bytes of one request, unless one image has more: takes a store about as long as it waits."""
_GAP: Final = 2**17  # bytes that nobody wants and that are read along: less than a request costs


@dataclass(frozen=True, slots=True)
class Span:
    """Some samples, by their place in what was given; no `url`: one, that is read by itself."""

    samples: tuple[int, ...]
    url: str = ""
    start: int = 0
    end: int = 0


def spans(samples: Sequence[Sample], most: int) -> Iterator[Span]:
    """Yield every sample in one span; ranges of one object that lie near each other in the same.

    What has more than `most` bytes is left by itself: it is not going to be read.
    """
    near: list[tuple[str, int, int, int]] = []
    for number, sample in enumerate(samples):
        start, end = _extent(sample)
        if end - start > MOST or not start < end or sample.size_bytes > most:
            yield Span((number,))
        else:
            near.append((sample.at.url, start, end, number))
    held: list[int] = []
    last = ("", 0, 0)
    for url, start, end, number in sorted(near):
        joins = url == last[0] and start <= last[2] + _GAP and end - last[1] <= MOST
        if held and not joins:
            yield Span(tuple(held), *last)
            held = []
        last = (url, last[1], max(last[2], end)) if held else (url, start, end)
        held.append(number)
    if held:
        yield Span(tuple(held), *last)


def _extent(sample: Sample) -> tuple[int, int]:
    """Return where the plain bytes of an image and of its captions begin and end; (0, 0): nowhere.

    Those of a whole object are no range that others could lie beside.
    """
    parts = [sample.at, *(sidecar.at for sidecar in sample.sidecars)]
    inside = [at for at in parts if at.url == sample.at.url and not at.form and at.length]
    if sample.at not in inside:
        return 0, 0
    ends = (at.offset + (at.length or 0) for at in inside)
    return min(at.offset for at in inside), max(ends)


class Held(Reader):
    """Reads what lies in a span out of one answer of the store; for one thread."""

    def __init__(self, span: Span) -> None:
        super().__init__()
        self._span = span
        self._answer: Part | StorageError | None = None

    def _part(self, at: Bytes) -> Part:
        span = self._span
        end = at.offset + (at.length or 0)
        if (
            at.url != span.url
            or at.length is None
            or not span.start <= at.offset <= end <= span.end
        ):
            return super()._part(at)
        whole = self._whole()
        data = whole.data[at.offset - span.start : end - span.start]
        return Part(data, whole.size_bytes, whole.etag)

    def _whole(self) -> Part:
        """Ask the store once, whatever it says."""
        if self._answer is None:
            span = self._span
            try:
                self._answer = storage.read_part(span.url, span.start, span.end - span.start)
            except StorageError as error:
                self._answer = error
        if isinstance(self._answer, StorageError):
            raise self._answer
        return self._answer

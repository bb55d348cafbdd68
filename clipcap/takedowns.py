"""An output and words in; what is to be taken out of it, written down so that it stays out, out.

A journal has the names of the images until nothing is left of them; the record keeps them out. Who
writes a manifest looks at the records after that; who writes a record looks at all manifests after
that. So one of the two sees an image that both are about.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from clipcap import forgotten, keys, targets
from clipcap.errors import SettingsError
from clipcap.forgotten import Image, Journal, Record
from clipcap.targets import Found, Wanted
from clipcap.traces import Needles


@dataclass(frozen=True, slots=True)
class Takedown:
    """Everything that one call takes out, and what shall be kept out."""

    out: str
    chosen: Wanted
    found: Found
    """Where the images lie now."""
    images: tuple[Image, ...]
    twins: tuple[Image, ...]
    record: Record
    journals: tuple[Journal, ...]
    """What killed runs were taking out: it goes too."""
    dates: frozenset[str]
    """Those that the images lie in, or lay in when they were looked for earlier."""

    @property
    def names(self) -> tuple[Image, ...]:
        """Everything that must not be said any more."""
        return (*self.images, *self.twins)

    @property
    def image_ids(self) -> tuple[str, ...]:
        """The images that were meant, once each."""
        return tuple(sorted({one.image_id for one in self.images}))

    @property
    def resumed(self) -> frozenset[str]:
        """The images, by `image_id`, that killed runs were taking out."""
        return frozenset(one.image_id for journal in self.journals for one in journal.images)

    @property
    def prefixes(self) -> tuple[str, ...]:
        """The prefixes that shall be kept out."""
        return tuple(self.record.prefixes)

    @property
    def needles(self) -> Needles:
        """What the output must not say any more."""
        return Needles(self.names, self.prefixes)


def asked(out: str, words: Sequence[str]) -> Takedown:
    """Return what words mean, and what killed runs left; no words mean all that is kept out.

    Raises:
        SettingsError: a key that no image has, or a word that names nothing.
    """
    kept = forgotten.load(out)
    chosen = targets.wanted(words)
    if not words:
        chosen = Wanted(kept.image_ids, frozenset(), kept.prefixes, kept.contents)
    found = _look(out, chosen, tuple(forgotten.unfinished(out)))
    targets.require_no_folder(out, chosen, found.found)
    known = set(map(keys.tail, kept.image_ids | found.resumed))
    missing = targets.unknown(chosen, found.found.images, known)
    if missing:
        raise SettingsError(
            f"No image of {out} has the key {', '.join(missing)}. Keys stand in the column `key` "
            "of the tables; an image that is not in the output is kept out by its URI."
        )
    return found


def begin(wanted: Takedown) -> tuple[Takedown, set[str]]:
    """Write down what is taken out and kept out; return all of it, and the URLs of its journals.

    A night that looked at the records before may have brought in more, with other contents: so the
    manifests are looked at again, until there is nothing new.
    """
    journals = {one.url for one in wanted.journals}
    while True:
        begun = forgotten.begin(wanted.out, wanted.names, wanted.record, wanted.dates)
        journals.add(begun.url)
        forgotten.keep_out(wanted.out, wanted.record)
        wanted = _again(wanted)
        now = (tuple(sorted(set(wanted.names))), wanted.record.name, wanted.dates)
        if now == (begun.images, begun.record.name, begun.dates):
            return wanted, journals


def _look(out: str, chosen: Wanted, journals: tuple[Journal, ...]) -> Takedown:
    """Look where the images lie that were chosen, and those that killed runs were taking out."""
    resumed = [one for journal in journals for one in journal.images]
    begun = frozenset(one.image_id for one in resumed)
    found = targets.find(out, replace(chosen, image_ids=chosen.image_ids | begun))
    images = _together(found.images, resumed, map(Image, chosen.image_ids))
    record = targets.record(chosen, found, [one.record for one in journals])
    dates = {dt for journal in journals for dt in journal.dates} | {one.dt for one in found.live}
    return Takedown(
        out, chosen, found, images, found.twins, record, journals, dates=frozenset(dates)
    )


def _again(last: Takedown) -> Takedown:
    """Look once more, also for other images with the contents that are kept out by now."""
    held = (last.record.images, last.record.prefixes)
    contents = {one for by_name in held for some in by_name.values() for one in some}
    chosen = replace(last.chosen, contents=last.chosen.contents | contents)
    now = _look(last.out, chosen, last.journals)
    return replace(
        now,
        images=_together(last.images, now.images),
        twins=_together(last.twins, now.twins),
        record=targets.record(chosen, now.found, [last.record]),
        dates=last.dates | now.dates,
    )


def _together(*some: Iterable[Image]) -> tuple[Image, ...]:
    """Return images in every version that is known of them, and bare ids of which none is."""
    found = {one for images in some for one in images}
    named = {one.image_id for one in found if one.key}
    return tuple(sorted(one for one in found if one.key or one.image_id not in named))

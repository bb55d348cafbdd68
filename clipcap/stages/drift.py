"""A night that is about to be published and the dates before it in; how far it is from them, out.

Nothing is computed anew: what is compared stands in tonight's tables and in one small object for
each earlier date.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

from clipcap import layout, stability
from clipcap.dates import Dates
from clipcap.errors import DriftError
from clipcap.outcomes import Night, StageName
from clipcap.stability import Drift, DriftSettings, Measure
from clipcap.summaries import Cloud, Source, Summary, sources_of

log = logging.getLogger(__name__)

_STAGES: Final[tuple[StageName, ...]] = ("embed", "label")
_LOOKED_UP: Final = 3  # footers in which a table's recipe is looked for
_SHOWN: Final = 3
_ACCEPT: Final = (
    "If this is right, run again with --accept-drift: this-night (such images will not come "
    "again), or from-now-on (they will: later nights are compared with this one)."
)


def compare(night: Night, *, settings: DriftSettings) -> Drift:
    """Return how the images that readers were not told of yet differ from those of earlier dates.

    What it finds out of a night that may be published is kept for the nights to come. The canaries
    of the night, which were looked at before, stay in.

    Raises:
        StorageError: tables cannot be read.
    """
    sources = _sources(night)
    dates = Dates(night.run.out, sources)
    tonight, before = dates.tonight(), dates.before(settings.nights, night.run.dt)
    now, then = (sum(some, Summary()) for some in (tonight.values(), before))
    found = Drift(
        images=now.taken,
        before=then.taken,
        nights=len(before),
        measures=tuple(_measures(now, then, sources, settings)),
        canaries=night.drift.canaries if night.drift else (),
    )
    if found.over and (accepted := settings.accept or dates.accepted()):
        found = replace(found, accepted=accepted, measures=tuple(map(_allowed, found.measures)))
    for one in found.over:
        log.warning("drift: %s.", sentence(one))
    if found.level != "stop":
        dates.keep(tonight, found.accepted)
    return found


def _allowed(measure: Measure) -> Measure:
    return replace(measure, level="warn") if measure.level == "stop" else measure


def _sources(night: Night) -> list[Source]:
    """Return the tables by tonight's model and label sets."""
    folders: dict[str, tuple[str, list[str]]] = {}
    for stage in _STAGES:
        for one in night.of(stage):
            _, urls = folders.setdefault(layout.folder_of(one.url), (one.of, []))
            if len(urls) < _LOOKED_UP:
                urls.append(one.url)
    return list(sources_of(folders))


def _measures(
    now: Summary, then: Summary, sources: Sequence[Source], settings: DriftSettings
) -> Iterator[Measure]:
    """Yield every measure of which there are enough images, tonight and before."""
    least = settings.min_images
    for source in sources:
        if source.is_labels:
            mix, mix_then = (Counter(one.mixes.get(source.recipe, {})) for one in (now, then))
            if min(mix.total(), mix_then.total()) >= least:
                yield from stability.label_mix(source.name, mix, mix_then, settings)
        else:
            cloud, cloud_then = (one.clouds.get(source.recipe, Cloud()) for one in (now, then))
            if min(cloud.images, cloud_then.images) >= least:
                yield from embeddings(source.name, cloud, cloud_then, settings)
    rejects, rejects_then = Counter(now.rejects), Counter(then.rejects)
    if min(now.taken + rejects.total(), then.taken + rejects_then.total()) >= least:
        taken = (now.taken, then.taken)
        yield stability.reject_rate(rejects, rejects_then, taken, settings.rejects)


def embeddings(name: str, now: Cloud, then: Cloud, settings: DriftSettings) -> Iterator[Measure]:
    """Yield how far the mean, the spread and the lengths of embeddings are from what they were.

    What chance gives is that of the widest case, all the spread in one direction: there squared
    distances have a standard deviation of 1.41 times their mean.
    """
    chance = stability.apart(now.images, then.images)
    moved = math.dist(now.mean, then.mean) / math.sqrt(max(then.spread, 1e-9))
    wider = abs(math.log(max(now.spread, 1e-9) / max(then.spread, 1e-9)))
    longer = abs(now.norm - then.norm) / max(then.norm_deviation, 1e-6 * then.norm)
    spreads, norms = (now.spread, then.spread), (now.norm, then.norm)
    judged = stability.judged
    yield judged("embedding mean", name, (moved, chance), settings.embedding_mean)
    yield judged(
        "embedding spread", name, (wider, math.sqrt(2) * chance), settings.embedding_spread, spreads
    )
    yield judged("embedding norm", name, (longer, chance), settings.embedding_norm, norms)


def sentence(one: Measure) -> str:
    """Return a measure in words."""
    of = f" of {one.of}" if one.of else ""
    limit = "" if one.limit is None else f", {one.level} at {one.limit:g}"
    parts = ", ".join(
        f"{part.name or 'none of these'} {part.now:.0%} (before {part.before:.0%})"
        for part in one.parts[:_SHOWN]
    )
    shares = "" if one.now is None or parts else f"{one.now:.3g} (before {one.before:.3g})"
    more = parts or shares
    return f"{one.name}{of} {one.value:.2f}{limit}{f': {more}' if more else ''}"


def require_alike(found: Drift) -> None:
    """Do nothing where a night may be published.

    Raises:
        DriftError: it differs too much from those before it.
    """
    stopped = [sentence(one) for one in found.measures if one.level == "stop"]
    if stopped:
        lines = "\n  ".join(stopped)
        raise DriftError(
            f"Stopped: the {found.images:,} new images differ from the {found.before:,} of "
            f"{found.nights} earlier nights:\n  {lines}\n"
            "They are embedded, captioned and labelled, but not published; the earlier night "
            f"stands. {_ACCEPT} Or allow more (`drift` in a settings file)."
        )

"""An output in; what each of its dates took in, and what tonight would add to them, out.

One small object for each date, so that no night reads the tables of earlier ones. It is derived:
one that is missing, broken, or lacks a published shard or a table of tonight's recipe is made anew
from the tables.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Final

from pydantic import ValidationError

from clipcap import ahead, gate, layout, manifest, storage
from clipcap.errors import NotFoundError
from clipcap.layout import Shard
from clipcap.stability import Accepted
from clipcap.summaries import VERSION, Source, Summary, summarised

log = logging.getLogger(__name__)

_AHEAD: Final = 8  # objects of earlier dates
_KEPT: Final = 400  # dates; older objects are removed


class Dates:
    """What is known of every date of an output, and what tonight would tell readers first."""

    def __init__(self, out: str, sources: Sequence[Source]) -> None:
        """Look which shards were published; those that were not are tonight's, whoever made them.

        So a night that was stopped is compared again with the next one, and never with itself.
        """
        self._out, self._sources = out, sources
        told = gate.published(out)
        self._new: dict[str, list[Shard]] = {}
        self._old: dict[str, list[Shard]] = {}
        for shard in manifest.shards(out):
            known = self._old if layout.manifest(out, shard) in told else self._new
            known.setdefault(shard.dt, []).append(shard)

    def tonight(self) -> dict[str, Summary]:
        """Return what was not published yet, by date, from the tables."""
        return {dt: summarised(self._out, new, self._sources) for dt, new in self._new.items()}

    def accepted(self) -> Accepted | None:
        """Return what was said of just these shards by a run that died before it published."""
        said: list[Accepted | None] = [None]
        for dt, new in self._new.items():
            found = _stored(self._out, dt)
            is_of_all = found is not None and {one.name for one in new} <= set(found.shards)
            said.append(found.accepted if found and is_of_all else None)
        return None if None in said[1:] else said[-1]

    def before(self, nights: int, last: str) -> list[Summary]:
        """Return the newest dates up to the last one, newest first, to an accepted beginning."""
        found: list[Summary] = []
        dates = sorted((dt for dt in self._old if dt <= last), reverse=True)
        for dt, stored in ahead.mapped(self._dated, dates, threads=_AHEAD):
            summary = self._whole(dt, stored)
            if summary.accepted == "this-night" or not summary.shards:
                continue
            found.append(summary)
            if len(found) == nights or summary.accepted == "from-now-on":
                break
        return found

    def _dated(self, dt: str) -> tuple[str, Summary | None]:
        return dt, _stored(self._out, dt)

    def _whole(self, dt: str, stored: Summary | None) -> Summary:
        """Return what the published shards of a date hold; what no object says is read anew."""
        old = self._old.get(dt, [])
        names = {shard.name for shard in old}
        new = {shard.name for shard in self._new.get(dt, [])}
        if stored is None or not names <= set(stored.shards) or new & set(stored.shards):
            made = summarised(self._out, old, self._sources)
            made = made.model_copy(update={"accepted": stored and stored.accepted})
        elif lacking := stored.lacking(self._sources):
            log.info("drift: the tables of %s are read for %d new recipes", dt, len(lacking))
            made = stored.with_sections(summarised(self._out, old, lacking))
        else:
            return stored
        if not new:
            self._write(dt, made)
        return made

    def keep(self, tonight: Mapping[str, Summary], accepted: Accepted | None) -> None:
        """Write down what the dates of tonight hold, and remove objects that are too old."""
        for dt, summary in tonight.items():
            whole = summary
            if dt in self._old:
                whole = self._whole(dt, _stored(self._out, dt)) + summary
            said = accepted or (whole.accepted if dt in self._old else None)
            self._write(dt, whole.model_copy(update={"accepted": said}))
        stored = [one.url for one in storage.listed(layout.drifts(self._out))]
        for url in stored[:-_KEPT]:
            storage.delete(url)

    def _write(self, dt: str, summary: Summary) -> None:
        storage.write(layout.drift(self._out, dt), (summary.model_dump_json() + "\n").encode())


def _stored(out: str, dt: str) -> Summary | None:
    """Return the object of a date; None where there is none that can be used."""
    try:
        found = Summary.model_validate_json(storage.read(layout.drift(out, dt)))
    except (NotFoundError, ValidationError):
        return None
    return found if found.version == VERSION else None

"""The objects of an output in; the steps that leave each image in one place only, out."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

from clipcap import layout, manifest
from clipcap.layout import Run, Shard
from clipcap.verify.findings import Problem
from clipcap.verify.mendings import Mending, Step, manifest_rows, reject_rows
from clipcap.verify.objects import opened
from clipcap.verify.places import Places


@dataclass(frozen=True, slots=True)
class _Standing:
    """Where an image stands."""

    is_reject: Literal[0, 1]
    shard: Shard
    etag: str
    source: str

    @property
    def order(self) -> tuple[int, int, Shard, str]:
        """Of two, the lesser stays: live before rejected, merged before what it was merged from."""
        return self.is_reject, -self.shard.generation, self.shard, self.etag


def steps(places: Places) -> Iterator[Step]:
    """Take images that are in two places out of one, by the rule of `clipcap.comparison`.

    Where versions differ, only a listing of the source can tell which one is right: the next run
    does that.
    """
    standing: dict[str, list[_Standing]] = defaultdict(list)
    for image_id, found in _all(places):
        standing[image_id].append(found)
    leaving: dict[Shard, tuple[set[str], set[str]]] = defaultdict(lambda: (set(), set()))
    for image_id, places_of in standing.items():
        keep, *others = sorted(places_of, key=lambda one: one.order)
        for one in others:
            if one.etag == keep.etag or one.source != keep.source:
                leaving[one.shard][one.is_reject].add(image_id)
    for shard, (live, rejects) in sorted(leaving.items()):
        path = places.below(layout.manifest(places.out, shard))
        why = f"images that stand in another place too go: {len(live | rejects)}"
        run = Run("repair", places.out, shard.dt)
        retire = partial(manifest.retire, shard, run=run, live=live, rejects=rejects)
        yield Mending(path, "write", why), retire


def _all(places: Places) -> Iterator[tuple[str, _Standing]]:
    """Yield every row of manifests and rejects that can be read."""
    for shard, urls in sorted(places.by_shard.items()):
        url = next(iter(urls.get("manifest", [])), None)
        one = None if url is None else opened(url, places.below(url), "manifest")
        if one is None or isinstance(one, Problem):
            continue
        rows = manifest_rows(one, shard.name)
        if rows is None:
            continue
        source = one.footer["source"]
        for row in rows.select(["image_id", "source_etag"]).to_pylist():
            yield row["image_id"], _Standing(0, shard, row["source_etag"] or "", source)
        for other in urls.get("rejects", []):
            yield from _rejected(other, shard, source, places)


def _rejected(
    url: str, shard: Shard, source: str, places: Places
) -> Iterator[tuple[str, _Standing]]:
    one = opened(url, places.below(url), "rejects")
    rows = None if isinstance(one, Problem) else reject_rows(one, shard.name)
    if rows is None:
        return
    for row in rows.select(["image_id", "extra_json"]).to_pylist():
        etag = json.loads(row["extra_json"] or "{}").get("source_etag", "")
        yield row["image_id"], _Standing(1, shard, etag, source)

"""An output in, all that readers see of it out, whichever shards it lies in; many nights."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from clipcap import layout, manifest, storage, tables
from clipcap.layout import PER_SHARD, Run
from clipcap.outcomes import Night
from tests.nights import Tiny, draw, night

PLACES = {"shard", "member_offset"}
"""Columns that say where an image lies."""
FIRST = date(2026, 10, 1)


def day(number: int) -> str:
    """Return the date of a night; the first is 0."""
    return (FIRST + timedelta(days=number)).isoformat()


def nights(source: Path, out: Path, tiny: Tiny, count: int, images: int = 2) -> None:
    """Run so many nights, with new images on each, some with captions; every third is no image."""
    for number in range(count):
        for one in range(images):
            path = source / f"night-{number:02d}-{one}.png"
            draw(path, number * images + one)
            if one:
                path.with_suffix(".txt").write_text(f"a thing {number}.")
        if number % 3 == 0:
            (source / f"broken-{number:02d}.jpg").write_bytes(b"no picture, but long enough")
        night(source, out, tiny, dt=day(number))


def a_run(out: Path | str, dt: str = "2026-12-01", name: str = "upkeep") -> Run:
    """Return a run over an output."""
    return Run(name, storage.canonical(str(out)), dt)


def seen(out: Path | str) -> dict[str, Counter[str]]:
    """Return every row of every table, by its folder, without places; and the bytes of images."""
    url = storage.canonical(str(out))
    found: dict[str, Counter[str]] = {}
    for name in PER_SHARD:
        for info in storage.listed(layout.table(url, name)):
            folder = layout.folder_of(info.url).removeprefix(url)
            rows = tables.read(info.url).to_pylist()
            found.setdefault(folder, Counter()).update(map(_text, rows))
    found["bytes"] = Counter(_text({"id": one, "data": data}) for one, data in images(url))
    return found


def images(out: str) -> Iterable[tuple[str, str]]:
    """Yield id and bytes of every live image, each by one ranged read."""
    for shard in manifest.shards(out):
        table = tables.read(layout.manifest(out, shard))
        url = manifest.tar_url(out, shard, tables.metadata(table))
        for row in table.to_pylist():
            data = storage.read_range(url, row["member_offset"], row["member_bytes"])
            yield row["image_id"], data.hex()


def _text(row: dict[str, Any]) -> str:
    return json.dumps({k: v for k, v in row.items() if k not in PLACES}, default=str)


def computed(done: Night) -> dict[str, int]:
    """Return how many rows each stage made in a night; those that made none are left out."""
    counts: Counter[str] = Counter()
    for outcome in done.outcomes:
        counts[outcome.stage] += outcome.computed
    return dict(+counts)


def told(out: Path | str) -> list[str]:
    """Return the URLs of all objects that the newest list names."""
    url = storage.canonical(str(out))
    latest = json.loads(storage.read(layout.latest(url)))
    listed = json.loads(storage.read(layout.run_manifest(url, latest["run_id"])))
    return [f"{url}/{one['url']}" for one in listed["objects"]]

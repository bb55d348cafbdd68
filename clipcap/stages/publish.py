"""A night's outcomes in, what readers see out: the list of every object, report, runs row, sinks.

Written last, in this order: runs and shard_runs, report, `_manifests/{run_id}.json`,
`_latest.json`, `_SUCCESS`. A run that lacks a shard does not publish; the earlier manifest stands.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import pyarrow as pa
from pydantic import Field

from clipcap import (
    commits,
    delta,
    front,
    gate,
    layout,
    manifest,
    plans,
    records,
    registry,
    report,
    rows,
    snapshots,
    storage,
    tables,
)
from clipcap.errors import ClipcapError
from clipcap.footers import Footers
from clipcap.layout import Run, Shard
from clipcap.outcomes import Night
from clipcap.settings import Settings

log = logging.getLogger(__name__)

_SINK_SCHEMA: Final = pa.schema(
    [
        *(tables.SCHEMAS["captions"].field(name) for name in ("image_id", "source_uri", "caption")),
        *(tables.SCHEMAS["captions"].field(name) for name in ("captioner_id", "clip_score")),
        pa.field("labels", tables.STRINGS),
    ]
)
_CHAINED: Final[tuple[layout.Table, ...]] = ("embeddings", "captions", "labels")


class PublishSettings(Settings):
    """What a night leaves beside the tables."""

    sinks: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Further places for captions: name of a file in `clipcap/sinks` to its settings."""
    report_images: int = Field(default=200, ge=0)
    """Most thumbnails in the report."""
    table_format: Literal["parquet", "delta"] = "parquet"
    """`delta` keeps a Delta log beside each table, too: the same files, in versions."""


@dataclass(frozen=True, slots=True)
class Published:
    """What a finished night shows."""

    run_id: str
    report_url: str
    manifest_url: str
    live: int
    objects: int
    seconds: float


def publish(night: Night, *, settings: PublishSettings) -> Published:
    """Check that every shard is whole, then tell readers of it.

    Raises:
        ClipcapError: a shard lacks a table that this night was to write; nothing is published.
    """
    began = time.time()
    run = night.run
    footers = Footers(run.out)
    members = _members(run.out, footers)
    sweep(footers, members, run=run)
    _require_whole(night, members, footers)
    _require_tars(run.out, footers)
    for name, options in settings.sinks.items():
        sink = registry.load("clipcap.sinks", name)
        sink.write(_captioned(night), sink.Settings(**options))
    front.write(run.out)
    seconds = (*night.seconds, ("publish", time.time() - began))
    page_url = layout.report(run)
    records.write(night, state="Completed", seconds=dict(seconds), report_uri=page_url)
    page = report.render(night, images=settings.report_images)
    storage.write(page_url, page.encode())
    listed = footers.entries()
    listing = snapshots.publish(run, listed)
    plans.clear(run)
    if settings.table_format == "delta":
        counts = {one["url"]: one["rows"] for one in listed if "rows" in one}
        delta.register(run.out, counts, run_id=run.run_id)
    count = sum(images for _, images in members.values())
    log.info("publish: %d live images in %d shards, %d objects", count, len(members), len(listed))
    return Published(
        run_id=run.run_id,
        report_url=page_url,
        manifest_url=listing,
        live=count,
        objects=len(listed),
        seconds=time.time() - began,
    )


def record_failure(night: Night, error: Exception) -> None:
    """Write the row of a run that did not finish; what it committed stays, nothing is published."""
    records.write(
        night,
        state="Failed",
        seconds=dict(night.seconds),
        error_message=storage.without_credentials(str(error))[:2000],
    )


def _members(out: str, footers: Footers) -> dict[Shard, tuple[str, int]]:
    """Return the digest of the live images of each shard that counts, and their number."""
    found = footers.of(layout.table(out, "manifest"))
    return {shard: (one.metadata["members"], one.rows) for shard, one in sorted(found.items())}


def sweep(footers: Footers, members: Mapping[Shard, tuple[str, int]], *, run: Run) -> int:
    """Bring every table of every model to the live images; return how many objects changed.

    Tonight's own tables are right already. Those of other models, captioners and label sets lose
    the rows of images that are gone, and the objects of shards that are gone.
    """
    out = run.out
    changed = 0
    for name in _CHAINED:
        ours = [
            info
            for info in manifest.objects(out, name)
            if layout.is_of_shard(info.url.removeprefix(f"{out}/"))
        ]
        for found in ours:
            if (shard := layout.shard_of(found.url)) not in members:
                changed += _dropped(found.url, shard, out)
        live = [found for found in ours if layout.shard_of(found.url) in members]
        for found, commit in footers.commits(live):
            shard = layout.shard_of(found.url)
            if commit is not None and commit.metadata.get("members") != members[shard][0]:
                changed += _prune(found.url, shard, members[shard][0], run=run)
    for found in storage.listed(layout.tars(out)):
        shard, is_ours = layout.shard_of(found.url), layout.is_of_shard(found.url[len(out) + 1 :])
        if is_ours and shard not in members and storage.is_left_over(found):
            changed += _dropped(found.url, shard, out)
    return changed


def bring_to_live(run: Run) -> int:
    """Bring every table of every model to the live images, as after some were taken out."""
    footers = Footers(run.out)
    return sweep(footers, _members(run.out, footers), run=run)


def list_anew(run: Run) -> None:
    """Bring the list of the newest whole run to objects that were changed since, or are gone.

    What came later stays unlisted. An output that was never published stays so.
    """
    told = snapshots.newest(run.out)
    if told is None:
        return
    standing = [one for one in Footers(run.out).entries() if one["url"] in told.objects]
    snapshots.publish(replace(run, dt=told.dt), standing)


def _dropped(url: str, shard: Shard, out: str) -> int:
    """Remove an object of a shard that is gone; one that another run made meanwhile stays."""
    if storage.info(layout.manifest(out, shard)) is not None:
        return 0
    storage.delete(url)
    return 1


def _prune(url: str, shard: Shard, members: str, *, run: Run) -> int:
    """Take the rows of dead images out of a table; return whether it was written.

    One that lacks live images, as a repair may leave it, must not say that it has them all.
    """
    commit = commits.find(url)
    if commit is None:
        return 0
    live = tables.read(layout.manifest(run.out, shard), columns=["image_id", "content_sha256"])
    table = tables.read(url)
    kept = rows.live_rows(table, live)
    if kept is not None and rows.missing(live, kept).num_rows:
        members = commit.metadata.get("members", "")
        if kept.num_rows == table.num_rows:
            return 0
    commits.republish(commit, commit.url, kept, members=members, run_id=run.run_id)
    return 1


def _require_whole(
    night: Night, members: Mapping[Shard, tuple[str, int]], footers: Footers
) -> None:
    for stage, name in (("embed", "embeddings"), ("caption", "captions"), ("label", "labels")):
        urls = [outcome.url for outcome in night.outcomes if outcome.stage == stage]
        for folder in {layout.folder_of(url) for url in urls}:
            found = footers.of(folder, members)
            for shard, (wanted, _) in members.items():
                one = found.get(shard)
                if one is None or one.metadata.get("members") != wanted:
                    url = layout.in_folder(folder, shard)
                    raise ClipcapError(
                        f"The shard {shard} lacks its {name} ({url}): this run does not publish, "
                        "and the earlier one stands. Run again; what is done is not done twice."
                    )


def _require_tars(out: str, footers: Footers) -> None:
    """Do nothing where every shard that counts has its tar, or one of the source."""
    there = {layout.shard_of(info.url) for info in storage.listed(layout.tars(out))}
    found = footers.of(layout.table(out, "manifest"))
    lost = [
        shard
        for shard, one in found.items()
        if one.rows
        and shard not in there
        and "tar" not in one.metadata
        and manifest.lacks_tar(out, shard)
    ]
    if lost:
        raise ClipcapError(
            f"{len(lost)} of {len(found)} shards lack their tar, such as "
            f"{layout.tar(out, min(lost))}: this run does not publish, and the earlier one stands. "
            f"Bring them back, or `clipcap verify {out} --repair`: then nights publish, and the "
            "next whole one reads those images from the source again."
        )


def _captioned(night: Night) -> pa.Table:
    """Return captions that readers were not told of yet, with accepted labels, for the sinks.

    A run that died before its sinks leaves its captions to the next one.
    """
    told = gate.published(night.run.out)
    parts = [_SINK_SCHEMA.empty_table()]
    for outcome in night.of("caption"):
        if told.get(outcome.url) == outcome.fingerprint:
            continue
        accepted = _accepted(night, outcome.shard)
        made = [
            row | {"labels": accepted.get(row["image_id"], [])}
            for row in tables.read(outcome.url).to_pylist()
        ]
        parts.append(tables.from_rows([_named(row) for row in made], _SINK_SCHEMA))
    return pa.concat_tables(parts)


def _named(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in _SINK_SCHEMA.names}


def _accepted(night: Night, shard: Shard) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for outcome in night.of("label"):
        if outcome.shard == shard:
            for row in tables.read(outcome.url, ["image_id", "label", "accepted"]).to_pylist():
                if row["accepted"]:
                    found.setdefault(row["image_id"], []).append(row["label"])
    return found

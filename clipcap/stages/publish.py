"""A night's outcomes in, what readers see out: the list of every object, report, runs row, sinks.

Written last, in this order: runs and shard_runs, report, `_manifests/{run_id}.json`,
`_latest.json`, `_SUCCESS`. A run that lacks a shard does not publish; the earlier manifest stands.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
from pydantic import Field

from clipcap import (
    commits,
    front,
    gate,
    layout,
    manifest,
    plans,
    records,
    registry,
    report,
    rows,
    storage,
    tables,
)
from clipcap.commits import Commit, Fingerprint
from clipcap.errors import ClipcapError, NotFoundError
from clipcap.layout import PER_SHARD, Run, Shard
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
    live = manifest.shards(run.out)
    members = {shard: _members(run.out, shard) for shard in live}
    sweep(run.out, members, run=run)
    _require_whole(night, members)
    for name, options in settings.sinks.items():
        sink = registry.load("clipcap.sinks", name)
        sink.write(_captioned(night), sink.Settings(**options))
    front.write(run.out)
    seconds = (*night.seconds, ("publish", time.time() - began))
    page_url = layout.report(run)
    records.write(night, state="Completed", seconds=dict(seconds), report_uri=page_url)
    page = report.render(night, images=settings.report_images)
    storage.write(page_url, page.encode())
    listed = _objects(run.out)
    listing = layout.run_manifest(run.out, run.run_id)
    _write_json(listing, {"run_id": run.run_id, "objects": listed})
    _write_json(
        layout.latest(run.out),
        {"run_id": run.run_id, "manifest": listing.removeprefix(f"{run.out}/"), "dt": run.dt},
    )
    storage.write(layout.success(run.out), b"")
    plans.clear(run)
    count = sum(images for _, images in members.values())
    log.info("publish: %d live images in %d shards, %d objects", count, len(live), len(listed))
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
        night, state="Failed", seconds=dict(night.seconds), error_message=str(error)[:2000]
    )


def _members(out: str, shard: Shard) -> tuple[str, int]:
    """Return the digest of a shard's live images, and their number."""
    found = commits.find(layout.manifest(out, shard))
    if found is None:
        raise NotFoundError(f"The manifest of shard {shard} was there a moment ago and is gone.")
    return found.metadata["members"], found.rows


def sweep(out: str, members: Mapping[Shard, tuple[str, int]], *, run: Run) -> int:
    """Bring every table of every model to the live images; return how many objects changed.

    Tonight's own tables are right already. Those of other models, captioners and label sets lose
    the rows of images that are gone, and the objects of shards that are gone.
    """
    changed = 0
    for name in _CHAINED:
        for found in storage.listed(layout.table(out, name)):
            shard = layout.shard_of(found.url)
            if shard not in members:
                changed += _dropped(found.url, shard, out)
                continue
            commit = commits.find(found.url)
            if commit is not None and commit.metadata.get("members") != members[shard][0]:
                _prune(commit, shard, members[shard][0], run=run)
                changed += 1
    for found in storage.listed(layout.tars(out)):
        shard = layout.shard_of(found.url)
        if shard not in members and storage.is_left_over(found):
            changed += _dropped(found.url, shard, out)
    return changed


def _dropped(url: str, shard: Shard, out: str) -> int:
    """Remove an object of a shard that is gone; one that another run made meanwhile stays."""
    if storage.info(layout.manifest(out, shard)) is not None:
        return 0
    storage.delete(url)
    return 1


def _prune(commit: Commit, shard: Shard, members: str, *, run: Run) -> None:
    live = tables.read(layout.manifest(run.out, shard), columns=["image_id", "content_sha256"])
    kept = rows.live_rows(tables.read(commit.url), live)
    signed = {
        name: text
        for name, text in commit.metadata.items()
        if name not in ("run_id", "fingerprint", "recipe", "members", "producer", "git_commit")
    }
    commits.publish(
        commit.url,
        kept,
        fingerprint=Fingerprint(commit.recipe, members, commit.metadata.get("review", "")),
        run_id=run.run_id,
        metadata=signed | {"members": members},
    )


def _require_whole(night: Night, members: Mapping[Shard, tuple[str, int]]) -> None:
    for stage, name in (("embed", "embeddings"), ("caption", "captions"), ("label", "labels")):
        urls = [outcome.url for outcome in night.outcomes if outcome.stage == stage]
        for folder in {layout.folder_of(url) for url in urls}:
            for shard, (wanted, _) in members.items():
                url = layout.in_folder(folder, shard)
                found = commits.find(url)
                if found is None or found.metadata.get("members") != wanted:
                    raise ClipcapError(
                        f"The shard {shard} lacks its {name} ({url}): this run does not publish, "
                        "and the earlier one stands. Run again; what is done is not done twice."
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


def _objects(out: str) -> list[dict[str, Any]]:
    """Return every object of every table, with etag, size, rows and fingerprint; then the tars.

    Beside a manifest stands the tar of the source that its images were left in.
    """
    listed = []
    for name in PER_SHARD:
        for found in storage.listed(layout.table(out, name)):
            commit = commits.find(found.url)
            if commit is not None:
                signed = {"rows": commit.rows, "fingerprint": commit.fingerprint}
                tar = manifest.source_tar(commit.metadata)
                listed.append(_object(found, out) | signed | (tar.footer if tar else {}))
    listed += [_object(found, out) for found in storage.listed(layout.tars(out))]
    return listed


def _object(found: storage.ObjectInfo, out: str) -> dict[str, Any]:
    url = found.url.removeprefix(f"{out}/")
    return {"url": url, "etag": found.etag, "size_bytes": found.size_bytes}


def _write_json(url: str, value: Any) -> None:  # noqa: ANN401 - any JSON value
    storage.write(url, (json.dumps(value, indent=1) + "\n").encode())

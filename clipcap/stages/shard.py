"""Source in, shards and manifests out: plan the night, write new shards, retire what is gone."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field, ValidationError

from clipcap import (
    intake,
    layout,
    listings,
    manifest,
    planning,
    plans,
    registry,
    shards,
    storage,
    tables,
)
from clipcap.errors import SettingsError
from clipcap.images import ImageSettings
from clipcap.intake import Refused, Taken
from clipcap.layout import Run, Shard
from clipcap.outcomes import Outcome, committed
from clipcap.planning import PackSettings
from clipcap.plans import Plan
from clipcap.sample import Sample
from clipcap.settings import Settings

log = logging.getLogger(__name__)

_TABLES = (".parquet", ".csv", ".tsv")
_EXAMPLES = 3


class ShardSettings(Settings):
    """Which images a night takes in, and how they are packed."""

    kind: Literal["auto", "folder", "table", "tars"] = "auto"
    """Kind of source; `auto`: by its ending (`.parquet`, `.csv`, `.tsv`: table; `.tar`: tars)."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Settings of the source file itself, such as `glob`, `sidecars` or `captions` of a folder."""
    images: ImageSettings = ImageSettings()
    """What counts as an image."""
    pack: PackSettings = PackSettings()
    """How many images go into one shard."""
    limit: int | None = Field(default=None, gt=0)
    """Read at most this many new or changed images; the others wait for another night."""


def plan(source: str, *, run: Run, settings: ShardSettings, write: bool = True) -> Plan:
    """List a source, compare it with the output, say what is to do; `write` it down for the tasks.

    Raises:
        StorageError: the source may not be listed.
        SettingsError: it is empty, or its settings are not known.
    """
    found = list(_samples(source, run=run, settings=settings, write=write))
    limits = settings.images.fingerprint()
    known = manifest.known(run.out, storage.canonical(source), limits=limits)
    compared = planning.compare(found, known, run=run)
    to_write = planning.shards_to_write(
        compared, run=run, pack=settings.pack, taken=known.shards, limit=settings.limit
    )
    if not write:
        return plans.summary(compared, to_write, source=storage.canonical(source))
    recover(run.out)
    return plans.write(compared, to_write, run=run, source=storage.canonical(source))


def _samples(source: str, *, run: Run, settings: ShardSettings, write: bool) -> Iterator[Sample]:
    kind = settings.kind if settings.kind != "auto" else _kind(source)
    module = registry.load("clipcap.sources", kind)
    options: dict[str, Any] = {"url": source, **settings.options}
    if "leave_out" in module.Settings.model_fields:
        options.setdefault("leave_out", run.out)
    try:
        chosen = module.Settings(**options)
    except ValidationError as error:
        problems = "; ".join(
            f"`{'.'.join(map(str, one['loc']))}`: {one['msg']}"
            for one in error.errors(include_input=False, include_url=False)
        )  # without what was given, which may be a key
        raise SettingsError(
            f"The settings of the source {kind!r} do not fit: {problems}."
        ) from None
    if hasattr(module, "containers"):
        return listings.samples(module, chosen, out=run.out, write=write)
    samples: Iterator[Sample] = module.samples(chosen)
    return samples


def _kind(source: str) -> str:
    if source.lower().endswith(_TABLES):
        return "table"
    return "tars" if source.lower().endswith(".tar") else "folder"


def recover(out: str) -> int:
    """Remove what a killed run left half done; return how many objects went.

    What another run may still be about to use stays until it is a day old.
    """
    orphans = manifest.orphan_rejects(out)
    for shard in orphans:
        storage.delete(layout.rejects(out, shard))
    removed = len(orphans) + plans.clear_left_over(out) + storage.remove_half_written(out)
    if removed or storage.listed(layout.plans(out)):
        log.info("an earlier run ended early: %d objects removed, resuming", removed)
    return removed


def shard(target: Shard, *, run: Run, settings: ShardSettings) -> Outcome:
    """Write one planned shard: tar, then rejects, then the manifest that makes both count."""
    started = time.time()
    todo, source = plans.read(run, target)
    found = intake.refuse_twins(intake.take_in(todo, settings.images))
    taken = [sample for sample in found if isinstance(sample, Taken)]
    refused = [sample for sample in found if isinstance(sample, Refused)]
    tar, members = shards.pack(intake.tar_files(taken))
    if taken:
        storage.write(layout.tar(run.out, target), tar)
    limits = settings.images.fingerprint()
    rejects = [
        intake.reject_row(sample, target, stage="shard", run=run, limits=limits)
        for sample in refused
    ]
    manifest.publish_rejects(rejects, target, run=run)
    rows = intake.manifest_rows(taken, members, target, run=run)
    table = tables.from_rows(rows, tables.SCHEMAS["manifest"])
    commit = manifest.publish(table, target, run=run, source=source)
    return committed(
        "shard",
        target,
        commit,
        state="written",
        started_at=started,
        computed=len(taken),
        rejected=len(refused),
        bytes_read=sum(len(data) for sample in taken for _, data in sample.files),
        bytes_written=len(tar) if taken else 0,
        reasons=tuple(Counter(sample.reason for sample in refused).most_common()),
        examples=tuple(
            f"{sample.todo.sample.source_uri} ({sample.reason})" for sample in refused[:_EXAMPLES]
        ),
    )


def retire(target: Shard, *, run: Run) -> Outcome:
    """Take images that are gone or replaced out of a shard's manifest and rejects."""
    started = time.time()
    live, rejects = plans.read_retirement(run, target)
    kept = manifest.retire(target, run=run, live=set(live), rejects=set(rejects))
    log.info("shard %s: %d images and %d rejects left it", target, len(live), len(rejects))
    return Outcome(
        stage="shard",
        shard=target,
        state="retired",
        rows=kept,
        url=layout.manifest(run.out, target),
        fingerprint="",
        started_at=started,
        duration_s=time.time() - started,
    )

"""Source in, shards and manifests out: plan the night, write new shards, retire what is gone."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from types import ModuleType
from typing import Any, Literal

import pyarrow as pa
from pydantic import Field, ValidationError

from clipcap import (
    asread,
    commits,
    contracts,
    forgotten,
    index,
    intake,
    layout,
    listings,
    manifest,
    planning,
    plans,
    registry,
    samples,
    scratch,
    scrubbing,
    shards,
    storage,
    tables,
)
from clipcap.commits import Commit
from clipcap.comparison import Asked, compare
from clipcap.errors import SettingsError
from clipcap.images import ImageSettings
from clipcap.intake import Refused, Taken
from clipcap.layout import Run, Shard
from clipcap.manifest import SourceTar
from clipcap.outcomes import Outcome, committed
from clipcap.planning import PackSettings, Todo
from clipcap.plans import Plan
from clipcap.scratch import ScratchSettings
from clipcap.settings import Settings, digest
from clipcap.shards import Member
from clipcap.workers import WorkerSettings

log = logging.getLogger(__name__)

_EXAMPLES = 3
_BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)  # a listing as old as that takes nothing away


class ShardSettings(Settings):
    """Which images a night takes in, and how they are packed."""

    kind: Literal["auto", "folder", "huggingface", "inventory", "table", "tars", "zips"] = "auto"
    """Kind of source; `auto`: by its ending (`.parquet`, `.csv`, `.tsv`: table; `.tar`: tars;
    `.zip`: zips; `.arrow` or a pattern of `.parquet`: huggingface; `manifest.json`: an S3
    inventory), else folder (a local one that `datasets` saved: huggingface)."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Settings of the source file itself, such as `glob`, `sidecars` or `captions` of a folder."""
    images: ImageSettings = ImageSettings()
    """What counts as an image."""
    pack: PackSettings = PackSettings()
    """How many images go into one shard."""
    resize_px: int | None = Field(default=None, ge=64)
    """Keep images at this shorter side, as JPEG without EXIF, where they are larger: decoding them
    for a model is then many times faster, and what it sees a little different. Not in place. What
    is transparent or has more than 8 bits stays as it is."""
    limit: int | None = Field(default=None, gt=0)
    """Read at most this many new or changed images; the others wait for another night."""
    only: str = ""
    """Look at nothing but this folder below the source, such as `2026/11`; whatever lies elsewhere
    stays as it is, and nothing leaves the output but what was replaced. For folders and buckets."""
    max_delete_rate: float = Field(default=0.5, ge=0, le=1)
    """Stop, with nothing changed, if the listing lacks a larger share of the output's images of the
    source (and more than 20): a mistyped glob looks like that. 1 allows everything."""
    decode: WorkerSettings = WorkerSettings()
    """The processes that decode, and what one image may take of them."""
    scratch: ScratchSettings = ScratchSettings()
    """What comparing the listing may take of the machine."""


def plan(source: str, *, run: Run, settings: ShardSettings, write: bool = True) -> Plan:
    """List a source, compare it with the output, say what is to do; `write` it down for the tasks.

    Raises:
        StorageError: the source may not be listed.
        SettingsError: it is empty, it lacks most of what the output holds, or its settings are not
            known.
    """
    module, chosen = _source(source, run=run, settings=settings)
    origin = listings.origin(module, chosen)
    with scratch.opened(settings.scratch) as place:
        kept_out = forgotten.load(run.out)
        listing = place.spool("listing", samples.SCHEMA)
        left = place.spool("left", pa.schema([samples.SCHEMA.field("source_uri")]))
        found = listings.batches(module, chosen, out=run.out, write=write, kept_out=kept_out)
        listing.extend(listings.without(found, kept_out, left) if kept_out else found)
        listing.close()
        left.close()
        if left.rows:
            log.info("%d listed images are kept out: they were forgotten", left.rows)
        known = index.load(run.out, place)
        asked = Asked(
            of=origin.url,
            dt=run.dt,
            limits=settings.images.fingerprint(),
            as_of=_BEGINNING if settings.only else origin.as_of,
            max_delete_rate=settings.max_delete_rate,
        )
        compared = compare(listing, known, asked, left)
        pack = _pack(settings, module)
        how = digest([settings.images.fingerprint(), settings.resize_px])
        named = planning.names(run.dt, known.shards, how)
        packed = planning.shards_to_write(compared, named=named, pack=pack, limit=settings.limit)
        in_place = bool(pack.in_place)
        if not write:
            return plans.summary(compared, packed, source=origin.url, in_place=in_place)
        contracts.announce(run.out)
        index.store(known)
        recover(run.out)
        return plans.write(compared, packed, run=run, source=origin.url, in_place=in_place)


def _source(source: str, *, run: Run, settings: ShardSettings) -> tuple[ModuleType, Any]:
    """Return the file in `clipcap/sources` that reads a source, and its settings."""
    kind = settings.kind if settings.kind != "auto" else listings.kind(source)
    module = registry.load("clipcap.sources", kind)
    if "url" in settings.options:
        raise SettingsError(
            f"The source is {source}, but `shard.options.url` names one too: drop it."
        )
    options: dict[str, Any] = {"url": source, **settings.options}
    if settings.only:
        options["only"] = settings.only
    if "scratch" in module.Settings.model_fields:
        options.setdefault("scratch", settings.scratch)
    if "leave_out" in module.Settings.model_fields:
        more = options.get("leave_out", ())
        options["leave_out"] = [run.out, *(more if isinstance(more, list | tuple) else [more])]
    try:
        return module, module.Settings(**options)
    except ValidationError as error:
        problems = "; ".join(
            f"`{'.'.join(map(str, one['loc']))}`: {one['msg']}"
            for one in error.errors(include_input=False, include_url=False)
        )  # without what was given, which may be a key
        raise SettingsError(
            f"The settings of the source {kind!r} do not fit: {problems}."
        ) from None


def _pack(settings: ShardSettings, module: ModuleType) -> PackSettings:
    """Return how a source of one kind is packed.

    Raises:
        SettingsError: its images cannot stay where they are.
    """
    pack, is_of_tars = settings.pack, module.__name__.endswith(".tars")
    if pack.in_place and settings.resize_px:
        raise SettingsError(
            "Images cannot stay where they are (pack.in_place) and be made smaller (resize_px): "
            "choose one of them."
        )
    if pack.in_place and not is_of_tars:
        raise SettingsError(
            "Only images in tars can stay where they are (pack.in_place), but the source is of the "
            f"kind {module.__name__.rpartition('.')[2]}."
        )
    by_kind = is_of_tars and settings.resize_px is None
    is_in_place = by_kind if pack.in_place is None else pack.in_place
    return pack.model_copy(update={"in_place": is_in_place})


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
    """Write one planned shard: tar, then rejects, then the manifest that makes both count.

    What an earlier try has written is not written again. What was not read as it was listed goes
    into a shard of another name: see `clipcap.asread`.
    """
    started = time.time()
    work = plans.read(run, target)
    there = commits.find(layout.manifest(run.out, work.written_as))
    if there is not None:  # by an earlier try, or by another run, which came to the same
        there = scrubbing.kept(there, work.written_as, run=run)
        return _written_before(work.written_as, there, run=run)
    kept_out = forgotten.load(run.out)
    todo = [item for item in work.todo if not kept_out.holds(item.sample.source_uri)]
    read = intake.take_in(
        todo,
        settings.images,
        settings.decode,
        in_place=work.in_place,
        resize_px=settings.resize_px,
    )
    found = asread.refuse_contents(asread.refuse_twins(read), kept_out.contents)
    taken = [sample for sample in found if isinstance(sample, Taken)]
    refused = [sample for sample in found if isinstance(sample, Refused)]
    target = asread.named(target, work, found, run=run)
    if target != work.written_as:  # its tar stays: a late try may still say what is in it
        storage.delete(layout.rejects(run.out, work.written_as))
    members, bytes_written = ([], 0) if work.in_place else _write_tar(taken, target, run)
    limits = settings.images.fingerprint()
    rejects = [
        intake.reject_row(sample, target, stage="shard", run=run, limits=limits)
        for sample in refused
    ]
    manifest.publish_rejects(rejects, target, run=run)
    rows = intake.manifest_rows(taken, members, target, run=run)
    table = tables.from_rows(rows, tables.SCHEMAS["manifest"])
    tar = _source_tar(work.todo) if work.in_place and work.todo else None
    commit = manifest.publish(table, target, run=run, source=work.source, tar=tar)
    if forgotten.has_changed(run.out, kept_out):
        commit = scrubbing.kept(commit, target, run=run)
    read_bytes = sum(sample.size_bytes for sample in taken)
    return _outcome(target, commit, rejects, started, read_bytes, bytes_written)


def _written_before(target: Shard, there: Commit, *, run: Run) -> Outcome:
    """Return the outcome of a shard that this run has written already, from what it wrote."""
    found = tables.read(there.url, ["source_bytes"]).to_pylist() if there.rows else []
    tar = storage.info(layout.tar(run.out, target))
    read, written = sum(row["source_bytes"] or 0 for row in found), tar.size_bytes if tar else 0
    rejects = manifest.read_rejects(run.out, target).select(["source_uri", "reason"]).to_pylist()
    return _outcome(target, there, rejects, time.time(), read, written)


def _outcome(
    target: Shard, commit: Commit, rejects: list[dict[str, Any]], started: float, *moved: int
) -> Outcome:
    """Return what was done; `moved` are bytes read and written."""
    return committed(
        "shard",
        target,
        commit,
        state="written",
        started_at=started,
        computed=commit.rows,
        rejected=len(rejects),
        bytes_read=moved[0],
        bytes_written=moved[1],
        reasons=tuple(Counter(row["reason"] for row in rejects).most_common()),
        examples=tuple(f"{row['source_uri']} ({row['reason']})" for row in rejects[:_EXAMPLES]),
    )


def _write_tar(taken: Sequence[Taken], target: Shard, run: Run) -> tuple[Sequence[Member], int]:
    """Write the tar of a shard, if there is anything to put in; return its members and size."""
    if not taken:
        return [], 0
    tar, members = shards.parts(intake.tar_files(taken))
    storage.write(layout.tar(run.out, target), *tar)
    return members, sum(map(len, tar))


def _source_tar(todo: Sequence[Todo]) -> SourceTar:
    """Return the tar that the samples of a shard lie in, as it was listed."""
    sample = todo[0].sample
    etag = sample.etag.removesuffix(f"+{sample.at.offset}+{sample.at.length}")
    return SourceTar(sample.at.url, etag)


def retire(target: Shard, *, run: Run) -> Outcome:
    """Take images that are gone or replaced out of a shard's manifest and rejects."""
    started = time.time()
    live, rejects = plans.read_retirement(run, target)
    scrubbing.take_out(target, run=run)  # what a killed run brought in: its bytes go too
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

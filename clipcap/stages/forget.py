"""An output and words that name images in; the output without them, and what proves it, out.

In this order: a journal with their names; the record that keeps them out; their rows, manifest
first; their bytes; whatever else says their names; the list that readers go by; a search of every
object; the journal goes. A run that is killed anywhere is finished by the next one.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

from clipcap import (
    beyond,
    forgotten,
    keys,
    layout,
    manifest,
    records,
    storage,
    targets,
    traces,
)
from clipcap.errors import NotFoundError, SettingsError
from clipcap.forgotten import Image, Record
from clipcap.layout import Run
from clipcap.outcomes import Night
from clipcap.plans import Plan
from clipcap.scrubbing import Walk
from clipcap.stages import publish
from clipcap.targets import Found, Wanted
from clipcap.traces import Needles

log = logging.getLogger(__name__)
EXAMPLES: Final = 5


@dataclass(frozen=True, slots=True)
class Preview:
    """What would go, in numbers and a few names."""

    out: str
    images: int
    in_advance: int
    """Images that were named and are not in the output: they would be kept out."""
    twins: int
    """More images with the same bytes under other names: they go too."""
    rejects: int
    examples: tuple[str, ...]
    prefixes: tuple[str, ...]
    shards: int
    tables: int
    tars: int
    reports: tuple[str, ...]
    resumed: int
    """Images that a killed run was taking out: they go too."""
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Receipt:
    """What was done, and what the search of the output afterwards found."""

    run_id: str
    out: str
    at: str
    image_ids: tuple[str, ...]
    twins: int
    rejects: int
    prefixes: tuple[str, ...]
    changed: dict[str, int]
    """Objects by what became of them."""
    reports: tuple[str, ...]
    searched_objects: int
    searched_bytes: int
    left: tuple[str, ...]
    """Where a name, or the bytes, of an image still stand, or could not be looked for."""
    notes: tuple[str, ...]
    """What is beyond the output, and must be done by a person."""

    @property
    def ok(self) -> bool:
        """Whether nothing is left."""
        return not self.left


@dataclass(frozen=True, slots=True)
class _Work:
    """Everything that one call takes out, and what shall be kept out."""

    run: Run
    found: Found
    images: tuple[Image, ...]
    record: Record
    journals: tuple[str, ...]
    """URLs of what killed runs were taking out: it goes too."""
    resumed: int

    @property
    def prefixes(self) -> tuple[str, ...]:
        """The prefixes that shall be kept out."""
        return tuple(self.record.prefixes)

    @property
    def needles(self) -> Needles:
        """What the output must not say any more."""
        return Needles((*self.images, *self.found.twins), self.prefixes)


def preview(out: str, words: Sequence[str]) -> Preview:
    """Say what `forget` would do; changes nothing.

    Raises:
        SettingsError: a key that no image has, or a word that names nothing.
        NotFoundError: there is no such output.
    """
    work = _work(out, words)
    shards, needles = work.found.shards, work.needles
    names = {layout.in_folder("", shard) for shard in shards}
    chained = [
        info
        for name in ("embeddings", "captions", "labels")
        for info in storage.listed(layout.table(work.run.out, name))
        if f"/dt={info.url.rpartition('/dt=')[2]}" in names
    ]
    there = [one for one in work.images if one.source_uri]
    tars = [shard for shard in shards if storage.info(layout.tar(work.run.out, shard))]
    pages = [
        info.url.removeprefix(f"{work.run.out}/")
        for info in storage.listed(f"{work.run.out}/reports")
        if traces.in_document(info.url, storage.read(info.url), needles)
    ]
    return Preview(
        out=work.run.out,
        images=len(there),
        in_advance=len(work.images) - len(there),
        twins=len(work.found.twins),
        rejects=sum(map(len, work.found.rejects.values())),
        examples=tuple(one.source_uri for one in there[:EXAMPLES]),
        prefixes=work.prefixes,
        shards=len(shards),
        tables=len(chained) + len(work.found.live) + len(work.found.rejects),
        tars=len(tars),
        reports=tuple(pages),
        resumed=work.resumed,
        notes=tuple(beyond.notes(work.run.out, work.found)),
    )


def forget(out: str, words: Sequence[str]) -> Receipt:
    """Take images out of an output and keep them out; then search all of it for them.

    No words: once more everything that is kept out, as after a night that ran meanwhile.

    Raises:
        SettingsError: a key that no image has, or a word that names nothing.
        NotFoundError: there is no such output.
        StorageError: the store refused; the same call goes on where this one ended.
    """
    started = time.time()
    work = _work(out, words)
    run, needles = work.run, work.needles
    notes = tuple(beyond.notes(run.out, work.found))
    journal = forgotten.begin(run.out, (*work.images, *work.found.twins), work.record)
    forgotten.keep_out(run.out, work.record)
    _take_out(work)
    walk = Walk(run.out, needles)
    walk.scrub()
    _tell(work, started)
    left = walk.search()
    if not left:
        for url in {journal.url, *work.journals}:
            storage.delete(url)
    log.info(
        "forget: %d images, %d objects searched, %d with traces left",
        len(work.images), walk.objects, len(left),
    )  # fmt: skip
    return Receipt(
        run_id=run.run_id,
        out=run.out,
        at=work.record.at.isoformat(),
        image_ids=tuple(one.image_id for one in work.images),
        twins=len(work.found.twins),
        rejects=sum(map(len, work.found.rejects.values())),
        prefixes=work.prefixes,
        changed=dict(walk.changed),
        reports=tuple(walk.pages),
        searched_objects=walk.objects,
        searched_bytes=walk.size_bytes,
        left=tuple(left),
        notes=notes,
    )


def allow(out: str, words: Sequence[str]) -> list[str]:
    """Let images and prefixes in again; return which were kept out. The next night takes them in.

    Raises:
        SettingsError: none of the words names anything that is kept out.
    """
    run = _run(out)
    chosen = targets.wanted(words)
    by_tail = {keys.tail(one): one for one in forgotten.load(run.out).image_ids}
    names = {*chosen.image_ids, *chosen.prefixes}
    names |= {by_tail[tail] for key in chosen.keys if (tail := keys.key_tail(key)) in by_tail}
    gone = forgotten.let_in(run.out, names)
    if not gone:
        raise SettingsError(
            f"Nothing of {', '.join(words)} is kept out of {out}. `clipcap forget {out} --list` "
            "shows what is."
        )
    for info in storage.listed(layout.all_listings(run.out)):
        storage.delete(info.url)  # what they lack is listed again
    for info in manifest.objects(run.out, "rejects"):
        shard = layout.shard_of(info.url)
        rows = manifest.read_rejects(run.out, shard).to_pylist()
        again = {row["image_id"] for row in rows if row["reason"] == "opted_out"}
        if again:  # looked at again; pages of the web too, which say it themselves
            manifest.retire(shard, run=run, live=(), rejects=again)
    return gone


def _run(out: str) -> Run:
    root = storage.canonical(out)
    if not manifest.objects(root, "manifest") and not forgotten.records(root):
        raise NotFoundError(
            f"{out} must be an output of clipcap, but holds no table. Is the address right? "
            "It is the second one of `clipcap run SOURCE OUT`."
        )
    now = datetime.now(UTC)
    run_id = f"{now:%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"
    return Run(run_id=run_id, out=root, dt=now.date().isoformat())


def _work(out: str, words: Sequence[str]) -> _Work:
    run = _run(out)
    kept = forgotten.load(run.out)
    chosen = targets.wanted(words)
    if not words:
        chosen = Wanted(kept.image_ids, frozenset(), kept.prefixes, kept.contents)
    journals = forgotten.unfinished(run.out)
    resumed = {one for journal in journals for one in journal.images}
    begun = frozenset(one.image_id for one in resumed)
    found = targets.find(run.out, replace(chosen, image_ids=chosen.image_ids | begun))
    targets.require_no_folder(run.out, chosen, found)
    known = set(map(keys.tail, kept.image_ids | begun))
    missing = targets.unknown(chosen, found.images, known)
    if missing:
        raise SettingsError(
            f"No image of {out} has the key {', '.join(missing)}. Keys stand in the column `key` "
            "of the tables; an image that is not in the output is kept out by its URI."
        )
    named = {one.image_id for one in (*found.images, *found.twins)}
    images = {*found.images, *(one for one in resumed if one.image_id not in named)}
    images |= {Image(one) for one in chosen.image_ids - named - begun}
    record = targets.record(chosen, found, [one.record for one in journals])
    begun_at = tuple(journal.url for journal in journals)
    return _Work(run, found, tuple(sorted(images)), record, begun_at, len(resumed))


def _take_out(work: _Work) -> None:
    """Take the rows out of every table, first of the manifests."""
    found, run = work.found, work.run
    for shard in found.shards:
        live, rejects = (held.get(shard, set()) for held in (found.live, found.rejects))
        manifest.retire(shard, run=run, live=live, rejects=rejects)
    publish.bring_to_live(run)
    storage.remove_half_written(run.out)
    for dt in {shard.dt for shard in found.live}:  # sums over few images may be one of them
        storage.delete(layout.drift(run.out, dt))
    for info in storage.listed(layout.trainings(run.out)) if found.live else ():
        storage.delete(info.url)


def _tell(work: _Work, started: float) -> None:
    """Write the row of the run, and bring the list that readers go by to what there is now."""
    gone = sum(map(len, work.found.live.values()))
    plan = Plan("", (), (), listed=0, new=0, changed=0, deleted=gone, unchanged=0)
    night = Night(work.run, "forget", "command", started, "{}", plan)
    records.write(night, state="Completed", seconds={"forget": time.time() - started})
    publish.list_anew(work.run)

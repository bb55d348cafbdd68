"""An output and words that name images in; the output without them, and what proves it, out.

In this order: a journal with their names; the record that keeps them out; another look, for what a
night brought in before the record was there; their rows, manifest first; their bytes; whatever else
says their names; the list that readers go by; a search of every object; the journal goes. A run
that is killed anywhere is finished by the next one.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Final

from clipcap import (
    beyond,
    forgotten,
    keys,
    layout,
    leases,
    manifest,
    records,
    storage,
    takedowns,
    targets,
    traces,
)
from clipcap.errors import NotFoundError, SettingsError
from clipcap.layout import Run
from clipcap.outcomes import Night
from clipcap.plans import Plan
from clipcap.scrubbing import Walk
from clipcap.stages import publish
from clipcap.takedowns import Takedown

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


def preview(out: str, words: Sequence[str]) -> Preview:
    """Say what `forget` would do; changes nothing.

    Raises:
        SettingsError: a key that no image has, or a word that names nothing.
        NotFoundError: there is no such output.
    """
    run = _run(out)
    work = takedowns.asked(run.out, words)
    shards, needles = work.found.shards, work.needles
    names = {layout.in_folder("", shard) for shard in shards}
    chained = [
        info
        for name in ("embeddings", "captions", "labels")
        for info in storage.listed(layout.table(run.out, name))
        if f"/dt={info.url.rpartition('/dt=')[2]}" in names
    ]
    there = {one.image_id: one.source_uri for one in work.images if one.source_uri}
    tars = [shard for shard in shards if storage.info(layout.tar(run.out, shard))]
    pages = [
        info.url.removeprefix(f"{run.out}/")
        for info in storage.listed(f"{run.out}/reports")
        if traces.in_document(info.url, storage.read(info.url), needles)
    ]
    return Preview(
        out=run.out,
        images=len(there),
        in_advance=len({one.image_id for one in work.images}) - len(there),
        twins=len(work.twins),
        rejects=sum(map(len, work.found.rejects.values())),
        examples=tuple(islice(there.values(), EXAMPLES)),
        prefixes=work.prefixes,
        shards=len(shards),
        tables=len(chained) + len(work.found.live) + len(work.found.rejects),
        tars=len(tars),
        reports=tuple(pages),
        resumed=len(work.resumed),
        notes=tuple(beyond.notes(run.out, work.found)),
    )


def forget(out: str, words: Sequence[str]) -> Receipt:
    """Take images out of an output and keep them out; then search all of it for them.

    No words: once more everything that is kept out, as after a night that ran meanwhile.

    Raises:
        SettingsError: a key that no image has, or a word that names nothing.
        NotFoundError: there is no such output.
        StorageError: the store refused; the same call goes on where this one ended.
    """
    started, run = time.time(), _run(out)
    work, journals = takedowns.begin(takedowns.asked(run.out, words))
    notes = tuple(beyond.notes(run.out, work.found))
    _take_out(work, run)
    walk = Walk(run.out, work.needles)
    walk.scrub()
    _tell(run, started, deleted=sum(map(len, work.found.live.values())))
    left = walk.search()
    leases.require(run.out)
    if not left:
        for url in journals:
            storage.delete(url)
    log.info(
        "forget: %d images, %d objects searched, %d with traces left",
        len(work.image_ids), walk.objects, len(left),
    )  # fmt: skip
    return Receipt(
        run_id=run.run_id,
        out=run.out,
        at=work.record.at.isoformat(),
        image_ids=work.image_ids,
        twins=len(work.twins),
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

    Their records go last: a call that is killed is called again.

    Raises:
        SettingsError: none of the words names anything that is kept out.
        LeaseError: another run works on the output by now; they are still kept out.
    """
    started, run = time.time(), _run(out)
    chosen, kept = targets.wanted(words), forgotten.load(run.out)
    by_tail = {keys.tail(one): one for one in kept.image_ids}
    names = {*chosen.image_ids, *chosen.prefixes}
    names |= {by_tail[tail] for key in chosen.keys if (tail := keys.key_tail(key)) in by_tail}
    if names.isdisjoint((*kept.image_ids, *kept.prefixes)):
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
    publish.bring_to_live(run)
    _tell(run, started)
    return forgotten.let_in(run.out, names)


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


def _take_out(work: Takedown, run: Run) -> None:
    """Take the rows out of every table, first of the manifests."""
    found = work.found
    leases.require(run.out)
    for shard in found.shards:
        live, rejects = (held.get(shard, set()) for held in (found.live, found.rejects))
        manifest.retire(shard, run=run, live=live, rejects=rejects)
    publish.bring_to_live(run)
    storage.remove_half_written(run.out)
    for dt in work.dates:  # sums over few images may be one of them
        storage.delete(layout.drift(run.out, dt))
    for info in storage.listed(layout.trainings(run.out)) if work.dates else ():
        storage.delete(info.url)


def _tell(run: Run, started: float, deleted: int = 0) -> None:
    """Write the row of the run, and bring the list that readers go by to what there is now."""
    plan = Plan("", (), (), listed=0, new=0, changed=0, deleted=deleted, unchanged=0)
    night = Night(run, "forget", "command", started, "{}", plan)
    records.write(night, state="Completed", seconds={"forget": time.time() - started})
    publish.list_anew(run)

"""Shards of one source in, one new shard with exactly their live images out: nothing is computed.

The new shard is written whole, its manifest last; then the old ones are to be removed (`settle`). A
crash in between leaves images twice and none missing. From its manifest on, everybody prefers the
new shard (`layout.merged`), so it may be finished later, and by anybody.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import pyarrow as pa

from clipcap import (
    ahead,
    commits,
    forgotten,
    layout,
    manifest,
    rows,
    scrubbing,
    shards,
    storage,
    tables,
)
from clipcap.commits import Commit
from clipcap.errors import ClipcapError, NotFoundError, SettingsError, StorageError
from clipcap.forgotten import KeptOut
from clipcap.layout import Run, Shard
from clipcap.manifest import MergedFrom
from clipcap.parts import Part
from clipcap.settings import digest
from clipcap.shards import Member

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Merged:
    """A shard that others were merged into, and what was written of it, as far as it is known."""

    shard: Shard
    sources: tuple[Shard, ...]
    written: tuple[Commit, ...]
    images: int = 0
    tar_bytes: int = 0


@dataclass(frozen=True, slots=True)
class _Read:
    """The rows of a shard that is merged."""

    part: Part
    live: pa.Table
    rejects: pa.Table

    @property
    def ids(self) -> set[str]:
        """All images that it knows."""
        return {*self.live["image_id"].to_pylist(), *self.rejects["image_id"].to_pylist()}


def merge(parts: Sequence[Part], *, run: Run, dt: str, least: int = 2) -> Merged | None:
    """Write one shard of `dt` that holds what is live of shards of one kind; take away nothing.

    A shard with images that another one of them has too is left to the next night. What was
    forgotten is not brought back: either the records are seen here, or the new shard by whoever
    forgets, which writes a record first and then looks.

    Returns:
        None where fewer than `least` shards are left, one was changed meanwhile, or holds what must
        not come back.

    Raises:
        StorageError: a tar does not hold what its manifest says, or a store refused.
    """
    some = _disjoint([_read(one, run.out) for one in parts])
    if len(some) < least or not all(_is_as_it_was(one.part, run.out) for one in some):
        return None
    target = layout.merged(dt, _content(some), [one.part.shard for one in some])
    pieces, members = shards.joined(block for one in some for block in _blocks(one, run.out))
    live = _moved(some, members, target)
    if live.num_rows:
        storage.write(layout.tar(run.out, target), *pieces)
    size, pieces = sum(map(len, pieces)), []
    try:
        made = _described(some, target, manifest.members(live), run=run)
    except ClipcapError:
        _undo(target, (), run.out)
        raise
    rejects = pa.concat_tables(one.rejects for one in some).to_pylist()
    rejected = [row | {"shard": target.name} for row in rejects]
    written = _beside(made, rejected, target, run)
    kept_out = forgotten.load(run.out)
    if _has_forgotten(some, kept_out) or not all(_is_as_it_was(one.part, run.out) for one in some):
        _undo(target, written, run.out)
        return None
    origin = MergedFrom({one.part.shard: one.part.members for one in some})
    source = some[0].part.live.metadata["source"]
    commit = manifest.publish(live, target, run=run, source=source, tar=origin)
    if not all(storage.info(one.url) for one in written):  # a run has swept before they counted
        written = _beside(made, rejected, target, run)
    while forgotten.has_changed(run.out, kept_out):
        kept_out = forgotten.load(run.out)
        commit, written = _taken_out(commit, made, target, run)
    if not commit.rows and storage.info(commit.url) is None:  # everything was forgotten
        _undo(target, written, run.out)
        return None
    sources = tuple(origin.members)
    log.info("merged %d shards into %s: %d images", len(sources), target, commit.rows)
    return Merged(target, sources, (commit, *written), commit.rows, size if live.num_rows else 0)


def _read(one: Part, out: str) -> _Read:
    try:
        live = tables.read(layout.manifest(out, one.shard))
    except NotFoundError:
        live = tables.SCHEMAS["manifest"].empty_table()  # gone meanwhile: found out below
    return _Read(one, live, manifest.read_rejects(out, one.shard))


def _disjoint(found: Sequence[_Read]) -> list[_Read]:
    """Return the shards, in their order, but those with images or keys of one before them."""
    kept: list[_Read] = []
    seen: set[str] = set()
    for one in found:
        ids = one.ids | {f"key {key}" for key in one.live["key"].to_pylist()}
        if seen.isdisjoint(ids):
            kept.append(one)
            seen |= ids
        else:
            log.warning("%s shares images with another shard: left to the night", one.part.shard)
    return kept


def _is_as_it_was(one: Part, out: str) -> bool:
    found = commits.find(one.live.url)
    return found is not None and found.fingerprint == one.live.fingerprint


def _content(some: Sequence[_Read]) -> str:
    """Return the digest of what a shard shall hold."""
    columns = ["image_id", "content_sha256"]
    found = (row for one in some for row in one.live.select(columns).to_pylist())
    live = sorted(list(row.values()) for row in found)
    rejects = sorted(uri for one in some for uri in one.rejects["source_uri"].to_pylist())
    return digest(["merged", live, rejects])


def _blocks(one: _Read, out: str) -> Iterator[tuple[Member, bytes]]:
    """Yield the members of a shard's live images, sure that each image is the one that was judged.

    Files that came with an image have its key and go with it.
    """
    wanted = {row["member"]: row for row in one.live.select(_PLACE).to_pylist()}
    if not wanted:
        return
    url = layout.tar(out, one.part.shard)
    keys = set(one.live["key"].to_pylist())
    try:
        for member, block in shards.kept(storage.stream(url), keys):
            row = wanted.pop(member.name, None)
            if row is not None:
                data = memoryview(block)[shards.BLOCK : shards.BLOCK + member.length]
                found = (member.offset, member.length, hashlib.sha256(data).hexdigest())
                if found != (row["member_offset"], row["member_bytes"], row["content_sha256"]):
                    raise StorageError(_damaged(url, member.name))
            yield member, block
    except SettingsError as error:
        raise StorageError(f"{url} cannot be read whole: {error}") from error
    if wanted:
        raise StorageError(_damaged(url, next(iter(wanted))))


_PLACE: Final = ["member", "member_offset", "member_bytes", "content_sha256"]


def _damaged(url: str, name: str) -> str:
    return (
        f"{url} must hold {name} as its manifest says, but does not. Nothing was merged; "
        "`clipcap verify --full` says what else is wrong."
    )


def _moved(some: Sequence[_Read], members: Mapping[str, Member], target: Shard) -> pa.Table:
    """Return the manifest of the new shard: the rows of the old ones, and where they lie now."""
    live = pa.concat_tables([one.live for one in some], promote_options="default")
    live = live.sort_by("key")
    offsets = [members[name].offset for name in live["member"].to_pylist()]
    moved = {
        "shard": pa.array([target.name] * live.num_rows, pa.string()),
        "member_offset": pa.array(offsets, pa.int64()),
    }
    for name, column in moved.items():
        at = live.schema.get_field_index(name)
        live = live.set_column(at, live.schema.field(at), column)
    return live.replace_schema_metadata(None)


Made = list[tuple[Commit, str, pa.Table, str]]
"""Tables to be written: a commit like it, its URL, its rows, the digest of its members."""


def _described(some: Sequence[_Read], target: Shard, members: str, *, run: Run) -> Made:
    """Return every table of the new shard: the rows of the old ones."""
    made: Made = []
    live = pa.concat_tables([one.live for one in some], promote_options="default")
    for folder, last in some[-1].part.tables.items():
        urls = [one.part.tables[folder].url for one in some]
        found = list(ahead.mapped(tables.read, urls, threads=storage.IN_FLIGHT))
        table = rows.joined(None, pa.concat_tables(found, promote_options="default"))
        kept = rows.live_rows(table, live)
        if rows.missing(live, table).num_rows or kept is None or len(kept) != len(table):
            raise ClipcapError(
                f"The tables in {folder} must have rows of just the live images of their shards, "
                "but have not. Nothing was merged; `clipcap verify` says which ones."
            )
        made.append((last, layout.in_folder(f"{run.out}/{folder}", target), table, members))
    return made


def _beside(
    made: Made, rejects: list[dict[str, object]], target: Shard, run: Run
) -> tuple[Commit, ...]:
    """Write all that lies beside the manifest of the new shard."""
    written = [
        commits.republish(one, url, table, members=members, run_id=run.run_id)
        for one, url, table, members in made
    ]
    if manifest.publish_rejects(rejects, target, run=run):
        found = commits.find(layout.rejects(run.out, target))
        written += [found] if found else []
    return tuple(written)


def _has_forgotten(some: Sequence[_Read], kept_out: KeptOut) -> bool:
    """Tell whether shards hold what must not be in the output: whoever forgets is not done."""
    if not kept_out:
        return False
    columns = ["source_uri", "content_sha256"]
    live = (row for one in some for row in one.live.select(columns).to_pylist())
    uris = (uri for one in some for uri in one.rejects["source_uri"].to_pylist())
    found = any(map(kept_out.is_meant, live)) or any(map(kept_out.holds, uris))
    if found:
        log.warning("not merged: images of them are kept out; `clipcap forget OUT --yes` first")
    return found


def _taken_out(
    commit: Commit, made: Made, target: Shard, run: Run
) -> tuple[Commit, tuple[Commit, ...]]:
    """Take out of a new shard, and all its tables, what was forgotten while it was written."""
    commit = scrubbing.kept(commit, target, run=run)
    live = tables.read(commit.url) if commit.rows else tables.SCHEMAS["manifest"].empty_table()
    members = commit.metadata["members"]
    left = [(one, url, rows.live_rows(table, live), members) for one, url, table, _ in made]
    rejects = manifest.read_rejects(run.out, target).to_pylist()
    return commit, _beside(left, rejects, target, run)


def _undo(target: Shard, written: Sequence[Commit], out: str) -> None:
    """Take away a shard that does not count yet."""
    for url in [*(one.url for one in written), layout.tar(out, target)]:
        if storage.info(layout.manifest(out, target)) is None:  # else somebody else has made it
            storage.delete(url)


def settle(target: Shard, sources: Sequence[Shard], urls: Sequence[str], *, run: Run) -> int:
    """Take the images of a merged shard out of those that it was merged from; return what is left.

    What is left are sources with images that the merged shard has not (any more). Called again, it
    goes on where it ended.

    Args:
        target: The shard that the others were merged into; it counts.
        sources: The others; some may be gone.
        urls: Every table of theirs.
        run: Whose name is signed to what has to be written.
    """
    found = commits.find(layout.manifest(run.out, target))
    if found is None:
        return len(sources)
    live = tables.read(found.url, ["image_id"])["image_id"].to_pylist()
    rejects = manifest.read_rejects(run.out, target)["image_id"].to_pylist()
    left = 0
    for shard in sources:
        manifest.retire(shard, run=run, live=live, rejects=rejects)
        scrubbing.take_out(shard, run=run)  # what the merged shard has not, for it was forgotten
        if storage.info(layout.manifest(run.out, shard)) is not None:
            left += 1
            continue
        for url in urls:
            if layout.shard_of(url) == shard:
                storage.delete(url)
    return left

"""What `verify` found in; damaged objects written anew from what is good in them, or removed, out.

Nothing is recomputed here: the next run makes what is missing, as it does after a kill. Each step
changes one object and is found anew by a second repair, so that one may be killed at any point.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Final

import pyarrow as pa

from clipcap import front, layout, leases, manifest, storage
from clipcap.errors import NotFoundError
from clipcap.layout import PER_SHARD, Run, Shard
from clipcap.verify import content, in_place, published, salvage, tablemending, tarmending, twins
from clipcap.verify.findings import Problem, Verification
from clipcap.verify.mendings import (
    Mending,
    Step,
    manifest_rows,
    reject_rows,
    removed,
    require_contract,
    set_aside,
)
from clipcap.verify.objects import Opened, opened
from clipcap.verify.places import Places, sort
from clipcap.verify.tablemending import Live, Rewritten

_TABLES: Final = (*PER_SHARD, "shards")


def repair(found: Verification, *, apply: bool) -> tuple[Mending, ...]:
    """Mend what can be mended without a source and without a model; return what was done.

    Args:
        found: What `verify` has found, a moment ago; its `mode` says whether tars are read.
        apply: Do it; else say only what would be done, and change nothing.

    Raises:
        SettingsError: the output is of another contract than this code's.
        LeaseError: another run has taken over; what was mended stays.
        StorageError: the store refused.
    """
    if not found.problems:
        return ()
    places = sort(found.out, storage.list_objects(found.out))
    done = []
    for mending, act in _steps(found, places):
        if apply:
            leases.require(found.out)
            act()
        done.append(mending)
    return tuple(done)


def _steps(found: Verification, places: Places) -> Iterator[Step]:
    problems: dict[str, list[Problem]] = defaultdict(list)
    for problem in found.problems:
        problems[problem.place].append(problem)
    yield from _strays(problems, places)
    damaged = {layout.shard_of(path) for path in problems if path.startswith(_TABLES)}
    for shard in sorted(damaged & places.by_shard.keys()):
        yield from _of_shard(shard, places, found)
    if any(one.kind == "duplicate" for one in found.problems):
        yield from twins.steps(places)
    yield from _own(problems, places)


def _strays(problems: Mapping[str, Sequence[Problem]], places: Places) -> Iterator[Step]:
    """Move what no run can make anew out of the way of readers."""
    for path, (first, *_) in problems.items():
        if first.kind == "unknown" and first.severity == "error":
            yield set_aside(places, path, first.message)
    for _, url in places.runs:
        if found := problems.get(places.below(url)):
            yield set_aside(places, places.below(url), found[0].message)


def _own(problems: Mapping[str, Sequence[Problem]], places: Places) -> Iterator[Step]:
    """Mend what runs keep for the next one, and what explains the output."""
    for path, (first, *_) in problems.items():
        if first.kind == "unreadable" and path.startswith("_") and path in places.infos:
            anew = "a list of its own" if path.startswith("_manifests/") else "it anew"
            yield removed(places, path, f"it cannot be read, and the next run writes {anew}")
    if any(path.startswith(("_latest.json", "_manifests/")) for path in problems):
        yield from _latest(places)
    if lacking := [name for name in front.files() if name in problems]:
        why = "what explains the output to its readers is the same for every output"
        yield Mending(lacking[0], "write", why), partial(front.write, places.out)


def _of_shard(shard: Shard, places: Places, found: Verification) -> Iterator[Step]:
    """Mend the manifest of a shard and its tar, then its tables; without a manifest, nothing."""
    urls = places.by_shard[shard]
    if "manifest" not in urls:
        return  # its tables are of no live image: the next run removes them
    url = urls["manifest"][0]
    path = places.below(url)
    one = opened(url, path, "manifest")
    rows = None if isinstance(one, Problem) else manifest_rows(one, shard.name)
    if rows is None or isinstance(one, Problem):
        if not _is_gone(one):
            why = "which images it holds is lost: the next run reads them from the source again"
            yield removed(places, path, why)
        return
    steps, lost = _tar(one, rows, shard, places, found)
    yield from steps
    yield from _manifest(one, rows, lost, shard, places)
    yield from _rejects(urls.get("rejects", []), shard, places)
    live = Live(rows, manifest.members(rows))
    for name in ("embeddings", "captions", "labels"):
        for other in urls.get(name, []):
            yield from _chained(opened(other, places.below(other), name), live, places)


def _is_gone(one: Opened | Problem) -> bool:
    """Tell whether an object went while it was looked at: a run is under way."""
    return isinstance(one, Problem) and one.kind == "missing"


def _manifest(
    one: Opened, rows: pa.Table, lost: set[str], shard: Shard, places: Places
) -> Iterator[Step]:
    ids, etags = (rows[name].to_pylist() for name in ("image_id", "source_etag"))
    unmarked = {
        i for i, etag in zip(ids, etags, strict=True) if i in lost and etag != manifest.LOST
    }
    dropped = one.rows.num_rows - rows.num_rows
    if not (unmarked or dropped or one.problems or manifest.members(rows) != one.footer["members"]):
        return
    if rows.num_rows == 0 and "rejects" not in places.by_shard[shard]:
        yield removed(places, one.place, "none of its rows can be")
        return
    why = " and ".join(
        text
        for text, holds in (
            (f"rows that cannot be go: {dropped}", dropped),
            (f"images to be read again, for their bytes are lost: {len(unmarked)}", unmarked),
        )
        if holds
    )
    table = salvage.marked(rows, unmarked, manifest.LOST)
    tar = manifest.source_tar(one.footer)
    run = Run(one.footer["run_id"], places.out, shard.dt)
    write = partial(manifest.publish, run=run, source=one.footer["source"], tar=tar)
    yield (
        Mending(one.place, "write", why or "footer and columns by its rows"),
        partial(write, table, shard),
    )


def _tar(
    one: Opened, rows: pa.Table, shard: Shard, places: Places, found: Verification
) -> tuple[list[Step], set[str]]:
    """Return what is done to the tar of a shard, and the ids of the images that it has lost."""
    live = Opened(one.url, one.place, one.name, rows, one.footer, ())
    if source := manifest.source_tar(one.footer):
        is_same = found.mode == "full" and not any(in_place.of_tar(live, source))
        return [], {row["image_id"] for row in in_place.changed(live, source)} if is_same else set()
    short = any(content.of_tar(live, shard, places.out, places.tars.get(shard)))
    if rows.num_rows == 0 or (found.mode == "fast" and not short):
        return [], set()
    url = layout.tar(places.out, shard)
    try:
        data = storage.read(url)
    except NotFoundError:
        data = b""
    whole, lost = tarmending.mended(data, rows.select(tarmending.COLUMNS).to_pylist())
    if whole is data:
        return [], lost
    why = f"it cannot be read to its end; images of it that are good: {rows.num_rows - len(lost)}"
    return [(Mending(places.below(url), "write", why), partial(storage.write, url, whole))], lost


def _rejects(urls: Iterable[str], shard: Shard, places: Places) -> Iterator[Step]:
    for url in urls:
        path = places.below(url)
        one = opened(url, path, "rejects")
        good = None if isinstance(one, Problem) else reject_rows(one, shard.name)
        if _is_gone(one):
            continue
        if good is None or isinstance(one, Problem):
            yield removed(places, path, "the next run reads what it had from the source again")
        elif one.problems or any(content.of_rejects(one, shard)):
            why = f"rows that cannot be go: {one.rows.num_rows - good.num_rows}"
            run = Run(one.footer.get("run_id", ""), places.out, shard.dt)
            publish = partial(manifest.publish_rejects, good.to_pylist(), shard, run=run)
            yield Mending(path, "write", why), publish


def _chained(one: Opened | Problem, live: Live, places: Places) -> Iterator[Step]:
    if isinstance(one, Problem):
        if one.kind == "unreadable":
            yield removed(places, one.place, "the next run makes it anew")
        return
    if any(problem.kind == "footer" for problem in one.problems):
        require_contract(one)
    mended = tablemending.mended(one, live)
    if mended is None:
        yield removed(places, one.place, "what it was made from is lost: the next run makes it")
    elif isinstance(mended, Rewritten):
        yield Mending(one.place, "write", mended.why), partial(storage.write, one.url, mended.data)


def _latest(places: Places) -> Iterator[Step]:
    """Let `_latest.json` name the newest list that can be read; without one it goes."""
    named = published.latest(places)
    if named and published.listing(places, named) is not None:
        return
    names = [path for path in places.infos if path.startswith("_manifests/")]
    names.sort(key=lambda path: (str(places.infos[path].modified_at), path), reverse=True)
    for path in names:
        run_id = path.removeprefix("_manifests/").removesuffix(".json")
        if published.listing(places, run_id) is not None:
            dt = next(
                (layout.shard_of(url).dt for _, url in places.runs if f"/{run_id}." in url), ""
            )
            act = partial(published.point, places.out, run_id, dt)
            yield Mending("_latest.json", "write", f"the newest list that is whole is {path}"), act
            return
    if "_latest.json" in places.infos:
        yield removed(places, "_latest.json", "there is no list that it could name")

"""What lies in an output in; what nothing names any more, and what is nobody knows what, out.

Every folder of `clipcap.layout` is decided here; what is in none of them is a stranger's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Literal

from clipcap import commits, layout, snapshots, storage
from clipcap.holdings import Holdings
from clipcap.storage import ObjectInfo, Unfinished

Kind = Literal[
    "tars of no shard",
    "tables of no shard",
    "lists of old runs",
    "reports of old runs",
    "plans of killed runs",
    "probes",
    "listings of other sources",
    "states of given-up trainings",
    "unfinished uploads and files",
]
"""What may be removed."""
KEEP: Final = 7
"""Lists of last runs that stay, unless told otherwise."""
_TRAINING_DAYS: Final = 30  # whoever comes back to a training does so within a month
_KEPT: Final = re.compile(
    r"README\.md|contract\.json|views\.sql|croissant\.json|_latest\.json|_SUCCESS"
    r"|(runs|shard_runs)/dt=[^/]+/[^/]+\.parquet"
    r"|(captioners|_training/views|_labelsets|_canaries|_index|_drift|_forgotten|_lease|_set_aside)/.+"
    r"|\w+/_delta_log/.+"
)
"""What is kept whatever its age: history, models, what costs a model to make again, and what the
nights themselves keep in order."""


@dataclass(frozen=True, slots=True, order=True)
class Litter:
    """An object that may go."""

    kind: Kind
    path: str
    size_bytes: int
    etag: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """What may go, and what nobody knows."""

    litter: tuple[Litter, ...]
    unknown: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Named:
    """What is still named, and from which moment on things are young."""

    runs: frozenset[str]
    objects: frozenset[str]
    sources: frozenset[str]
    before: datetime

    def is_old(self, info: ObjectInfo, days: int = 0) -> bool:
        if info.modified_at is None:
            return False
        return info.modified_at < self.before - timedelta(days=days)


def find(held: Holdings, *, keep: int, days: int) -> Found:
    """Look what nothing names: no shard that counts, none of the newest `keep` lists.

    What is younger than so many days is left, whoever names it: a run may be about to use it.
    """
    before = datetime.now(UTC) - timedelta(days=days)
    runs = _kept_runs(held, keep, before)
    objects = frozenset().union(*(snapshots.listed(held.out, run_id) for run_id in runs))
    named = _Named(runs, objects, _sources(held), before)
    litter = list(_of_shards(held, named))
    unknown = []
    for path, info in held.others.items():
        rule = next((rule for rule in _RULES if rule.form.fullmatch(path)), None)
        if rule is not None and rule.is_litter(path, info, named):
            litter.append(Litter(rule.kind, path, info.size_bytes, info.etag))
        elif rule is None and not _KEPT.fullmatch(path):
            unknown.append(path)
    return Found(tuple(sorted(litter)), tuple(sorted(unknown)))


def _kept_runs(held: Holdings, keep: int, before: datetime) -> frozenset[str]:
    """Return the runs whose lists stay: that of the newest whole run, the last ones, the young."""
    lists = [
        (info.modified_at or before, path.split("/")[1].removesuffix(".json"))
        for path, info in held.others.items()
        if _LIST.fullmatch(path)
    ]
    lists = sorted((one for one in lists if one[1] != held.told.run_id), reverse=True)
    young = (run_id for written, run_id in lists if written >= before)
    return frozenset([held.told.run_id, *(run_id for _, run_id in lists[: keep - 1]), *young])


def _sources(held: Holdings) -> frozenset[str]:
    """Return the folders of the listings of all sources that live shards came from."""
    if not any(_LISTING.match(path) for path in held.others):
        return frozenset()
    found = (commits.find(layout.manifest(held.out, shard)) for shard in held.live)
    sources = {one.metadata.get("source", "") for one in found if one is not None}
    return frozenset(layout.listings("", source)[1:] for source in sources)


def _of_shards(held: Holdings, named: _Named) -> Iterator[Litter]:
    for shard, objects in held.by_shard.items():
        if held.is_live(shard):
            continue
        for path, info in objects.items():
            if path not in named.objects and named.is_old(info):
                is_tar = path.endswith(".tar")
                kind: Kind = "tars of no shard" if is_tar else "tables of no shard"
                yield Litter(kind, path, info.size_bytes, info.etag)


@dataclass(frozen=True, slots=True)
class _Rule:
    """Which objects are of a kind, and when they may go."""

    kind: Kind
    form: re.Pattern[str]
    is_litter: Callable[[str, ObjectInfo, _Named], bool]


def _of_old_run(path: str, info: ObjectInfo, named: _Named) -> bool:
    run_id = path.split("/")[1].removesuffix(".json")
    return run_id not in named.runs and named.is_old(info)


def _is_old(_path: str, info: ObjectInfo, named: _Named) -> bool:
    return named.is_old(info)


def _is_given_up(_path: str, info: ObjectInfo, named: _Named) -> bool:
    return named.is_old(info, _TRAINING_DAYS)


def _of_other_source(path: str, info: ObjectInfo, named: _Named) -> bool:
    return path.rpartition("/")[0] not in named.sources and named.is_old(info)


_LIST: Final = re.compile(r"_manifests/[^/]+\.json")
_LISTING: Final = re.compile(r"_listings/[0-9a-f]{16}/[0-9a-f]{32}\.parquet")
_RULES: Final = (
    _Rule("lists of old runs", _LIST, _of_old_run),
    _Rule("reports of old runs", re.compile(r"reports/[^/]+/index\.html"), _of_old_run),
    _Rule("plans of killed runs", re.compile(r"_plans/.+\.(parquet|json)"), _is_old),
    _Rule("probes", re.compile(r"_probe(-[0-9a-f]+)?"), _is_old),
    _Rule("listings of other sources", _LISTING, _of_other_source),
    _Rule(
        "states of given-up trainings", re.compile(r"_training/[^/]+\.safetensors"), _is_given_up
    ),
)


def remove(one: Litter, held: Holdings) -> bool:
    """Remove an object, if it is still the one that was found; tell whether it went."""
    url = f"{held.out}/{one.path}"
    found = storage.info(url)
    if found is None or found.etag != one.etag:
        return False
    if one.kind in ("tars of no shard", "tables of no shard"):
        shard = layout.shard_of(one.path)
        if storage.info(layout.manifest(held.out, shard)) is not None:
            return False
    storage.delete(url)
    return True


def unfinished(out: str) -> list[Unfinished]:
    """Return what killed writers left below an output, of objects that an output may have."""
    return [one for one in storage.unfinished(out) if _is_ours(_target(one, out))]


def _target(one: Unfinished, out: str) -> str:
    """Return the path of what was to be written."""
    path = one.url.removeprefix(f"{out}/")
    return path if one.upload_id else _HIDDEN.sub(r"\1", path)


def _is_ours(path: str) -> bool:
    forms = (_KEPT, *(rule.form for rule in _RULES))
    return layout.is_of_shard(path) or any(form.fullmatch(path) for form in forms)


_HIDDEN: Final = re.compile(r"\.([^/]+)\.\d+-[0-9a-f]{8}\.tmp$")

"""An output in; everything that is not as the contract says out.

Reads every table whole. `fast` looks at the tars by size only, and at the lists of the last runs;
`full` reads the tars, and the lists of all runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

from clipcap import contracts, layout, manifest, storage
from clipcap.errors import NotFoundError
from clipcap.layout import Shard
from clipcap.verify import content, derived, in_place, published
from clipcap.verify.findings import Mode, Problem, Verification
from clipcap.verify.mendings import Mending
from clipcap.verify.objects import Opened, opened
from clipcap.verify.places import Places, sort
from clipcap.verify.repair import repair

__all__ = ["Mending", "Mode", "Problem", "Verification", "repair", "verify"]

_READERS: Final = 8  # shards at a time: hides the store's latency
_TAR_READERS: Final = 2  # whole tars in memory


@dataclass(slots=True)
class _Checked:
    """One shard: its problems, and what only all shards together can be judged by."""

    shard: Shard
    live: list[str] = field(default_factory=list)
    rejects: list[str] = field(default_factory=list)
    fingerprints: dict[str, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def verify(out: str, *, mode: Mode = "fast") -> Verification:
    """Hold every object of an output against the contract and against each other.

    Raises:
        NotFoundError: there is no output.
        SettingsError: a newer version of this project has written into it.
        StorageError: the store refused.
    """
    root = storage.canonical(out)
    contracts.require_known(root)
    places = sort(root, storage.list_objects(root))
    if not places.by_shard and not places.runs:
        raise NotFoundError(
            f"{out} must be an output of clipcap, but holds no table. Is the address right? "
            "It is the second one of `clipcap run SOURCE OUT`."
        )
    readers = _TAR_READERS if mode == "full" else _READERS
    with ThreadPoolExecutor(readers, thread_name_prefix="verify") as pool:
        checked = list(pool.map(lambda shard: _shard(shard, places, mode), sorted(places.by_shard)))
    problems = [*places.problems, *(found for one in checked for found in one.problems)]
    problems += _orphan_tars(places)
    problems += _once(checked)
    problems += _runs(places)
    fingerprints = {path: text for one in checked for path, text in one.fingerprints.items()}
    problems += published.of_latest(places, fingerprints)
    problems += published.of_lists(places, mode)
    problems += published.of_front(places)
    problems += derived.of_own(places)
    return Verification(
        out=root,
        mode=mode,
        objects=len(places.infos),
        shards=len(checked),
        images=sum(len(one.live) for one in checked),
        rejects=sum(len(one.rejects) for one in checked),
        problems=tuple(sorted(problems)),
    )


def _shard(shard: Shard, places: Places, mode: Mode) -> _Checked:
    """Check all tables of one shard and its tar."""
    checked = _Checked(shard)
    urls = places.by_shard[shard]
    live = next((_open(url, places, checked) for url in urls.get("manifest", [])), None)
    if live is not None and live.sound:
        checked.live = live.rows["image_id"].to_pylist()
        checked.problems += content.of_manifest(live, shard)
        checked.problems += _tar(live, shard, places, mode)
    for name in ("embeddings", "captions", "labels", "rejects"):
        for url in urls.get(name, []):
            one = _open(url, places, checked)
            if "manifest" not in urls:
                checked.problems.append(_without_manifest(places.below(url), name))
            elif one is not None and one.sound:
                checked.problems += _against(one, live, checked)
    return checked


def _tar(live: Opened, shard: Shard, places: Places, mode: Mode) -> list[Problem]:
    """Check the tar of a shard, or that of the source which its images were left in."""
    source = manifest.source_tar(live.footer)
    short = list(
        in_place.of_tar(live, source)
        if source
        else content.of_tar(live, shard, places.out, places.tars.get(shard))
    )
    if mode == "fast" or short or not live.rows.num_rows:
        return short
    if source:
        return list(in_place.of_tar_bytes(live, source))
    return list(content.of_tar_bytes(live, shard, places.out))


def _open(url: str, places: Places, checked: _Checked) -> Opened | None:
    path = places.below(url)
    table = next(name for name in layout.PER_SHARD if path.startswith(f"{name}/"))
    one = opened(url, path, table)
    if isinstance(one, Problem):
        checked.problems.append(one)
        return None
    checked.problems += one.problems
    checked.fingerprints[path] = one.footer.get("fingerprint", "")
    return one


def _against(one: Opened, live: Opened | None, checked: _Checked) -> Iterator[Problem]:
    if one.name == "rejects":
        checked.rejects += [i for i in one.rows["image_id"].to_pylist() if i is not None]
        yield from content.of_rejects(one, checked.shard)
    elif live is not None and live.sound:
        yield from content.of_chained(one, live)


def _without_manifest(path: str, name: str) -> Problem:
    if name == "rejects":
        message = "Its shard has no manifest, so it does not count: the next run removes it."
        return Problem(path, "orphan", message)
    return Problem(
        path, "orphan", "Its shard has no manifest: these rows are of no live image. Run again."
    )


def _orphan_tars(places: Places) -> Iterator[Problem]:
    for shard, info in sorted(places.tars.items()):
        if "manifest" not in places.by_shard.get(shard, {}):
            message = (
                "Its shard has no manifest, so it does not count: the next whole run removes it."
            )
            yield Problem(places.below(info.url), "orphan", message, "warning")


def _once(checked: list[_Checked]) -> Iterator[Problem]:
    """Every image is in one manifest or in one shard's rejects, and there once."""
    seen: dict[bytes, Shard] = {}
    for kind in ("live", "rejects"):
        for one in checked:
            both = set(one.live) & set(one.rejects) if kind == "rejects" else set()
            for image_id in one.live if kind == "live" else one.rejects:
                first = seen.setdefault(bytes.fromhex(image_id), one.shard)
                if first != one.shard or image_id in both:
                    yield _twice(image_id, kind, first, one.shard)


def _twice(image_id: str, kind: str, first: Shard, second: Shard) -> Problem:
    table = "manifest" if kind == "live" else "rejects"
    place = f"{table}/dt={second.dt}/{second.name}.parquet"
    message = (
        f"The image {image_id} stands here and in shard {first}, but must be in one place only."
    )
    return Problem(place, "duplicate", message)


def _runs(places: Places) -> Iterator[Problem]:
    for name, url in places.runs:
        one = opened(url, places.below(url), name)
        if isinstance(one, Problem):
            yield one
            continue
        yield from one.problems
        if one.sound:
            yield from published.of_run(one)

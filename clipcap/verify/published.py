"""The listing of an output in; what `_latest.json`, runs and front files say wrongly, out."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from clipcap import ahead, front, layout, litter, storage
from clipcap.errors import StorageError
from clipcap.layout import CONTRACT
from clipcap.verify.findings import Mode, Problem
from clipcap.verify.objects import Opened
from clipcap.verify.places import Places

_LIST: Final = re.compile(r"_manifests/[^/]+\.json")
_THREADS: Final = 4  # lists that are held at a time
_CHANGED = "if a run is under way or was killed, run again"


def of_latest(places: Places, fingerprints: Mapping[str, str]) -> Iterator[Problem]:
    """Check the newest whole run's list: each object is there, as it was, and none beside.

    `fingerprints` has those that stand, by path below the output.
    """
    named, problem = _json(places, "_latest.json")
    if named is None:
        yield problem or Problem(
            "_latest.json", "unpublished", "No run has been published yet.", "warning"
        )
        return
    run_id = str(named.get("run_id", ""))
    place = places.below(layout.run_manifest(places.out, run_id))
    objects = listing(places, run_id)
    if objects is None:
        message = "_latest.json names it, but it is not there."
        if place in places.infos:
            yield Problem(place, "unreadable", "It must be a list of objects, but cannot be read.")
        else:
            yield Problem(place, "missing", message)
        return
    for path, entry in objects.items():
        yield from _entry(path, entry, places, fingerprints)
    standing = {*fingerprints, *(places.below(info.url) for info in places.tars.values())}
    for path in sorted(standing - set(objects)):
        message = (
            f"It is not in the list of run {run_id}: it came later, and nobody has published it."
        )
        yield Problem(path, "unpublished", message, "warning")
    if "_SUCCESS" not in places.infos:
        yield Problem(
            "_SUCCESS", "unpublished", "It is not there; the next whole run writes it.", "warning"
        )


def of_lists(places: Places, mode: Mode) -> Iterator[Problem]:
    """Check that the lists of earlier runs can be read; of the newest, `of_latest` says more.

    Each names every object of its night, so `fast` reads only as many as `vacuum` keeps.
    """
    newest = latest(places)
    paths = filter(_LIST.fullmatch, places.infos)
    runs = [
        path.removeprefix("_manifests/").removesuffix(".json")
        for path in sorted(paths, key=lambda path: (str(places.infos[path].modified_at), path))
    ]
    older = [run_id for run_id in runs if run_id != newest]
    if mode == "fast":
        older = older[1 - litter.KEEP :]

    def is_whole(run_id: str) -> bool:
        return listing(places, run_id) is not None

    found = ahead.mapped(is_whole, older, threads=_THREADS)
    for run_id, whole in zip(older, found, strict=True):
        path = f"_manifests/{run_id}.json"
        if not whole and storage.info(f"{places.out}/{path}") is not None:
            yield Problem(path, "unreadable", "It must be a list of objects, but cannot be read.")


def _entry(
    path: str, entry: Mapping[str, Any], places: Places, fingerprints: Mapping[str, str]
) -> Iterator[Problem]:
    info = places.infos.get(path)
    if info is None:
        yield Problem(path, "published", "The newest whole run lists it, but it is not there.")
    elif info.size_bytes != entry["size_bytes"]:
        yield Problem(
            path,
            "published",
            f"The newest whole run left it with {entry['size_bytes']} bytes, but it has "
            f"{info.size_bytes}; {_CHANGED}.",
        )
    elif "fingerprint" in entry and fingerprints.get(path, "") != entry["fingerprint"]:
        yield Problem(
            path,
            "published",
            f"It has another fingerprint than the newest whole run left; {_CHANGED}.",
        )


def latest(places: Places) -> str | None:
    """Return the run that `_latest.json` names."""
    found, _ = _json(places, "_latest.json")
    return str(found.get("run_id", "")) if found else None


def listing(places: Places, run_id: str) -> dict[str, dict[str, Any]] | None:
    """Return what a run has left, by path below the output; None: no such list, or not whole."""
    found, _ = _json(places, places.below(layout.run_manifest(places.out, run_id)))
    entries = found.get("objects") if found else None
    if not isinstance(entries, list):
        return None
    is_whole = all(
        isinstance(one, dict)
        and isinstance(one.get("url"), str)
        and isinstance(one.get("size_bytes"), int)
        for one in entries
    )
    return {one["url"]: one for one in entries} if is_whole else None


def point(out: str, run_id: str, dt: str) -> None:
    """Let `_latest.json` name a run."""
    name = layout.run_manifest(out, run_id).removeprefix(f"{out}/")
    value = {"run_id": run_id, "manifest": name, "dt": dt}
    storage.write(layout.latest(out), (json.dumps(value, indent=1) + "\n").encode())


def _json(places: Places, path: str) -> tuple[dict[str, Any] | None, Problem | None]:
    if path not in places.infos:
        return None, None
    try:
        loaded = json.loads(storage.read(f"{places.out}/{path}"))
    except (StorageError, ValueError) as error:
        return None, Problem(path, "unreadable", f"It must be JSON, but cannot be read: {error}")
    if not isinstance(loaded, dict):
        return None, Problem(path, "unreadable", "It must be a JSON object, but is not.")
    return loaded, None


def of_front(places: Places) -> Iterator[Problem]:
    """Check that the files for readers are there and of this contract."""
    for name in front.files():
        if name not in places.infos:
            yield Problem(
                name, "missing", "It is not there; the next whole run writes it.", "warning"
            )
    found, problem = _json(places, "contract.json")
    if problem:
        yield problem
    if found is not None and found.get("contract") != CONTRACT:
        message = f"The contract must be {CONTRACT}, but is {found.get('contract')}."
        yield Problem("contract.json", "content", message)


def of_run(one: Opened) -> Iterator[Problem]:
    """Check the rows of one run: its name, and that every listed image has an end."""
    name = one.place.rpartition("/")[2].removesuffix(".parquet")
    for row in one.rows.to_pylist():
        if row["run_id"] != name:
            yield one.problem("content", f"It holds a row of the run {row['run_id']}.")
        if one.name == "runs" and row["state"] == "Completed":
            ended = row["unchanged"] + row["new"] + row["changed"]
            if row["listed"] != ended:
                message = f"{row['listed']} images were listed, but {ended} are accounted for."
                yield one.problem("content", message)

"""An output and names in; every object that says one brought to say none; where one is left, out.

What is derived goes as a whole and is made again by whoever needs it; the rest is rewritten in one
atomic step, or stays as it is and is told of.
"""

from __future__ import annotations

import json
import logging
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa

from clipcap import ahead, commits, forgotten, layout, manifest, shards, storage, tables, traces
from clipcap.commits import Commit
from clipcap.errors import NotFoundError, SettingsError
from clipcap.forgotten import Image
from clipcap.layout import Run, Shard
from clipcap.storage import ObjectInfo
from clipcap.traces import Needles

Done = Literal["rewritten", "removed", "replaced", "left"]

_LOG = logging.getLogger(__name__)
_LIVE: Final = ["image_id", "key", "source_uri", "content_sha256"]
_READERS: Final = 4  # objects that are held at a time; a tar may have 256 MB
_DERIVED: Final = ("_index/", "_listings/", "_training/", "_drift/")
TYPICAL: Final = "_typical_images"
"""What `choose` and `ask` keep in a folder of the caller's, which may lie in the output, and choose
anew where it is not there. No `.parquet`: a glob over the folder does not read it."""
_RECORDS: Final = ("runs/", "shard_runs/", "rejects/")
"""Tables whose rows stay when a text in them says a name: the text goes."""
_PLACED: Final = ["key", "source_uri"]
_UNREADABLE: Final = (SettingsError, pa.ArrowException, OSError, ValueError)
_OWN: Final = ("image_id", "key", "source_uri", "run_id", "shard")
"""Columns of those that say what the row is of."""
_COUNTED: Final = ("manifest/", "embeddings/", "captions/", "labels/")
"""Tables whose rows are those of the manifest; they lose rows with it, and by nothing else."""
_PAGE: Final = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Removed</title>
<p>This page showed images that were taken out of the output. It was removed on {at}.
"""


class Walk:
    """Two walks over an output: one that scrubs, and one that looks for what is left.

    The second reads what the first did not, what changed since, and what came after.
    """

    def __init__(self, out: str, needles: Needles) -> None:
        self.changed: Counter[str] = Counter()
        """Objects by what became of them."""
        self.pages: list[str] = []
        """Pages that are gone."""
        self.size_bytes = 0
        self._out, self._needles = out, needles
        self._clean: dict[str, str] = {}
        self._lock = threading.Lock()

    @property
    def objects(self) -> int:
        """How many objects say no name."""
        return len(self._clean)

    def scrub(self) -> None:
        """Bring every object to a state that says none of the names."""
        for _ in ahead.mapped(self._scrubbed, self._objects(), threads=_READERS):
            pass

    def search(self) -> list[str]:
        """Return the paths of objects that say a name, or cannot be searched, each with why."""
        return sorted(filter(None, ahead.mapped(self._left, self._objects(), threads=_READERS)))

    def _objects(self) -> Iterator[ObjectInfo]:
        """Yield every object, but what keeps images out and those that are known to be clean."""
        own = f"{layout.forgotten(self._out)}/"
        for info in storage.listed(self._out):
            if not info.url.startswith(own) and self._clean.get(info.url) != info.etag:
                yield info

    def _scrubbed(self, info: ObjectInfo) -> None:
        path = info.url.removeprefix(f"{self._out}/")
        try:
            if self._says(info, path):
                live = self._live(path, info.url)
                done = scrub(path, info.url, needles=self._needles, live=live)
                with self._lock:
                    self.changed[done] += 1
                    self.pages += [path] if done == "replaced" else []
        except (NotFoundError, *_UNREADABLE) as error:  # gone meanwhile, or the search tells
            _LOG.debug("%s: %s", path, error)

    def _left(self, info: ObjectInfo) -> str:
        path = info.url.removeprefix(f"{self._out}/")
        try:
            return f"{path}: says a name" if self._says(info, path) else ""
        except NotFoundError:
            return ""
        except _UNREADABLE as error:
            return f"{path}: cannot be searched: {str(error).partition(chr(10))[0][:200]}"

    def _says(self, info: ObjectInfo, path: str) -> bool:
        with self._lock:
            self.size_bytes += info.size_bytes
        needles = self._needles
        if path.endswith((".parquet", f"/{TYPICAL}")):
            found = traces.in_parquet(storage.read(info.url), needles)
        elif path.endswith(".tar"):
            found = traces.in_tar(storage.read(info.url), needles, self._live(path, info.url))
        elif path.endswith((".html", ".json")):
            found = traces.in_document(info.url, storage.read(info.url), needles)
        else:
            found = traces.in_stream(storage.stream(info.url), needles)
        if not found:
            with self._lock:
                self._clean[info.url] = info.etag
        return found

    def _live(self, path: str, url: str) -> frozenset[str] | None:
        """Return the keys that count in a tar, where what is dead in it may be under a prefix.

        Names of images that left the output earlier are not known; their bytes lie there still.
        """
        if not self._needles.prefixes or not _is_ours(path):
            return None
        try:
            table = tables.read(layout.manifest(self._out, layout.shard_of(url)), _PLACED)
        except NotFoundError:  # a run is under way, or was killed
            return None
        source = tables.metadata(table).get("source", "")
        uris = table["source_uri"].to_pylist()
        is_folder = bool(uris) and all(uri.startswith(source) for uri in uris)
        is_apart = not any(
            source.startswith(prefix) or prefix.startswith(source)
            for prefix in self._needles.prefixes
        )
        return None if is_folder and is_apart else frozenset(table["key"].to_pylist())


def _is_ours(path: str) -> bool:
    return path.endswith(".tar") and path.startswith("shards/")


def scrub(path: str, url: str, *, needles: Needles, live: frozenset[str] | None = None) -> Done:
    """Bring one object to a state that says none of the names.

    Args:
        path: of the object below the output.
        url: of the object.
        needles: the names.
        live: of a tar, the keys that count, if all others shall go.
    """
    if path.startswith(_DERIVED) or path.endswith(f"/{TYPICAL}"):
        storage.delete(url)
        return "removed"
    if _is_ours(path):
        return _tar(url, needles, live)
    if path.endswith(".parquet") and not path.startswith(_COUNTED):
        return _table(path, url, needles)
    if path.endswith(".html"):
        page = _PAGE.format(at=f"{datetime.now(UTC):%Y-%m-%d}")
        storage.write(url, page.encode())
        return "replaced"
    if path.startswith("_plans/") and path.endswith(".json"):
        lists = json.loads(storage.read(url))
        storage.write(url, json.dumps(_without(lists, needles)).encode())
        return "rewritten"
    if path.startswith("_manifests/") and path.endswith(".json"):
        return _list(url, needles)
    return "left"


def _list(url: str, needles: Needles) -> Done:
    """Bring a list of objects to say nothing of shards that lay in tars of the source."""
    told = json.loads(storage.read(url))
    if not (isinstance(told, dict) and isinstance(told.get("objects"), list)):
        return "left"
    told["objects"] = [one for one in told["objects"] if not traces.in_value(one, needles)]
    storage.write(url, (json.dumps(told, indent=1) + "\n").encode())
    return "rewritten"


def _tar(url: str, needles: Needles, live: frozenset[str] | None = None) -> Done:
    data = storage.read(url)
    gone = {member.offset for member in traces.dead(data, needles, live)}
    emptied = shards.emptied(data, lambda member: member.offset in gone)
    if emptied is None:
        return "left"
    storage.write(url, emptied)
    return "rewritten"


def _table(path: str, url: str, needles: Needles) -> Done:
    table = tables.read(url)
    if path.startswith(_RECORDS):
        cells = [
            {name: cell if name in _OWN else _without(cell, needles) for name, cell in row.items()}
            for row in table.to_pylist()
        ]
        kept = pa.Table.from_pylist(cells, schema=table.schema)
    else:
        kept = table.filter(pa.array(np.logical_not(traces.rows(table, needles))))
    footer = {name: text for name, text in tables.metadata(table).items() if name != "contract"}
    storage.write(url, tables.to_bytes(kept, footer))
    return "rewritten"


def _without(value: Any, needles: Needles) -> Any:  # noqa: ANN401 - any JSON value
    """Return a value whose lists lack what says a name, and whose texts say none."""
    if isinstance(value, dict):
        return {name: _without(one, needles) for name, one in value.items()}
    if isinstance(value, list):
        left = [one for one in value if not (isinstance(one, str) and needles.in_text(one))]
        return [_without(one, needles) for one in left]
    return needles.without(value) if isinstance(value, str) else value


def kept(commit: Commit, shard: Shard, *, run: Run) -> Commit:
    """Take out of one shard what must not be in the output; return what its manifest is then."""
    take_out(shard, run=run)
    return commits.find(commit.url) or replace(commit, rows=0)


def take_out(shard: Shard, *, run: Run) -> int:
    """Take out of one shard what must not be in the output; return how many images and rejects.

    For a shard that was written while something was forgotten: whoever forgets writes the record
    first and then looks at all manifests; a shard's writer looks at the records once more when its
    manifest is there. So one of the two sees such an image.
    """
    kept_out = forgotten.load(run.out)
    if not kept_out:
        return 0
    try:
        live = tables.read(layout.manifest(run.out, shard), _LIVE).to_pylist()
    except NotFoundError:
        live = []
    contents = {row["content_sha256"] for row in live if kept_out.is_meant(row)}
    gone = [
        Image(*(row[name] for name in _LIVE))  # with what has the same bytes, which go
        for row in live
        if row["content_sha256"] in contents
    ]
    rejects = manifest.read_rejects(run.out, shard)
    uris = zip(rejects["image_id"].to_pylist(), rejects["source_uri"].to_pylist(), strict=True)
    refused = {image_id for image_id, uri in uris if kept_out.holds(uri)}
    if gone or refused:
        _LOG.warning("%d images of shard %s were forgotten meanwhile", len(gone), shard)
        if gone:  # bytes first: rows that are gone name nothing
            with suppress(NotFoundError):  # left in the source, or gone meanwhile
                _tar(layout.tar(run.out, shard), Needles(gone))
        manifest.retire(shard, run=run, live={one.image_id for one in gone}, rejects=refused)
    return len(gone) + len(refused)

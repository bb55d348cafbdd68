"""Captions and labels in, one small file beside each image in its own bucket out.

`cats/tom.jpg` gets `cats/tom.jpg.clipcap.txt`. The ending is ours alone: a plain `.txt` would be
read back the next night as a caption by a person, and would make every image count as changed.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Literal

import pyarrow as pa

from clipcap import settings as base
from clipcap import storage
from clipcap.errors import NotFoundError
from clipcap.sinks import Written

_LOG = logging.getLogger(__name__)
_ROWS: Final = 4_096  # rows turned into Python objects at a time
_JSON_COLUMNS: Final = ("caption", "captioner_id", "labels", "clip_score")

_Done = Literal["written", "unchanged", "skipped"]


class Settings(base.Settings):
    """What the files are called, and what happens to one that is there."""

    suffix: Literal[".clipcap.txt", ".clipcap.json"] = ".clipcap.txt"
    """Ending behind the image's whole name: text has the caption alone, JSON labels and score."""
    mode: Literal["skip", "overwrite", "append"] = "overwrite"
    """Leave a file that is there alone, replace it, or keep what it says and add ours, once."""


def write(table: pa.Table, settings: Settings) -> Written:
    """Write a file beside each image that is an object of its own, many requests in flight.

    `table` has the columns `source_uri` and `caption`; for JSON also `captioner_id`, `labels`
    (`list<string>`) and `clip_score`, null where they are not there. An image without a caption, in
    a tar or on a web server gets none.

    Raises:
        StorageError: the bucket refuses; what is written stays, and a second call writes the rest.
    """
    done: Counter[_Done] = Counter()
    with ThreadPoolExecutor(storage.IN_FLIGHT, thread_name_prefix="sidecars") as pool:
        for batch in table.to_batches(max_chunksize=_ROWS):
            done.update(pool.map(lambda row: _write(row, settings), batch.to_pylist()))
    return Written(done["written"], done["unchanged"], done["skipped"])


def _write(row: Mapping[str, Any], settings: Settings) -> _Done:
    uri = row["source_uri"]
    if not row["caption"] or uri.startswith(("http://", "https://")) or ".tar#" in uri:
        return "skipped"
    url = f"{uri}{settings.suffix}"
    if settings.mode == "skip":
        is_new = storage.info(url) is None and storage.create(url, _made(b"", row, settings))
        return "written" if is_new else "skipped"
    present = _present(url)
    try:
        wanted = _made(present if settings.mode == "append" else b"", row, settings)
    except ValueError as error:
        _LOG.warning("%s is left alone, for nothing can be added to it: %s.", url, error)
        return "skipped"
    if wanted == present:
        return "unchanged"
    storage.write(url, wanted)
    return "written"


def _present(url: str) -> bytes:
    try:
        return storage.read(url)
    except NotFoundError:
        return b""


def _made(present: bytes, row: Mapping[str, Any], settings: Settings) -> bytes:
    """Return what the file shall hold: what it held, and ours once.

    Raises:
        ValueError: it is to be JSON and is not.
    """
    if settings.suffix == ".clipcap.txt":
        line = " ".join(row["caption"].split()).encode()
        if line in present.splitlines():
            return present
        return present + (b"\n" if present and not present.endswith(b"\n") else b"") + line + b"\n"
    ours = {name: row.get(name) for name in _JSON_COLUMNS}
    held: list[Any] = []
    if present:
        loaded = json.loads(present)
        held = loaded if isinstance(loaded, list) else [loaded]
    if ours in held:
        return present
    shown: Any = [*held, ours] if held else ours
    return json.dumps(shown, ensure_ascii=False, sort_keys=True, indent=1).encode() + b"\n"

"""Listed files in, samples out: what a glob leaves, with the captions that lie beside each image.

Only Arrow batches and one scratch database hold them, however many there are. Nothing is looked up
for a listing without files of text and without a captions file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import translate
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from clipcap import samples, scratch, storage, tables
from clipcap import settings as base
from clipcap.errors import SettingsError
from clipcap.sample import caption_text
from clipcap.scratch import Scratch, ScratchSettings, Spool
from clipcap.settings import digest

OURS: Final = (".clipcap.txt", ".clipcap.json")
"""Endings of the sidecars that the project itself writes: never read as captions by people."""
LISTED: Final = pa.schema([*storage.LISTED, pa.field("archived", pa.bool_())])
"""What is said of each file; `archived` may be null or not there at all."""
_TEXT: Final = r"\.([tT][xX][tT]|[jJ][sS][oO][nN])$"

# `cat.jpg` has `cat.jpg.txt` or else `cat.txt`; of two that differ in large letters, the last one.
_BESIDE: Final = r"""
CREATE TABLE stems AS
SELECT url AS stem FROM images
UNION SELECT regexp_replace(url, '([^/])\.[^./]*$', '\1') FROM images;
CREATE TABLE texts AS
SELECT * EXCLUDE (n), lower(regexp_extract(url, '[^.]*$')) AS suffix,
       regexp_replace(url, '\.[^.]*$', '') AS stem
FROM incoming;
CREATE TABLE beside AS
SELECT stem, suffix, url, size_bytes, etag, archived FROM texts SEMI JOIN stems USING (stem)
QUALIFY row_number() OVER (PARTITION BY stem, suffix ORDER BY url DESC, modified_at DESC) = 1;"""
_JOINED: Final = r"""
WITH files AS (
    SELECT url, size_bytes, etag, modified_at, archived FROM images
    UNION ALL
    SELECT url, size_bytes, etag, modified_at, archived FROM texts ANTI JOIN stems USING (stem)
), named AS (SELECT *, regexp_replace(url, '([^/])\.[^./]*$', '\1') AS stem FROM files),
found AS (
    SELECT f.*, coalesce(t1.url, t2.url) AS txt, coalesce(j1.url, j2.url) AS json,
           if(t1.url IS NULL, t2.etag, t1.etag) AS txt_etag,
           if(j1.url IS NULL, j2.etag, j1.etag) AS json_etag,
           if(t1.url IS NULL, t2.size_bytes, t1.size_bytes) AS txt_bytes,
           if(j1.url IS NULL, j2.size_bytes, j1.size_bytes) AS json_bytes,
           coalesce(f.archived, false)
               OR coalesce(if(t1.url IS NULL, t2.archived, t1.archived), false)
               OR coalesce(if(j1.url IS NULL, j2.archived, j1.archived), false) AS at_rest
    FROM named f
    LEFT JOIN beside t1 ON t1.suffix = 'txt' AND t1.stem = f.url
    LEFT JOIN beside t2 ON t2.suffix = 'txt' AND t2.stem = f.stem
    LEFT JOIN beside j1 ON j1.suffix = 'json' AND j1.stem = f.url
    LEFT JOIN beside j2 ON j2.suffix = 'json' AND j2.stem = f.stem
)
SELECT url AS source_uri, size_bytes, modified_at, at_rest AS archived,
       etag || coalesce('+txt=' || txt_etag, '') || coalesce('+json=' || json_etag, '') AS etag,
       list_filter([
           CASE WHEN txt IS NOT NULL THEN {'suffix': 'txt', 'url': txt, 'offset': 0::BIGINT,
                                           'length': txt_bytes, 'form': ''} END,
           CASE WHEN json IS NOT NULL THEN {'suffix': 'json', 'url': json, 'offset': 0::BIGINT,
                                            'length': json_bytes, 'form': ''} END
       ], lambda one: one IS NOT NULL) AS sidecars
FROM found"""


class FileSettings(base.Settings):
    """Which files of a listing are looked at."""

    glob: str = ""
    """Keep only files whose path below it matches, such as `2026/*.jpg`; `*` crosses folders."""
    leave_out: str | tuple[str, ...] = ()
    """URLs of folders below the source that are not looked at; an output inside of it never is."""
    sidecars: bool = True
    """Keep `.txt` and `.json` files beside an image (`cat.jpg`: `cat.txt` or `cat.jpg.txt`)."""
    captions: str = ""
    """URL of COCO JSON (`images`, `annotations`) or of a JSON object: file name to captions."""
    scratch: ScratchSettings = ScratchSettings()
    """What listing may take of the machine."""


def batches(
    listed: Iterable[pa.RecordBatch], root: str, chosen: FileSettings
) -> Iterator[pa.RecordBatch]:
    """Yield the samples of some files, in no order; sidecars ride with their image.

    `listed` has `LISTED` columns; `root` is the canonical URL that they lie below.

    Raises:
        SettingsError: the captions file is not of a known form.
    """
    captions = _captions(chosen.captions) if chosen.captions else {}
    kept = (_looked_at(batch, chosen) for batch in listed)
    found = _with_sidecars(kept, chosen.scratch) if chosen.sidecars else map(_alone, kept)
    is_wanted = re.compile(translate(chosen.glob or "*")).match
    for batch in found:
        if not chosen.glob and not captions:
            yield batch
            continue
        names = [storage.name_below(url, root) for url in batch["source_uri"].to_pylist()]
        at = [n for n, name in enumerate(names) if is_wanted(name)]
        matching = batch.take(pa.array(at, pa.int64()))
        yield _captioned(matching, [names[n] for n in at], captions) if captions else matching


def _looked_at(batch: pa.RecordBatch, chosen: FileSettings) -> pa.RecordBatch:
    """Drop what is never looked at, and give the batch every column of `LISTED`."""
    url = batch["url"]
    dropped = pc.or_(*(pc.ends_with(url, ending) for ending in OURS))
    if chosen.captions:
        dropped = pc.or_(dropped, pc.equal(url, storage.canonical(chosen.captions)))
    for below in storage.prefixes(chosen.leave_out):
        dropped = pc.or_(dropped, pc.starts_with(url, below))
    archived = (
        batch["archived"]
        if "archived" in batch.schema.names
        else pa.nulls(batch.num_rows, pa.bool_())
    )
    columns = [*(batch[name] for name in storage.LISTED.names), archived]
    return pa.record_batch(columns, schema=LISTED).filter(pc.invert(dropped))


def _alone(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return files as samples without sidecars."""
    names = ["source_uri" if name == "url" else name for name in batch.schema.names]
    return samples.completed(batch.rename_columns(names))


def _with_sidecars(
    listed: Iterable[pa.RecordBatch], chosen: ScratchSettings
) -> Iterator[pa.RecordBatch]:
    """Yield files as samples, each with the text that lies beside it."""
    with scratch.opened(chosen) as place:
        images, texts = place.spool("images", LISTED), place.spool("texts", LISTED)
        for batch in listed:
            is_text = pc.match_substring_regex(batch["url"], _TEXT)
            texts.append(batch.filter(is_text))
            images.append(batch.filter(pc.invert(is_text)))
        images.close()
        texts.close()
        if texts.rows:
            yield from _joined(images, texts, place)
        else:
            yield from map(_alone, images.read())


def _joined(images: Spool, texts: Spool, place: Scratch) -> Iterator[pa.RecordBatch]:
    place.insert("CREATE TABLE images AS SELECT * EXCLUDE (n) FROM incoming", images.read())
    place.insert(_BESIDE, texts.read())
    return map(samples.completed, place.batches(_JOINED))


def _captioned(
    batch: pa.RecordBatch, names: list[str], captions: Mapping[str, tuple[str, ...]]
) -> pa.RecordBatch:
    """Return samples with the captions of their names; others make another version of an image."""
    texts = [captions.get(name) or captions.get(name.rpartition("/")[2], ()) for name in names]
    etags = [
        f"{etag}+captions={digest(list(own))[:16]}" if own else etag
        for etag, own in zip(batch["etag"].to_pylist(), texts, strict=True)
    ]
    at = batch.schema.get_field_index
    batch = batch.set_column(at("etag"), "etag", pa.array(etags, pa.string()))
    return batch.set_column(at("captions"), "captions", pa.array(texts, tables.STRINGS))


def _captions(url: str) -> dict[str, tuple[str, ...]]:
    """Return captions by file name, from COCO annotations or a plain JSON object; text alone.

    Raises:
        SettingsError: the file is neither.
    """
    try:
        loaded = json.loads(storage.read(storage.canonical(url)))
    except (ValueError, RecursionError) as error:
        raise SettingsError(
            f"The captions file {url} must be JSON, but is not: {error}."
        ) from error
    grouped: dict[str, list[object]] = {}
    try:
        if "annotations" in loaded:
            names = {image["id"]: image["file_name"] for image in loaded["images"]}
            for row in loaded["annotations"]:
                grouped.setdefault(names[row["image_id"]], []).append(row["caption"])
        else:
            plain = loaded.get("captions", loaded)
            for name, texts in plain.items():
                grouped[name] = [texts] if isinstance(texts, str) else list(texts)
    except (KeyError, TypeError, AttributeError) as error:
        raise SettingsError(
            f"The captions file {url} must be COCO annotations (`images`, `annotations`) or an "
            f"object from file name to a list of captions, but: {error}."
        ) from error
    return {
        name: tuple(caption_text(one) for one in texts if isinstance(one, str) and one.strip())
        for name, texts in grouped.items()
    }

"""Planned samples in; tar files and manifest rows of the good, reject rows of the others out."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import unquote

from clipcap import ahead, inspection, keys, references, shards, spans, storage, workers
from clipcap.errors import (
    LIMIT_REASONS,
    RETRYABLE_REASONS,
    AccessDeniedError,
    ImageError,
    NotFoundError,
    Reason,
    StorageError,
)
from clipcap.images import HEAD_BYTES, ImageSettings
from clipcap.inspection import Inspected
from clipcap.layout import Run, Shard
from clipcap.packed import Reader
from clipcap.planning import Todo
from clipcap.references import Texts
from clipcap.sample import Sample
from clipcap.spans import Held, Span
from clipcap.workers import WorkerSettings

_PER_THREAD: Final = 8  # requests, one after the other


@dataclass(frozen=True, slots=True)
class Taken:
    """A sample that was read and is an image; `files` are its tar members by extension.

    There are none where the images stay in the tar of the source.
    """

    todo: Todo
    inspected: Inspected
    files: tuple[tuple[str, bytes], ...]
    captions: tuple[str, ...]
    size_bytes: int
    is_listed: bool
    """Whether its bytes are known to be the version that was listed."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A sample that was left out, and why."""

    todo: Todo
    reason: Reason
    error: Exception
    head: bytes = b""
    is_listed: bool = False
    """Whether bytes were judged that are known to be the version that was listed."""


@dataclass(frozen=True, slots=True)
class _Read:
    """A sample whose bytes are here, with its caption files, or why these cannot be used."""

    number: int
    todo: Todo
    data: bytes
    size_bytes: int
    is_listed: bool
    texts: Texts | ImageError | StorageError


def take_in(
    todo: Sequence[Todo],
    settings: ImageSettings,
    decode: WorkerSettings,
    *,
    in_place: bool = False,
    resize_px: int | None = None,
) -> list[Taken | Refused]:
    """Read, decode and judge samples, many requests in flight, in order; every one comes back.

    An object that was replaced since it was listed comes back with an empty etag: nobody knows
    which version it is, so it is read again next night. `in_place`: the bytes are not kept.
    """
    if not todo:
        return []
    found: dict[int, Taken | Refused] = {}
    waiting: deque[_Read] = deque()

    def files() -> Iterator[bytes]:
        for number, one in _all_read(todo, settings):
            if isinstance(one, _Read):
                kept = one.data[:HEAD_BYTES] if in_place else one.data
                waiting.append(replace(one, data=kept))
                yield one.data
            else:
                found[number] = one

    shared = {"settings": settings.model_dump(), "resize_px": resize_px}
    for answer in workers.pool(inspection.__name__, decode).each(shared, files()):
        one = waiting.popleft()
        found[one.number] = _judged(one, answer, in_place=in_place)
    return [found[number] for number in range(len(todo))]


def _all_read(
    todo: Sequence[Todo], settings: ImageSettings
) -> Iterator[tuple[int, _Read | Refused]]:
    """Yield every sample with its bytes, by its place; those that lie together in one request."""
    reader = Reader(item.sample.at for item in todo)
    together = spans.spans([item.sample for item in todo], settings.max_bytes)

    def read(part: Sequence[Span]) -> list[tuple[int, _Read | Refused]]:
        found: list[tuple[int, _Read | Refused]] = []
        for span in part:
            held = Held(span) if span.url else reader
            found += [(n, _read(n, todo[n], held, settings)) for n in span.samples]
        return found

    for found in ahead.mapped(read, _parts(together, todo), threads=storage.IN_FLIGHT):
        yield from found


def _parts(together: Iterable[Span], todo: Sequence[Todo]) -> Iterator[list[Span]]:
    """Yield what one thread reads in one go: handing over small files one by one costs as much."""
    part: list[Span] = []
    size = 0
    for span in together:
        more = sum(todo[number].sample.size_bytes for number in span.samples)
        if part and (len(part) == _PER_THREAD or size + more > spans.MOST):
            yield part
            part, size = [], 0
        part.append(span)
        size += more
    if part:
        yield part


def _read(number: int, item: Todo, reader: Reader, settings: ImageSettings) -> _Read | Refused:
    if item.sample.size_bytes > settings.max_bytes:
        size = f"{item.sample.size_bytes} bytes are more than {settings.max_bytes}."
        return Refused(item, "too_large", ImageError("too_large", size))
    try:
        data, is_listed = reader.seen(item.sample, settings.max_bytes)
    except (StorageError, ImageError) as error:
        return Refused(item, _reason(error), error)
    if is_listed is False:
        item = replace(item, sample=replace(item.sample, etag=""))
    texts: Texts | ImageError | StorageError
    try:
        texts = references.read(item.sample, reader)
    except (StorageError, ImageError) as error:
        texts = error
    return _Read(number, item, data, len(data), bool(is_listed), texts)


def _judged(found: _Read, answer: Any, *, in_place: bool) -> Taken | Refused:  # noqa: ANN401
    """Say what becomes of a sample; `answer` is what a worker made of its bytes."""
    item, data, texts = found.todo, found.data, found.texts
    failure = answer if isinstance(answer, ImageError) else texts
    if isinstance(failure, ImageError | StorageError):
        return Refused(item, _reason(failure), failure, data[:HEAD_BYTES], found.is_listed)
    sidecars, captions = failure
    inspected = inspection.received(answer)
    files = () if in_place else ((inspected.extension, inspected.smaller or data), *sidecars)
    return Taken(item, inspected, files, captions, found.size_bytes, found.is_listed)


def _reason(error: StorageError | ImageError) -> Reason:
    if isinstance(error, ImageError):
        return error.reason
    if isinstance(error, NotFoundError):
        return "not_found"
    return "access_denied" if isinstance(error, AccessDeniedError) else "timeout"


def tar_files(taken: Iterable[Taken]) -> list[tuple[str, str, bytes]]:
    """Return what goes into the tar: key, extension, bytes."""
    return [
        (keys.sample_key(sample.todo.sample.source_uri), extension, data)
        for sample in taken
        for extension, data in sample.files
    ]


def manifest_rows(
    taken: Iterable[Taken], members: Sequence[shards.Member], shard: Shard, *, run: Run
) -> list[dict[str, Any]]:
    """Return the manifest of a shard, one row per image, sorted by key.

    `members` are those of its tar; an image that is not among them lies where it was read.
    """
    by_name = {member.name: member for member in members}
    now = datetime.now(UTC)
    rows = []
    for found in taken:
        sample, inspected = found.todo.sample, found.inspected
        key, tried = keys.sample_key(sample.source_uri), found.todo.attempts
        member = by_name.get(f"{key}.{inspected.extension}") or _in_source(sample)
        extra = ({"attempts": tried} if tried else {}) | (
            {"resized": True} if inspected.smaller else {}
        )
        rows.append(
            {
                "image_id": keys.image_id(sample.source_uri),
                "key": key,
                "source_uri": sample.source_uri,
                "source_etag": sample.etag or None,
                "source_modified_at": sample.modified_at,
                "source_bytes": found.size_bytes,
                "content_sha256": inspected.content_sha256,
                "phash": inspected.phash,
                "shard": shard.name,
                "member": member.name,
                "member_offset": member.offset,
                "member_bytes": member.length,
                "media_type": inspected.media_type,
                "width": inspected.width,
                "height": inspected.height,
                "original_width": inspected.original_width,
                "original_height": inspected.original_height,
                "exif": inspected.exif,
                "taken_at": inspected.taken_at,
                "reference_captions": list(found.captions),
                "flags": list(inspected.flags),
                "first_seen_at": found.todo.first_seen_at or now,
                "run_id": run.run_id,
                "extra_json": json.dumps(extra) if extra else None,
            }
        )
    return sorted(rows, key=lambda row: str(row["key"]))


def _in_source(sample: Sample) -> shards.Member:
    """Return the member that an image is in the tar of its source."""
    name = unquote(sample.source_uri.rpartition("#")[2], errors="replace")
    return shards.Member(name, sample.at.offset, sample.at.length or 0)


def reject_row(
    refused: Refused, shard: Shard, *, stage: str, run: Run, limits: str = ""
) -> dict[str, Any]:
    """Return one row of the rejects table; `limits` is the fingerprint of the image settings."""
    sample = refused.todo.sample
    return {
        "source_uri": sample.source_uri,
        "image_id": keys.image_id(sample.source_uri),
        "key": keys.sample_key(sample.source_uri),
        "stage": stage,
        "reason": refused.reason,
        "error_type": type(refused.error).__name__,
        "error_message": str(refused.error)[:500],
        "retryable": refused.reason in RETRYABLE_REASONS,
        "attempts": refused.todo.attempts + 1,
        "source_bytes": sample.size_bytes,
        "head_hex": refused.head.hex() or None,
        "shard": shard.name,
        "rejected_at": datetime.now(UTC),
        "run_id": run.run_id,
        "extra_json": json.dumps(
            {"source_etag": sample.etag, **_seen(refused.todo)}
            | ({"limits": limits} if refused.reason in LIMIT_REASONS else {})
        ),
    }


def _seen(todo: Todo) -> dict[str, str]:
    """Return when an image was seen before; one that is seen first now has its `rejected_at`."""
    at = todo.first_seen_at
    return {} if at is None else {"first_seen_at": at.isoformat()}

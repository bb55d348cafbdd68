"""Planned samples in; tar files and manifest rows of the good, reject rows of the others out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from clipcap import images, keys, shards, storage
from clipcap.errors import (
    LIMIT_REASONS,
    RETRYABLE_REASONS,
    AccessDeniedError,
    ImageError,
    NotFoundError,
    Reason,
    StorageError,
)
from clipcap.images import HEAD_BYTES, ImageSettings, Inspected
from clipcap.layout import Run, Shard
from clipcap.planning import Todo
from clipcap.sample import Bytes, caption_text

_SIDECAR_BYTES: Final = 2**20  # a caption file of more than 1 MiB is none


@dataclass(frozen=True, slots=True)
class Taken:
    """A sample that was read and is an image; `files` are its tar members by extension."""

    todo: Todo
    inspected: Inspected
    files: tuple[tuple[str, bytes], ...]
    captions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Refused:
    """A sample that was left out, and why."""

    todo: Todo
    reason: Reason
    error: Exception
    head: bytes = b""


def take_in(todo: Sequence[Todo], settings: ImageSettings) -> list[Taken | Refused]:
    """Read, decode and judge samples, many requests in flight, in order; every one comes back."""
    with ThreadPoolExecutor(storage.IN_FLIGHT, thread_name_prefix="take-in") as pool:
        return list(pool.map(lambda item: _take(item, settings), todo))


def _take(item: Todo, settings: ImageSettings) -> Taken | Refused:
    if item.sample.size_bytes > settings.max_bytes:
        size = f"{item.sample.size_bytes} bytes are more than {settings.max_bytes}."
        return Refused(item, "too_large", ImageError("too_large", size))
    try:
        data = _read(item.sample.at)
    except StorageError as error:
        return Refused(item, _reason(error), error)
    try:
        inspected = images.inspect(data, settings)
        sidecars, captions = _sidecars(item)
    except ImageError as error:
        return Refused(item, error.reason, error, data[:HEAD_BYTES])
    except StorageError as error:
        return Refused(item, _reason(error), error, data[:HEAD_BYTES])
    return Taken(item, inspected, ((inspected.format.extension, data), *sidecars), captions)


def _read(at: Bytes) -> bytes:
    return storage.read_range(at.url, at.offset, at.length)


def _reason(error: StorageError) -> Reason:
    if isinstance(error, NotFoundError):
        return "not_found"
    return "access_denied" if isinstance(error, AccessDeniedError) else "timeout"


def _sidecars(item: Todo) -> tuple[list[tuple[str, bytes]], tuple[str, ...]]:
    """Return a sample's caption files as they are, and every caption they and its table hold."""
    files: list[tuple[str, bytes]] = []
    captions = list(item.sample.captions)
    for sidecar in item.sample.sidecars:
        try:
            data = _read_sidecar(sidecar.at)
            captions += _captions(sidecar.suffix, data)
        except (ValueError, RecursionError) as error:
            message = f"{sidecar.at.url}: {type(error).__name__}: {error}"[:300]
            raise ImageError("bad_sidecar", message) from error
        files.append((sidecar.suffix, data))
    if captions and "txt" not in dict(files):
        files.append(("txt", "\n".join(captions).encode()))
    return files, tuple(dict.fromkeys(captions))


def _read_sidecar(at: Bytes) -> bytes:
    """Return the bytes of a caption file; one that is too long is not read.

    Raises:
        ValueError: it is too long.
    """
    if (at.length or 0) > _SIDECAR_BYTES:
        raise ValueError(f"{at.length} bytes are more than {_SIDECAR_BYTES}")
    return _read(at)


def _captions(suffix: str, data: bytes) -> list[str]:
    """Return the captions in one file: lines of text, or `caption`, `captions` or `text` of JSON.

    Raises:
        ValueError: not UTF-8, not JSON.
    """
    text = data.decode("utf-8-sig")
    if suffix == "txt":
        return [line.strip() for line in text.splitlines() if line.strip()]
    loaded = json.loads(text)
    found: list[Any] = []
    for name in ("caption", "captions", "text"):
        value = loaded.get(name, []) if isinstance(loaded, dict) else []
        found += value if isinstance(value, list) else [value]
    return [caption_text(value) for value in found if isinstance(value, str) and value.strip()]


def refuse_twins(found: Iterable[Taken | Refused]) -> list[Taken | Refused]:
    """Turn the second of two samples with one key into a reject."""
    seen: set[str] = set()
    judged: list[Taken | Refused] = []
    for sample in found:
        key = keys.sample_key(sample.todo.sample.source_uri)
        if isinstance(sample, Taken) and key in seen:
            message = f"The key {key} is taken by another image of its shard."
            error = ImageError("duplicate_key", message)
            head = sample.files[0][1][:HEAD_BYTES]
            judged.append(Refused(sample.todo, error.reason, error, head))
        else:
            judged.append(sample)
            seen.add(key)
    return judged


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
    """Return the manifest of a shard, one row per image, sorted by key."""
    by_name = {member.name: member for member in members}
    now = datetime.now(UTC)
    rows = []
    for found in taken:
        sample, inspected = found.todo.sample, found.inspected
        key, tried = keys.sample_key(sample.source_uri), found.todo.attempts
        member = by_name[f"{key}.{inspected.format.extension}"]
        rows.append(
            {
                "image_id": keys.image_id(sample.source_uri),
                "key": key,
                "source_uri": sample.source_uri,
                "source_etag": sample.etag,
                "source_modified_at": sample.modified_at,
                "source_bytes": member.length,
                "content_sha256": inspected.content_sha256,
                "phash": inspected.phash,
                "shard": shard.name,
                "member": member.name,
                "member_offset": member.offset,
                "member_bytes": member.length,
                "media_type": inspected.format.media_type,
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
                "extra_json": json.dumps({"attempts": tried}) if tried else None,
            }
        )
    return sorted(rows, key=lambda row: str(row["key"]))


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

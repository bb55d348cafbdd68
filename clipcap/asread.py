"""What was read for a planned shard in; what of it is taken, and the shard it is written as, out.

A planned shard is named by the versions that were listed. Two runs that read these write the same
bytes under that name, whichever object of them is the last. What was read otherwise gets a name of
its own: else the tar of one run would stay with the manifest of another, which says where in it
each image begins.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Sequence, Set
from typing import Any, Final

from clipcap import keys, planning, plans
from clipcap.errors import ImageError, Reason
from clipcap.images import HEAD_BYTES
from clipcap.intake import Refused, Taken
from clipcap.layout import Run, Shard
from clipcap.plans import Work

log = logging.getLogger(__name__)

_OF_CONTENT: Final[frozenset[Reason]] = frozenset(
    (
        "not_an_image",
        "truncated",
        "unsupported_format",
        "decompression_bomb",
        "too_small",
        "duplicate_key",
    )
)
"""Reasons to reject an image that hold for its bytes, whoever reads them, however often."""


def refuse_twins(found: Iterable[Taken | Refused]) -> list[Taken | Refused]:
    """Turn the second of two samples with one key into a reject."""
    seen: set[str] = set()
    judged: list[Taken | Refused] = []
    for sample in found:
        key = keys.sample_key(sample.todo.sample.source_uri)
        if isinstance(sample, Taken) and key in seen:
            message = f"The key {key} is taken by another image of its shard."
            error = ImageError("duplicate_key", message)
            head = sample.files[0][1][:HEAD_BYTES] if sample.files else b""
            judged.append(Refused(sample.todo, error.reason, error, head, sample.is_listed))
        else:
            judged.append(sample)
            seen.add(key)
    return judged


def refuse_contents(found: Iterable[Taken | Refused], contents: Set[str]) -> list[Taken | Refused]:
    """Turn images whose bytes were taken out of the output under another name into rejects."""
    error = ImageError("opted_out", "An image with these bytes was taken out of this output.")
    return [
        Refused(one.todo, error.reason, error)
        if isinstance(one, Taken) and one.inspected.content_sha256 in contents
        else one
        for one in found
    ]


def named(target: Shard, work: Work, found: Sequence[Taken | Refused], *, run: Run) -> Shard:
    """Return the shard that samples are written as, and write down that they will be."""
    listed = {item.sample.source_uri: item.sample.etag for item in work.todo}
    replaced = [uri for uri, etag in map(_version, found) if etag != listed[uri]]
    if replaced:
        log.warning(
            "%d objects of shard %s were replaced after they were listed, such as %s: they are "
            "read again next night.", len(replaced), target, replaced[0],
        )  # fmt: skip
    shard = target
    if len(found) < work.images or not all(map(_is_sure, found)):
        shard = planning.held(target, [_content(one) for one in found])
    if shard != work.written_as:
        plans.write_as(run, target, shard)
    return shard


def _version(found: Taken | Refused) -> tuple[str, str]:
    return found.todo.sample.source_uri, found.todo.sample.etag


def _is_sure(found: Taken | Refused) -> bool:
    """Tell whether everybody who reads the version that was listed comes to the same."""
    if isinstance(found, Refused):
        return found.is_listed and found.reason in _OF_CONTENT
    # Other files have no version, and what is made smaller is what the libraries here make of it.
    return found.is_listed and len(found.files) <= 1 and found.inspected.smaller is None


def _content(found: Taken | Refused) -> list[Any]:
    if isinstance(found, Refused):
        return [*_version(found), found.reason]
    files = [hashlib.sha256(data).hexdigest() for _, data in found.files]
    return [*_version(found), found.inspected.content_sha256, *files]

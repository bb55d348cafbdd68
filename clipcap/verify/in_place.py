"""A manifest whose images lie in a tar of the source in; what that tar has not any more, out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any, Final

from clipcap import spans, storage
from clipcap.errors import StorageError
from clipcap.manifest import SourceTar
from clipcap.packed import Reader
from clipcap.sample import Bytes, Sample
from clipcap.spans import Held
from clipcap.verify.findings import Problem
from clipcap.verify.objects import Opened

_ANY: Final = 2**62
_AGAIN: Final = "Run again over the source"


def of_tar(live: Opened, tar: SourceTar) -> Iterator[Problem]:
    """Check that the tar is there and the one that was listed; reads no byte of it."""
    if live.rows.num_rows == 0:
        return
    try:
        found = storage.info(tar.url)
    except StorageError as error:
        yield live.problem("tar", f"Its images lie in {tar.url}, which does not answer: {error}")
        return
    if found is None:
        message = f"Its images lie in {tar.url}, which is not there any more. {_AGAIN}."
        yield live.problem("missing", message)
    elif found.etag != tar.etag:
        yield live.problem(
            "tar",
            f"Its images lie in {tar.url}, which was changed since: its version was {tar.etag}, "
            f"but is {found.etag}. {_AGAIN}.",
        )


def of_tar_bytes(live: Opened, tar: SourceTar) -> Iterator[Problem]:
    """Check the bytes of every live member by their sha256; a few MiB are held at a time."""
    try:
        for row in changed(live, tar):
            yield live.problem(
                "tar",
                f"The bytes of {row['member']} in {tar.url} are not those of its "
                f"content_sha256: the tar was changed. {_AGAIN}.",
            )
    except StorageError as error:
        yield live.problem("tar", f"{tar.url} cannot be read: {error}")


def changed(live: Opened, tar: SourceTar) -> Iterator[dict[str, Any]]:
    """Yield the images whose bytes are not those of their manifest.

    Raises:
        StorageError: the tar cannot be read.
    """
    columns = ["image_id", "member", "member_offset", "member_bytes", "content_sha256"]
    rows = live.rows.select(columns).to_pylist()
    samples = [
        Sample(tar.url, tar.etag, row["member_bytes"], at)
        for row in rows
        for at in [Bytes(tar.url, row["member_offset"], row["member_bytes"])]
    ]
    for span in spans.spans(samples, _ANY):
        reader = Held(span) if span.url else Reader()
        for row, sample in ((rows[number], samples[number]) for number in span.samples):
            data = reader.read(sample.at, _ANY)
            if hashlib.sha256(data).hexdigest() != row["content_sha256"]:
                yield row

"""A bucket and a prefix in, the multipart uploads that nobody has finished out; and their end."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final

from clipcap.objects import Unfinished
from clipcap.refusals import Damaged, Refusal
from clipcap.s3 import Bucket
from clipcap.s3listing import text

_UPLOAD: Final = re.compile(rb"<Upload>(.*?)</Upload>", re.DOTALL)
_ID: Final = b"<UploadId>"
_END: Final = b"</ListMultipartUploadsResult>"
_MORE: Final = re.compile(rb"<IsTruncated>\s*(true|false)\s*</IsTruncated>", re.IGNORECASE)


def uploads(bucket: Bucket, prefix: str, *, root: str) -> Iterator[Unfinished]:
    """Yield the unfinished uploads of keys that begin with `prefix`; what they hold is not told.

    Raises:
        Refusal: the bucket is not there or may not be listed.
        TimeoutError: the store does not answer in time.
        ConnectionError: there is no store, or a connection broke.
        Damaged: what came is no whole list.
    """
    query = {"uploads": "", "prefix": prefix}
    while True:
        data = bucket.request("GET", "", query=query).data
        try:
            found, is_last = _parsed(data, root)
            after = ("", "") if is_last else _after(data)
        except ValueError as error:
            raise Damaged from error
        yield from found
        if is_last:
            return
        if after == (query.get("key-marker", ""), query.get("upload-id-marker", "")):
            raise Refusal("200", said="its list of uploads does not go on")
        query |= {"key-marker": after[0], "upload-id-marker": after[1]}


def _parsed(data: bytes, root: str) -> tuple[list[Unfinished], bool]:
    """Return the uploads of a page, and whether it is the last."""
    uploads, more = _UPLOAD.findall(data), _MORE.search(data)
    is_last = more[1].lower() == b"false" if more else _seems_last(data)
    if len(uploads) != data.count(_ID):
        raise ValueError("It is cut, or an upload is.")
    found = []
    for one in uploads:
        key, upload_id = _field(one, b"Key"), _field(one, b"UploadId")
        begun = datetime.fromisoformat(_field(one, b"Initiated")).astimezone(UTC)
        if not (key and upload_id):
            raise ValueError("An upload has no key, or no name of its own.")
        found.append(Unfinished(f"{root}{key}", 0, begun, upload_id))
    return found, is_last


def _seems_last(data: bytes) -> bool:
    """Tell whether a page that does not say so is the last: some stores leave out what is false."""
    if not data.rstrip().endswith(_END) or b"Truncated" in data or b"NextKeyMarker" in data:
        raise ValueError("It does not say whether there is more.")
    return True


def _after(data: bytes) -> tuple[str, str]:
    return _field(data, b"NextKeyMarker"), _field(data, b"NextUploadIdMarker")


def abort(bucket: Bucket, key: str, upload_id: str) -> None:
    """Give up an upload; one that is not there any more is no error."""
    try:
        bucket.request("DELETE", key, query={"uploadId": upload_id})
    except Refusal as error:
        if error.name != "NoSuchUpload":
            raise


def _field(data: bytes, name: bytes) -> str:
    found = re.search(rb"<%b>([^<]*)</%b>" % (name, name), data)
    return text(found[1]) if found else ""

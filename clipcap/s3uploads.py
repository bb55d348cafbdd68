"""A bucket and a prefix in, the multipart uploads that nobody has finished out; and their end."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final

from clipcap.objects import Unfinished
from clipcap.refusals import Refusal
from clipcap.s3 import Bucket
from clipcap.s3listing import text

_UPLOAD: Final = re.compile(rb"<Upload>(.*?)</Upload>", re.DOTALL)
_MORE: Final = re.compile(rb"<IsTruncated>\s*true\s*</IsTruncated>", re.IGNORECASE)


def uploads(bucket: Bucket, prefix: str, *, root: str) -> Iterator[Unfinished]:
    """Yield the unfinished uploads of keys that begin with `prefix`; what they hold is not told."""
    query = {"uploads": "", "prefix": prefix}
    while True:
        data = bucket.request("GET", "", query=query).data
        for one in _UPLOAD.findall(data):
            begun = datetime.fromisoformat(_field(one, b"Initiated")).astimezone(UTC)
            yield Unfinished(f"{root}{_field(one, b'Key')}", 0, begun, _field(one, b"UploadId"))
        if not _MORE.search(data):
            return
        after = (_field(data, b"NextKeyMarker"), _field(data, b"NextUploadIdMarker"))
        if after == (query.get("key-marker", ""), query.get("upload-id-marker", "")):
            raise Refusal("200", said="its list of uploads does not go on")
        query |= {"key-marker": after[0], "upload-id-marker": after[1]}


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

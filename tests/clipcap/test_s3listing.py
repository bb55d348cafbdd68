"""A page of a listing as a store writes it: each object is listed, or the listing is refused."""

from __future__ import annotations

from typing import cast

import pyarrow as pa
import pytest

from clipcap import s3listing
from clipcap.refusals import Refusal
from clipcap.s3 import Answer, Bucket

KEYS = ("photos/a&b.jpg", "photos/été.jpg", "photos/z.jpg")
PAGE = f"""<?xml version="1.0" encoding="UTF-8"?>
<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>b</Name>
<Prefix>photos/</Prefix><MaxKeys>1000</MaxKeys><KeyCount>{len(KEYS)}</KeyCount>
<IsTruncated>false</IsTruncated>""" + "".join(
    f"<Contents><Key>{key.replace('&', '&amp;')}</Key><LastModified>2026-11-01T10:20:3{n}.000Z"
    f"</LastModified><ETag>&quot;0123456789abcdef{n}&quot;</ETag><Size>12{n}</Size>"
    "<StorageClass>STANDARD</StorageClass></Contents>"
    for n, key in enumerate(KEYS)
)


class OnePage:
    """Stands for a bucket whose every answer is the same."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def request(self, _method: str, _key: str, **_how: object) -> Answer:
        return Answer(200, {}, self.data)


def listed(data: bytes) -> list[pa.RecordBatch]:
    return list(s3listing.batches(cast("Bucket", OnePage(data)), "photos/", root="s3://b/"))


def test_a_page_is_read_as_it_is_meant() -> None:
    (found,) = listed(PAGE.encode())
    assert found["url"].to_pylist() == [f"s3://b/{key}" for key in KEYS]
    assert found["size_bytes"].to_pylist() == [120, 121, 122]
    assert found["etag"].to_pylist() == [f"0123456789abcdef{n}" for n in range(3)]


@pytest.mark.parametrize("bit", range(8))
def test_a_flipped_bit_hides_no_object_and_has_an_error_of_its_own(bit: int) -> None:
    """A page with a bit flipped names as many objects, or it is said to be damaged."""
    data = PAGE.encode()
    refused = 0
    for at in range(len(data)):
        flipped = data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]
        try:
            rows = sum(batch.num_rows for batch in listed(flipped))
        except (ConnectionError, Refusal):
            refused += 1
            continue
        assert rows == len(KEYS), flipped[max(0, at - 20) : at + 20]
    assert refused > len(KEYS) * len("<Key></Key><LastModified></LastModified><Size></Size>")


@pytest.mark.parametrize("lost", ["<IsTruncated>false</IsTruncated>", PAGE[PAGE.rindex("<Con") :]])
def test_a_page_that_lacks_something_is_damaged(lost: str) -> None:
    with pytest.raises(ConnectionError, match="its listing is damaged"):
        listed(PAGE.replace(lost, "").encode())


def test_an_object_without_an_etag_is_listed() -> None:
    (found,) = listed(PAGE.replace("<ETag>&quot;0123456789abcdef1&quot;</ETag>", "").encode())
    assert found["etag"].to_pylist() == ["0123456789abcdef0", "", "0123456789abcdef2"]

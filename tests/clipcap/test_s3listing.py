"""Pages of a listing as a store writes them: each object is listed, or the listing is refused."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import cast

import pytest

from clipcap import s3listing, s3uploads
from clipcap.refusals import Damaged
from clipcap.s3 import Answer, Bucket

KEYS = ("photos/a&b.jpg", "photos/été.jpg", "photos/z.jpg")
MANY = [f"photos/{number:04d}.jpg" for number in range(60)]
ROOT = "s3://b/"
HEAD = (
    '<?xml version="1.0" encoding="UTF-8"?>\n<{0} xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
)


def page(keys: Sequence[str], *, is_cut: bool = False) -> str:
    """Return a page as Ceph writes it."""
    head = HEAD.format("ListBucketResult") + (
        f"<Name>b</Name><Prefix>photos/</Prefix><MaxKeys>1000</MaxKeys>"
        f"<KeyCount>{len(keys)}</KeyCount><IsTruncated>{str(is_cut).lower()}</IsTruncated>"
    )
    contents = "".join(
        f"<Contents><Key>{key.replace('&', '&amp;')}</Key><LastModified>2026-11-01T10:20:3{n % 10}"
        f".000Z</LastModified><ETag>&quot;0123456789abcdef{n}&quot;</ETag><Size>12{n}</Size>"
        "<StorageClass>STANDARD</StorageClass></Contents>"
        for n, key in enumerate(keys)
    )
    return f"{head}{contents}</ListBucketResult>"


def flipped(data: bytes, at: int, bit: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]


class Answers:
    """Stands for a bucket whose every answer is the same."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def request(self, _method: str, _key: str, **_how: object) -> Answer:
        return Answer(200, {}, self.data)


class Store:
    """Stands for a bucket with `MANY` keys, one of whose answers is damaged."""

    def __init__(self, damaged: int, damage: Callable[[bytes], bytes]) -> None:
        self.damaged, self.damage, self.asked = damaged, damage, 0
        self.keys = MANY

    def request(self, _method: str, _key: str, *, query: dict[str, str]) -> Answer:
        behind = [key for key in self.keys if key > query.get("start-after", "")]
        most = int(query["max-keys"])
        data = page(behind[:most], is_cut=len(behind) > most).encode()
        self.asked += 1
        return Answer(200, {}, self.damage(data) if self.asked == self.damaged else data)


def listed(bucket: object) -> Iterator[str]:
    for batch in s3listing.batches(cast("Bucket", bucket), "photos/", root=ROOT):
        yield from batch["url"].to_pylist()


def test_a_page_is_read_as_it_is_meant() -> None:
    bucket = cast("Bucket", Answers(page(KEYS).encode()))
    (found,) = s3listing.batches(bucket, "photos/", root=ROOT)
    assert found["url"].to_pylist() == [f"{ROOT}{key}" for key in KEYS]
    assert found["size_bytes"].to_pylist() == [120, 121, 122]
    assert found["etag"].to_pylist() == [f"0123456789abcdef{n}" for n in range(3)]


@pytest.mark.parametrize("bit", range(8))
def test_a_flipped_bit_hides_none_of_these_objects(bit: int) -> None:
    """One of them may be misspelt; else the page is said to be damaged, by an error of ours."""
    data, urls = page(KEYS).encode(), {f"{ROOT}{key}" for key in KEYS}
    refused = 0
    for at in range(len(data)):
        try:
            found = set(listed(Answers(flipped(data, at, bit))))
        except Damaged:
            refused += 1
            continue
        assert (len(found), len(found & urls)) >= (len(KEYS), len(KEYS) - 1), at
        assert ROOT not in found
    assert refused > len(KEYS) * len("<Key></Key><LastModified></LastModified><Size></Size>")


class Busy(Store):
    """Stands for a bucket that loses a key and is given another while it is listed."""

    def __init__(self, at: int, lost: str, put: str) -> None:
        super().__init__(0, bytes)
        self.at, self.lost, self.put = at, lost, put

    def request(self, method: str, key: str, *, query: dict[str, str]) -> Answer:
        if self.asked == self.at:
            self.keys = sorted({*self.keys, self.put} - {self.lost})
        return super().request(method, key, query=query)


@pytest.mark.parametrize("long_pages", [100, 1])
@pytest.mark.parametrize("size", [2, 7, 10])
def test_a_bucket_that_changes_meanwhile_is_listed(
    monkeypatch: pytest.MonkeyPatch, size: int, long_pages: int
) -> None:
    """Also where a page ends just there."""
    monkeypatch.setattr(s3listing, "LONG_PAGES", long_pages)
    monkeypatch.setattr(s3listing, "PAGE_KEYS", size)
    monkeypatch.setattr(s3listing, "IN_FLIGHT", 1)  # else who comes first is chance
    for at in (1, 2, 3, 5, 8):
        for number in {size * at - 1, size * at, size * at - 2, 30} - set(range(60, 90)):
            lost, put = MANY[number], f"{MANY[number]}a"
            found = [one.removeprefix(ROOT) for one in listed(Busy(at, lost, put))]
            assert len(found) == len(set(found))
            assert set(found) - {lost, put} == set(MANY) - {lost}


@pytest.mark.parametrize("long_pages", [100, 1])
@pytest.mark.parametrize("size", [3, 7, 10, 13])
def test_a_flipped_bit_in_one_of_many_pages_hides_none_of_these_objects(
    monkeypatch: pytest.MonkeyPatch, size: int, long_pages: int
) -> None:
    """Where the next page begins, and where a range ends, does not hang on what one page says."""
    monkeypatch.setattr(s3listing, "LONG_PAGES", long_pages)
    monkeypatch.setattr(s3listing, "PAGE_KEYS", size)
    draw, urls = random.Random(long_pages), {f"{ROOT}{key}" for key in MANY}
    ended = {"whole": 0, "misspelt": 0}

    def damage(data: bytes) -> bytes:
        return flipped(data, draw.randrange(len(data)), draw.randrange(8))

    for _ in range(150):
        found = list(listed(Store(draw.randrange(1, 2 + len(MANY) // size), damage)))
        assert len(found) >= len(MANY)
        lost = len(urls - set(found))
        assert lost <= 1
        ended["misspelt" if lost else "whole"] += 1
    assert ended["whole"] > 0
    assert ended["misspelt"] > 0 or long_pages == 1, "most requests ask for one key then"


def test_pages_meet_without_a_gap_or_a_double(monkeypatch: pytest.MonkeyPatch) -> None:
    for long_pages in (100, 3, 2, 1):
        monkeypatch.setattr(s3listing, "LONG_PAGES", long_pages)
        for size in (1, 2, 3, 7, 59, 60, 61):
            monkeypatch.setattr(s3listing, "PAGE_KEYS", size)
            assert sorted(listed(Store(0, bytes))) == [f"{ROOT}{key}" for key in MANY]


@pytest.mark.parametrize(
    "lost",
    ["<IsTruncated>false</IsTruncated>", "<Key>photos/z.jpg</Key>", page(KEYS[2:])[-250:-19]],
)
def test_a_page_that_lacks_something_is_damaged(lost: str) -> None:
    whole = page(KEYS)
    cut = whole[: whole.rindex("<Contents>")] if lost not in whole else whole.replace(lost, "")
    with pytest.raises(Damaged):
        list(listed(Answers(cut.encode())))


@pytest.mark.parametrize("key", ["&#55296;", "&#x110000;", "&#xdfff;"])
def test_a_character_that_is_none_is_damaged(key: str) -> None:
    data = page(KEYS).replace("photos/z.jpg", f"photos/{key}.jpg")
    with pytest.raises(Damaged):
        list(listed(Answers(data.encode())))


def test_an_object_without_an_etag_is_listed() -> None:
    data = page(KEYS).replace("<ETag>&quot;0123456789abcdef1&quot;</ETag>", "").encode()
    (found,) = s3listing.batches(cast("Bucket", Answers(data)), "photos/", root=ROOT)
    assert found["etag"].to_pylist() == ["0123456789abcdef0", "", "0123456789abcdef2"]


def test_a_count_of_more_than_was_asked_for_is_of_something_else() -> None:
    """There is a store that counts what lies behind a page too."""
    data = page(KEYS).replace("<KeyCount>3<", "<KeyCount>50493<").encode()
    assert len(list(listed(Answers(data)))) == len(KEYS)


@pytest.mark.parametrize("bit", range(8))
def test_a_flipped_bit_hides_no_unfinished_upload(bit: int) -> None:
    data = (
        HEAD.format("ListMultipartUploadsResult") + "<Bucket>b</Bucket><Prefix>photos/</Prefix>"
        "<IsTruncated>false</IsTruncated><Upload><Key>photos/a.tar</Key>"
        "<UploadId>2~id</UploadId><Initiated>2026-11-01T10:20:30.000Z</Initiated></Upload>"
        "</ListMultipartUploadsResult>"
    ).encode()
    damaged = 0
    for at in range(len(data)):
        bucket = cast("Bucket", Answers(flipped(data, at, bit)))
        try:
            found = list(s3uploads.uploads(bucket, "photos/", root=ROOT))
        except Damaged:
            damaged += 1
            continue
        assert len(found) == 1, at
    assert damaged > len("<Upload></Upload><UploadId></UploadId><Initiated></Initiated>")

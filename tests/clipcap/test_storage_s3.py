"""What a bucket promises on a real S3 server: pages, parts, refusals, and an end to every wait."""

from __future__ import annotations

import json
import secrets
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from clipcap import storage
from clipcap.errors import AccessDeniedError, NotFoundError, TransientStorageError
from tests.servers import free_ports

pytestmark = pytest.mark.s3

MULTIPART_BYTES = 100 * 2**20  # from here on s3fs cuts one PUT into parts


def test_a_listing_of_more_than_one_page_is_whole(bucket: str) -> None:
    """S3 lists 1,000 objects a page."""
    names = [f"{bucket}/many/{number:04d}.jpg" for number in range(1_100)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda url: storage.write(url, url.encode()), names))
    assert [found.url for found in storage.list_objects(f"{bucket}/many")] == names


def test_a_large_object_goes_up_in_parts(bucket: str) -> None:
    data = secrets.token_bytes(2**20) * (MULTIPART_BYTES // 2**20 + 1)
    storage.write(f"{bucket}/large", data)
    found = storage.info(f"{bucket}/large")
    assert found is not None
    assert "-" in found.etag, "an object in parts has their number in its etag"
    assert storage.read(f"{bucket}/large") == data
    assert storage.read_range(f"{bucket}/large", MULTIPART_BYTES - 3, 6) == data[-3:] + data[:3]


@pytest.mark.parametrize("wrong", ["AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"])
def test_wrong_keys_are_refused_by_the_call_they_were_for(
    bucket: str, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    storage.write(f"{bucket}/a", b"1")
    monkeypatch.setenv(wrong, "0123456789abcdef-wrong")
    calls: dict[str, Callable[[], object]] = {
        "list": lambda: list(storage.list_objects(bucket)),
        "get": lambda: storage.read(f"{bucket}/a"),
        "put": lambda: storage.write(f"{bucket}/b", b"1"),
        "delete": lambda: storage.delete(f"{bucket}/a"),
    }
    for kind, call in calls.items():
        with pytest.raises(AccessDeniedError, match=f"Cannot {kind} ") as refused:
            call()
        assert "AWS_ACCESS_KEY_ID" in str(refused.value)
        assert "0123456789abcdef-wrong" not in str(refused.value)
        assert not refused.value.retryable
    with pytest.raises(AccessDeniedError, match="Cannot put "):
        storage.require_writable(bucket)


def test_without_keys_the_error_says_where_they_were_looked_for(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(AccessDeniedError, match=r"Cannot list .*no credentials.*AWS_PROFILE"):
        list(storage.list_objects(bucket))


def test_a_missing_bucket_is_named_with_the_near_ones(bucket: str) -> None:
    missing = f"{bucket[:-1]}-typo"
    for call in (storage.require_bucket, lambda url: list(storage.list_objects(url))):
        with pytest.raises(NotFoundError) as refused:
            call(missing)
        assert repr(missing.removeprefix("s3://")) in str(refused.value)
        assert bucket.removeprefix("s3://") in str(refused.value)


def test_an_empty_bucket_is_an_empty_listing(bucket: str) -> None:
    assert list(storage.list_objects(bucket)) == []
    assert list(storage.list_objects(f"{bucket}/nothing/here")) == []


def test_a_bucket_that_may_only_be_read_is_not_writable(bucket: str) -> None:
    storage.write(f"{bucket}/a", b"1")
    forbid_put(bucket)
    with pytest.raises(AccessDeniedError, match="Cannot put "):
        storage.require_writable(f"{bucket}/out")
    assert storage.read(f"{bucket}/a") == b"1"


def test_a_store_that_does_not_answer_may_be_tried_again(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_ports(1)[0]}")
    with pytest.raises(TransientStorageError, match="Cannot get "):
        storage.read(f"{bucket}/a")


def test_a_store_that_froze_ends_with_the_deadline(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes the connection and never says a word: s3fs alone waits for minutes."""
    with socket.create_server(("127.0.0.1", 0)) as frozen:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{frozen.getsockname()[1]}")
        monkeypatch.setattr(storage, "DEADLINE_S", 1.0)
        with pytest.raises(TransientStorageError, match="Cannot put "):
            storage.write(f"{bucket}/a", b"1")


def forbid_put(bucket: str) -> None:
    """Let nobody write into a bucket any more, its owner included."""
    import s3fs

    name = bucket.removeprefix("s3://")
    rule = {"Effect": "Deny", "Principal": "*", "Action": "s3:PutObject"}
    statement = {**rule, "Resource": f"arn:aws:s3:::{name}/*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    client: Any = s3fs.S3FileSystem()
    client.call_s3("put_bucket_policy", Bucket=name, Policy=policy)

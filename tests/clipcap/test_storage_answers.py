"""What storage makes of the answers of a store: asked again or not, how long, and told to whom."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest

from clipcap import objectstores, s3, storage
from clipcap.errors import (
    AccessDeniedError,
    NotFoundError,
    SettingsError,
    StorageError,
    TransientStorageError,
)
from tests.web import Reply, Server, serving

PAGE = (
    b"<ListBucketResult><IsTruncated>%s</IsTruncated><Contents><Key>%s</Key>"
    b"<LastModified>2026-10-12T17:50:30.123456789Z</LastModified>%s<Size>3</Size></Contents>"
    b"</ListBucketResult>"
)
DATE = "Fri, 20 Nov 2026 10:00:00 GMT"
CALLS: dict[str, Callable[[str], object]] = {
    "list": lambda url: list(storage.list_batches(url)),
    "get": storage.read,
    "put": lambda url: storage.write(url, b"1"),
    "delete": storage.delete,
}
ALL_CALLS = {
    **CALLS,
    "info": storage.info,
    "create": lambda url: storage.create(url, b"1"),
    "stream": lambda url: list(storage.stream(url)),
    "large": lambda url: storage.write(url, bytes(2**25)),
    "require": storage.require_bucket,
}
KEYS = ["a.bin", "a//b.bin"]  # obstore's way, and that of exact keys


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server that stands for an S3 store, with one object and answers by command."""
    page = {"Last-Modified": DATE, "ETag": '"1"'}
    with serving({f"/bucket/{key}": b"0123456789" for key in KEYS}) as server:
        server.headers = {f"/bucket/{key}": page for key in KEYS}
        environment(monkeypatch, server.url)
        yield server


def environment(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "THE-ACCESS-KEY")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "THE-SECRET-KEY")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "THE-SESSION-TOKEN")


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_store_that_says_later_is_asked_again(store: Server, key: str, status: int) -> None:
    store.replies[f"/bucket/{key}"] = [Reply(status), Reply(status)]
    assert storage.read(f"s3://bucket/{key}") == b"0123456789"
    assert store.asked.count(f"GET /bucket/{key}") == 3


@pytest.mark.parametrize("key", KEYS)
def test_a_store_that_always_says_later_may_be_tried_by_the_task(store: Server, key: str) -> None:
    store.replies[f"/bucket/{key}"] = [Reply(503, body=b"<Code>SlowDown</Code>")] * 9
    with pytest.raises(TransientStorageError, match=r"Cannot get .*SlowDown"):
        storage.read(f"s3://bucket/{key}")
    assert len(store.asked) < 6


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (400, b"KeyTooLongError", NotFoundError),
        (400, b"ExpiredToken", AccessDeniedError),
        (400, b"NoIdea", StorageError),
        (403, b"AccessDenied", AccessDeniedError),
        (404, b"NoSuchKey", NotFoundError),
        (405, b"MethodNotAllowed", StorageError),
    ],
)
def test_a_refusal_is_asked_for_once_and_told_by_name(
    store: Server, key: str, status: int, code: bytes, expected: type[StorageError]
) -> None:
    said = b"<Error><Code>%s</Code><AWSAccessKeyId>THE-ACCESS-KEY</AWSAccessKeyId></Error>" % code
    store.replies[f"/bucket/{key}"] = [Reply(status, body=said)]
    with pytest.raises(StorageError, match=code.decode()) as refused:
        storage.read(f"s3://bucket/{key}")
    assert type(refused.value) is expected
    assert "THE-" not in str(refused.value)
    assert store.asked.count(f"GET /bucket/{key}") == 1


@pytest.mark.parametrize("key", KEYS)
def test_a_clock_that_is_wrong_is_told_and_not_taken_for_wrong_keys(
    store: Server, key: str
) -> None:
    said = b"<Error><Code>RequestTimeTooSkewed</Code></Error>"
    store.replies[f"/bucket/{key}"] = [Reply(403, body=said)]
    with pytest.raises(AccessDeniedError, match="the clock of this machine") as refused:
        storage.read(f"s3://bucket/{key}")
    assert "Keys were looked for" not in str(refused.value)
    assert store.asked.count(f"GET /bucket/{key}") == 1


@pytest.mark.parametrize("key", KEYS)
def test_creating_is_tried_once(store: Server, key: str) -> None:
    """A second try would meet what the first one may have written, and call it another's."""
    store.replies[f"/bucket/{key}"] = [Reply(500)]
    with pytest.raises(TransientStorageError):
        storage.create(f"s3://bucket/{key}", b"1")
    assert store.asked.count(f"PUT /bucket/{key}") == 1
    assert store.sent[-1]["if-none-match"] == "*"
    assert storage.create(f"s3://bucket/{key}", b"1")
    store.replies[f"/bucket/{key}"] = [Reply(412, body=b"<Code>PreconditionFailed</Code>")]
    assert not storage.create(f"s3://bucket/{key}", b"2")


def test_what_is_too_large_to_create_is_said_before_it_is_sent(
    store: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipcap.objectstores._MOST_AT_ONCE", 3)
    with pytest.raises(StorageError, match="5 GiB cannot be created at once"):
        storage.create("s3://bucket/a.bin", b"1234")
    assert store.asked == []


@pytest.mark.parametrize("key", KEYS)
def test_bytes_that_are_not_those_of_their_digest_are_read_again(store: Server, key: str) -> None:
    """A bit flipped behind the store, in a proxy's memory, was taken for the image until then."""
    right = {"ETag": f'"{hashlib.md5(b"0123456789", usedforsecurity=False).hexdigest()}"'}
    wrong = Reply(206, {**right, "Content-Range": "bytes 0-9/10"}, b"0123456799")
    store.headers[f"/bucket/{key}"] = {"Last-Modified": DATE, **right}
    store.replies[f"/bucket/{key}"] = [wrong]
    assert storage.read(f"s3://bucket/{key}") == b"0123456789"
    other = Reply(206, {**right, "Content-Range": "bytes 0-9/10"}, b"1123456789")
    store.replies[f"/bucket/{key}"] = [wrong, other]
    with pytest.raises(TransientStorageError, match="its bytes are not those of its digest"):
        storage.read(f"s3://bucket/{key}")


def test_a_bucket_whose_etags_are_no_digests_is_read_twice_once(store: Server) -> None:
    """So are those of objects that are encrypted with keys of KMS."""
    store.headers["/bucket/a.bin"] = {"Last-Modified": DATE, "ETag": f'"{"0" * 32}"'}
    for _ in range(3):
        assert storage.read("s3://bucket/a.bin") == b"0123456789"
    assert store.asked.count("GET /bucket/a.bin") == 4
    objectstores._WITHOUT_MD5.clear()


@pytest.mark.parametrize("key", KEYS)
def test_a_body_that_breaks_off_is_asked_for_again(store: Server, key: str) -> None:
    headers = {
        "Content-Length": "10",
        "Content-Range": "bytes 0-9/10",
        **store.headers[f"/bucket/{key}"],
    }
    store.replies[f"/bucket/{key}"] = [Reply(206, {**headers, "Connection": "close"}, b"012")]
    assert storage.read(f"s3://bucket/{key}") == b"0123456789"


@pytest.mark.parametrize(
    ("name", "key"),
    [*((name, KEYS[0]) for name in ALL_CALLS), *((name, KEYS[1]) for name in ("get", "large"))],
)
def test_a_store_that_freezes_after_its_first_answer_ends_every_call(
    store: Server, monkeypatch: pytest.MonkeyPatch, name: str, key: str
) -> None:
    """It answered before; then it takes requests and says nothing."""
    monkeypatch.setattr(storage, "DEADLINE_S", 1.0)
    monkeypatch.setattr(s3, "_SLOWEST_BYTES_PER_S", 2**30)
    storage.read(f"s3://bucket/{key}")
    store.is_frozen = True
    began = time.monotonic()
    with pytest.raises(TransientStorageError, match=f"s3://bucket/{key}"):
        ALL_CALLS[name](f"s3://bucket/{key}")
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("key", KEYS)
def test_a_store_that_sends_a_byte_now_and_then_ends_with_the_deadline(
    store: Server, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setattr(storage, "DEADLINE_S", 1.0)
    headers = {"Content-Range": "bytes 0-99/100", **store.headers[f"/bucket/{key}"]}
    store.replies[f"/bucket/{key}"] = [Reply(206, headers, b"1" * 100, drip_s=0.1)] * 9
    began = time.monotonic()
    with pytest.raises(TransientStorageError):
        storage.read(f"s3://bucket/{key}")
    assert time.monotonic() - began < 3


def test_the_region_is_the_one_that_the_bucket_names(store: Server) -> None:
    """Asked in the wrong region, a bucket says where it is; later requests are signed for there."""
    there = {"x-amz-bucket-region": "eu-west-3"}
    store.replies["/bucket"] = [Reply(301, there), Reply(200, body=PAGE % (b"false", b"a", b""))]
    for key in KEYS:
        assert storage.read(f"s3://bucket/{key}") == b"0123456789"
    assert list(storage.list_batches("s3://bucket"))
    scopes = [sent["authorization"].split("/")[2] for sent in store.sent]
    assert scopes == ["us-east-1", *["eu-west-3"] * 3]


def test_a_listing_without_etags_and_with_small_times_is_read(store: Server) -> None:
    more = PAGE % (b"true", b"a&#x1;&amp;b", b"<ETag>&quot;e1&quot;</ETag>")
    store.replies["/bucket"] = [
        Reply(200),
        Reply(200, body=more),
        Reply(200, body=PAGE % (b"false", b"c", b"")),
    ]
    found = list(storage.list_objects("s3://bucket"))
    assert [(one.url, one.etag) for one in found] == [
        ("s3://bucket/a\x01&b", "e1"),
        ("s3://bucket/c", ""),
    ]
    assert found[0].modified_at == datetime(2026, 10, 12, 17, 50, 30, 123456, tzinfo=UTC)


def test_a_listing_that_does_not_go_on_ends(store: Server) -> None:
    same = Reply(200, body=PAGE % (b"true", b"a", b""))
    store.replies["/bucket"] = [Reply(200), *[same] * 5]
    with pytest.raises(StorageError, match="does not go on"):
        list(storage.list_objects("s3://bucket"))
    assert len(store.asked) == 5, "three tries of the second page"


def test_a_changed_environment_is_seen(store: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving({f"/bucket/{key}": b"other" for key in KEYS}) as other:
        other.headers = store.headers
        for key in KEYS:
            assert storage.read(f"s3://bucket/{key}") == b"0123456789"
        environment(monkeypatch, other.url)
        for key in KEYS:
            assert storage.read(f"s3://bucket/{key}") == b"other"


@pytest.mark.parametrize("key", KEYS)
def test_a_store_that_knows_no_conditions_gives_no_mixture_either(store: Server, key: str) -> None:
    store.pages[f"/bucket/{key}"] = b"1" * 100
    pieces = storage.stream(f"s3://bucket/{key}", chunk=10)
    assert next(pieces) == b"1" * 10
    store.headers[f"/bucket/{key}"] = {"Last-Modified": DATE, "ETag": '"2"'}
    with pytest.raises(TransientStorageError, match="replaced while it was read"):
        list(pieces)


@pytest.mark.parametrize("key", KEYS)
def test_a_forked_process_is_not_left_waiting(store: Server, key: str) -> None:
    """Obstore's threads stay behind: without care its first call in the child never returns."""
    assert storage.read(f"s3://bucket/{KEYS[0]}") == b"0123456789"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads, since 3.12
        child = os.fork()
    if not child:
        signal.alarm(10)
        with suppress(BaseException):
            os._exit(0 if storage.read(f"s3://bucket/{key}") == b"0123456789" else 1)
        os._exit(2)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("name", ["Not A Bucket", "", "b@ucket", "a", "b?c"])
def test_what_cannot_be_a_bucket_is_asked_of_nobody(store: Server, name: str) -> None:
    with pytest.raises((NotFoundError, StorageError)):
        storage.read(f"s3://{name}/a.bin") if "@" not in name else storage.read("s3:///a")
    assert store.asked == []


def test_an_address_of_the_store_that_is_none_is_a_wrong_setting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    environment(monkeypatch, "localhost:9000")
    with pytest.raises(SettingsError, match="AWS_ENDPOINT_URL"):
        storage.read("s3://bucket/a.bin")


@pytest.fixture
def google(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    """A server that stands for Google's store."""
    with serving({}) as server:
        account = {"gcs_base_url": server.url, "disable_oauth": True}
        empty = dict.fromkeys(("client_email", "private_key", "private_key_id"), "")
        (tmp_path / "account.json").write_text(json.dumps(account | empty))
        monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", str(tmp_path / "account.json"))
        yield server


@pytest.fixture
def azure(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server that stands for Azure's store."""
    with serving({}) as server:
        monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
        monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "c2VjcmV0")
        monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", server.url)
        yield server


@pytest.mark.parametrize(("kind", "protocol"), [("google", "gs"), ("azure", "az")])
def test_other_clouds_answer_through_the_same_door(
    request: pytest.FixtureRequest, kind: str, protocol: str
) -> None:
    server: Server = request.getfixturevalue(kind)
    url, path = f"{protocol}://bucket/object", "/bucket/object"
    dated = {"Last-Modified": DATE, "ETag": '"e1"', "x-goog-generation": "1"}
    server.headers = {path: dated}
    server.replies[path] = [Reply(201, dated)]
    storage.write(url, b"0123456789")
    assert server.asked == [f"PUT {path}"]
    server.pages[path] = b"0123456789"
    assert storage.read(url) == b"0123456789"
    assert storage.read_range(url, 2, 3) == b"234"
    assert storage.read_range(url, -3, None) == b"789"
    assert storage.read_range(url, -30, None) == b"0123456789"
    assert list(storage.stream(url, chunk=4)) == [b"0123", b"4567", b"89"]
    found = storage.info(url)
    assert found is not None
    assert (found.size_bytes, found.etag) == (10, "e1")
    assert storage.info(f"{protocol}://bucket/nothing") is None
    with pytest.raises(NotFoundError, match="no object can have this name"):
        storage.read(f"{protocol}://bucket/a//b")
    server.replies[path] = [Reply(403)]
    with pytest.raises(AccessDeniedError, match=f"Cannot get {url}"):
        storage.read(url)


def test_the_listing_of_another_cloud_is_the_same_table(google: Server) -> None:
    google.replies["/bucket"] = [Reply(200, body=PAGE % (b"false", b"x/a.jpg", b"<ETag>e</ETag>"))]
    [batch] = storage.list_batches("gs://bucket/x")
    assert batch.schema == storage.LISTED
    assert batch["url"].to_pylist() == ["gs://bucket/x/a.jpg"]


def test_a_cloud_without_keys_says_where_they_were_looked_for() -> None:
    with pytest.raises(AccessDeniedError, match=r"no credentials.*AZURE_STORAGE_ACCOUNT"):
        storage.read("az://container/a.bin")


def test_a_proxy_is_asked_in_the_place_of_the_store(
    store: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment(monkeypatch, "http://store.test")
    monkeypatch.setenv("http_proxy", store.url.replace("//", "//me:pass%40word@"))
    store.pages = {f"http://store.test/bucket/{key}": b"0123456789" for key in KEYS}
    store.headers = {path: {"ETag": "1", "Last-Modified": DATE} for path in store.pages}
    for key in KEYS:
        assert storage.read(f"s3://bucket/{key}") == b"0123456789"
    logins = {sent.get("proxy-authorization") for sent in store.sent}
    assert logins == {f"Basic {base64.b64encode(b'me:pass@word').decode()}"}


def test_a_bucket_of_aws_is_part_of_the_host_where_it_can_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    account = s3.Account()
    bases = {name: account.base(name, "eu-west-3") for name in ("photos", "my.photos", "Old_Name")}
    assert bases == {
        "photos": "https://photos.s3.eu-west-3.amazonaws.com",
        "my.photos": "https://s3.eu-west-3.amazonaws.com/my.photos",
        "Old_Name": "https://s3.eu-west-3.amazonaws.com/Old_Name",
    }
    assert account.base("photos", "cn-north-1") == "https://photos.s3.cn-north-1.amazonaws.com.cn"
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://store.test/")
    assert s3.Account().base("photos", "eu-west-3") == "https://store.test/photos"

"""What a bucket promises on a real S3 server: pages, parts, refusals, and an end to every wait."""

from __future__ import annotations

import json
import secrets
import socket
import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from clipcap import s3 as s3_module
from clipcap import s3listing, storage
from clipcap.errors import AccessDeniedError, NotFoundError, TransientStorageError
from tests.servers import S3Address, free_ports, s3_client
from tests.web import Reply, serving

pytestmark = pytest.mark.s3

LARGE_BYTES = 100 * 2**20
EXACT_KEYS = [
    *("a//b.jpg", "//b.jpg", "/a.jpg", "/", "a/", "a/b//", "x/../y.jpg", "x/./y.jpg", "../y.jpg"),
    *("tab\there", "line\nbreak", "return\rhere", "\x01", "\x7f", "<a>&amp;.jpg", "a&copy=b.jpg"),
    *(
        " a ",
        "a.",
        "~a",
        "{a}|^`.jpg",
        "\ufffd",
        "\U0001f98a.jpg",
        "a%2Fb.jpg",
        "a%20b.jpg",
        "a+b c",
    ),
]


def test_a_listing_of_more_than_one_page_is_whole(bucket: str) -> None:
    """S3 lists 1,000 objects a page."""
    names = [f"{bucket}/many/{number:04d}.jpg" for number in range(1_100)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda url: storage.write(url, url.encode()), names))
    assert [found.url for found in storage.list_objects(f"{bucket}/many")] == names


@pytest.mark.parametrize("put", [storage.write, storage.create])
def test_a_bucket_that_is_not_there_is_named_with_those_like_it(
    bucket: str, put: Callable[[str, bytes], object]
) -> None:
    with pytest.raises(NotFoundError, match=f"does not exist or is not yours.*{bucket[5:]}"):
        put(f"{bucket}z/a", b"1")


def test_a_large_object_goes_up_in_parts(bucket: str) -> None:
    data = secrets.token_bytes(2**20) * (LARGE_BYTES // 2**20 + 1)
    storage.write(f"{bucket}/large", data)
    found = storage.info(f"{bucket}/large")
    assert found is not None
    assert "-" in found.etag, "an object in parts has their number in its etag"
    assert storage.read(f"{bucket}/large") == data
    assert storage.read_range(f"{bucket}/large", LARGE_BYTES - 3, 6) == data[-3:] + data[:3]
    assert storage.read_range(f"{bucket}/large", 5, LARGE_BYTES) == data[5 : LARGE_BYTES + 5]


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


def test_a_bucket_that_may_only_be_read_is_not_writable(
    bucket: str, s3_environment: S3Address
) -> None:
    storage.write(f"{bucket}/a", b"1")
    forbid_put(bucket, s3_environment)
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


@pytest.mark.parametrize("key", EXACT_KEYS)
def test_a_key_of_any_form_is_taken_as_it_is(
    bucket: str, s3_environment: S3Address, key: str
) -> None:
    """Asked of botocore: a client that changes a name both ways would not notice by itself."""
    url, name = f"{bucket}/{key}", bucket.removeprefix("s3://")
    assert storage.create(url, b"0123456789")
    assert not storage.create(url, b"other")
    listed = s3_client(s3_environment).list_objects_v2(Bucket=name)["Contents"]
    assert [one["Key"] for one in listed] == [key]
    assert storage.read(url) == b"0123456789"
    assert storage.read_range(url, 3, 4) == b"3456"
    assert storage.read_range(url, -3, None) == b"789"
    assert storage.read_range(url, 20, 4) == b""
    found = storage.info(url)
    assert found is not None
    is_hidden = "/." in f"/{key}"
    seen = [(one.url, one.etag) for one in storage.list_objects(bucket)]
    assert seen == ([] if is_hidden else [(url, found.etag)])
    storage.write(url, b"second")
    assert storage.read(url) == b"second"
    storage.delete(url)
    assert storage.info(url) is None
    with pytest.raises(NotFoundError):
        storage.read(url)


def test_what_stands_for_a_folder_is_not_listed(bucket: str) -> None:
    for key, data in (("a/", b""), ("a/b.jpg", b"1"), ("c/", b"full"), ("d", b"")):
        storage.write(f"{bucket}/{key}", data)
    urls = [found.url for found in storage.list_objects(bucket)]
    assert urls == [f"{bucket}/{key}" for key in ("a/b.jpg", "c/", "d")]
    assert [found.url for found in storage.list_objects(f"{bucket}/a/")] == [f"{bucket}/a/b.jpg"]


@pytest.mark.parametrize(
    "names",
    [
        [f"{number:06d}.jpg" for number in range(0, 6_000, 50)],
        [f"{number % 7}/{number}/a b&c.jpg" for number in range(120)],
        [f"only/one/{letter}" for letter in "aäzé\uffff\U0001f98a"] + ["only/one"],
        [f"{'d/' * depth}x" for depth in range(60)],
        ["a" * length for length in range(1, 90)],
    ],
    ids=["flat", "folders", "few", "deep", "nested"],
)
def test_a_listing_in_ranges_is_whole(
    bucket: str, monkeypatch: pytest.MonkeyPatch, names: list[str]
) -> None:
    """Cut at the second page of ten keys, it lists every object once, wherever the cuts fall."""
    monkeypatch.setattr(s3listing, "LONG_PAGES", 2)
    monkeypatch.setattr(s3listing, "PAGE_KEYS", 10)
    monkeypatch.setattr(s3listing, "IN_FLIGHT", 4)
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda name: storage.write(f"{bucket}/in/{name}", b"1"), names))
    storage.write(f"{bucket}/in2", b"beside it")
    batches = list(storage.list_batches(f"{bucket}/in"))
    urls = [url for batch in batches for url in batch["url"].to_pylist()]
    assert sorted(urls) == sorted(f"{bucket}/in/{name}" for name in names)
    assert all(batch.num_rows <= 10 for batch in batches)


def test_a_listing_that_is_left_early_ends(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3listing, "LONG_PAGES", 1)
    monkeypatch.setattr(s3listing, "PAGE_KEYS", 1)
    for number in range(6):
        storage.write(f"{bucket}/{number}", b"1")
    found = storage.list_batches(bucket)
    assert next(found).num_rows == next(found).num_rows == 1
    del found


@pytest.mark.parametrize("key", ["a.bin", "a//b.bin"])
def test_an_object_replaced_while_it_is_read_is_no_mixture(bucket: str, key: str) -> None:
    url = f"{bucket}/{key}"
    storage.write(url, b"1" * 100)
    pieces = storage.stream(url, 0, None, 10)
    first = next(pieces)
    storage.write(url, b"2" * 100)
    with pytest.raises(TransientStorageError, match="replaced while it was read"):
        list(pieces)
    assert first == b"1" * 10


def test_a_stream_holds_a_few_pieces_alone(bucket: str) -> None:
    """Of an object of 100 MiB no more than the pieces fetched ahead are in memory at a time."""
    piece = secrets.token_bytes(2**20)
    storage.write(f"{bucket}/large", piece * 100)
    tracemalloc.start()
    try:
        seen = 0
        for data in storage.stream(f"{bucket}/large", chunk=2**20):
            seen += data == piece
            if seen == 2:
                time.sleep(1.5)  # who reads is slower than who fetches
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert seen == 100
    assert peak < 8 * 2**20


def test_keys_come_from_a_profile_and_so_does_the_endpoint(
    bucket: str, s3: S3Address, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    storage.write(f"{bucket}/a", b"1")
    (tmp_path / "config").write_text(
        f"[profile photos]\nregion = us-east-1\nservices = ours\n\n"
        f"[services ours]\ns3 =\n  endpoint_url = {s3.endpoint}\n"
    )
    (tmp_path / "credentials").write_text(
        f"[photos]\naws_access_key_id = {s3.access_key}\naws_secret_access_key = {s3.secret_key}\n"
    )
    for name in s3.environment:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "photos")
    assert storage.read(f"{bucket}/a") == b"1"
    assert [found.url for found in storage.list_objects(bucket)] == [f"{bucket}/a"]
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(AccessDeniedError, match=r"no credentials found.*nobody"):
        storage.read(f"{bucket}/a")


def test_keys_come_from_the_role_of_the_machine(
    bucket: str, s3: S3Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The metadata service gives them for a while; they are asked for once, not for each object."""
    storage.write(f"{bucket}/a", b"1")
    given = {
        "Code": "Success",
        "Type": "AWS-HMAC",
        "AccessKeyId": s3.access_key,
        "SecretAccessKey": s3.secret_key,
        "Token": "",
        "Expiration": (datetime.now(UTC) + timedelta(hours=6)).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "LastUpdated": "2026-11-20T00:00:00Z",
    }
    role = "/latest/meta-data/iam/security-credentials/"
    with serving({role: b"worker", f"{role}worker": json.dumps(given).encode()}) as web:
        web.replies["/latest/api/token"] = [Reply(200, body=b"token")]
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", web.url)
        s3_module.account.cache_clear()
        for _ in range(3):
            assert storage.read(f"{bucket}/a") == b"1"
        assert list(storage.list_objects(bucket))
        assert len(web.asked) == 3
    s3_module.account.cache_clear()


def test_without_keys_a_metadata_service_that_does_not_answer_is_not_waited_for(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as frozen:
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
        address = f"http://127.0.0.1:{frozen.getsockname()[1]}"
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", address)
        s3_module.account.cache_clear()
        began = time.monotonic()
        for _ in range(20):
            with pytest.raises(AccessDeniedError, match="no credentials found"):
                storage.read(f"{bucket}/a")
        assert time.monotonic() - began < 8
    s3_module.account.cache_clear()


def forbid_put(bucket: str, address: S3Address) -> None:
    """Let nobody write into a bucket any more, its owner included."""
    name = bucket.removeprefix("s3://")
    rule = {"Effect": "Deny", "Principal": "*", "Action": "s3:PutObject"}
    statement = {**rule, "Resource": f"arn:aws:s3:::{name}/*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    s3_client(address).put_bucket_policy(Bucket=name, Policy=policy)

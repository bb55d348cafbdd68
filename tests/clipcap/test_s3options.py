"""Who pays, how objects are encrypted, as whom a bucket is asked: what a server gets to hear."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from clipcap import s3options, storage, verify
from clipcap.errors import AccessDeniedError, SettingsError
from flows.nightly import nightly
from tests.nights import draw, make_tiny
from tests.servers import S3Address, make_bucket, make_user, s3_client
from tests.settings import nightly_settings
from tests.tables import glob
from tests.web import Reply, Server, serving

LARGE = bytes(2**24 + 1)
SSE = "x-amz-server-side-encryption"
OPTIONS = {
    "AWS_REQUEST_PAYER": "requester",
    "AWS_SERVER_SIDE_ENCRYPTION": "aws:kms",
    "AWS_SSE_KMS_KEY_ID": "arn:aws:kms:eu-west-1:1:key/k",
    "AWS_SSE_BUCKET_KEY_ENABLED": "true",
}
KMS = {SSE: "aws:kms", f"{SSE}-aws-kms-key-id": OPTIONS["AWS_SSE_KMS_KEY_ID"]}
EMPTY = b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>"


def said(xml: str, **headers: str) -> Reply:
    """Return an answer of S3 in XML."""
    return Reply(200, {"ETag": '"e"', **headers}, f"<?xml version='1.0'?>{xml}".encode())


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server that says of S3 what a bucket with one object says, and keeps what it is asked."""
    with serving(
        {"/photos/a": b"0123456789", "/photos/a//b": b"0123456789", "/photos": EMPTY}
    ) as server:
        about = {"ETag": '"e"', "Last-Modified": "Fri, 20 Nov 2026 10:00:00 GMT"}
        server.headers = {
            "/photos/a": about,
            "/photos/a//b": about,
            "/photos/new": about,
            "/photos/new//b": about,
        }
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "key")
        yield server


def every_call(store: Server) -> None:
    """Read, list and write, by obstore and by requests of our own, at once and in parts."""
    for key in ("a", "a//b"):
        assert storage.read_range(f"s3://photos/{key}", 2, 3) == b"234"
        assert storage.info(f"s3://photos/{key}") is not None
    for key in ("new", "new//b"):
        storage.write(f"s3://photos/{key}", b"1")
        assert storage.create(f"s3://photos/{key}", b"1")
        storage.delete(f"s3://photos/{key}")
    assert storage.listed("s3://photos") == []
    store.replies["/photos/large"] = [
        said(
            "<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>"
        ),
        said(""),
        said(""),
        said("<CompleteMultipartUploadResult><ETag>e</ETag></CompleteMultipartUploadResult>"),
    ]
    storage.write("s3://photos/large", LARGE)


def test_every_request_says_who_pays_and_every_write_how_to_encrypt(
    store: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in OPTIONS.items():
        monkeypatch.setenv(name, value)
    every_call(store)
    heard = list(zip(store.asked, store.sent, strict=True))
    assert {line.split()[0] for line, _ in heard} == {"HEAD", "GET", "PUT", "DELETE", "POST"}
    for line, headers in heard:
        signed = headers["authorization"].partition("SignedHeaders=")[2].partition(",")[0]
        assert headers.get("x-amz-request-payer") == "requester", line
        is_whole = line.startswith("PUT") and "partNumber" not in line
        if is_whole or "?uploads" in line:
            assert {name: headers.get(name) for name in KMS} == KMS, line
            assert SSE in signed, "S3 refuses what is not signed"
        else:
            assert f"{SSE}-aws-kms-key-id" not in headers, line
        assert {name for name in headers if name.startswith("x-amz-")} <= set(signed.split(";"))


def test_nothing_is_said_that_was_not_asked_for(store: Server) -> None:
    every_call(store)
    for headers in store.sent:
        assert not {"x-amz-request-payer", SSE} & set(headers)


def test_the_store_itself_may_hold_the_key(store: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SERVER_SIDE_ENCRYPTION", "AES256")
    storage.write("s3://photos/new", b"1")
    storage.write("s3://photos/new//b", b"1")
    assert [sent[SSE] for sent in store.sent if SSE in sent] == ["AES256"] * 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"AWS_SERVER_SIDE_ENCRYPTION": "rot13"},
        {"AWS_SSE_KMS_KEY_ID": "k"},
        {"AWS_REQUEST_PAYER": "me"},
        {"AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "maybe"},
        {"CLIPCAP_S3_PROFILES": "photos"},
    ],
)
def test_a_variable_that_cannot_be_is_refused_by_its_name(
    store: Server, monkeypatch: pytest.MonkeyPatch, wrong: dict[str, str]
) -> None:
    for name, value in wrong.items():
        monkeypatch.setenv(name, value)
    for url in ("s3://photos/a", "s3://photos/a//b"):
        with pytest.raises(SettingsError, match=next(iter(wrong))):
            storage.read(url)


def test_the_style_of_addresses_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    from clipcap import s3

    for value, expected in (("true", "https://photos.s3."), ("false", "https://s3.")):
        monkeypatch.setenv("AWS_VIRTUAL_HOSTED_STYLE_REQUEST", value)
        assert s3.account(s3.environment()).base("photos", "eu-west-1").startswith(expected)


def test_profiles_go_by_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPCAP_S3_PROFILES", "photos=reader, results=writer")
    found = [s3options.profile(name) for name in ("photos", "results", "other")]
    assert found == ["reader", "writer", ""]


@dataclass(frozen=True)
class Places:
    """A source that one profile may only read, and an output that only another one knows."""

    source: str
    out: str

    def profiles(self, reads: str, writes: str) -> str:
        """Return which profile asks which bucket."""
        names = [place.removeprefix("s3://") for place in (self.source, self.out)]
        return f"{names[0]}={reads},{names[1]}={writes}"


@pytest.fixture
def places(s3: S3Address, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    """Two users of the server, each with a profile, and no other keys in the environment."""
    tag = secrets.token_hex(4)
    reader = make_user(s3, f"reader-{tag}", access_key=f"READER{tag}", secret_key="reader-secret")
    writer = make_user(s3, f"writer-{tag}", access_key=f"WRITER{tag}", secret_key="writer-secret")
    found = Places(make_bucket(s3, f"source-{tag}"), make_bucket(writer, f"out-{tag}"))
    name = found.source.removeprefix("s3://")
    for n in range(3):
        draw(tmp_path / "a.png", n)
        data = (tmp_path / "a.png").read_bytes()
        s3_client(s3).put_object(Bucket=name, Key=f"{n}.png", Body=data)
    allowed = {
        "Effect": "Allow",
        "Principal": {"AWS": [f"arn:aws:iam:::user/reader-{tag}"]},
        "Action": ["s3:GetObject", "s3:ListBucket"],
        "Resource": [f"arn:aws:s3:::{name}", f"arn:aws:s3:::{name}/*"],
    }
    policy = json.dumps({"Version": "2012-10-17", "Statement": [allowed]})
    s3_client(s3).put_bucket_policy(Bucket=name, Policy=policy)
    keys = "[{}]\naws_access_key_id = {}\naws_secret_access_key = {}\n"
    (tmp_path / "keys").write_text(
        keys.format("reads", reader.access_key, reader.secret_key)
        + keys.format("writes", writer.access_key, writer.secret_key)
    )
    (tmp_path / "config").write_text(f"[profile writes]\nendpoint_url = {s3.endpoint}\n")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "keys"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("CLIPCAP_S3_PROFILES", found.profiles("reads", "writes"))
    return found


@pytest.mark.s3
def test_a_source_is_read_by_one_user_and_the_output_written_by_another(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader may not write where it reads, and knows nothing of the output."""
    source, out = places.source, places.out
    assert storage.read(f"{source}/0.png").startswith(b"\x89PNG")
    assert len(storage.listed(source)) == 3
    for key in ("b", "b//c"):
        with pytest.raises(AccessDeniedError, match="Cannot put"):
            storage.write(f"{source}/{key}", b"1")
        storage.write(f"{out}/{key}", b"2")
        assert storage.read(f"{out}/{key}") == b"2"
    monkeypatch.setenv("CLIPCAP_S3_PROFILES", places.profiles("reads", "reads"))
    with pytest.raises(AccessDeniedError, match="Cannot get"):
        storage.read(f"{out}/b")


@pytest.mark.s3
@pytest.mark.slow
def test_a_night_needs_no_right_to_write_at_its_source(places: Places, tmp_path: Path) -> None:
    tiny = make_tiny(tmp_path / "models")
    settings = nightly_settings(tiny)
    nightly.fn(places.source, places.out, settings)
    assert len(glob(places.out, "captions")) == 3
    assert verify.verify(places.out).problems == ()

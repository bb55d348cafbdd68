"""Google's storage as far as a server that speaks its words can tell: what is asked, and an end."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from clipcap import storage
from clipcap.errors import NotFoundError, TransientStorageError
from tests.clipcap.test_storage_answers import ALL_CALLS
from tests.web import Reply, Server, serving

ABOUT = {"Last-Modified": "Fri, 20 Nov 2026 10:00:00 GMT", "ETag": '"1"', "x-goog-generation": "1"}
LISTING = (
    b"<ListBucketResult><IsTruncated>false</IsTruncated><Contents><Key>a</Key><Size>10</Size>"
    b"<LastModified>2026-11-20T10:00:00.000Z</LastModified><ETag>&quot;1&quot;</ETag></Contents>"
    b"</ListBucketResult>"
)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server that stands for Google's, with one object in one bucket."""
    with serving({"/photos/a": b"0123456789", "/photos": LISTING}) as server:
        server.headers = {f"/photos/{name}": ABOUT for name in ("a", "new")}
        account = {"gcs_base_url": server.url, "disable_oauth": True}
        account |= dict.fromkeys(("client_email", "private_key", "private_key_id"), "")
        (tmp_path / "account.json").write_text(json.dumps(account))
        monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", str(tmp_path / "account.json"))
        yield server


def test_an_object_is_read_described_listed_written_and_removed(store: Server) -> None:
    url = "gs://photos/a"
    assert storage.read(url) == b"0123456789"
    assert storage.read_range(url, 2, 3) == b"234"
    assert storage.read_range(url, -3, None) == b"789"
    found = storage.info(url)
    assert found is not None
    assert (found.size_bytes, found.etag) == (10, "1")
    assert [one.url for one in storage.list_objects("gs://photos")] == [url]
    storage.write("gs://photos/new", b"1")
    storage.delete("gs://photos/new")
    assert store.pages["/photos/new"] == b"1"
    assert store.asked[-1] == "DELETE /photos/new"
    with pytest.raises(NotFoundError):
        storage.read("gs://photos/absent")


def test_an_object_is_created_on_the_condition_that_there_is_none(store: Server) -> None:
    assert storage.create("gs://photos/new", b"1")
    assert store.sent[-1]["x-goog-if-generation-match"] == "0"
    store.replies["/photos/new"] = [Reply(412)]
    assert not storage.create("gs://photos/new", b"2")


@pytest.mark.parametrize("name", ALL_CALLS)
def test_a_store_that_froze_ends_every_call(
    store: Server, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(storage, "DEADLINE_S", 1.0)
    store.is_frozen = True
    began = time.monotonic()
    with pytest.raises(TransientStorageError, match="gs://"):
        ALL_CALLS[name]("gs://photos/a")
    assert time.monotonic() - began < 3

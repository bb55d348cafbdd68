"""An S3 Inventory: the samples that listing the bucket would give, or an error; never half."""

from __future__ import annotations

import io
import json
import secrets
from dataclasses import replace
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipcap import storage
from clipcap.errors import ClipcapError, NotFoundError, SettingsError
from clipcap.sample import Sample
from clipcap.sources import folder, inventory
from tests.inventories import CSV_COLUMNS, FORMS, MADE_AT, Entry, text, write

AT = datetime(2026, 1, 1, 12, tzinfo=UTC)


@pytest.fixture
def place() -> str:
    """Give a folder in memory that nobody else has."""
    return f"memory://inventories-{secrets.token_hex(6)}"


def listed(url: str, **chosen: object) -> list[Sample]:
    return list(inventory.samples(inventory.Settings.model_validate({"url": url, **chosen})))


def names(found: list[Sample]) -> list[str]:
    return [one.source_uri.removeprefix("s3://photos/") for one in found]


def origin(url: str, **chosen: object) -> tuple[str, datetime | None]:
    return inventory.lists(inventory.Settings.model_validate({"url": url, **chosen}))


every_form = pytest.mark.parametrize("form", FORMS)


@every_form
def test_each_object_is_a_sample_as_a_listing_gives_it(place: str, form: str) -> None:
    entries = [Entry("b.jpg", '"e2"', 8), Entry("x/ü 1+2%#.jpg"), Entry("a.jpg")]
    found = listed(write(place, entries[:2], entries[2:], form=form))
    assert [(one.source_uri, one.etag, one.size_bytes, one.modified_at) for one in found] == [
        ("s3://photos/a.jpg", "e", 7, AT),
        ("s3://photos/b.jpg", "e2", 8, AT),
        ("s3://photos/x/ü 1+2%#.jpg", "e", 7, AT),
    ]
    assert [one.at.url for one in found] == [one.source_uri for one in found]


@every_form
def test_versions_of_the_past_and_delete_markers_are_left_out(place: str, form: str) -> None:
    entries = [
        Entry("a.jpg", "now"),
        Entry("a.jpg", "before", is_latest=False),
        Entry("gone.jpg", None, None, is_delete_marker=True),
        Entry("gone.jpg", "before", is_latest=False),
    ]
    found = listed(write(place, entries, form=form))
    assert [(one.source_uri, one.etag) for one in found] == [("s3://photos/a.jpg", "now")]


def test_hidden_names_and_markers_of_folders_are_left_out_as_in_a_listing(place: str) -> None:
    entries = [Entry(key) for key in ("a.jpg", ".DS_Store", "x/.b.jpg", "x/.t/c.jpg", "x.y/d.jpg")]
    entries += [Entry("x/", size=0), Entry("full/", size=3)]
    assert names(listed(write(place, entries))) == ["a.jpg", "full/", "x.y/d.jpg"]


def test_a_prefix_chooses_a_folder_and_a_glob_below_it(place: str) -> None:
    keys = ("p/a.jpg", "p/q/b.jpg", "p/.h.jpg", "pq/c.jpg", "p/d.png", "d/p/e.jpg", ".h/x/f.jpg")
    url = write(place, [Entry(key) for key in keys])
    assert names(listed(url, prefix="p/")) == ["p/a.jpg", "p/d.png", "p/q/b.jpg"]
    assert names(listed(url, prefix="p", glob="*.jpg")) == ["p/a.jpg", "p/q/b.jpg"]
    assert names(listed(url, prefix="p", glob="q/*")) == ["p/q/b.jpg"]
    assert names(listed(url, prefix=".h/x")) == [".h/x/f.jpg"]
    assert names(listed(url, prefix="h")) == []


def test_sidecars_ride_with_their_image(place: str) -> None:
    keys = ("a.jpg", "a.txt", "b.jpg", "b.jpg.json", "c.txt")
    entries = [Entry(key, e_tag=f"of {key}") for key in keys]
    found = listed(write(place, entries[::2], entries[1::2]))
    assert {one.source_uri[12:]: (one.etag, [s.at.url[12:] for s in one.sidecars]) for one in found} == {  # noqa: E501
        "a.jpg": ("of a.jpg+txt=of a.txt", ["a.txt"]),
        "b.jpg": ("of b.jpg+json=of b.jpg.json", ["b.jpg.json"]),
        "c.txt": ("of c.txt", []),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("storage_class", "tier", "archived"),
    [
        ("STANDARD", None, False),
        ("GLACIER_IR", None, False),
        ("GLACIER", None, True),
        ("DEEP_ARCHIVE", None, True),
        ("INTELLIGENT_TIERING", "FREQUENT", False),
        ("INTELLIGENT_TIERING", "ARCHIVE_INSTANT_ACCESS", False),
        ("INTELLIGENT_TIERING", "ARCHIVE", True),
        ("INTELLIGENT_TIERING", "DEEP_ARCHIVE", True),
    ],
)
def test_what_cannot_be_read_is_marked(
    place: str, storage_class: str, tier: str | None, *, archived: bool
) -> None:
    url = write(place, [Entry("a.jpg", storage_class=storage_class, tier=tier)])
    (batch,) = inventory.batches(inventory.Settings(url=url))
    assert batch["archived"].to_pylist() == [archived]


class TestWhatItIsOf:
    """The source that manifests name is the bucket, so that an output may change to a listing."""

    def test_it_is_the_bucket_with_the_prefix(self, place: str) -> None:
        url = write(place, [Entry("a.jpg")])
        assert origin(url) == ("s3://photos", MADE_AT)
        assert origin(url, prefix="/p/q/") == ("s3://photos/p/q", MADE_AT)
        assert origin(url, bucket_url="file:///mirror/")[0] == "file:///mirror"

    def test_it_is_what_the_folder_source_would_call_it(self, place: str) -> None:
        url = write(place, [Entry("p/a.jpg")])
        assert origin(url, prefix="p/")[0] == storage.canonical("s3://photos/p/")

    def test_a_file_alone_says_its_bucket_and_no_time(self, place: str) -> None:
        storage.write(f"{place}/a.csv", text([Entry("a.jpg")], header=True).encode())
        assert origin(f"{place}/a.csv") == ("s3://photos", None)

    def test_keys_may_lie_somewhere_else(self, tmp_path: object) -> None:
        laid = f"{tmp_path}/mirror/x/ü 1#.jpg"
        storage.write(laid, b"content")
        url = write(storage.canonical(f"{tmp_path}/inventories"), [Entry("x/ü 1#.jpg")])
        (found,) = listed(url, bucket_url=f"{tmp_path}/mirror")
        (of_folder,) = folder.samples(folder.Settings(url=f"{tmp_path}/mirror"))
        assert found.source_uri == of_folder.source_uri
        assert storage.read(found.at.url) == b"content"


class TestFilesAlone:
    """An inventory without its manifest."""

    @pytest.mark.parametrize("ending", ["csv", "csv.gz", "parquet", "orc"])
    def test_each_form_is_known_by_its_ending(self, place: str, ending: str) -> None:
        form = {"csv.gz": "CSV", "parquet": "Parquet", "orc": "ORC"}.get(ending)
        from tests import inventories

        entries = [Entry("a b.jpg"), Entry("c.jpg", is_latest=False)]
        data = inventories.data(entries, form) if form else text(entries).encode()
        storage.write(f"{place}/one.{ending}", data)
        columns = CSV_COLUMNS if "csv" in ending else ""
        assert names(listed(f"{place}/one.{ending}", columns=columns)) == ["a b.jpg"]

    def test_parquet_may_be_written_anew_by_another_library(self, place: str) -> None:
        """Polars writes large strings, pandas categories."""
        texts = pa.array(["photos", "a.jpg", "e"], pa.large_string())
        columns = {"bucket": texts[:1], "key": texts[1:2], "e_tag": texts[2:].dictionary_encode()}
        stream = io.BytesIO()
        pq.write_table(pa.table(columns | {"size": pa.array([1], pa.uint64())}), stream)
        storage.write(f"{place}/a.parquet", stream.getvalue())
        [found] = listed(f"{place}/a.parquet")
        assert (names([found]), found.etag, found.size_bytes) == (["a.jpg"], "e", 1)

    def test_a_csv_may_name_its_columns_in_its_first_row(self, place: str) -> None:
        storage.write(f"{place}/a.csv", text([Entry("a.jpg")], header=True).encode())
        assert names(listed(f"{place}/a.csv")) == ["a.jpg"]

    def test_a_csv_that_does_not_name_them_is_refused(self, place: str) -> None:
        storage.write(f"{place}/a.csv", text([Entry("a.jpg")]).encode())
        with pytest.raises(SettingsError, match=r"lacks bucket, key, size, e_tag.*say `columns`"):
            listed(f"{place}/a.csv")

    def test_two_buckets_in_one_are_refused(self, place: str) -> None:
        rows = [Entry("a.jpg"), Entry("b.jpg", bucket="other")]
        storage.write(f"{place}/a.csv", text(rows, header=True).encode())
        with pytest.raises(SettingsError, match="one bucket"):
            listed(f"{place}/a.csv")

    def test_one_that_is_not_there_is_said_to_be_missing(self, place: str) -> None:
        with pytest.raises(NotFoundError, match="it is not there"):
            listed(f"{place}/a.parquet")


class TestDamage:
    """Half a listing would be taken for deletions: it must be an error."""

    @every_form
    def test_a_file_that_is_cut_is_refused(self, place: str, form: str) -> None:
        url = write(place, [Entry(f"{n}.jpg") for n in range(500)], [Entry("z.jpg")], form=form)
        first = next(found.url for found in storage.listed(place) if "/0." in found.url)
        storage.write(first, storage.read(first)[:-20])
        with pytest.raises(SettingsError, match=r"must have the md5 .* cut or was changed"):
            listed(url)

    @every_form
    def test_it_is_found_without_a_checksum_too(self, place: str, form: str) -> None:
        url = write(place, [Entry(f"{n}.jpg") for n in range(500)], form=form)
        said = json.loads(storage.read(url))
        said["files"][0].pop("MD5checksum")
        storage.write(url, json.dumps(said).encode())
        assert len(listed(url)) == 500
        (data,) = [found.url for found in storage.listed(place) if "/data/" in found.url]
        storage.write(data, storage.read(data)[:-20])
        with pytest.raises(SettingsError, match="cannot be read as"):
            listed(url)

    def test_a_file_that_is_missing_is_an_error(self, place: str) -> None:
        url = write(place, [Entry("a.jpg")], [Entry("b.jpg")])
        storage.delete(next(found.url for found in storage.listed(place) if "/1." in found.url))
        with pytest.raises(NotFoundError):
            listed(url)

    @pytest.mark.parametrize(
        "said",
        [
            b"{",
            b"[]",
            b"3",
            b"[" * 200_000,
            b'{"files": []}',
            b'{"sourceBucket": "b", "fileFormat": "CSV"}',
        ],
    )
    def test_a_manifest_of_another_form_is_refused(self, place: str, said: bytes) -> None:
        storage.write(f"{place}/manifest.json", said)
        with pytest.raises(SettingsError, match=r"must be the manifest\.json"):
            listed(f"{place}/manifest.json")

    def test_a_manifest_of_a_time_that_no_calendar_has_is_refused(self, place: str) -> None:
        url = write(place, [Entry("a.jpg")])
        said = json.loads(storage.read(url)) | {"creationTimestamp": "9" * 400}
        storage.write(url, json.dumps(said).encode())
        with pytest.raises(SettingsError, match=r"must be the manifest\.json"):
            listed(url)

    @pytest.mark.parametrize(
        ("size", "at"), [("many", "2026-01-01T00:00:00Z"), ("1", "soon"), ("1", "9999999-01-01")]
    )
    def test_a_size_or_a_time_that_is_none_is_refused(self, place: str, size: str, at: str) -> None:
        rows = f"Bucket,Key,Size,LastModifiedDate,ETag\nphotos,a.jpg,{size},{at},e\n"
        storage.write(f"{place}/a.csv", rows.encode())
        with pytest.raises(SettingsError, match=r"a\.csv cannot be read as CSV"):
            listed(f"{place}/a.csv")

    def test_a_form_that_is_none_of_the_three_is_refused(self, place: str) -> None:
        url = write(place, [Entry("a.jpg")])
        storage.write(url, storage.read(url).replace(b'"Parquet"', b'"Avro"'))
        with pytest.raises(SettingsError, match=r"CSV, Parquet or ORC, but .* is 'AVRO'"):
            listed(url)

    def test_an_inventory_without_etags_says_what_to_switch_on(self, place: str) -> None:
        url = write(place, [Entry("a.jpg")], form="CSV")
        storage.write(url, storage.read(url).replace(b"ETag", b"Other"))
        with pytest.raises(SettingsError, match=r"lacks e_tag .* Switch the fields on"):
            listed(url)

    def test_one_of_no_rows_alone_is_refused(self, place: str) -> None:
        storage.write(f"{place}/a.csv", text([], header=True).encode())
        with pytest.raises(ClipcapError, match="has no rows"):
            listed(f"{place}/a.csv")


@pytest.mark.s3
def test_it_gives_what_listing_the_bucket_gives(bucket: str) -> None:
    """Name, version, size and time, so that an output may change from one to the other."""
    for key in ("a.jpg", "a.txt", "x/ü 1+2%#?&=.jpg", "x/.hidden", ".h/b.jpg", "y//z.jpg"):
        storage.write(f"{bucket}/in/{key}", key.encode())
    name = bucket.removeprefix("s3://")
    found = [
        Entry(
            one.url.removeprefix(f"{bucket}/"), f'"{one.etag}"', one.size_bytes, bucket=name,
            at=one.modified_at or AT,
        )
        for one in storage.listed(f"{bucket}/in")
    ]  # fmt: skip
    url = write(bucket, found, [Entry("in/.hidden", bucket=name)], form="CSV", bucket=name)
    assert url.startswith(f"{bucket}/photos/daily/")
    assert origin(url, prefix="in")[0] == storage.canonical(f"{bucket}/in/")
    of_bucket = list(folder.samples(folder.Settings(url=f"{bucket}/in")))
    assert len(of_bucket) == 3
    seconds = [replace(one, modified_at=None) for one in of_bucket]
    assert [replace(one, modified_at=None) for one in listed(url, prefix="in")] == seconds


def test_its_files_are_found_in_their_bucket(place: str) -> None:
    """`destinationBucket` is told as an ARN; the manifest may be anywhere in that bucket."""
    chosen = inventory.Settings(url="s3://inventories/photos/daily/2026/manifest.json")
    found = inventory._place(chosen.url, "arn:aws:s3:::inventories", "photos/daily/data/1.parquet")
    assert found == "s3://inventories/photos/daily/data/1.parquet"
    copied = inventory._place(
        f"{place}/photos/2026/manifest.json", "arn:aws:s3:::x", "a/data/1.orc"
    )
    assert copied == f"{place}/photos/data/1.orc"

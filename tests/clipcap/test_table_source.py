"""What a table of addresses promises: no row lost, no address read twice, no caption forgotten."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipcap import storage
from clipcap.errors import NotFoundError, SettingsError, StorageError
from clipcap.sample import Sample
from clipcap.sources import table
from tests.pictures import picture
from tests.servers import free_ports
from tests.web import Server, serving


@pytest.fixture
def web() -> Iterator[Server]:
    with serving({f"/{name}.png": picture(number) for number, name in enumerate("ab")}) as server:
        yield server


def bytes_or_error(url: str) -> bytes | StorageError:
    """Return what the shard stage gets for an address."""
    try:
        return storage.read(url)
    except StorageError as error:
        return error


def listed(url: Path | str, **chosen: str) -> list[Sample]:
    return list(table.samples(table.Settings(url=str(url), **chosen)))


def written(folder: Path, text: str, name: str = "t.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def names(found: list[Sample], folder: Path) -> list[str]:
    return [storage.name_below(one.source_uri, storage.canonical(str(folder))) for one in found]


class TestColumns:
    """The column of addresses is found, or the error says which there are."""

    @pytest.mark.parametrize(
        "header", ["url", "URL", "image_url", "uri", "path", "file_name", " Filename "]
    )
    def test_a_usual_name_is_found(self, tmp_path: Path, header: str) -> None:
        path = written(tmp_path, f"number,{header}\n7,a.png\n")
        assert names(listed(path), tmp_path) == ["a.png"]

    @pytest.mark.parametrize("separator", [",", "\t", ";"])
    def test_the_separator_is_seen_in_the_header(self, tmp_path: Path, separator: str) -> None:
        rows = [("url", "caption", "n"), ("a b.png", '"one, two; three"', "3")]
        path = written(tmp_path, "\r\n".join(separator.join(row) for row in rows))
        assert listed(path)[0].captions == ("one, two; three",)

    def test_what_a_spreadsheet_puts_before_the_header_is_no_part_of_it(
        self, tmp_path: Path
    ) -> None:
        path = written(tmp_path, "\ufeffurl\na.png\n")
        assert names(listed(path), tmp_path) == ["a.png"]

    def test_a_column_of_another_name_is_asked_for(self, tmp_path: Path) -> None:
        path = written(tmp_path, "url,photo,words\nno.png,yes.png,a dog\n")
        found = listed(path, url_column="photo", caption_column="words")
        assert names(found, tmp_path) == ["yes.png"]
        assert found[0].captions == ("a dog",)

    @pytest.mark.parametrize(
        ("text", "chosen", "said"),
        [
            ("n,photo\n1,a.png\n", {}, r"only: n, photo.*url_column"),
            ("url\na.png\n", {"url_column": "urls"}, r"'urls'. Did you mean url\? Known: url"),
            ("url\na.png\n", {"caption_column": "x"}, "'x'. Known: url"),
            ("", {}, "only: none"),
            ("url\n\n  \n", {}, "1 of 1 rows"),
            ("url\ns3://me:key@b/a.png\n", {}, "1 of 1 rows"),
        ],
    )
    def test_a_table_without_addresses_says_what_it_has(
        self, tmp_path: Path, text: str, chosen: dict[str, str], said: str
    ) -> None:
        with pytest.raises(SettingsError, match=said) as caught:
            listed(written(tmp_path, text), **chosen)
        assert "key@" not in str(caught.value)

    @pytest.mark.parametrize(
        "data",
        [picture(0), b"PAR1 is how it starts", b"url\n" + b"\xff" * 9, b"url\n" + b"a" * 2**18],
    )
    def test_what_is_no_table_is_said_to_be_none(self, tmp_path: Path, data: bytes) -> None:
        (tmp_path / "t.parquet").write_bytes(data)
        with pytest.raises(SettingsError, match="must be Parquet, or CSV or TSV in UTF-8"):
            listed(tmp_path / "t.parquet")

    def test_a_table_that_is_not_there_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(NotFoundError):
            listed(tmp_path / "t.csv")


class TestParquet:
    """Columns of text are read, and no other."""

    @pytest.mark.parametrize(
        "kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())]
    )
    def test_text_may_be_stored_in_any_way(self, tmp_path: Path, kind: pa.DataType) -> None:
        column = pa.array(["b.png", "a.png", None]).cast(kind)
        pq.write_table(pa.table({"url": column}), tmp_path / "t.parquet")
        assert names(listed(tmp_path / "t.parquet"), tmp_path)[:2] == ["a.png", "b.png"]

    def test_a_list_of_captions_keeps_its_order(self, tmp_path: Path) -> None:
        captions = [["two", "one", " ", None], [], None]
        pandas = pd.DataFrame({"url": ["a.png", "b.png", "c.png"], "captions": captions})
        pandas.to_parquet(tmp_path / "t.parquet")
        found = listed(tmp_path / "t.parquet")
        assert [sample.captions for sample in found] == [("two", "one"), (), ()]

    def test_a_column_of_images_is_not_read(self, tmp_path: Path) -> None:
        """Hugging Face keeps the bytes in `image`; taking that for the address loads them all."""
        images = pa.array([{"bytes": b"x" * 10, "path": "p.png"}])
        rows = pa.table({"image": images, "file_name": ["a.png"], "caption": ["a cat"]})
        pq.write_table(rows, tmp_path / "t.parquet")
        found = listed(tmp_path / "t.parquet")
        assert names(found, tmp_path) == ["a.png"]
        with pytest.raises(
            SettingsError, match=r"column of text 'image'.*Known: file_name, caption"
        ):
            listed(tmp_path / "t.parquet", url_column="image")

    def test_a_list_is_no_address(self, tmp_path: Path) -> None:
        pq.write_table(pa.table({"url": [["a.png"]]}), tmp_path / "t.parquet")
        with pytest.raises(SettingsError, match="must hold text, but holds list"):
            listed(tmp_path / "t.parquet")


class TestRows:
    """Every row ends in one sample."""

    def test_relative_addresses_start_at_the_table_or_at_the_base(self, tmp_path: Path) -> None:
        path = written(tmp_path, "url\nsub/ü 1#2.png\n./b.png\n/c.png\n")
        at = storage.canonical(str(tmp_path))
        assert [found.source_uri for found in listed(path)] == [
            storage.canonical("/c.png"),
            f"{at}/b.png",
            f"{at}/sub/%C3%BC%201%232.png",
        ]
        assert [found.source_uri for found in listed(path, base="memory://x/y")] == [
            storage.canonical("/c.png"),
            "memory://x/y/b.png",
            "memory://x/y/sub/ü 1#2.png",
        ]

    def test_a_table_on_the_web_names_pages_beside_it(self, web: Server) -> None:
        web.pages["/lists/t.csv"] = b"url\na.png\n"
        found = listed(f"{web.url}/lists/t.csv?version=2")
        assert [sample.source_uri for sample in found] == [f"{web.url}/lists/a.png"]

    def test_an_address_twice_is_one_image_with_all_captions(self, tmp_path: Path) -> None:
        path = written(
            tmp_path, f"url,caption\na.png,one\nb.png,x\n{tmp_path}/a.png,two\na.png,one\na.png,\n"
        )
        found = listed(path)
        assert [sample.captions for sample in found] == [("one", "two"), ("x",)]

    def test_no_row_is_lost(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """An unusable row becomes a sample that cannot be read, so it is counted as a reject."""
        (tmp_path / "a.png").write_bytes(picture(1))
        unusable = ["", "https://me:secret@host/a.png", "http://h/a?X-Amz-Signature=secret", "\0"]
        rows = ["a.png", *unusable, "gone.png", "nosuchscheme://x", "github://x", "x" * 5000, "."]
        path = tmp_path / "t.parquet"
        pd.DataFrame({"url": rows}).to_parquet(path)
        found = listed(path)
        assert len(found) == len(rows)
        assert sum("#row=" in sample.source_uri for sample in found) == len(unusable)
        assert "4 of 10 rows" in caplog.text
        assert "secret" not in caplog.text + repr(found)
        read = [bytes_or_error(sample.at.url) for sample in found]
        assert [type(one) for one in read if one != picture(1)] == [NotFoundError] * 9

    def test_an_object_that_appears_later_has_another_etag(self, tmp_path: Path) -> None:
        path = written(tmp_path, "url\na.png\n")
        missing = listed(path)[0]
        (tmp_path / "a.png").write_bytes(picture(1))
        assert missing.etag == "missing"
        assert listed(path)[0].etag not in ("missing", "")

    def test_another_caption_is_another_version(self, tmp_path: Path) -> None:
        (tmp_path / "a.png").write_bytes(picture(1))
        etags = {
            listed(written(tmp_path, f"url,caption\na.png,{caption}\n"))[0].etag
            for caption in ("a cat", "a dog", "")
        }
        assert len(etags) == 3

    @given(
        rows=st.lists(
            st.tuples(st.text(max_size=12), st.text(max_size=12)), min_size=1, max_size=12
        ).filter(lambda rows: any(url.strip().strip("\0") for url, _ in rows))
    )
    def test_any_text_is_listed_sorted_and_once(
        self, tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]
    ) -> None:
        path = tmp_path_factory.mktemp("any") / "t.csv"
        clean = [tuple(cell.replace("\r", " ").replace("\n", " ") for cell in row) for row in rows]
        stream = io.StringIO()
        pd.DataFrame(clean, columns=["url", "caption"]).to_csv(stream, index=False)
        path.write_text(stream.getvalue(), encoding="utf-8")
        try:
            found = listed(path)
        except SettingsError:
            assert all(not url.strip() or "\0" in url for url, _ in clean)
            return
        uris = [sample.source_uri for sample in found]
        assert uris == sorted(set(uris))


class TestWeb:
    """Pages are read, but not looked at while listing."""

    def test_listing_asks_for_the_table_alone(self, web: Server) -> None:
        web.pages["/t.csv"] = b"url,caption\na.png,a cat\nb.png,a dog\n"
        first = listed(f"{web.url}/t.csv")
        assert web.asked == ["GET /t.csv"]
        assert listed(f"{web.url}/t.csv") == first
        assert [storage.read(sample.at.url) for sample in first] == [picture(0), picture(1)]

    def test_a_changed_row_is_another_version_of_its_page_alone(self, web: Server) -> None:
        web.pages["/t.csv"] = b"url,caption\na.png,a cat\nb.png,a dog\n"
        first = listed(f"{web.url}/t.csv")
        web.pages["/t.csv"] = b"url,caption\na.png,a cat\nb.png,two dogs\n"
        assert [
            before.etag == after.etag
            for before, after in zip(first, listed(f"{web.url}/t.csv"), strict=True)
        ] == [True, False]


@pytest.mark.s3
class TestBucket:
    """Rows in a bucket have its etags, asked for many at a time."""

    def test_places_of_all_kinds_mix(self, bucket: str, tmp_path: Path, web: Server) -> None:
        storage.write(f"{bucket}/x/ü 1#.png", picture(2))
        (tmp_path / "l.png").write_bytes(picture(3))
        (port,) = free_ports(1)
        rows = [
            "x/ü 1#.png",
            f"{bucket}/x/gone.png",
            "s3://no-such-bucket-here/a.png",
            "s3://Not A Bucket/a.png",
            "s3:///a.png",
            f"{bucket}/{'k' * 2_000}.png",
            str(tmp_path / "l.png"),
            f"{web.url}/a.png",
            f"http://127.0.0.1:{port}/dead.png",
        ]
        data = pd.DataFrame({"url": rows, "caption": "a thing"}).to_csv(index=False)
        storage.write(f"{bucket}/t.csv", data.encode())
        found = listed(f"{bucket}/t.csv")
        read = [bytes_or_error(sample.at.url) for sample in found]
        whole = {one for one in read if isinstance(one, bytes)}
        assert len(found) == len(rows)
        assert whole == {picture(0), picture(2), picture(3)}
        etags = {one.source_uri: one.etag for one in found}
        known = storage.info(f"{bucket}/x/ü 1#.png")
        assert known is not None
        assert etags[f"{bucket}/x/ü 1#.png"].startswith(f"{known.etag}+captions=")
        assert etags[f"{bucket}/x/gone.png"].startswith("missing+captions=")

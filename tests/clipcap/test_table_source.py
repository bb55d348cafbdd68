"""What a table of addresses promises: no row lost, no address read twice, no caption forgotten."""

from __future__ import annotations

import io
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipcap import addressrows, scratch, storage
from clipcap.errors import (
    AccessDeniedError,
    ImageError,
    NotFoundError,
    SettingsError,
    StorageError,
    TransientStorageError,
)
from clipcap.images import ImageSettings
from clipcap.packed import Reader
from clipcap.sample import Sample
from clipcap.sources import table
from clipcap.workers import WorkerSettings
from tests.pictures import picture
from tests.servers import free_ports
from tests.web import Reply, Server, serving

WORKERS = WorkerSettings(processes=2)


@pytest.fixture
def web() -> Iterator[Server]:
    with serving({f"/{name}.png": picture(number) for number, name in enumerate("ab")}) as server:
        yield server


def bytes_or_error(sample: Sample) -> bytes | StorageError | ImageError:
    """Return what the shard stage gets for a row."""
    try:
        return Reader().image(sample, 10_000)
    except (StorageError, ImageError) as error:
        return error


def listed(url: Path | str, **chosen: str | bool) -> list[Sample]:
    return list(table.samples(table.Settings.model_validate({"url": str(url), **chosen})))


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

    def test_one_that_holds_the_images_itself_names_the_kind(self, tmp_path: Path) -> None:
        image = pa.array([{"bytes": b"x", "path": "a.png"}])
        pq.write_table(pa.table({"photo": image, "title": ["a cat"]}), tmp_path / "t.parquet")
        with pytest.raises(SettingsError, match=r"'photo' holds the images .*kind huggingface"):
            listed(tmp_path / "t.parquet")
        pq.write_table(pa.table({"title": ["a cat"]}), tmp_path / "u.parquet")
        with pytest.raises(SettingsError, match="url_column"):
            listed(tmp_path / "u.parquet")


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
        read = [bytes_or_error(sample) for sample in found]
        kinds = Counter(type(one) for one in read if one != picture(1))
        assert kinds == {NotFoundError: 7, AccessDeniedError: 2}

    @pytest.mark.parametrize(
        "text",
        [
            'url\tcaption\na.png\t"Hello\nb.png\tb\n',
            'url\tcaption\na.png\t"Hello\nb.png\tb\nc.png\t"Next words\n',
            'url,caption\na.png,"a cat\nb.png,',
        ],
    )
    def test_a_quote_that_is_not_closed_swallows_no_rows(self, tmp_path: Path, text: str) -> None:
        with pytest.raises(SettingsError, match=r"line [34]: .*quote within a quoted cell"):
            listed(written(tmp_path, text))

    def test_a_protocol_may_be_in_large_letters(self, tmp_path: Path) -> None:
        found = listed(written(tmp_path, "url\nHTTP://h.example/A.png\nhttp://h.example/A.png\n"))
        assert [sample.source_uri for sample in found] == ["http://h.example/A.png"]

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

    @pytest.mark.parametrize("name", ["t.parquet", "t.csv"])
    def test_no_more_is_held_of_many_rows_than_of_few(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        monkeypatch.setattr(addressrows, "_ROWS", 200)
        monkeypatch.setattr(scratch, "ROWS", 200)

        def peak(rows: int) -> int:
            numbers = range(rows)
            columns = {
                "url": [f"http://h.example/{n * 7919 % rows}.png" for n in numbers],
                "caption": [f"{n} {'words ' * 50}" for n in numbers],
            }
            found = pd.DataFrame(columns)
            if name.endswith(".csv"):
                found.to_csv(tmp_path / name, index=False)
            else:
                found.to_parquet(tmp_path / name, row_group_size=rows)
            settings = table.Settings(url=str(tmp_path / name))
            tracemalloc.start()
            assert sum(1 for _ in table.samples(settings)) == rows
            _, most = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            return most

        peak(400)  # what is made once for all
        assert peak(8_000) < 1.5 * peak(800)

    def test_rows_of_one_address_may_lie_far_apart(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(addressrows, "_ROWS", 7)
        monkeypatch.setattr(scratch, "ROWS", 5)
        rows = "".join(f"http://h.example/{n % 10}.png,{n // 20}\n" for n in range(100))
        found = listed(written(tmp_path, f"url,caption\n{rows},nobody's\n"))
        assert [one.captions for one in found[1:]] == [tuple("01234")] * 10
        assert found[0].source_uri.endswith("t.csv#row=101")

    def test_text_that_is_none_is_told_by_the_line_before_it(self, tmp_path: Path) -> None:
        (tmp_path / "t.csv").write_bytes(b"url\n" + b"a.png\n" * 9_999 + b"\xff.png\n")
        with pytest.raises(SettingsError, match=r"UTF-8, .* after line [89]\d{3}: invalid start"):
            listed(tmp_path / "t.csv")

    def test_a_line_without_end_is_not_read_to_its_end(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(addressrows, "_LINE", 1_000)
        with pytest.raises(SettingsError, match="a line has 1000 characters or more"):
            listed(written(tmp_path, "url,n\n" + "a.png," * 1_000))


class TestWeb:
    """Pages are read, but not looked at while listing."""

    def test_listing_asks_for_the_table_alone(self, web: Server) -> None:
        web.pages["/t.csv"] = b"url,caption\na.png,a cat\nb.png,a dog\n"
        first = listed(f"{web.url}/t.csv")
        assert web.asked == ["GET /t.csv"]
        assert listed(f"{web.url}/t.csv") == first
        assert [type(bytes_or_error(sample)) for sample in first] == [AccessDeniedError] * 2
        found = listed(f"{web.url}/t.csv", private_addresses=True)
        assert [bytes_or_error(sample) for sample in found] == [picture(0), picture(1)]

    def test_a_server_that_is_busy_for_a_moment_is_asked_again(self, web: Server) -> None:
        web.pages["/t.csv"] = b"url\na.png\n"
        web.replies["/t.csv"] = [Reply(503)] * 2
        assert len(listed(f"{web.url}/t.csv")) == 1
        web.replies["/t.csv"] = [Reply(503)] * 3
        with pytest.raises(TransientStorageError):
            listed(f"{web.url}/t.csv")

    def test_a_changed_row_is_another_version_of_its_page_alone(self, web: Server) -> None:
        web.pages["/t.csv"] = b"url,caption\na.png,a cat\nb.png,a dog\n"
        first = listed(f"{web.url}/t.csv")
        web.pages["/t.csv"] = b"url,caption\na.png,a cat\nb.png,two dogs\n"
        assert [
            before.etag == after.etag
            for before, after in zip(first, listed(f"{web.url}/t.csv"), strict=True)
        ] == [True, False]

    @pytest.mark.parametrize(
        ("path", "reply", "reason"),
        [
            ("/gone.png", None, "not_found"),
            ("/status/410", None, "not_found"),
            ("/status/401", None, "access_denied"),
            ("/status/451", None, "access_denied"),
            ("/status/503", None, "timeout"),
            ("/cut", None, "timeout"),
            ("/a.png", Reply(body=bytes(20_000)), "too_large"),
            ("/a.png", Reply(headers={"X-Robots-Tag": "noai"}, body=picture(0)), "opted_out"),
            ("/a.png", Reply(302, {"Location": "file:///etc/passwd"}), "not_found"),
            ("/a.png", Reply(body=b"<html>"), "not_an_image"),
            ("/a.png", Reply(body=b""), "empty_file"),
            ("/a.png", None, None),
        ],
    )
    def test_every_row_that_cannot_be_taken_has_its_reason(
        self, web: Server, tmp_path: Path, path: str, reply: Reply | None, reason: str | None
    ) -> None:
        """From the row to the reject, through the intake of the shard stage."""
        from clipcap import intake
        from clipcap.planning import Todo

        web.replies[path] = [reply] * 3 if reply else []
        table_path = written(tmp_path, f"url\n{web.url}{path}\n")
        [sample] = listed(table_path, private_addresses=True)
        [found] = intake.take_in([Todo(sample)], ImageSettings(max_bytes=10_000), WORKERS)
        assert getattr(found, "reason", None) == reason

    def test_an_owner_who_opts_out_is_honoured_unless_told_otherwise(
        self, web: Server, tmp_path: Path
    ) -> None:
        web.headers["/a.png"] = {"X-Robots-Tag": "noimageai"}
        path = written(tmp_path, f"url\n{web.url}/a.png\n")
        [honoured] = listed(path, private_addresses=True)
        [other] = listed(path, private_addresses=True, honour_opt_out=False)
        assert isinstance(bytes_or_error(honoured), ImageError)
        assert bytes_or_error(other) == picture(0)
        assert honoured.etag == other.etag

    def test_a_changed_page_is_seen_where_its_server_is_asked(
        self, web: Server, tmp_path: Path
    ) -> None:
        path = written(tmp_path, f"url\n{web.url}/a.png\n{web.url}/b.png\n{web.url}/c.png\n")
        web.headers["/a.png"] = {"ETag": '"1"'}
        web.headers["/b.png"] = {"Last-Modified": "Fri, 20 Nov 2026 10:00:00 GMT"}

        def asked() -> list[Sample]:
            return listed(path, private_addresses=True, ask_for_changes=True)

        first = asked()
        assert [sample.size_bytes for sample in first] == [len(picture(0)), len(picture(1)), 0]
        assert asked() == first
        assert web.asked == [f"HEAD /{name}.png" for name in "abc"] * 2 or len(web.asked) == 6
        web.headers["/a.png"] = {"ETag": '"2"'}
        second = asked()
        web.headers["/b.png"] = {"Last-Modified": "Sat, 21 Nov 2026 10:00:00 GMT"}
        third = asked()
        web.pages["/c.png"] = picture(2)
        fourth = asked()
        changed = [
            [before.etag != after.etag for before, after in zip(one, two, strict=True)]
            for one, two in ((first, second), (second, third), (third, fourth))
        ]
        assert changed == [[True, False, False], [False, True, False], [False, False, True]]

    @pytest.mark.parametrize("status", [403, 405, 500, 501])
    def test_a_server_that_does_not_tell_leaves_the_version_of_the_row(
        self, web: Server, tmp_path: Path, status: int
    ) -> None:
        path = written(tmp_path, f"url\n{web.url}/a.png\n")
        web.replies["/a.png"] = [Reply(status)]
        assert listed(path, private_addresses=True, ask_for_changes=True) == listed(
            path, private_addresses=True
        )

    def test_a_page_that_went_away_is_seen_where_its_server_is_asked(
        self, web: Server, tmp_path: Path
    ) -> None:
        path = written(tmp_path, f"url\n{web.url}/c.png\n")
        web.replies["/c.png"] = [Reply(405)]
        before, after = (
            listed(path, private_addresses=True, ask_for_changes=True) for _ in range(2)
        )
        assert before[0].etag != after[0].etag


class TestBounds:
    """A table from elsewhere says what to read, but not of this machine."""

    @pytest.mark.parametrize(
        "row",
        [
            *("/etc/passwd", "file:///etc/passwd", "local:///etc/passwd", "zip://a::file:///a.zip"),
            *("../../etc/passwd", "memory://secret/a.png", "ftp://10.0.0.1/a.png"),
            "simplecache::file:///etc/passwd",
        ],
    )
    def test_a_bucket_or_page_names_no_file_of_this_machine(self, web: Server, row: str) -> None:
        storage.write("memory://secret/a.png", picture(0))
        web.pages["/deep/lists/t.csv"] = f"url\n{row}\n".encode()
        [sample] = listed(f"{web.url}/deep/lists/t.csv", private_addresses=True)
        found = bytes_or_error(sample)
        is_page = sample.source_uri.startswith(web.url)
        assert type(found) is (NotFoundError if is_page else AccessDeniedError)
        assert sample.size_bytes == 0

    @pytest.mark.parametrize(
        "row",
        [
            *("generic://{url}/a.png", "simplecache::{url}/a.png", "ftp://{host}/a.png"),
            *("zip://a.png::{url}/a.zip", "reference://a.png", "xyz://a.png"),
        ],
    )
    def test_no_table_reaches_a_machine_by_another_protocol(
        self, web: Server, tmp_path: Path, row: str
    ) -> None:
        row = row.format(url=web.url, host=web.url.partition("://")[2])
        [sample] = listed(written(tmp_path, f"url\n{row}\n"))
        assert isinstance(bytes_or_error(sample), AccessDeniedError)
        assert web.asked == []

    def test_what_lies_below_the_base_may_be_named(self, web: Server, tmp_path: Path) -> None:
        (tmp_path / "in").mkdir()
        (tmp_path / "in" / "a.png").write_bytes(picture(0))
        (tmp_path / "in2.png").write_bytes(picture(1))
        web.pages["/t.csv"] = f"url\na.png\n../in2.png\n{tmp_path}/in2.png\n".encode()
        found = listed(f"{web.url}/t.csv", base=str(tmp_path / "in"))
        assert [bytes_or_error(sample) == picture(0) for sample in found] == [True, False]

    def test_a_table_beside_its_files_names_them(self) -> None:
        storage.write("memory://beside/a.png", picture(0))
        storage.write("memory://beside/t.csv", b"url\na.png\n")
        [sample] = listed("memory://beside/t.csv")
        assert bytes_or_error(sample) == picture(0)

    def test_a_page_names_others_from_its_root(self, web: Server) -> None:
        web.pages["/lists/t.csv"] = b"url\n/a.png\n"
        [sample] = listed(f"{web.url}/lists/t.csv", private_addresses=True)
        assert sample.source_uri == f"{web.url}/a.png"
        assert bytes_or_error(sample) == picture(0)


@pytest.mark.s3
class TestBucket:
    """Rows in a bucket have its etags, asked for many at a time."""

    def test_places_of_all_kinds_mix(self, bucket: str, tmp_path: Path, web: Server) -> None:
        storage.write(f"{bucket}/x/ü 1#.png", picture(2))
        (tmp_path / "l.png").write_bytes(picture(3))
        (port,) = free_ports(1)
        rows = [
            f"{bucket}/x/ü 1#.png",
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
        found = listed(f"{bucket}/t.csv", private_addresses=True)
        read = [bytes_or_error(sample) for sample in found]
        whole = {one for one in read if isinstance(one, bytes)}
        assert len(found) == len(rows)
        assert whole == {picture(0), picture(2)}, "and not the file of this machine"
        (tmp_path / "t.csv").write_text(data)
        own = [bytes_or_error(one) for one in listed(tmp_path / "t.csv", private_addresses=True)]
        assert {one for one in own if isinstance(one, bytes)} == whole - {picture(2)} | {
            picture(2),
            picture(3),
        }
        etags = {one.source_uri: one.etag for one in found}
        known = storage.info(f"{bucket}/x/ü 1#.png")
        assert known is not None
        assert etags[f"{bucket}/x/ü 1#.png"].startswith(f"{known.etag}+captions=")
        assert etags[f"{bucket}/x/gone.png"].startswith("missing+captions=")

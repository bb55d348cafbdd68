"""What a dataset folder promises: every row's image, in bounded memory, and no code of it run."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipcap import columnar, imagerows, packed, storage
from clipcap.errors import NotFoundError, SettingsError
from clipcap.images import ImageSettings
from clipcap.intake import Refused, Taken, take_in
from clipcap.planning import Todo
from clipcap.sample import Bytes, Sample
from clipcap.sources import huggingface
from clipcap.workers import WorkerSettings
from tests.pictures import picture
from tests.web import serving

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
PICTURES = [picture(number) for number in range(7)]
FORMS = ("parquet", "arrow")
WORKERS = WorkerSettings(processes=2)


def footer(**features: str) -> dict[str, str]:
    """Return what the library `datasets` writes beside a table: the kind of each column."""
    told = {name: {"_type": kind} for name, kind in features.items()}
    return {"huggingface": json.dumps({"info": {"features": told}})}


def rows(
    pictures: Sequence[bytes | None], paths: Sequence[str | None] = (), **more: Sequence[Any]
) -> pa.Table:
    images = [
        {"bytes": data, "path": path}
        for data, path in zip(pictures, paths or [None] * len(pictures), strict=True)
    ]
    table = pa.table({"image": pa.array(images, IMAGE), **more})
    return table.replace_schema_metadata(footer(image="Image"))


def write(path: Path, table: pa.Table, *, group: int = 3) -> Path:
    """Write a table by the ending of its path, in groups or batches of a few rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=group)
    else:
        with pa.ipc.new_stream(path, table.schema) as stream:
            stream.write_table(table, max_chunksize=group)
    return path


def listed(url: Path | str, **chosen: str | bool) -> list[Sample]:
    return list(huggingface.samples(huggingface.Settings(url=str(url), **chosen)))


def read(found: Sequence[Sample]) -> list[bytes]:
    reader = packed.Reader(sample.at for sample in found)
    return [reader.image(sample, 2**20) for sample in found]


def reasons(found: Sequence[Sample]) -> list[str]:
    """Return what becomes of every sample in the shard stage."""
    taken = take_in([Todo(sample) for sample in found], ImageSettings(), WORKERS)
    return [one.reason if isinstance(one, Refused) else "taken" for one in taken]


def refused(path: Path, caplog: pytest.LogCaptureFixture) -> str:
    caplog.clear()
    (only,) = listed(path)
    assert only.source_uri == storage.canonical(str(path))
    assert reasons([only]) in (["not_an_image"], ["empty_file"])
    assert len(caplog.messages) == 1
    return caplog.messages[0]


class TestRows:
    """Parquet files, and the Arrow files of `save_to_disk`."""

    @pytest.mark.parametrize("form", FORMS)
    def test_every_row_is_an_image_under_its_number(self, tmp_path: Path, form: str) -> None:
        path = write(tmp_path / "data" / f"train-00000-of-00001.{form}", rows(PICTURES))
        found = listed(tmp_path)
        uri = storage.canonical(str(path))
        assert [sample.source_uri for sample in found] == [f"{uri}#row={n:010}" for n in range(7)]
        assert read(found) == PICTURES
        assert reasons(found) == ["taken"] * 7

    @given(
        data=st.lists(st.none() | st.binary(max_size=600), max_size=40),
        group=st.integers(1, 50),
        wide=st.booleans(),
        form=st.sampled_from(FORMS),
    )
    def test_any_bytes_are_found_again(
        self,
        tmp_path_factory: pytest.TempPathFactory,
        data: list[bytes | None],
        group: int,
        *,
        wide: bool,
        form: str,
    ) -> None:
        kind = pa.large_binary() if wide else pa.binary()
        struct = pa.struct([("path", pa.string()), ("bytes", kind)])
        images = [None if one is None else {"bytes": one, "path": "é"} for one in data]
        table = pa.table({"n": range(len(data)), "image": pa.array(images, struct)})
        path = write(tmp_path_factory.mktemp("any") / f"a.{form}", table, group=group)
        found = listed(path)
        assert len(found) == len(data)
        there = [sample for sample, one in zip(found, data, strict=True) if one is not None]
        assert read(there) == [one for one in data if one is not None]
        if form == "arrow":
            assert [sample.size_bytes for sample in found] == [len(one or b"") for one in data]

    @pytest.mark.parametrize("form", FORMS)
    def test_a_plain_column_of_bytes_will_do(self, tmp_path: Path, form: str) -> None:
        table = pa.table({"key": ["a", "b"], "jpg": [PICTURES[0], None], "other": [b"x", b"y"]})
        write(tmp_path / f"a.{form}", table)
        found = listed(tmp_path)
        assert reasons(found) == ["taken", "not_found"]
        assert reasons(listed(tmp_path, image_column="other")) == ["not_an_image"] * 2

    @pytest.mark.parametrize("form", FORMS)
    def test_what_the_library_says_of_a_column_counts(self, tmp_path: Path, form: str) -> None:
        """Sounds are structs of bytes and path as well."""
        columns = {"sound": [b"1", b"2"], "thumb": PICTURES[:2], "mask": PICTURES[2:4]}
        table = pa.table(
            {
                name: pa.array([{"bytes": one, "path": None} for one in data], IMAGE)
                for name, data in columns.items()
            }
        ).replace_schema_metadata(footer(sound="Audio", thumb="Image", mask="Image"))
        write(tmp_path / f"a.{form}", table)
        assert read(listed(tmp_path)) == columns["thumb"]
        assert read(listed(tmp_path, image_column="mask")) == columns["mask"]
        assert read(listed(tmp_path, image_column="sound")) == columns["sound"]

    @pytest.mark.parametrize("form", FORMS)
    def test_of_several_columns_the_usual_name_counts(self, tmp_path: Path, form: str) -> None:
        table = rows(PICTURES[:2]).rename_columns(["thumb"])
        table = table.append_column("image", rows(PICTURES[2:4])["image"])
        write(tmp_path / f"a.{form}", table.replace_schema_metadata(None))
        assert read(listed(tmp_path)) == PICTURES[2:4]

    def test_bytes_below_a_null_are_none(self, tmp_path: Path) -> None:
        image = pa.StructArray.from_arrays(
            [pa.array(PICTURES[:2]), pa.array(["a", "b"])],
            ["bytes", "path"],
            mask=pa.array([False, True]),
        )
        write(tmp_path / "a.arrow", pa.table({"image": image}))
        assert reasons(listed(tmp_path)) == ["taken", "not_found"]

    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize(
        ("name", "cells", "expected"),
        [
            ("text", ["one ", None, ""], [("one",), (), ()]),
            ("caption", [["a", "b", "a"], [], [None, "c"]], [("a", "b"), (), ("c",)]),
            (
                "sentences",
                [[{"tokens": ["a"], "raw": "a."}, {"tokens": [], "raw": "b."}], [], None],
                [("a.", "b."), (), ()],
            ),
        ],
    )
    def test_captions_ride_with_their_row(
        self, tmp_path: Path, form: str, name: str, cells: list[Any], expected: list[Any]
    ) -> None:
        write(tmp_path / f"a.{form}", rows(PICTURES[:3], **{name: cells}), group=2)
        found = listed(tmp_path)
        assert [sample.captions for sample in found] == expected
        assert read(found) == PICTURES[:3]

    def test_the_caption_column_can_be_chosen(self, tmp_path: Path) -> None:
        write(tmp_path / "a.parquet", rows(PICTURES[:1], text=["a"], alt=["b"]))
        assert [listed(tmp_path, caption_column=name)[0].captions for name in ("text", "alt")] == [
            ("a",),
            ("b",),
        ]
        etags = {listed(tmp_path, caption_column=name)[0].etag for name in ("", "text", "alt")}
        assert len(etags) == 3, "another caption is another version of an image"

    def test_sizes_are_those_of_the_row_group(self, tmp_path: Path) -> None:
        """The plan packs by size, and needs no more than that the sum is about right."""
        data = [bytes(n) + bytes(range(256)) * 200 for n in range(100)]
        write(tmp_path / "a.parquet", rows(data), group=50)
        write(tmp_path / "b.arrow", rows(data))
        sizes = [sample.size_bytes for sample in listed(tmp_path)]
        assert sum(sizes[:100]) == pytest.approx(sum(map(len, data)), rel=0.05)
        assert sizes[100:] == list(map(len, data))


class TestPaths:
    """Rows without bytes lead to a file below the folder, or to the web, or nowhere."""

    @pytest.mark.parametrize("form", FORMS)
    def test_a_path_is_followed_below_the_folder_and_never_out_of_it(
        self, tmp_path: Path, form: str
    ) -> None:
        root = tmp_path / "set"
        for number, name in enumerate(("set/data/a 1.png", "set/b.png", "secret.png")):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(PICTURES[number])
        paths = [
            *("a 1.png", "b.png", "./data/a 1.png", str(root / "b.png"), "../b.png"),
            *("../../secret.png", str(tmp_path / "secret.png"), "c.png", "", None),
            *(f"file://{tmp_path}/secret.png", "s3://b/c.png", "http://me:pw@host/x.png", "a\0b"),
        ]
        write(root / "data" / f"a.{form}", rows([None] * len(paths), paths))
        found = listed(root)
        assert read(found[:5]) == [PICTURES[n] for n in (0, 1, 0, 1, 1)]
        assert reasons(found) == ["taken"] * 5 + ["not_found"] * (len(paths) - 5)
        assert found[0].size_bytes == len(PICTURES[0])

    def test_a_web_address_is_kept(self, tmp_path: Path) -> None:
        write(tmp_path / "a.parquet", rows([None], ["https://example.org/a.png?b=1"]))
        (found,) = listed(tmp_path)
        assert found.at == Bytes("https://example.org/a.png?b=1", form="web")
        held = parts(tmp_path)
        (found,) = listed(tmp_path, private_addresses=True, honour_opt_out=False)
        assert found.at.form == "web-private-any"
        assert parts(tmp_path, private_addresses=True) != held

    @pytest.mark.parametrize("form", FORMS)
    def test_rows_with_and_without_bytes_may_be_mixed(self, tmp_path: Path, form: str) -> None:
        (tmp_path / "a.png").write_bytes(PICTURES[0])
        data = [PICTURES[1], None, None, PICTURES[2], None]
        write(tmp_path / f"a.{form}", rows(data, ["x", "a.png", "b.png", None, None]), group=4)
        assert reasons(listed(tmp_path)) == ["taken", "taken", "not_found", "taken", "not_found"]
        single = listed(tmp_path / f"a.{form}")
        assert single == listed(tmp_path), "one file of a dataset sees what lies beside it"

    def test_another_version_of_the_file_is_another_of_its_row(self, tmp_path: Path) -> None:
        for name in "ab":
            (tmp_path / f"{name}.png").write_bytes(PICTURES[0])
        write(tmp_path / "a.parquet", rows([None, None, PICTURES[0]], ["a.png", "b.png", None]))
        before, held = listed(tmp_path), parts(tmp_path)
        (tmp_path / "a.png").write_bytes(picture(9, size=(50, 40)))
        after = listed(tmp_path)
        differ = [old.etag != new.etag for old, new in zip(before, after, strict=True)]
        assert differ == [True, False, False]
        assert parts(tmp_path) != held, "the listing that is kept would not show it"


def parts(folder: Path, **chosen: str | bool) -> dict[str, str]:
    found = huggingface.containers(huggingface.Settings(url=str(folder), **chosen))
    return {one.url: one.etag for one in found}


class TestFolders:
    """Which files of a folder are data."""

    def test_a_saved_dataset_is_what_its_state_names(self, tmp_path: Path) -> None:
        for split, count in (("train", 2), ("test", 1)):
            names = [f"data-{n:05}-of-{count:05}.arrow" for n in range(count)]
            for number, name in enumerate(names):
                write(tmp_path / split / name, rows(PICTURES[number : number + 1]))
            state = {"_data_files": [{"filename": name} for name in names], "_split": split}
            (tmp_path / split / "state.json").write_text(json.dumps(state))
            (tmp_path / split / "dataset_info.json").write_text("{}")
            write(tmp_path / split / "cache-0123.arrow", rows(PICTURES[3:]))
            write(tmp_path / split / "data-00000-of-00009.arrow", rows(PICTURES[3:]))
        (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
        assert read(listed(tmp_path)) == [PICTURES[0], PICTURES[0], PICTURES[1]]
        assert read(listed(tmp_path, split="train")) == PICTURES[:2]
        (tmp_path / "train" / "state.json").write_text("[]")
        with pytest.raises(SettingsError, match="_data_files"):
            listed(tmp_path)

    def test_what_map_left_is_no_data(self, tmp_path: Path) -> None:
        write(tmp_path / "set-train.arrow", rows(PICTURES[:1]))
        write(tmp_path / "cache-0123.arrow", rows(PICTURES))
        assert len(listed(tmp_path)) == 1

    @pytest.mark.parametrize(
        ("split", "expected"),
        [("", 6), ("train", 2), ("validation", 2), ("test", 1), ("extra", 1)],
    )
    def test_splits_go_by_name(self, tmp_path: Path, split: str, expected: int) -> None:
        for name in (
            *("data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"),
            *("data/valid.parquet", "dev/0000.parquet", "latest_test/0.parquet", "x/extra-1.arrow"),
        ):
            write(tmp_path / name, rows(PICTURES[:1]))
        assert len(listed(tmp_path, split=split)) == expected

    def test_an_unknown_split_is_an_error_that_says_what_there_is(self, tmp_path: Path) -> None:
        write(tmp_path / "data" / "train-0.parquet", rows(PICTURES[:1]))
        with pytest.raises(SettingsError, match=r"split 'trian'.*data/train-0\.parquet"):
            listed(tmp_path, split="trian")

    def test_a_loading_script_is_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / "dataset.py").write_text("raise SystemExit('I ran')")
        (tmp_path / "README.md").write_text("A dataset.")
        write(tmp_path / "data.parquet", rows(PICTURES[:1]))
        assert len(listed(tmp_path)) == 1

    def test_the_output_is_left_out(self, tmp_path: Path) -> None:
        write(tmp_path / "a.parquet", rows(PICTURES[:1]))
        write(tmp_path / "out" / "manifest" / "b.parquet", pa.table({"image_id": ["1"]}))
        assert len(listed(tmp_path, leave_out=str(tmp_path / "out"))) == 1

    @pytest.mark.parametrize(
        ("below", "expected"), [("a.parquet", 1), ("b/*.parquet", 2), ("b", 3), ("b/d.arrow", 3)]
    )
    def test_a_file_a_pattern_and_a_folder(self, tmp_path: Path, below: str, expected: int) -> None:
        write(tmp_path / "a.parquet", rows(PICTURES[:1]))
        write(tmp_path / "b" / "c.parquet", rows(PICTURES[:2]))
        write(tmp_path / "b" / "d.arrow", rows(PICTURES[:3]))
        assert len(listed(tmp_path / below)) == expected + (2 if below == "b" else 0)

    @pytest.mark.parametrize("below", ["", "nothing", "*.parquet", "a.txt"])
    def test_nothing_is_an_error(self, tmp_path: Path, below: str) -> None:
        (tmp_path / "a.txt").write_text("no data")
        with pytest.raises(NotFoundError):
            listed(tmp_path / below)


class TestImageFolder:
    """Images with a table of captions, or only with folders by class."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        for number, name in enumerate(("train/cat/a 1.png", "train/dog/b.png", "test/c.png")):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(PICTURES[number])
        (tmp_path / "script.py").write_text("raise SystemExit('I ran')")
        return tmp_path

    def test_class_folders_are_images(self, folder: Path) -> None:
        at = storage.canonical(str(folder))
        assert [sample.source_uri for sample in listed(folder)] == [
            f"{at}/test/c.png",
            f"{at}/train/cat/a%201.png",
            f"{at}/train/dog/b.png",
        ]
        assert read(listed(folder, split="train")) == PICTURES[:2]

    @pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
    def test_the_nearest_table_gives_the_captions(self, folder: Path, form: str) -> None:
        table(folder / f"metadata.{form}", {"test/c.png": "far", "train/dog/b.png": "far"})
        table(folder / "train" / f"metadata.{form}", {"cat/a 1.png": "cat", "dog/b.png": "near"})
        before = listed(folder)
        assert [sample.captions for sample in before] == [("far",), ("cat",), ("near",)]
        held = parts(folder)
        table(folder / f"metadata.{form}", {"test/c.png": "changed"})
        after = listed(folder)
        differ = [old.etag != new.etag for old, new in zip(before, after, strict=True)]
        assert differ == [True, False, False]
        assert parts(folder) != held

    def test_what_the_table_names_is_an_image_whatever_its_name(self, folder: Path) -> None:
        (folder / "test" / "odd.bin").write_bytes(PICTURES[4])
        (folder / "test" / "other.bin").write_bytes(PICTURES[5])
        table(folder / "test" / "metadata.csv", {"odd.bin": "odd", "../../secret": "no"})
        assert [len(sample.captions) for sample in listed(folder, split="test")] == [0, 1]

    def test_a_caption_may_hold_any_end_of_a_line(self, folder: Path) -> None:
        row = {"file_name": "odd.bin", "text": "one\u2028two\x85three"}
        (folder / "test" / "odd.bin").write_bytes(PICTURES[4])
        (folder / "test" / "metadata.jsonl").write_text(json.dumps(row, ensure_ascii=False))
        assert row["text"] in [text for one in listed(folder) for text in one.captions]

    @pytest.mark.parametrize(
        "data", [b"file_name\n\xff", b"a,b\n1,2\n", b'file_name,text\nc.png,"Hello\n']
    )
    def test_a_table_that_is_none_is_an_error(self, folder: Path, data: bytes) -> None:
        (folder / "metadata.csv").write_bytes(data)
        with pytest.raises(SettingsError, match=r"metadata\.csv"):
            listed(folder)


def table(path: Path, captions: dict[str, str]) -> None:
    found = [{"file_name": name, "text": text} for name, text in captions.items()]
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(found), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(f"{json.dumps(row)}\n" for row in found))
    else:
        path.write_text("file_name,text\n" + "".join(f"{n},{t}\n" for n, t in captions.items()))


class TestBroken:
    """A file that cannot be taken whole is one sample, to become a reject."""

    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize("cut", [1, 3, 12, 200])
    def test_a_cut_one_is_refused(
        self, tmp_path: Path, form: str, cut: int, caplog: pytest.LogCaptureFixture
    ) -> None:
        path = write(tmp_path / f"a.{form}", rows(PICTURES))
        path.write_bytes(path.read_bytes()[:-cut])
        assert "refused" in refused(path, caplog)

    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize("data", [b"", b"PAR1", b"ARROW1\0\0", picture(1), b"\xff" * 40])
    def test_what_is_none_is_refused(
        self, tmp_path: Path, form: str, data: bytes, caplog: pytest.LogCaptureFixture
    ) -> None:
        (tmp_path / f"a.{form}").write_bytes(data)
        assert "refused" in refused(tmp_path / f"a.{form}", caplog)

    @pytest.mark.parametrize("form", FORMS)
    def test_no_byte_ends_the_process(self, tmp_path: Path, form: str) -> None:
        """A footer of Parquet has six bytes of which one wrong bit made pyarrow abort."""
        found = rows([bytes(range(200)), None, b"x"], ["a", "b", None], text=["a", "b", "c"])
        path = write(tmp_path / f"a.{form}", found, group=2)
        data, url = path.read_bytes(), storage.canonical(str(path))
        for at in range(len(data)):
            path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
            file = storage.ObjectInfo(url, len(data), "", None)
            with suppress(SettingsError, *columnar.BROKEN):
                assert len(list(imagerows.rows(file, imagerows.Wanted()))) <= 3

    def test_compressed_arrow_is_refused(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        found = rows(PICTURES)
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        with pa.ipc.new_stream(tmp_path / "a.arrow", found.schema, options=options) as stream:
            stream.write_table(found)
        refused(tmp_path / "a.arrow", caplog)

    @pytest.mark.parametrize(
        ("of", "to", "why"),
        [
            (struct.pack("<qq", 3, 0), struct.pack("<qq", 99, 0), "length"),
            (struct.pack("<4i", 0, 2, 4, 6), struct.pack("<4i", 0, 2, 2**28, 6), "out of bounds"),
            (struct.pack("<4i", 0, 2, 4, 6), struct.pack("<4i", 0, 2, 2**28, 2**29), "offset"),
        ],
    )
    def test_lengths_of_arrow_that_lie_are_refused(
        self, tmp_path: Path, of: bytes, to: bytes, why: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Read on trust, they end the process."""
        path = write(tmp_path / "a.arrow", rows(PICTURES[:3], text=["aa", "bb", "cc"]))
        data = path.read_bytes()
        assert of in data
        for at in range(data.count(of)):
            parts = data.split(of)
            path.write_bytes(of.join(parts[: at + 1]) + to + of.join(parts[at + 1 :]))
            assert why in refused(path, caplog).lower()

    def test_messages_of_arrow_out_of_order_are_refused(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        path = write(tmp_path / "a.arrow", rows(PICTURES), group=4)
        data = path.read_bytes()
        mark = b"\xff\xff\xff\xff"
        begins = [at for at in range(0, len(data), 8) if data.startswith(mark, at)]
        assert len(begins) == 4, "schema, two batches, end"
        path.write_bytes(data[begins[1] :])
        assert "begin with a schema" in refused(path, caplog)
        path.write_bytes(data[: begins[2]] + mark + bytes(4) + data[begins[2] :])
        assert "more follows" in refused(path, caplog)
        path.write_bytes(data[: begins[2]] + mark + b"\xff\xff\xff\x7f" + bytes(9_000))
        assert "the header at byte" in refused(path, caplog)
        path.write_bytes(data[: begins[2] - 8])
        assert "more than there are" in refused(path, caplog)

    def test_an_arrow_file_with_a_footer_is_read(self, tmp_path: Path) -> None:
        found = rows(PICTURES)
        with pa.ipc.new_file(tmp_path / "a.arrow", found.schema) as stream:
            stream.write_table(found, max_chunksize=3)
        assert read(listed(tmp_path)) == PICTURES

    @pytest.mark.parametrize("form", FORMS)
    def test_no_column_of_images_is_an_error(self, tmp_path: Path, form: str) -> None:
        write(tmp_path / f"a.{form}", pa.table({"n": [1], "text": ["a"]}))
        with pytest.raises(SettingsError, match=r"only: n, text.*image_column"):
            listed(tmp_path)
        with pytest.raises(SettingsError, match="must hold files of images"):
            listed(tmp_path, image_column="text")

    def test_a_column_that_is_not_there_is_an_error(self, tmp_path: Path) -> None:
        write(tmp_path / "a.parquet", rows(PICTURES[:1], caption=["a"]))
        with pytest.raises(SettingsError, match="Did you mean image"):
            listed(tmp_path, image_column="imag")
        with pytest.raises(SettingsError, match="Did you mean caption"):
            listed(tmp_path, caption_column="captoin")

    @given(
        at=st.integers(0, 3_999),
        value=st.integers(0, 255),
        end=st.integers(1, 4_000),
        form=st.sampled_from(FORMS),
    )
    def test_any_damage_is_listed_or_refused(
        self, tmp_path_factory: pytest.TempPathFactory, at: int, value: int, end: int, form: str
    ) -> None:
        found = rows([bytes(range(200)), None, b"x"], ["a", "b", None], text=["a", "b", "c"])
        path = write(tmp_path_factory.mktemp("any") / f"a.{form}", found, group=2)
        data = bytearray(path.read_bytes())
        data[at % len(data)] = value
        path.write_bytes(bytes(data[-end:] if form == "parquet" else data[:end]))
        try:
            samples = listed(path)
        except SettingsError:  # the damage hit the name of a column
            return
        assert len({sample.source_uri for sample in samples}) == len(samples)
        assert not any(
            isinstance(one, Taken) for one in take_in(list(map(Todo, samples)), LIMITS, WORKERS)
        )


LIMITS = ImageSettings()


@pytest.mark.s3
def test_a_bucket_gives_rows_by_range(bucket: str, tmp_path: Path) -> None:
    pictures = [picture(number, size=(900, 300)) for number in range(4)]
    for form in FORMS:
        path = write(tmp_path / f"a.{form}", rows(pictures, text=list("abcd")), group=2)
        storage.write(f"{bucket}/set/train/{path.name}", path.read_bytes())
    storage.write(f"{bucket}/set/pics/b.png", PICTURES[1])
    lost = write(tmp_path / "b.parquet", rows([None] * 2, ["pics/b.png", "../c.png"]))
    storage.write(f"{bucket}/set/train/b.parquet", lost.read_bytes())
    found = listed(f"{bucket}/set")
    assert reasons(found) == ["taken"] * 9 + ["not_found"]
    assert read(found[:9]) == [*pictures, *pictures, PICTURES[1]]
    assert [sample.captions for sample in found[:4]] == [("a",), ("b",), ("c",), ("d",)]


def test_the_web_gives_rows_by_range(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", rows([*PICTURES[:2], None], [None, None, "b.png"]))
    with serving({"/set/a.parquet": path.read_bytes()}) as web:
        found = listed(f"{web.url}/set/a.parquet")
        assert read(found[:2]) == PICTURES[:2]
        assert reasons(found) == ["taken", "taken", "not_found"]

"""What every file in `clipcap/sinks` promises, new ones included, and what each has of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from clipcap import registry, settings, storage
from clipcap.errors import SettingsError, StorageError
from clipcap.sinks import Written, coco, sidecars
from clipcap.sources import folder

EXAMPLES: dict[str, dict[str, Any]] = {"sidecars": {}, "coco": {"url": "{place}/results.json"}}
"""Settings for each sink; `{place}` is a folder that exists."""

Rows = list[dict[str, Any]]

every_sink = pytest.mark.parametrize("name", registry.names("clipcap.sinks"))

SCHEMA = pa.schema(
    {
        "source_uri": pa.string(),
        "caption": pa.string(),
        "captioner_id": pa.string(),
        "labels": pa.list_(pa.string()),
        "clip_score": pa.float32(),
    }
)


def captions(place: str, texts: dict[str, str | None]) -> pa.Table:
    """Return rows as the publish stage gives them, one per file name."""
    at = storage.canonical(place)
    rows = [
        {
            "source_uri": f"{at}/{name}" if "://" not in name else name,
            "caption": text,
            "captioner_id": "tiny",
            "labels": ["cat", "indoors"],
            "clip_score": 0.75,
        }
        for name, text in texts.items()
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def written(name: str, place: Path, table: pa.Table) -> Written:
    sink = registry.load("clipcap.sinks", name)
    chosen = {key: value.format(place=place) for key, value in EXAMPLES[name].items()}
    found: Written = sink.write(table, sink.Settings(**chosen))
    return found


def files(place: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(place.rglob("*")) if path.is_file()}


class TestEverySink:
    """Promises that do not depend on the form."""

    def test_has_an_example_here(self) -> None:
        """A new sink is tested on arrival: add its settings to `EXAMPLES`."""
        assert sorted(EXAMPLES) == registry.names("clipcap.sinks")

    @every_sink
    def test_its_settings_explain_themselves(self, name: str) -> None:
        chosen = registry.load("clipcap.sinks", name).Settings
        assert issubclass(chosen, settings.Settings)
        assert chosen.__doc__
        assert [field for field, info in chosen.model_fields.items() if not info.description] == []

    @every_sink
    def test_a_second_call_changes_nothing(self, name: str, tmp_path: Path) -> None:
        table = captions(str(tmp_path), {"1.jpg": "a cat", "2.jpg": "eine Bärin", "3.jpg": None})
        assert written(name, tmp_path, table) == Written(written=2, skipped=1)
        before = files(tmp_path)
        assert before
        assert written(name, tmp_path, table) == Written(unchanged=2, skipped=1)
        assert files(tmp_path) == before

    @every_sink
    def test_no_rows_are_no_error(self, name: str, tmp_path: Path) -> None:
        assert written(name, tmp_path, SCHEMA.empty_table()) == Written()

    @every_sink
    def test_order_does_not_matter(self, name: str, tmp_path: Path) -> None:
        table = captions(str(tmp_path), {"10.jpg": "ten", "9.jpg": "nine"})
        written(name, tmp_path, table)
        before = files(tmp_path)
        written(name, tmp_path, table.take([1, 0]))
        assert files(tmp_path) == before

    @every_sink
    def test_a_place_that_refuses_is_an_error_of_ours(self, name: str, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"")
        table = captions(f"{tmp_path}/file", {"1.jpg": "a cat"})
        with pytest.raises(StorageError):
            written(name, tmp_path / "file", table)


class TestSidecars:
    """A file beside each image, and what becomes of one that is there."""

    def write(self, place: str, texts: dict[str, str | None], **chosen: str) -> Written:
        return sidecars.write(captions(place, texts), sidecars.Settings.model_validate(chosen))

    def test_text_is_the_caption_on_one_line(self, tmp_path: Path) -> None:
        self.write(str(tmp_path), {"a%20b.jpg": "a cat\n on a\tmat "})
        assert files(tmp_path) == {"a b.jpg.clipcap.txt": b"a cat on a mat\n"}

    def test_json_has_labels_and_score(self, tmp_path: Path) -> None:
        self.write(str(tmp_path), {"a.jpg": "ein Bär"}, suffix=".clipcap.json")
        found = files(tmp_path)["a.jpg.clipcap.json"]
        assert "Bär" in found.decode()
        assert json.loads(found) == {
            "caption": "ein Bär",
            "captioner_id": "tiny",
            "labels": ["cat", "indoors"],
            "clip_score": 0.75,
        }

    def test_only_objects_of_their_own_get_one(self, tmp_path: Path) -> None:
        texts = {f"file://{tmp_path}/a.tar#b.jpg": "x", "https://h/a.jpg": "x", "a.jpg": ""}
        assert self.write(str(tmp_path), {**texts}) == Written(skipped=3)
        assert files(tmp_path) == {}

    @pytest.mark.parametrize("suffix", [".clipcap.txt", ".clipcap.json"])
    def test_skip_leaves_what_is_there(self, tmp_path: Path, suffix: str) -> None:
        (tmp_path / f"a.jpg{suffix}").write_bytes(b"mine")
        texts: dict[str, str | None] = {"a.jpg": "new", "b.jpg": "new"}
        done = self.write(str(tmp_path), texts, mode="skip", suffix=suffix)
        assert done == Written(written=1, skipped=1)
        assert files(tmp_path)[f"a.jpg{suffix}"] == b"mine"

    def test_overwrite_replaces(self, tmp_path: Path) -> None:
        self.write(str(tmp_path), {"a.jpg": "old"})
        assert self.write(str(tmp_path), {"a.jpg": "new"}, mode="overwrite") == Written(written=1)
        assert files(tmp_path) == {"a.jpg.clipcap.txt": b"new\n"}

    def test_append_adds_each_line_once(self, tmp_path: Path) -> None:
        (tmp_path / "a.jpg.clipcap.txt").write_bytes(b"mine\r\nno line end")
        for text in ("one", "two", "one", "mine"):
            self.write(str(tmp_path), {"a.jpg": text}, mode="append")
        assert files(tmp_path) == {"a.jpg.clipcap.txt": b"mine\r\nno line end\none\ntwo\n"}

    def test_append_makes_a_list_of_json(self, tmp_path: Path) -> None:
        chosen = {"mode": "append", "suffix": ".clipcap.json"}
        done = [
            self.write(str(tmp_path), {"a.jpg": text}, **chosen)
            for text in ("one", "one", "two", "three", "two")
        ]
        assert [one.written for one in done] == [1, 0, 1, 1, 0]
        found = json.loads(files(tmp_path)["a.jpg.clipcap.json"])
        assert [one["caption"] for one in found] == ["one", "two", "three"]

    def test_append_leaves_a_broken_file_alone(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        (tmp_path / "a.jpg.clipcap.json").write_bytes(b"{broken")
        texts: dict[str, str | None] = {"a.jpg": "one", "b.jpg": "two"}
        done = self.write(str(tmp_path), texts, mode="append", suffix=".clipcap.json")
        assert done == Written(written=1, skipped=1)
        assert files(tmp_path)["a.jpg.clipcap.json"] == b"{broken"
        assert "a.jpg.clipcap.json is left alone" in caplog.text

    @pytest.mark.parametrize("suffix", [".txt", ".json", ".clipcap.csv", ""])
    def test_an_ending_that_reads_as_a_person_s_is_refused(self, suffix: str) -> None:
        with pytest.raises(ValueError, match="suffix"):
            sidecars.Settings.model_validate({"suffix": suffix})

    def test_the_next_night_sees_no_change(self, tmp_path: Path) -> None:
        """Our files are neither images nor captions by people, so nothing is captioned again."""
        (tmp_path / "a.jpg").write_bytes(b"picture")
        before = list(folder.samples(folder.Settings(url=str(tmp_path))))
        for suffix in (".clipcap.txt", ".clipcap.json"):
            self.write(str(tmp_path), {"a.jpg": "a cat"}, suffix=suffix)
        assert list(folder.samples(folder.Settings(url=str(tmp_path)))) == before

    @pytest.mark.s3
    @pytest.mark.parametrize("mode", ["skip", "overwrite", "append"])
    def test_a_bucket_gets_them_too(self, bucket: str, mode: str) -> None:
        texts: dict[str, str | None] = {
            f"ü {number}#.jpg": f"picture {number}" for number in range(40)
        }
        assert self.write(bucket, texts, mode=mode) == Written(written=40)
        again = self.write(bucket, texts, mode=mode)
        assert again == (Written(skipped=40) if mode == "skip" else Written(unchanged=40))
        assert storage.read(f"{bucket}/ü 7#.jpg.clipcap.txt") == b"picture 7\n"


class TestCoco:
    """One file that COCO's own scorers read."""

    def write(self, place: Path, texts: dict[str, str | None], **chosen: str) -> Rows:
        settings = coco.Settings.model_validate({"url": f"{place}/r.json", **chosen})
        coco.write(captions(str(place), texts), settings)
        found: Rows = json.loads((place / "r.json").read_bytes())
        return found

    def test_numbers_come_from_file_names(self, tmp_path: Path) -> None:
        texts = {"COCO_val2014_000000000042.jpg": "b", "000000000007.png": "a", "x1/v2_3.jpg": "c"}
        assert self.write(tmp_path, {**texts}) == [
            {"image_id": 3, "caption": "c"},
            {"image_id": 7, "caption": "a"},
            {"image_id": 42, "caption": "b"},
        ]

    def test_the_next_night_adds_to_it(self, tmp_path: Path) -> None:
        """A night hands its new captions to a sink, and no others."""
        self.write(tmp_path, {"1.jpg": "a", "2.jpg": "b"})
        found = self.write(tmp_path, {"2.jpg": "new", "3.jpg": "c"})
        assert [row["caption"] for row in found] == ["a", "new", "c"]
        found = self.write(tmp_path, {"3.jpg": "c"}, mode="overwrite")
        assert [row["caption"] for row in found] == ["c"]

    def test_another_file_is_not_added_to(self, tmp_path: Path) -> None:
        for text in ("{broken", '{"a": 1}', "[1]", '[{"id": 1}]', "3"):
            (tmp_path / "r.json").write_text(text)
            with pytest.raises(SettingsError, match="COCO results"):
                self.write(tmp_path, {"1.jpg": "a"})

    def test_numbers_come_from_annotations(self, tmp_path: Path) -> None:
        images = [{"id": 5, "file_name": "a b.jpg"}, {"id": 6, "file_name": "val/7.jpg"}]
        (tmp_path / "c.json").write_text(json.dumps({"images": images}))
        texts: dict[str, str | None] = {"sub/a%20b.jpg": "one", "7.jpg": "two"}
        found = self.write(tmp_path, texts, annotations=f"{tmp_path}/c.json")
        assert [row["image_id"] for row in found] == [5, 6]

    @pytest.mark.parametrize(
        ("texts", "annotations", "said"),
        [
            ({"cat.jpg": "a"}, None, "does not end with one"),
            ({"a/1.jpg": "a", "b/01.png": "b"}, None, "second with 1"),
            ({"1.jpg": "a"}, {"images": []}, "not in the annotations"),
            ({"1.jpg": "a"}, {"captions": []}, "but has no 'images'"),
            ({"1.jpg": "a"}, [], "must be COCO annotations"),
        ],
    )
    def test_an_image_without_a_number_is_an_error(
        self, tmp_path: Path, texts: dict[str, str | None], annotations: object, said: str
    ) -> None:
        (tmp_path / "c.json").write_text(json.dumps(annotations))
        chosen = f"{tmp_path}/c.json" if annotations is not None else ""
        with pytest.raises(SettingsError, match=said):
            self.write(tmp_path, texts, annotations=chosen)
        assert not (tmp_path / "r.json").exists()

"""Files of labels by people: every usual form, joined by name, nothing left out in silence."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipcap import layout, manifest, storage, tables
from clipcap.errors import NotFoundError, SettingsError
from clipcap.labels import truth
from clipcap.labels.sets import Label, LabelSet
from clipcap.labels.truth import Truth
from clipcap.stages.shard import ShardSettings
from tests.nights import draw, shard_night

PETS = LabelSet(
    name="pets",
    labels=(
        Label(name="cat", synonyms=("kitten", "pet")),
        Label(name="guide dog", synonyms=("dog", "pet")),
        Label(name="Polish"),
        Label(name="polish"),
        Label(name="horse"),
    ),
)
WANTED = {"one.png": {0}, "two.png": {0, 1}, "a/same.png": set[int]()}
CELLS = {"one.png": ["cat"], "two.png": ["guide dog", "cat"], "a/same.png": []}
COCO = {
    "images": [{"id": n, "file_name": name} for n, name in enumerate(CELLS)],
    "categories": [{"id": 17, "name": "cat"}, {"id": 18, "name": "guide dog"}],
    "annotations": [
        {"image_id": 0, "category_id": 17},
        {"image_id": 1, "category_id": 18},
        {"image_id": 1, "category_id": 17},
        {"image_id": 1, "category_id": 17},
    ],
}
ROWS = [{"file_name": name, "labels": labels} for name, labels in CELLS.items()]
CSV = "image,label\none.png,cat\ntwo.png,guide dog\ntwo.png, cat\na/same.png,\n"
FORMS = {
    "csv": CSV,
    "bars": "image,label\none.png,cat\ntwo.png,guide dog | cat\na/same.png,\n",
    "tsv": CSV.replace(",", "\t"),
    "bom": "\ufeff" + CSV,
    "windows": CSV.replace("\n", "\r\n"),
    "list": json.dumps(ROWS),
    "lines": "\n".join(map(json.dumps, ROWS)),
    "mapping": json.dumps(CELLS),
    "coco": json.dumps(COCO),
}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An output of four images, two of which have one file name."""
    folder = tmp_path_factory.mktemp("truth")
    for n, name in enumerate(("one.png", "two.png", "a/same.png", "b/same.png", "cat/x y.png")):
        draw(folder / "in" / name, n)
    url = storage.canonical(str(folder / "out"))
    shard_night(str(folder / "in"), url, ShardSettings())
    return url


def columns(out: str) -> dict[str, dict[str, str]]:
    """Return image id, key and address by the end of the address."""
    rows = [
        row
        for shard in manifest.shards(out)
        for row in tables.read(
            layout.manifest(out, shard), columns=["image_id", "key", "source_uri"]
        ).to_pylist()
    ]
    return {unquote(row["source_uri"].partition("/in/")[2]): row for row in rows}


def by_name(found: Truth, out: str) -> dict[str, set[int]]:
    """Return the indices by the path below the source."""
    names = {row["image_id"]: name for name, row in columns(out).items()}
    pairs = zip(found.image_ids, found.labels_N, strict=True)
    return {names[image_id]: set(labels) for image_id, labels in pairs}


def written(folder: Path, text: str, encoding: str = "utf-8") -> str:
    path = folder / "truth.txt"
    path.write_bytes(text.encode(encoding))
    return str(path)


@pytest.mark.parametrize("form", FORMS)
def test_each_form_gives_the_labels_of_each_image(tmp_path: Path, out: str, form: str) -> None:
    found = truth.read(written(tmp_path, FORMS[form]), out, PETS)
    assert by_name(found, out) == WANTED
    assert (found.missing_images, found.left_out, found.unknown_labels) == (0, 0, {})
    csv = truth.read(written(tmp_path, CSV), out, PETS)
    assert found.sha256 == csv.sha256


@pytest.mark.parametrize("column", ["key", "image_id", "source_uri"])
def test_parquet_names_images_by_key_or_address(tmp_path: Path, out: str, column: str) -> None:
    known = columns(out)
    table = pa.table({column: [known[name][column] for name in CELLS], "label": CELLS.values()})
    pq.write_table(table, tmp_path / "truth.parquet")
    found = truth.read(str(tmp_path / "truth.parquet"), out, PETS)
    assert by_name(found, out) == WANTED


def test_a_label_is_known_by_name_before_case_before_synonym(tmp_path: Path, out: str) -> None:
    text = "image,label\none.png,polish\ntwo.png,DOG|  Guide   DOG\ncat/x y.png,Kitten\n"
    found = truth.read(written(tmp_path, text), out, PETS)
    assert by_name(found, out) == {"one.png": {3}, "two.png": {1}, "cat/x y.png": {0}}


def test_words_of_several_labels_and_unknown_ones_are_left_out_and_told(
    tmp_path: Path, out: str, caplog: pytest.LogCaptureFixture
) -> None:
    """`pet` is a synonym of two, `POLISH` may be both."""
    text = "image,label\none.png,pet\ntwo.png,POLISH\na/same.png,zebra|horse\ncat/x y.png,\n"
    found = truth.read(written(tmp_path, text), out, PETS)
    assert by_name(found, out) == {"a/same.png": {4}, "cat/x y.png": set()}
    assert found.unknown_labels == {"pet": 1, "POLISH": 1, "zebra": 1}
    assert found.left_out == 2
    assert "lacks 3 labels ('pet', 'POLISH', 'zebra' ...); 2 images have no other" in caplog.text


def test_missing_images_and_repeated_rows_are_told(
    tmp_path: Path, out: str, caplog: pytest.LogCaptureFixture
) -> None:
    text = "image,label\none.png,cat\none.png,cat\nnine.png,cat\nnine.png,horse\nten.png,cat\n"
    found = truth.read(written(tmp_path, text), out, PETS)
    assert (found.missing_images, found.repeated, len(found.image_ids)) == (2, 1, 1)
    assert "2 images are not in the output ('nine.png', 'ten.png' ...); 1 rows" in caplog.text


def test_none_of_these_beside_a_label_is_the_label(tmp_path: Path, out: str) -> None:
    text = "image,label\none.png,\none.png,cat\ntwo.png,cat\ntwo.png,\n"
    found = truth.read(written(tmp_path, text), out, PETS)
    assert by_name(found, out) == {"one.png": {0}, "two.png": {0}}


def test_folders_are_labels(out: str) -> None:
    found = truth.read("folder", out, PETS)
    assert by_name(found, out) == {"cat/x y.png": {0}}
    assert (found.left_out, set(found.unknown_labels)) == (4, {"in", "a", "b"})


def test_a_path_tells_images_of_one_file_name_apart(tmp_path: Path, out: str) -> None:
    text = "image,label\na/same.png,cat\n./b/same.png,horse\n/elsewhere/cat/x y.png,cat\n"
    found = truth.read(written(tmp_path, text), out, PETS)
    assert by_name(found, out) == {"a/same.png": {0}, "b/same.png": {4}, "cat/x y.png": {0}}


def test_a_file_name_of_several_images_is_refused(tmp_path: Path, out: str) -> None:
    with pytest.raises(SettingsError, match=r"'same.png' is the file name of 2 images"):
        truth.read(written(tmp_path, "image,label\nsame.png,cat\n"), out, PETS)


def test_two_files_of_one_name_cannot_be_the_one_image_that_is_here(
    tmp_path: Path, out: str
) -> None:
    text = "image,label\ndogs/one.png,dog\ncats/one.png,cat\n"
    with pytest.raises(SettingsError, match=r"'dogs/one.png' and 'cats/one.png' are of one file"):
        truth.read(written(tmp_path, text), out, PETS)
    text = "image,label\nin/one.png,dog\none.png,dog\n"
    assert len(truth.read(written(tmp_path, text), out, PETS).image_ids) == 1


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "the columns are"),
        ("one.png,cat\ntwo.png,guide dog\n", "the columns are one.png, cat"),
        ("image,caption\none.png,cat\n", "the columns are image, caption"),
        ("image,label\n", "it holds none"),
        ('{"a": {"b": 1}}', "an object of 'a'"),
        ('{"image": "one.png", "label": "cat"}\n{"image": ', "Expecting value"),
        ("image,label\nnine.png,cat\n", "the first is of 'nine.png'; the output has"),
    ],
)
def test_a_file_of_no_use_is_refused_with_a_correct_one(
    tmp_path: Path, out: str, text: str, problem: str
) -> None:
    with pytest.raises(SettingsError, match=problem) as refused:
        truth.read(written(tmp_path, text), out, PETS)
    assert "image,label\n" in str(refused.value)


def test_labels_that_are_all_unknown_are_refused_with_the_nearest(tmp_path: Path, out: str) -> None:
    text = "image,label\none.png,hors\ntwo.png,\n"
    with pytest.raises(SettingsError, match=r"none of 1 is: 'hors' .* Did you mean 'horse'"):
        truth.read(written(tmp_path, text), out, PETS)


def test_another_encoding_and_no_file_are_told(tmp_path: Path, out: str) -> None:
    url = written(tmp_path, "image,label\none.png,caf\u00e9\n", encoding="latin-1")
    with pytest.raises(SettingsError, match=r"must be UTF-8, but byte \d+ is none.*iconv"):
        truth.read(url, out, PETS)
    with pytest.raises(NotFoundError):
        truth.read(str(tmp_path / "nothing.csv"), out, PETS)

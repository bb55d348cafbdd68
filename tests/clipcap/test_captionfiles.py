"""Files of captions: every usual form, joined by name and never by position, nothing silent."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipcap import captionfiles, layout, manifest, storage, tables
from clipcap.errors import NotFoundError, SettingsError
from tests.nights import Tiny, draw, make_tiny, night
from tests.web import serving

WANTED = {"one.png": ["a cat.", "a black cat."], "two.png": ["a dog, in the snow."]}
TOKEN = "one.png#0\ta cat.\none.png#1\ta black cat.\ntwo.png#0\ta dog, in the snow.\n"
KARPATHY = [
    {"filename": name, "sentences": [{"raw": text, "tokens": []} for text in texts]}
    for name, texts in WANTED.items()
]
COCO = {
    "info": {},
    "images": [{"id": 7, "file_name": "one.png"}, {"id": 3, "file_name": "two.png"}],
    "annotations": [
        {"id": 1, "image_id": 7, "caption": "a cat."},
        {"id": 2, "image_id": 3, "caption": "a dog, in the snow.\n"},
        {"id": 3, "image_id": 7, "caption": "a black cat."},
    ],
}
ROWS = [{"image": name, "caption": text} for name, texts in WANTED.items() for text in texts]
FORMS = {
    "flickr8k": TOKEN,
    "flickr30k": "image_name| comment_number| comment\none.png| 0| a cat.\none.png| 1| a black cat."
    "\ntwo.png| 0| a dog, in the snow.\n",
    "csv": 'image,caption\none.png,a cat.\none.png,a black cat.\ntwo.png,"a dog, in the snow."\n',
    "tsv": "file\tnumber\tcaption\none.png\t0\ta cat.\none.png\t1\ta black cat.\n"
    "two.png\t0\ta dog, in the snow.\n",
    "coco": json.dumps(COCO),
    "karpathy": json.dumps({"images": KARPATHY, "dataset": "coco"}),
    "list": json.dumps(ROWS),
    "lines": "\n".join(map(json.dumps, ROWS)),
    "mapping": json.dumps(WANTED),
    "folders": TOKEN.replace("one.png", "val/one.png"),
    "bom": "\ufeff" + TOKEN,
}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An output of four images, two of which have one file name."""
    folder = tmp_path_factory.mktemp("captions")
    tiny: Tiny = make_tiny(folder / "tiny")
    for n, name in enumerate(("one.png", "two.png", "a/same.png", "b/same.png")):
        draw(folder / "in" / name, n)
    return night(folder / "in", folder / "out", tiny)[0].run.out


def images(out: str) -> dict[str, dict[str, str]]:
    """Return image id, key and address by the end of the address."""
    rows = [
        row
        for shard in manifest.shards(out)
        for row in tables.read(
            layout.manifest(out, shard), columns=["image_id", "key", "source_uri"]
        ).to_pylist()
    ]
    return {row["source_uri"].partition("/in/")[2]: row for row in rows}


def written(folder: Path, text: str, encoding: str = "utf-8") -> str:
    path = folder / "captions.txt"
    path.write_text(text, encoding=encoding)
    return str(path)


@pytest.mark.parametrize("form", FORMS)
def test_each_form_gives_the_captions_of_each_image(tmp_path: Path, out: str, form: str) -> None:
    found = captionfiles.join(written(tmp_path, FORMS[form]), out)
    known = images(out)
    assert found.captions == {known[name]["image_id"]: texts for name, texts in WANTED.items()}
    assert (found.unmatched, found.blank) == (0, 0)


@pytest.mark.parametrize("column", ["key", "image_id", "source_uri"])
def test_parquet_names_images_by_key_or_address(tmp_path: Path, out: str, column: str) -> None:
    known = images(out)
    names = [known[name][column] for name in WANTED]
    table = pa.table({column: names, "captions": list(WANTED.values())})
    pq.write_table(table, tmp_path / "captions.parquet")
    found = captionfiles.join(str(tmp_path / "captions.parquet"), out)
    assert found.captions == {known[name]["image_id"]: texts for name, texts in WANTED.items()}


def test_conceptual_captions_are_joined_by_address_alone(tmp_path: Path, out: str) -> None:
    """A page that ends as a file of the output does is another image."""
    address = images(out)["two.png"]["source_uri"]
    text = f"a dog.\thttp://a.example/x.jpg\na cat.\thttp://b.example/one.png\na boat.\t{address}\n"
    found = captionfiles.join(written(tmp_path, text), out)
    assert list(found.captions.values()) == [["a boat."]]
    assert found.unmatched == 2


@pytest.mark.parametrize(("line", "columns"), [("no address", 1), ("a\tb\thttp://a/2.jpg", 3)])
def test_conceptual_captions_have_two_columns(
    tmp_path: Path, out: str, line: str, columns: int
) -> None:
    url = written(tmp_path, f"a cat.\thttp://a/1.jpg\n{line}\n")
    with pytest.raises(SettingsError, match=f"a line of {columns} columns, not caption and addr"):
        captionfiles.join(url, out)


def test_captions_of_no_image_and_blank_ones_are_counted(tmp_path: Path, out: str) -> None:
    text = TOKEN + "three.png#0\ta boat.\none.png#2\t  \nthree.png#1\tthe sea.\n"
    found = captionfiles.join(written(tmp_path, text), out)
    assert (found.unmatched, found.blank) == (2, 1)
    assert len(found.captions) == 2


def test_a_row_without_a_caption_is_blank(tmp_path: Path, out: str) -> None:
    """`2199200615.jpg| 4   A dog runs across the grass .` stands in Flickr30k's results."""
    text = FORMS["flickr30k"] + "two.png| 4   A dog runs .\n"
    found = captionfiles.join(written(tmp_path, text), out)
    assert (found.unmatched, found.blank) == (0, 1)


def test_a_file_name_of_two_images_is_refused_where_it_is_used(tmp_path: Path, out: str) -> None:
    text = TOKEN + "same.png#0\ta boat.\n"
    with pytest.raises(SettingsError, match=r"'same.png' is the file name of 2 images"):
        captionfiles.join(written(tmp_path, text), out)
    key = images(out)["b/same.png"]["key"]
    found = captionfiles.join(written(tmp_path, text.replace("same.png", key)), out)
    assert len(found.captions) == 3


def test_cocos_objects_are_no_captions(tmp_path: Path, out: str) -> None:
    objects = {**COCO, "categories": [{"id": 1, "name": "cat"}]}
    objects["annotations"] = [{"image_id": 7, "category_id": 1}]
    with pytest.raises(SettingsError, match="'caption'"):
        captionfiles.join(written(tmp_path, json.dumps(objects)), out)


def test_a_line_of_json_may_hold_any_end_of_a_line() -> None:
    rows = [("a.jpg", "one\u2028two"), ("b.jpg", "one\x85two")]
    lines = "".join(f'{{"file_name":"{name}","caption":"{text}"}}\n' for name, text in rows)
    assert captionfiles.parsed(lines.encode(), ("caption",)) == rows


def test_a_broken_line_of_json_is_refused(tmp_path: Path, out: str) -> None:
    text = FORMS["lines"] + '\n{"image": "one.png", '
    with pytest.raises(SettingsError, match="must be COCO's JSON"):
        captionfiles.join(written(tmp_path, text), out)


def test_another_encoding_is_refused_with_advice(tmp_path: Path, out: str) -> None:
    url = written(tmp_path, TOKEN + "one.png#3\tun caf\u00e9.\n", encoding="latin-1")
    with pytest.raises(SettingsError, match=r"must be UTF-8, but byte \d+ is none.*iconv"):
        captionfiles.join(url, out)


@pytest.mark.parametrize(
    "text",
    ["", "\n", "what is this?", "a,b\n1,2\n", "{}", '{"a": 1}', "[1]", "{", "[]",
     '[{"key": "a", "caption": "b"}, "c"]', '[["key", "caption"], ["a", "b"]]', "[" * 100_000,
     '{"annotations": [{"caption": "x"}]}', '{"images": [{"file": "x"}]}', "PAR1 no more",
     "one.png#0\ta cat.\nno number\n"],
)  # fmt: skip
def test_what_is_no_file_of_captions_is_refused(tmp_path: Path, out: str, text: str) -> None:
    with pytest.raises(SettingsError, match=re.escape("The captions in ")):
        captionfiles.join(written(tmp_path, text), out)


def test_captions_of_other_images_alone_are_refused(tmp_path: Path, out: str) -> None:
    url = written(tmp_path, TOKEN.replace("one", "x").replace("two", "y"))
    with pytest.raises(SettingsError, match=r"none is \(the first is of 'x.png'; the output has"):
        captionfiles.join(url, out)


def test_no_file_is_no_file(tmp_path: Path, out: str) -> None:
    with pytest.raises(NotFoundError):
        captionfiles.join(storage.canonical(str(tmp_path / "nowhere.csv")), out)


def test_captions_are_read_from_a_site_that_gives_no_ranges() -> None:
    with serving({"/captions.json": b'{"1.jpg": ["a cat"]}'}) as site:
        site.has_ranges = False
        assert list(captionfiles.read(f"{site.url}/captions.json")) == [("1.jpg", ["a cat"])]

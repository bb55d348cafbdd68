"""What every file in `clipcap/sources` promises, new ones included."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipcap import packed, registry, settings, shards
from clipcap.errors import ClipcapError
from clipcap.sample import Sample
from tests import inventories
from tests.pictures import picture

Example = Callable[[Path, dict[str, bytes]], dict[str, Any]]


def folder(place: Path, pictures: dict[str, bytes]) -> dict[str, Any]:
    for name, data in pictures.items():
        (place / f"{name}.png").write_bytes(data)
    return {"url": str(place)}


def table(place: Path, pictures: dict[str, bytes]) -> dict[str, Any]:
    (place / "images").mkdir(exist_ok=True)
    for name, data in pictures.items():
        (place / "images" / f"{name}.png").write_bytes(data)
    (place / "all.csv").write_text("url\n" + "".join(f"images/{name}.png\n" for name in pictures))
    return {"url": str(place / "all.csv")}


def tars(place: Path, pictures: dict[str, bytes]) -> dict[str, Any]:
    for tar, half in enumerate((list(pictures)[::2], list(pictures)[1::2])):
        data, _ = shards.pack([(name, "png", pictures[name]) for name in half])
        (place / f"{tar}.tar").write_bytes(data)
    return {"url": str(place)}


def zips(place: Path, pictures: dict[str, bytes]) -> dict[str, Any]:
    for archive, half in enumerate((list(pictures)[::2], list(pictures)[1::2])):
        with zipfile.ZipFile(place / f"{archive}.zip", "w") as packing:
            for number, name in enumerate(half):
                method = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)[number % 2]
                packing.writestr(f"{name}.png", pictures[name], method)
    return {"url": str(place)}


def huggingface(place: Path, pictures: dict[str, bytes]) -> dict[str, Any]:
    for number, (name, data) in enumerate(pictures.items()):
        table = pa.table({"image": [{"bytes": data, "path": f"{name}.png"}]})
        if number % 2:
            pq.write_table(table, place / f"{name}.parquet", write_statistics=False)
        else:
            with pa.ipc.new_stream(place / f"{name}.arrow", table.schema) as stream:
                stream.write_table(table)
    return {"url": str(place)}


def inventory(place: Path, pictures: dict[str, bytes]) -> dict[str, Any]:
    entries = []
    for name, data in pictures.items():
        (place / f"{name}.png").write_bytes(data)
        entries.append(inventories.Entry(f"{name}.png", hashlib.md5(data).hexdigest(), len(data)))
    url = inventories.write(str(place / "inventories"), entries[::2], entries[1::2], form="CSV")
    return {"url": url, "bucket_url": str(place)}


EXAMPLES: dict[str, Example] = {
    "folder": folder,
    "huggingface": huggingface,
    "inventory": inventory,
    "table": table,
    "tars": tars,
    "zips": zips,
}
"""How to lay out a few pictures for each source, and the settings that then list them."""

NAMES = ("kettle", "apple", "zebra", "moon")
PICTURES = {name: picture(number) for number, name in enumerate(NAMES)}

every_source = pytest.mark.parametrize("name", registry.names("clipcap.sources"))


def listed(name: str, chosen: dict[str, Any]) -> list[Sample]:
    source = registry.load("clipcap.sources", name)
    return list(source.samples(source.Settings(**chosen)))


def example(name: str, place: Path, pictures: dict[str, bytes] = PICTURES) -> list[Sample]:
    return listed(name, EXAMPLES[name](place, pictures))


def bytes_of(sample: Sample) -> bytes:
    return packed.Reader().image(sample, 2**20)


def test_every_source_has_an_example_here() -> None:
    """A new source is tested on arrival: add its layout to `EXAMPLES`."""
    assert sorted(EXAMPLES) == registry.names("clipcap.sources")


@every_source
def test_its_settings_explain_themselves(name: str) -> None:
    chosen = registry.load("clipcap.sources", name).Settings
    assert issubclass(chosen, settings.Settings)
    assert chosen.__doc__
    assert [field for field, info in chosen.model_fields.items() if not info.description] == []
    assert "url" in chosen.model_fields, "the command line gives a source its address"


@every_source
def test_every_image_is_listed_once_and_can_be_read(name: str, tmp_path: Path) -> None:
    found = example(name, tmp_path)
    assert len({sample.source_uri for sample in found}) == len(found)
    assert sorted(bytes_of(sample) for sample in found) == sorted(PICTURES.values())


@every_source
def test_two_passes_are_the_same_and_sorted(name: str, tmp_path: Path) -> None:
    chosen = EXAMPLES[name](tmp_path, PICTURES)
    found = listed(name, chosen)
    assert listed(name, chosen) == found
    assert [sample.source_uri for sample in found] == sorted(one.source_uri for one in found)


@every_source
def test_a_changed_image_has_another_etag_under_the_same_name(name: str, tmp_path: Path) -> None:
    before = {sample.source_uri: sample for sample in example(name, tmp_path)}
    changed = PICTURES | {"moon": picture(99, size=(40, 30))}
    after = {sample.source_uri: sample for sample in example(name, tmp_path, changed)}
    assert set(after) == set(before)
    differs = {uri for uri, sample in after.items() if sample.etag != before[uri].etag}
    moon = next(uri for uri in after if "moon" in uri)
    assert moon in differs
    assert bytes_of(after[moon]) == changed["moon"]


@every_source
def test_its_sizes_are_those_of_the_images(name: str, tmp_path: Path) -> None:
    """In Parquet only a row's bytes tell its size: there it is the mean of what lies beside it."""
    for sample in example(name, tmp_path):
        more = 100 if sample.at.form == "parquet" else 0
        assert 0 <= sample.size_bytes - len(bytes_of(sample)) <= more


@every_source
def test_a_place_that_is_not_there_is_an_error_of_ours(name: str, tmp_path: Path) -> None:
    with pytest.raises(ClipcapError, match=r"not there|does not exist"):
        listed(name, {"url": str(tmp_path / "nothing" / "here")})


@every_source
def test_credentials_in_the_address_are_refused_unsaid(name: str) -> None:
    with pytest.raises(ClipcapError, match="must not carry credentials") as caught:
        listed(name, {"url": "s3://me:secret@bucket/folder"})
    assert "secret" not in str(caught.value)

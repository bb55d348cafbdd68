"""Archives and dataset files over nights: walked once per version, every image accounted for."""

from __future__ import annotations

import io
import secrets
import zipfile
from pathlib import Path
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipcap import layout, listings, manifest, storage, tables
from clipcap.plans import Plan
from clipcap.stages import shard as stage
from tests.nights import shard_night
from tests.pictures import picture


def zip_of(pictures: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in pictures.items():
            archive.writestr(f"{name}.png", data)
            archive.writestr(f"{name}.txt", f"a {name}")
    return stream.getvalue()


def parquet_of(pictures: dict[str, bytes]) -> bytes:
    sink = pa.BufferOutputStream()
    images = [{"bytes": data, "path": f"{name}.png"} for name, data in pictures.items()]
    table = pa.table({"image": images, "text": [f"a {name}" for name in pictures]})
    pq.write_table(table, sink, row_group_size=2)
    return bytes(sink.getvalue().to_pybytes())


SOURCES = {"zips": (zip_of, ".zip", "*.zip"), "huggingface": (parquet_of, ".parquet", "*.parquet")}


def night(source: str, out: str, dt: str) -> Plan:
    """Run the shard stage once, as the nightly flow does; the kind goes by the ending."""
    return shard_night(source, out, stage.ShardSettings(), dt=dt)


def captions(out: str) -> dict[str, list[str]]:
    """Return the captions of every live image, by its content."""
    found = {}
    for shard in manifest.shards(out):
        tar = storage.read(layout.tar(out, shard))
        for row in tables.read(layout.manifest(out, shard)).to_pylist():
            data = tar[row["member_offset"] : row["member_offset"] + row["member_bytes"]]
            found[next(name for name, of in PICTURES.items() if of == data)] = row[
                "reference_captions"
            ]
    return found


PICTURES = {f"{letter}{n}": picture(n + 10 * k) for k, letter in enumerate("ab") for n in range(3)}
PICTURES["new"] = picture(99)


@pytest.mark.parametrize("kind", SOURCES)
def test_what_has_not_changed_is_not_walked_again(kind: str) -> None:
    packed, ending, pattern = SOURCES[kind]
    name = secrets.token_hex(6)
    source, out = f"memory://source-{name}", f"memory://out-{name}"
    for letter in "ab":
        own = {key: data for key, data in PICTURES.items() if key.startswith(letter)}
        storage.write(f"{source}/{letter}{ending}", packed(own))
    assert night(f"{source}/{pattern}", out, "2026-11-20").new == 6
    expected = {key: [f"a {key}"] for key in PICTURES if key != "new"}
    assert captions(out) == expected

    with patch(f"clipcap.sources.{kind}.members", side_effect=AssertionError("walked")):
        assert night(f"{source}/{pattern}", out, "2026-11-21").unchanged == 6

    changed = {key: PICTURES[key] for key in ("b0", "new")}
    storage.write(f"{source}/b{ending}", packed(changed))
    plan = night(f"{source}/{pattern}", out, "2026-11-22")
    assert (plan.listed, plan.unchanged) == (5, 3)
    assert plan.new + plan.changed == 2
    assert captions(out) == {
        key: expected.get(key, ["a new"]) for key in ("a0", "a1", "a2", *changed)
    }


@pytest.mark.parametrize(
    ("address", "kind"),
    [
        ("s3://b/photos", "folder"), ("photos.zip", "zips"), ("s3://b/*.ZIP", "zips"),
        ("a.tar", "tars"), ("a.parquet", "table"), ("s3://b/data/*.parquet", "huggingface"),
        ("a.arrow", "huggingface"), ("a.csv", "table"), ("my.photos", "folder"),
    ],
)  # fmt: skip
def test_the_kind_of_a_source_goes_by_its_ending(address: str, kind: str) -> None:
    assert listings.kind(address) == kind


@pytest.mark.parametrize("name", ["state.json", "dataset_dict.json"])
def test_a_saved_dataset_is_known_by_what_lies_in_it(name: str, tmp_path: Path) -> None:
    assert listings.kind(str(tmp_path)) == "folder"
    (tmp_path / name).write_text("{}")
    assert listings.kind(str(tmp_path)) == "huggingface"

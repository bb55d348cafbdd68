"""Images that must keep their labels: they do, they do not, or they are not there."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipcap import canaryfiles, storage, tables, verify
from clipcap.errors import DriftError, SettingsError
from clipcap.stability import Drift, DriftSettings
from clipcap.stages import canaries
from clipcap.stages.label import LabelSettings
from flows.nightly import nightly
from flows.settings import NightlySettings
from tests.command import clipcap
from tests.nights import Tiny, draw
from tests.pages import Page
from tests.tables import glob

COUNT = 3


@pytest.fixture
def settings(tiny: Tiny) -> NightlySettings:
    """A night without captions whose labels are accepted whatever their score."""
    label = LabelSettings(label_sets=(tiny.label_set,), threshold=0.0)
    return NightlySettings(embed=tiny.encoder, caption=None, label=label)


@pytest.fixture
def place(tmp_path: Path, drawings: Path, settings: NightlySettings) -> Path:
    """A folder of canaries, and in `lines.csv` the labels that the models give them."""
    folder = tmp_path / "canaries"
    for n in range(COUNT):
        draw(folder / f"{n}.png", n)
    nightly.fn(str(drawings), str(tmp_path / "first"), settings)
    rows = glob(str(tmp_path / "first"), "labels").to_pylist()
    given = {
        Path(row["source_uri"]).name: row["image_id"]
        for row in glob(str(tmp_path / "first"), "manifest").to_pylist()
    }
    best = {row["image_id"]: row["label"] for row in rows if row["rank"] == 1}
    write(folder, {f"{n}.png": best[given[f"drawing-{n}.png"]] for n in range(COUNT)})
    return folder


def write(folder: Path, labels: dict[str, str]) -> None:
    """Write the lines of canaries."""
    with (folder / "lines.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "label"), *labels.items()])


def lines(folder: Path) -> dict[str, str]:
    """Return the labels of the canaries."""
    with (folder / "lines.csv").open() as file:
        return {row["image"]: row["label"] for row in csv.DictReader(file)}


def other(label: str) -> str:
    """Return a label that it is not."""
    return "dog" if label == "cat" else "cat"


def guarded(settings: NightlySettings, place: Path, **changed: object) -> NightlySettings:
    """Return the settings of a night with canaries."""
    drift = DriftSettings.model_validate({"canaries": str(place / "lines.csv"), **changed})
    return settings.model_copy(update={"drift": drift})


def night(source: Path, out: Path, settings: NightlySettings) -> Drift:
    """Run a night; return what it found."""
    finished = nightly.fn(str(source), str(out), settings)
    assert finished.night.drift is not None
    return finished.night.drift


def test_canaries_that_hold_are_told_as_such_and_kept(
    drawings: Path, place: Path, tmp_path: Path, settings: NightlySettings
) -> None:
    out, chosen = tmp_path / "out", guarded(settings, place)
    first = night(drawings, out, chosen)
    assert [one.distance for one in first.canaries] == [None] * COUNT
    assert first.level == "ok"
    again = night(drawings, out, chosen)
    assert [one.found for one in again.canaries] == list(lines(place).values())
    assert all(one.distance is not None and one.distance < 1e-6 for one in again.canaries)
    assert f"{COUNT} of {COUNT} canaries hold." in clipcap("drift", out).out
    (page,) = (out / "reports").glob(f"{newest(out)}/index.html")
    assert f"{COUNT} of {COUNT} images that must keep their label" in Page(page.read_text()).text


def newest(out: Path) -> str:
    """Return the newest run."""
    return str(json.loads((out / "_latest.json").read_text())["run_id"])


def test_a_canary_is_embedded_as_the_images_of_the_night(
    drawings: Path, place: Path, tmp_path: Path, settings: NightlySettings
) -> None:
    out = tmp_path / "out"
    night(drawings, out, guarded(settings, place))
    (kept,) = (out / "_canaries").rglob("*.parquet")
    table = tables.read(str(kept))
    own = dict(zip(table["content_sha256"].to_pylist(), tables.vectors(table), strict=True))
    embedded = glob(str(out), "embeddings")
    both = zip(embedded["content_sha256"].to_pylist(), tables.vectors(embedded), strict=True)
    same = [np.abs(vector_D - own[name]).max() for name, vector_D in both if name in own]
    assert len(same) == COUNT
    assert max(same) < 1e-3


def test_a_label_that_changed_stops_the_night_before_anything_is_embedded(
    drawings: Path, place: Path, tmp_path: Path, settings: NightlySettings
) -> None:
    out, held = tmp_path / "out", lines(place)
    write(place, held | {"1.png": other(held["1.png"])})
    with pytest.raises(DriftError, match=r"1 of 3 canaries.*\n.*1\.png: pets must say"):
        night(drawings, out, guarded(settings, place))
    assert not (out / "embeddings").exists()
    assert not (out / "_SUCCESS").exists()
    (row,) = glob(str(out), "runs").to_pylist()
    assert row["state"] == "Failed"
    assert "stop: 1.png" in clipcap("drift", out).out
    assert not (out / "_canaries").exists()

    accepted = night(drawings, out, guarded(settings, place, accept="this-night"))
    assert (accepted.level, len(accepted.moved)) == ("warn", 1)


def test_the_earlier_night_stands_where_a_canary_stops_the_next(
    drawings: Path, place: Path, tmp_path: Path, settings: NightlySettings
) -> None:
    """Also where images went from the source meanwhile: nobody misses what the list names."""
    source, out = Path(shutil.copytree(drawings, tmp_path / "source")), tmp_path / "out"
    night(source, out, guarded(settings, place))
    next(source.glob("*.png")).unlink()
    draw(source / "new.png", 77)
    held = lines(place)
    write(place, held | {"1.png": other(held["1.png"])})
    with pytest.raises(DriftError):
        night(source, out, guarded(settings, place))
    assert verify.verify(str(out)).ok
    assert len(list((out / "shards").rglob("*.tar"))) == 1


def test_a_label_that_changed_may_be_told_only(
    drawings: Path, place: Path, tmp_path: Path, settings: NightlySettings
) -> None:
    out, held = tmp_path / "out", lines(place)
    write(place, held | {"1.png": other(held["1.png"])})
    found = night(drawings, out, guarded(settings, place, canary_label="warn"))
    assert [one.image for one in found.moved] == ["1.png"]
    text = Page((out / "reports" / newest(out) / "index.html").read_text()).text
    assert "1 of 3 canaries moved." in text
    assert f"pets must say {other(held['1.png'])}, but says {held['1.png']}" in text


def test_none_of_these_is_a_label_too(
    drawings: Path, place: Path, tmp_path: Path, settings: NightlySettings
) -> None:
    sure = settings.model_copy(
        update={"label": settings.label.model_copy(update={"threshold": 1.0})}
    )
    write(place, dict.fromkeys(lines(place), ""))
    found = night(drawings, tmp_path / "out", guarded(sure, place))
    assert {one.found for one in found.canaries} == {""}
    assert found.level == "ok"
    with pytest.raises(DriftError, match="must say none of these, but says"):
        night(drawings, tmp_path / "other", guarded(settings, place))


def test_an_embedding_that_moved_is_told_until_it_is_accepted(
    drawings: Path, place: Path, tmp_path: Path, settings: NightlySettings
) -> None:
    out = tmp_path / "out"
    night(drawings, out, guarded(settings, place))
    (kept,) = (out / "_canaries").rglob("*.parquet")
    table = tables.read(str(kept))
    moved = tables.vectors(table) + 0.05
    width = table.schema.field("embedding").type
    column = pa.FixedSizeListArray.from_arrays(pa.array(moved.ravel()), type=width)
    at = table.schema.names.index("embedding")
    storage.write(str(kept), tables.to_bytes(table.set_column(at, "embedding", column), {}))

    found = night(drawings, out, guarded(settings, place))
    assert found.level == "warn"
    assert "from what it was at first" in found.moved[0].why
    with pytest.raises(DriftError, match="1 - cosine"):
        night(drawings, out, guarded(settings, place, canary_embedding={"stop": 1e-3}))

    draw(place / "late.png", 99)  # which starts no other canary anew
    with (place / "lines.csv").open("a") as file:
        file.write("late.png,cat\n")
    for _ in range(2):
        found = night(drawings, out, guarded(settings, place, canary_label="warn"))
        assert sum("at first" in one.why for one in found.canaries) == COUNT

    night(drawings, out, guarded(settings, place, accept="from-now-on"))
    assert night(drawings, out, guarded(settings, place)).level == "ok"


@pytest.mark.parametrize("form", ["json", "parquet"])
def test_other_forms_say_the_same(place: Path, tiny: Tiny, form: str) -> None:
    rows = [
        {"image": name, "label": label, "label_set": "pets"} for name, label in lines(place).items()
    ]
    path = place / f"lines.{form}"
    if form == "json":
        path.write_text(json.dumps(rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    named = (tiny.label_set,)
    assert canaryfiles.read(str(path), named) == canaryfiles.read(str(place / "lines.csv"), named)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("image,label\n", "1 to 1,000 canaries, but there are 0"),
        (
            "image,label\n0.png,cow\n,cat\n",
            r"have 2 problems.*\n.*row 1 .*'cow'.*\n.*row 2 names no",
        ),
        ("file,label\n0.png,cat\n", "row 1 must have `image`"),
        ("image,label,label_set\n0.png,cat,beasts\n", "label set of the night .pets., but has 'b"),
        ('{"image": "0.png"}', "no list of objects"),
        ("[1, 2]", "no list of objects"),
        ("[", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ("image,label\n" + "x" * 200_000, "cannot be read"),
        ("image,label\n0.png\n", "row 1 must have .* `label`"),
        ("image,label\n0.png,cat,pets,more\n", "row 1 must have"),
        (b"\xff\xfe\x00", "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_used_leaves_nothing_behind(
    drawings: Path,
    place: Path,
    tmp_path: Path,
    settings: NightlySettings,
    text: str | bytes,
    said: str,
) -> None:
    data = text.encode() if isinstance(text, str) else text
    (place / "lines.csv").write_bytes(data)
    with pytest.raises(SettingsError, match=said):
        night(drawings, tmp_path / "out", guarded(settings, place))
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_not_there(
    drawings: Path, place: Path, tmp_path: Path, settings: NightlySettings
) -> None:
    (place / "lines.csv").unlink()
    with pytest.raises(SettingsError, match=r"file of canaries .*lines\.csv is not there"):
        night(drawings, tmp_path / "out", guarded(settings, place))


@pytest.mark.parametrize("spoil", ["gone", "no picture"])
def test_a_canary_that_is_no_image_is_named(
    drawings: Path, place: Path, tmp_path: Path, settings: NightlySettings, spoil: str
) -> None:
    if spoil == "gone":
        (place / "2.png").unlink()
    else:
        (place / "2.png").write_text(spoil)
    with pytest.raises(SettingsError, match=r"canary.*2\.png"):
        night(drawings, tmp_path / "out", guarded(settings, place))
    assert not (tmp_path / "out" / "embeddings").exists()


def test_without_canaries_no_model_is_asked_for_them(
    drawings: Path, tmp_path: Path, settings: NightlySettings
) -> None:
    with patch.object(canaries, "look", side_effect=AssertionError("looked")):
        assert night(drawings, tmp_path / "out", settings).canaries == ()
    assert not (tmp_path / "out" / "_canaries").exists()

"""Where labels are seen: windows embedded once, kept as images change, and asked again for free."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from clipcap import (
    crops,
    embedding,
    layout,
    manifest,
    passes,
    pixels,
    placerows,
    storage,
    tables,
    verify,
    windows,
)
from clipcap.embedder import Embedder
from clipcap.embedding import EmbedSettings, Speed
from clipcap.errors import ClipcapError, NotFoundError, SettingsError
from clipcap.labels import bank, scoring
from clipcap.preprocessing import PixelSettings, Preprocess
from clipcap.report import places as page
from clipcap.stages import where
from clipcap.stages.where import Places, WhereSettings
from clipcap.windows import Grid
from tests.forks import forked
from tests.nights import Tiny, draw, make_tiny, night
from tests.pages import Page

IMAGES = 5
SPEED = Speed(device="cpu", batch_size=4)
SIZES = ((64, 48), (40, 90), (200, 30), (8, 8), (64, 64))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny: Tiny) -> Path:
    """An output of five drawings in two shards, looked at once; nobody changes it."""
    folder = tmp_path_factory.mktemp("whole")
    for n in range(IMAGES):
        draw(folder / "in" / f"drawing-{n}.png", n, SIZES[n])
    night(folder / "in", folder / "out", tiny)
    look(folder, tiny)
    return folder


@pytest.fixture
def place(whole: Path, tmp_path: Path, tiny: Tiny) -> Path:
    """A copy that may be changed, at another path: its source is moved with it."""
    for n in range(IMAGES):
        draw(tmp_path / "in" / f"drawing-{n}.png", n, SIZES[n])
    night(tmp_path / "in", tmp_path / "out", tiny)
    look(tmp_path, tiny)
    return tmp_path


def look(place: Path, tiny: Tiny, to: str = "to", **choices: Any) -> Places:  # noqa: ANN401
    given = {"label_sets": (tiny.label_set,), **choices}
    return where.where(
        storage.canonical(str(place / "out")),
        str(place / to),
        settings=WhereSettings.model_validate(given),
        encoder=tiny.encoder,
        speed=SPEED,
    )


def table(place: Path, name: str, to: str = "to") -> pa.Table:
    found = [pq.ParquetFile(path).read() for path in sorted((place / to / name).rglob("*.parquet"))]
    return pa.concat_tables(found)


def times(place: Path, name: str = "to") -> dict[str, int]:
    found = (place / name).rglob("*")
    return {str(path): path.stat().st_mtime_ns for path in found if path.is_file()}


def without_time(rows: pa.Table) -> pa.Table:
    kept = rows.drop_columns(["created_at"]) if "created_at" in rows.schema.names else rows
    return kept.replace_schema_metadata(None)


@pytest.fixture
def no_encoder(place: Path) -> Iterator[None]:
    """From now on an image that is embedded is a failure."""
    del place
    with patch.object(Embedder, "__init__", side_effect=AssertionError("an image is embedded")):
        yield


# --- tables -------------------------------------------------------------------------------------


def test_every_image_has_a_unit_vector_for_each_window(whole: Path, tiny: Tiny) -> None:
    found = table(whole, "crops")
    encoder = embedding.load(tiny.encoder, SPEED)
    wanted = Preprocess.of(embedding.reference(tiny.encoder).preprocess)
    assert found.schema.equals(crops.schema(encoder.dim))
    assert found.num_rows == 9 * IMAGES
    grid = Grid(3, 3)
    rows = table(whole / "out", "manifest", "").to_pylist()
    for image in rows:
        data = (whole / "in" / image["source_uri"].rpartition("/")[2]).read_bytes()
        levels = np.stack(list(pixels.windowed(data, wanted, PixelSettings(), grid)))
        raw_KD = encoder.encode_pixels(torch.from_numpy(levels))().numpy()
        unit_KD = raw_KD / np.linalg.norm(raw_KD, axis=1, keepdims=True)
        mine = found.filter(pa.compute.equal(found["image_id"], image["image_id"]))
        np.testing.assert_allclose(tables.vectors(mine), unit_KD, atol=2e-3)
        assert mine["row"].to_pylist() == [n // 3 for n in range(9)]
        assert mine["column"].to_pylist() == [n % 3 for n in range(9)]
        for box, told in zip(
            grid.boxes(image["width"], image["height"]), _boxes(mine), strict=True
        ):
            shares = np.array(box) / np.array([image["width"], image["height"]] * 2)
            np.testing.assert_allclose(told, shares, atol=1e-6)


def _boxes(rows: pa.Table) -> list[list[float]]:
    return [[row[name] for name in crops.BOX] for row in rows.to_pylist()]


def test_places_are_those_of_each_window_scored_like_an_image(whole: Path, tiny: Tiny) -> None:
    found = table(whole, "places")
    assert found.schema.equals(placerows.SCHEMA)
    given = bank.load(tiny.label_set)
    out = storage.canonical(str(whole / "out"))
    ref = embedding.reference(tiny.encoder)
    (shard, *_) = manifest.shards(out)
    source = embedding.committed(shard, ref, out=out)
    made = bank.of(given, source, out=out, encoder=tiny.encoder)
    seen, own = table(whole, "crops"), table(whole / "out", "embeddings", "")
    assert found.num_rows == 3 * IMAGES
    for row in found.to_pylist():
        mine = seen.filter(pa.compute.equal(seen["image_id"], row["image_id"]))
        image = own.filter(pa.compute.equal(own["image_id"], row["image_id"]))
        score_K = scoring.whole(tables.vectors(mine), made)[1][:, row["label_index"]]
        whole_score = scoring.whole(tables.vectors(image), made)[1][0, row["label_index"]]
        np.testing.assert_allclose(row["heat"], score_K, atol=1e-6)
        best = row["row"] * 3 + row["column"]
        assert row["peak"] == pytest.approx(score_K.max())
        assert score_K[best] == pytest.approx(score_K.max())
        assert row["whole"] == pytest.approx(whole_score)
        assert row["contrast"] == pytest.approx(row["peak"] - row["whole"], abs=1e-6)
        assert row["score"] == pytest.approx((row["peak"] + row["whole"]) / 2)
        assert row["accepted"] == (row["score"] >= 0.5)
        everywhere = min(row["heat"]) >= 0.5
        assert [row[name] for name in crops.BOX] == _boxes(mine)[best]
        assert row["place"] == ("everywhere" if everywhere else windows.place(*_boxes(mine)[best]))


def test_the_output_is_as_it_was(whole: Path, tiny: Tiny, tmp_path: Path) -> None:
    before = times(whole, "out")
    look(whole, tiny, str(tmp_path / "elsewhere"))
    assert times(whole, "out") == before
    assert not verify.verify(storage.canonical(str(whole / "out"))).problems


# --- again --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_encoder")
def test_a_second_call_changes_nothing(place: Path, tiny: Tiny) -> None:
    before = times(place)
    done = look(place, tiny)
    assert (done.images, done.computed, done.written, done.unchanged) == (IMAGES, 0, 0, 2)
    assert times(place) == before


@pytest.mark.usefixtures("no_encoder")
def test_another_question_looks_at_no_image(place: Path, tiny: Tiny) -> None:
    done = look(place, tiny, labels=("dog",))
    assert (done.computed, done.written) == (0, 2)
    found = table(place, "places")
    assert found["label"].to_pylist() == ["dog"] * IMAGES


@pytest.mark.usefixtures("no_encoder")
def test_an_image_that_went_is_gone_and_none_is_embedded(place: Path, tiny: Tiny) -> None:
    (place / "in" / "drawing-1.png").unlink()
    night(place / "in", place / "out", tiny, dt="2026-11-21")
    done = look(place, tiny)
    assert (done.images, done.computed) == (IMAGES - 1, 0)
    live = set(table(place / "out", "manifest", "")["image_id"].to_pylist())
    for name in ("crops", "places"):
        assert set(table(place, name)["image_id"].to_pylist()) == live


def test_only_images_that_are_new_or_changed_are_embedded(place: Path, tiny: Tiny) -> None:
    draw(place / "in" / "drawing-1.png", 17, (50, 50))
    draw(place / "in" / "drawing-9.png", 9, (50, 50))
    night(place / "in", place / "out", tiny, dt="2026-11-21")
    assert look(place, tiny).computed == 2
    fresh = look(place, tiny, "fresh")
    assert fresh.computed == IMAGES + 1
    for name, numbers in (("crops", "embedding"), ("places", "heat")):
        again, anew = (
            table(place, name, to).sort_by([("key", "ascending"), ("row", "ascending")])
            for to in ("to", "fresh")
        )
        for column in ("key", "content_sha256", "row", "column", *crops.BOX):
            assert again[column].equals(anew[column]), column
        mine, other = (np.array(one[numbers].to_pylist()) for one in (again, anew))
        np.testing.assert_allclose(mine, other, atol=2e-3)


def test_tables_of_a_shard_that_went_go(place: Path, tiny: Tiny) -> None:
    for path in list((place / "in").iterdir())[:-1]:
        path.unlink()
    night(place / "in", place / "out", tiny, dt="2026-11-21")
    done = look(place, tiny)
    assert (done.images, done.removed) == (1, 1)
    assert len(times(place)) == 2


def test_another_grid_takes_the_place_of_the_first(place: Path, tiny: Tiny) -> None:
    done = look(place, tiny, grid="1x2", overlap=False)
    assert (done.computed, done.windows) == (IMAGES, 2)
    assert table(place, "crops").num_rows == 2 * IMAGES
    assert {len(heat) for heat in table(place, "places")["heat"].to_pylist()} == {2}


def test_a_killed_call_goes_on(place: Path, tiny: Tiny) -> None:
    shutil.rmtree(place / "to")
    left = [2]
    real = storage.write

    def write(*given: Any) -> None:  # noqa: ANN401
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        real(*given)

    def dying() -> None:
        torch.set_num_threads(1)
        with patch.object(storage, "write", write):
            look(place, tiny)

    assert forked(dying) == -signal.SIGKILL
    assert len(times(place)) == 1
    done = look(place, tiny)
    assert done.computed < IMAGES
    assert done.images == IMAGES
    fresh = look(place, tiny, "fresh")
    assert fresh.computed == IMAGES
    for name in ("crops", "places"):
        assert without_time(table(place, name)).equals(without_time(table(place, name, "fresh")))


# --- what goes wrong ----------------------------------------------------------------------------


def test_an_image_that_gives_no_windows_is_counted_and_has_no_rows(place: Path, tiny: Tiny) -> None:
    shutil.rmtree(place / "to")
    real = passes.embedded

    def lacking(*given: Any, **more: Any) -> Any:  # noqa: ANN401
        for job, made in real(*given, **more):
            first = made.tables[0]["image_id"][0]
            keeps = pa.compute.not_equal(made.tables[0]["image_id"], first)
            keeps = pa.concat_arrays([pa.array([True]), keeps.combine_chunks()[1:]])
            made.tables[0] = made.tables[0].filter(keeps)  # one window of nine is left
            yield job, made

    with patch.object(passes, "embedded", lacking):
        done = look(place, tiny)
    assert (done.without, done.images) == (2, IMAGES - 2)
    assert len(set(table(place, "places")["image_id"].to_pylist())) == IMAGES - 2
    done = look(place, tiny)  # tries them again
    assert (done.without, done.images, done.computed) == (0, IMAGES, 2)


def test_a_machine_at_fault_writes_nothing(place: Path, tiny: Tiny) -> None:
    shutil.rmtree(place / "to")

    def broken(_: object, pixels_BHWC: torch.Tensor) -> Any:  # noqa: ANN401
        return lambda: torch.full((len(pixels_BHWC), 16), float("nan"))

    with (
        patch.object(type(embedding.load(tiny.encoder, SPEED)), "encode_pixels", broken),
        pytest.raises(ClipcapError, match="gives a crop"),
    ):
        look(place, tiny)
    assert not (place / "to" / "places").exists()


def test_what_cannot_be_is_refused_before_anything_is_written(
    whole: Path, tiny: Tiny, tmp_path: Path
) -> None:
    out = storage.canonical(str(whole / "out"))

    def refused(encoder: EmbedSettings = tiny.encoder, **choices: Any) -> None:  # noqa: ANN401
        given = WhereSettings.model_validate({"label_sets": (tiny.label_set,), **choices})
        to = str(tmp_path / "to")
        where.where(out, to, settings=given, encoder=encoder, speed=SPEED)

    with pytest.raises(SettingsError, match=r"No label 'cta'. Did you mean cat\?"):
        refused(labels=("cta",))
    with pytest.raises(SettingsError, match="names of their own"):
        refused(label_sets=(tiny.label_set, tiny.label_set))
    with pytest.raises(NotFoundError, match="embed it first"):
        refused(EmbedSettings())
    real = embedding.reference(tiny.encoder)
    exchanged = replace(real, sha256="0" * 64)
    with (
        patch.object(embedding, "reference", return_value=exchanged),
        pytest.raises(SettingsError, match="Embed again"),
    ):
        refused()
    assert not (tmp_path / "to").exists()
    with pytest.raises(ValueError, match="grid"):
        WhereSettings(grid="17")


def test_a_folder_of_something_else_is_not_touched(whole: Path, tiny: Tiny) -> None:
    with pytest.raises(SettingsError, match=r"is something else\. Name another folder"):
        look(whole, tiny, "out")


def test_an_empty_output_is_refused(tmp_path: Path, tiny: Tiny) -> None:
    with pytest.raises(NotFoundError, match="there are none"):
        look(tmp_path, tiny)


def test_an_image_that_was_exchanged_in_its_tar_is_found(place: Path, tiny: Tiny) -> None:
    shutil.rmtree(place / "to")
    out = storage.canonical(str(place / "out"))
    shard = manifest.shards(out)[0]
    path = storage.local_path(layout.tar(out, shard))
    assert path is not None
    data = bytearray(path.read_bytes())
    first = tables.read(layout.manifest(out, shard)).to_pylist()[0]
    data[first["member_offset"] + first["member_bytes"] - 9] ^= 255
    path.write_bytes(bytes(data))
    with pytest.raises(ClipcapError, match="content digest of its manifest"):
        look(place, tiny)


# --- the page -----------------------------------------------------------------------------------


def test_the_page_shows_a_heat_map_over_each_picture(whole: Path, tiny: Tiny) -> None:
    out = storage.canonical(str(whole / "out"))
    done = look(whole, tiny)
    asked = page.Asked(done.folder, Grid(3, 3), done.seen, 2, ("dog", "cat", "house"))
    shown = Page(page.render(out, asked))
    assert shown.open == []
    assert [one for one in shown.all("img") if not str(one["src"]).startswith("data:image")] == []
    found = table(whole, "places").to_pylist()
    cards = 0
    for label in ("dog", "cat", "house"):
        rows = [row for row in found if row["label"] == label]
        cards += min(2, sum(row["accepted"] for row in rows) or len(rows))
        assert f"{label} (pets)" in shown.text
    assert len(shown.all("svg")) == cards
    assert len(shown.all("img")) == cards
    heats = {f"{0.6 * heat:.3f}" for row in found for heat in row["heat"]}
    opacities = [one["fill-opacity"] for one in shown.all("rect") if one.get("fill-opacity")]
    assert len(opacities) == 9 * cards
    assert set(opacities) <= heats
    assert not shown.all("script")


def test_the_page_without_wishes_shows_what_is_accepted(whole: Path, tiny: Tiny) -> None:
    out = storage.canonical(str(whole / "out"))
    done = look(whole, tiny)
    shown = Page(page.render(out, page.Asked(done.folder, Grid(3, 3), done.seen, 2)))
    assert ("No label is accepted" in shown.text) == (not done.seen)
    for (label_set, label), places in done.seen.items():
        assert f"{label} ({label_set})" in shown.text
        assert f"Accepted in {places.total()} images" in shown.text

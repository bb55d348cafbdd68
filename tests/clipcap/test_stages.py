"""Embed, caption, label and publish: nothing twice, nothing lost, nothing of another encoder."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from unittest.mock import MagicMock, patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from clipcap import embedding, gate, layout, manifest, storage, tables, verify
from clipcap.encoders import openclip
from clipcap.encoding import Encoder
from clipcap.errors import ClipcapError, SettingsError, TooManyRejectsError
from clipcap.footers import Footers
from clipcap.labels import bank, sets
from clipcap.layout import Run, Table
from clipcap.outcomes import Night
from clipcap.stages import caption, label, publish, shard
from clipcap.stages.publish import PublishSettings
from clipcap.storage import ObjectInfo
from tests.nights import Tiny, draw, make_tiny, night, over


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Tiny models that fit each other."""
    return make_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def place(tmp_path: Path) -> tuple[Path, Path]:
    """A source of six drawings, and an output."""
    for n in range(6):
        draw(tmp_path / "in" / f"drawing-{n}.png", n)
    return tmp_path / "in", tmp_path / "out"


def glob(out: Path, table: str) -> pa.Table:
    """Read a table as an analyst does: every file below its folder."""
    return pa.concat_tables(
        pq.ParquetFile(path).read() for path in sorted((out / table).rglob("*.parquet"))
    )


def forwards() -> AbstractContextManager[MagicMock]:
    """Count the images that go through any encoder."""
    return patch.object(
        openclip.Encoder, "encode_pixels", autospec=True, side_effect=openclip.Encoder.encode_pixels
    )


def images_of(counted: MagicMock) -> int:
    """Return how many images the patched encoder saw."""
    return sum(len(call.args[1]) for call in counted.call_args_list)


def test_every_live_image_stands_once_in_every_table(place: tuple[Path, Path], tiny: Tiny) -> None:
    source, out = place
    _, published = night(source, out, tiny)
    ids = sorted(glob(out, "manifest")["image_id"].to_pylist())
    assert len(ids) == published.live == 6
    for name in ("embeddings", "captions"):
        assert sorted(glob(out, name)["image_id"].to_pylist()) == ids
    ranks = glob(out, "labels").select(["image_id", "rank"]).to_pylist()
    assert sorted(row["image_id"] for row in ranks if row["rank"] == 1) == ids


def test_an_embedding_is_a_unit_vector_of_halves_that_keeps_its_norm(
    place: tuple[Path, Path], tiny: Tiny
) -> None:
    source, out = place
    night(source, out, tiny)
    table = glob(out, "embeddings")
    embedding_BD = tables.vectors(table)
    assert np.allclose(np.linalg.norm(embedding_BD, axis=1), 1, atol=2e-3)
    assert (embedding_BD == embedding_BD.astype(np.float16).astype(np.float32)).all()
    assert (table["embedding_norm"].to_numpy() > 0).all()
    metadata = {k.decode(): v.decode() for k, v in table.schema.metadata.items()}
    wanted = {"model_id", "model_sha256", "preprocess", "preprocess_sha256", "dim", "normalized"}
    assert wanted | {"value_precision", "logit_scale", "fingerprint", "contract"} <= set(metadata)


def test_a_second_night_reads_no_image_and_calls_no_model(
    place: tuple[Path, Path], tiny: Tiny
) -> None:
    source, out = place
    night(source, out, tiny)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet")}
    with (
        patch.object(openclip, "load", side_effect=AssertionError("loaded an encoder")),
        patch.object(caption, "load", side_effect=AssertionError("loaded a captioner")),
        patch("clipcap.intake.take_in", side_effect=AssertionError("read an image")),
    ):
        done, _ = night(source, out, tiny)
    assert {outcome.state for outcome in done.outcomes} == {"unchanged"}
    after = {path: path.stat().st_mtime_ns for path in before}
    assert after == before


def test_a_replaced_image_costs_one_embedding_and_a_deleted_one_none(
    place: tuple[Path, Path], tiny: Tiny
) -> None:
    source, out = place
    night(source, out, tiny)
    draw(source / "drawing-2.png", 40)
    (source / "drawing-4.png").unlink()
    with forwards() as counted:
        _, published = night(source, out, tiny, dt="2026-11-21")
    assert images_of(counted) == 1
    assert published.live == 5
    ids = sorted(glob(out, "manifest")["image_id"].to_pylist())
    assert len(ids) == 5
    for name in ("embeddings", "captions"):
        assert sorted(glob(out, name)["image_id"].to_pylist()) == ids


def test_a_renamed_or_copied_image_is_neither_embedded_nor_captioned_again(
    place: tuple[Path, Path], tiny: Tiny
) -> None:
    """Somebody moves a folder of the bucket: a million images get other names, and no new bytes."""
    source, out = place
    night(source, out, tiny)
    before = {row["image_id"]: row for row in glob(out, "captions").to_pylist()}
    contents = {row["content_sha256"]: row["caption_raw"] for row in before.values()}
    (source / "album").mkdir()
    (source / "drawing-1.png").rename(source / "album" / "moved.png")
    (source / "drawing-2.png").rename(source / "album" / "also.png")
    shutil.copy2(source / "drawing-3.png", source / "copy.png")
    with forwards() as counted, patch.object(caption, "load", side_effect=AssertionError):
        _, published = night(source, out, tiny, dt="2026-11-21")
    assert images_of(counted) == 0
    assert published.live == 7
    live = {row["image_id"]: row for row in glob(out, "manifest").to_pylist()}
    for name in ("embeddings", "captions"):
        rows = {row["image_id"]: row for row in glob(out, name).to_pylist()}
        assert rows.keys() == live.keys()
        assert all(rows[one]["key"] == live[one]["key"] for one in live)
    for row in glob(out, "captions").to_pylist():
        assert row["source_uri"] == live[row["image_id"]]["source_uri"]
        assert row["caption_raw"] == contents[row["content_sha256"]]
    assert verify.verify(str(out)).problems == ()


@pytest.mark.parametrize("name", ["embeddings", "captions"])
def test_a_damaged_table_that_could_have_given_rows_is_passed_over(
    place: tuple[Path, Path], tiny: Tiny, name: Table
) -> None:
    """What a renamed image has elsewhere only saves work; it must not end the night."""
    source, out = place
    night(source, out, tiny)
    for path in (out / name).rglob("*.parquet"):
        path.write_bytes(path.read_bytes()[:-9])
    for path in sorted(source.iterdir()):
        path.rename(source / f"moved-{path.name}")
    _, published = night(source, out, tiny, dt="2026-11-21")
    assert published.live == 6
    assert len(glob(out, name)) == 6
    assert verify.verify(str(out)).problems == ()


def test_an_output_that_lost_tars_is_not_published(place: tuple[Path, Path], tiny: Tiny) -> None:
    source, out = place
    night(source, out, tiny)
    url = storage.canonical(str(out))
    before = (out / "_latest.json").read_bytes()
    for path in (out / "shards").rglob("*.tar"):
        path.unlink()
    with pytest.raises(ClipcapError, match=r"2 of 2 shards lack their tar, such as .*\.tar"):
        night(source, out, tiny, dt="2026-11-21")
    assert (out / "_latest.json").read_bytes() == before
    verify.repair(verify.verify(str(out)), apply=True)
    publish._require_tars(url, Footers(url))  # a night of another folder of the source
    _, published = night(source, out, tiny, dt="2026-11-22")
    assert published.live == 6
    assert verify.verify(str(out)).problems == ()


def test_a_tar_that_another_run_has_just_written_is_not_lost(
    place: tuple[Path, Path], tiny: Tiny
) -> None:
    """Tars are listed before manifests are: what is written between the two has no tar yet."""
    source, out = place
    night(source, out, tiny)
    url = storage.canonical(str(out))
    real = storage.listed

    def late(where: str) -> list[ObjectInfo]:
        return [] if where == layout.tars(url) else real(where)

    with patch.object(storage, "listed", late):
        publish._require_tars(url, Footers(url))


def test_a_version_that_is_only_alike_gives_no_image_anothers_rows(
    place: tuple[Path, Path], tiny: Tiny
) -> None:
    """A version is size and time where a store has nothing better; what counts is the content."""
    source, out = place
    for n in (0, 1):
        Image.new("RGB", (30, 20), (n, 90, 90)).save(source / f"same-{n}.bmp")
        os.utime(source / f"same-{n}.bmp", (1_700_000_000, 1_700_000_000))
    (source / "same-1.bmp").rename(source.parent / "kept.bmp")
    night(source, out, tiny)
    (source / "same-0.bmp").unlink()
    (source.parent / "kept.bmp").rename(source / "same-1.bmp")
    with forwards() as counted:
        night(source, out, tiny, dt="2026-11-21")
    assert images_of(counted) == 1


def test_a_new_captioner_or_label_set_embeds_nothing(
    place: tuple[Path, Path], tiny: Tiny, tmp_path: Path
) -> None:
    source, out = place
    night(source, out, tiny)
    other = make_tiny(tmp_path / "other", seed=0)
    Path(other.label_set).write_text('names = ["cup", "tree"]\n')
    card = Path(other.captioner.captioner) / "captioner.json"
    card.write_text(json.dumps(json.loads(card.read_text()) | {"captioner_id": "second"}))
    chosen = Tiny(tiny.encoder, other.captioner, other.label_set)
    with forwards() as counted, patch("clipcap.intake.take_in", side_effect=AssertionError):
        night(source, out, chosen)
    assert images_of(counted) == 0
    ids = {path.parent.parent.name for path in (out / "captions").rglob("*.parquet")}
    assert ids == {"captioner=tiny", "captioner=second"}


def test_another_models_tables_lose_the_images_that_are_gone(
    place: tuple[Path, Path], tiny: Tiny, tmp_path: Path
) -> None:
    source, out = place
    night(source, out, tiny)
    (source / "drawing-1.png").unlink()
    second = make_tiny(tmp_path / "second", seed=3)
    night(source, out, second, dt="2026-11-21")
    ids = sorted(glob(out, "manifest")["image_id"].to_pylist())
    for folder in (out / "embeddings").iterdir():
        assert sorted(glob(folder, ".")["image_id"].to_pylist()) == ids


def test_an_embedding_that_is_not_finite_becomes_a_reject(
    place: tuple[Path, Path], tiny: Tiny
) -> None:
    source, out = place
    real = openclip.Encoder.encode_pixels

    def broken(self: openclip.Encoder, pixels_BHWC: torch.Tensor) -> Callable[[], torch.Tensor]:
        raw_BD = real(self, pixels_BHWC)()
        raw_BD[0] = float("nan")
        return lambda: raw_BD

    with patch.object(openclip.Encoder, "encode_pixels", broken):
        night(source, out, tiny, max_images=100)
    rejects = glob(out, "rejects").to_pylist()
    assert {(row["stage"], row["reason"], row["retryable"]) for row in rejects} == {
        ("embed", "model_error", True)
    }
    live = {row["image_id"] for row in glob(out, "manifest").to_pylist()}
    assert live.isdisjoint(row["image_id"] for row in rejects)
    assert len(live) + len(rejects) == 6
    night(source, out, tiny, dt="2026-11-21")
    assert glob(out, "manifest").num_rows == 6


def test_a_captioner_for_another_encoder_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    other = make_tiny(tmp_path, seed=5)
    with pytest.raises(SettingsError, match=r"The captioner tiny does not fit these embeddings"):
        caption.choose(tiny.captioner, other.encoder)


def test_a_tar_that_was_changed_is_not_embedded(place: tuple[Path, Path], tiny: Tiny) -> None:
    source, out = place
    night(source, out, tiny)
    shutil.rmtree(out / "embeddings")
    tar = next((out / "shards").rglob("*.tar"))
    data = bytearray(tar.read_bytes())
    data[600] ^= 1
    tar.write_bytes(data)
    with pytest.raises(ClipcapError, match="content digest"):
        night(source, out, tiny)


def test_a_night_that_lacks_a_table_does_not_publish(place: tuple[Path, Path], tiny: Tiny) -> None:
    source, out = place
    done, _ = night(source, out, tiny)
    latest = (out / "_latest.json").read_text()
    next((out / "captions").rglob("*.parquet")).unlink()
    with pytest.raises(ClipcapError, match="does not publish"):
        publish.publish(done, settings=PublishSettings())
    assert (out / "_latest.json").read_text() == latest


def test_a_folder_of_text_files_stops_the_night_and_says_why(tmp_path: Path) -> None:
    for n in range(5):
        (tmp_path / f"{n}.md").write_text("not a picture")
    run = Run("r", storage.canonical(str(tmp_path / "out")), "2026-11-20")
    settings = shard.ShardSettings()
    plan = shard.plan(str(tmp_path), run=run, settings=settings)
    shard.shard(plan.planned[0].shard, run=run, settings=settings)
    for _ in range(2):
        with pytest.raises(TooManyRejectsError, match=r"(?s)100% of 5 .*not_an_image 5.*0\.md"):
            gate.require_few_rejects(run, max_reject_rate=0.05)


def test_labels_are_top_k_and_everything_over_the_threshold(
    place: tuple[Path, Path], tiny: Tiny
) -> None:
    source, out = place
    night(source, out, tiny)
    rows = glob(out, "labels").to_pylist()
    assert len(rows) == 12
    for row in rows:
        assert row["accepted"] == (row["score"] >= 0.5)
        assert row["label"] == ("cat", "dog", "house")[row["label_index"]]
    texts = list((out / "_labelsets").rglob("*.parquet"))
    assert len(texts) == 1


def test_text_embeddings_are_computed_once_for_all_shards(
    place: tuple[Path, Path], tiny: Tiny
) -> None:
    source, out = place
    done, _ = night(source, out, tiny)
    shutil.rmtree(out / "labels")
    run = done.run
    with patch.object(embedding, "load", side_effect=AssertionError("loaded an encoder")):
        for target in manifest.shards(run.out):
            label.label(
                target,
                [bank.load(tiny.label_set)],
                run=run,
                settings=label.LabelSettings(label_sets=(tiny.label_set,)),
                encoder=tiny.encoder,
            )


def test_a_new_label_set_touches_no_image_and_no_image_encoder(
    place: tuple[Path, Path], tiny: Tiny
) -> None:
    source, out = place
    done, _ = night(source, out, tiny)
    shutil.rmtree(out / "shards")
    shutil.rmtree(source)
    path = Path(tiny.label_set).with_name("new.json")
    path.write_text('{"names": ["cup", "boat"]}')
    refuse = AssertionError("looked at an image")
    with (
        patch.object(Encoder, "encode_pixels", side_effect=refuse),
        patch.object(Encoder, "encode_images", side_effect=refuse),
    ):
        for target in manifest.shards(done.run.out):
            label.label(
                target,
                [bank.load(str(path)), bank.load(tiny.label_set)],
                run=done.run,
                settings=label.LabelSettings(),
                encoder=tiny.encoder,
            )
    rows = glob(out / "labels" / "labelset=new", ".").to_pylist()
    assert {row["label"] for row in rows} == {"cup", "boat"}


def test_a_background_name_takes_part_but_is_no_answer(
    place: tuple[Path, Path], tiny: Tiny
) -> None:
    source, out = place
    done, _ = night(source, out, tiny)
    text = 'names = ["cat"]\nbackground = ["dog", "house"]\nthreshold = 0.0\n'
    Path(tiny.label_set).with_name("cat.toml").write_text(text)
    chosen = Tiny(tiny.encoder, tiny.captioner, tiny.label_set.replace("pets", "cat"))
    for target in manifest.shards(done.run.out):
        over(target, done.run, chosen)
    rows = glob(out / "labels" / "labelset=cat", ".").to_pylist()
    assert {row["label"] for row in rows} == {"cat"}
    assert all(0 < row["score"] < 1 for row in rows)
    assert all(row["accepted"] == (row["margin"] > 0) for row in rows)


def test_every_problem_of_a_label_file_is_said_at_once(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(
        'names = ["dog",\n  "cat",\n  "Dog",\n  ""]\ntemplates = ["a photo"]\nhue = 3\n'
    )
    with pytest.raises(SettingsError) as caught:
        sets.load(str(path))
    text = str(caught.value)
    assert "line 3: the name 'Dog' stands twice (also as a name in line 1, where it is" in text
    assert "line 4: the name is empty" in text
    assert "line 5: the template 'a photo' must hold one {}" in text
    assert "line 6: there is no field `hue`" in text
    assert 'names = ["cat", "dog"]' in text


def test_an_unknown_label_set_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"Did you mean scene_places\?"):
        sets.load("scene_place")


def test_a_failed_run_leaves_a_row_and_publishes_nothing(place: tuple[Path, Path]) -> None:
    _, out = place
    run = Run("r1", storage.canonical(str(out)), "2026-11-20")
    publish.record_failure(Night(run, "nightly", "test", 0.0, "{}"), ClipcapError("no luck"))
    row = tables.read(layout.runs(run)).to_pylist()[0]
    assert (row["state"], row["error_message"]) == ("Failed", "no luck")
    assert not (out / "_latest.json").exists()


def test_captions_that_a_dead_run_did_not_deliver_go_out_with_the_next(
    place: tuple[Path, Path], tiny: Tiny
) -> None:
    """A run died between its captions and its sinks; the next one has nothing to caption."""
    source, out = place
    night(source, out, tiny)
    (out / "_latest.json").unlink()
    settings = PublishSettings(sinks={"sidecars": {}})
    done, _ = night(source, out, tiny, settings=settings)
    assert {outcome.state for outcome in done.outcomes} == {"unchanged"}
    beside = sorted(source.glob("*.clipcap.txt"))
    captions = {row["source_uri"]: row["caption"] for row in glob(out, "captions").to_pylist()}
    assert len(beside) == 6
    for path in beside:
        uri = storage.canonical(str(path).removesuffix(".clipcap.txt"))
        assert path.read_text().strip() == captions[uri]
    written = {path: path.stat().st_mtime_ns for path in beside}
    done, _ = night(source, out, tiny, settings=settings)
    assert done.plan is not None
    assert done.plan.unchanged == done.plan.listed == 6
    assert {path: path.stat().st_mtime_ns for path in beside} == written

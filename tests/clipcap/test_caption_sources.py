"""Captions out of the original's pickles and out of tars with text, joined by name."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from clipcap import captionfiles, cards, layout, manifest, oldpickles, pairs, tables
from clipcap.embedding import EmbedSettings
from clipcap.errors import NotFoundError, SettingsError
from clipcap.stages import train
from clipcap.training import TrainSettings as LoopSettings
from tests.nights import Tiny, draw, make_tiny, night

REAL = Path(__file__).parents[3] / "shared" / "data" / "clipcap_pickle"
COCO = "COCO_val2014_000000391895.jpg"
LOOP = LoopSettings(steps=2, batch_size=4, validation_share=0.0)
DIM = 16


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, tiny: Tiny) -> str:
    """An output of three images, one named as in COCO, one as by parse_conceptual.py."""
    folder = tmp_path_factory.mktemp("sources")
    for n, name in enumerate((COCO, "00000007.jpg", "dog.png")):
        draw(folder / "in" / name, n)
    return night(folder / "in", folder / "out", tiny)[0].run.out


def ids(out: str) -> dict[str, str]:
    """Return image ids by file name."""
    rows = [
        row
        for shard in manifest.shards(out)
        for row in tables.read(layout.manifest(out, shard), ["image_id", "source_uri"]).to_pylist()
    ]
    return {row["source_uri"].rpartition("/")[2]: row["image_id"] for row in rows}


def pickled(path: Path, told: Sequence[tuple[str | int, str, int]], rows: torch.Tensor) -> str:
    captions = [{"image_id": i, "caption": text, "clip_embedding": row} for i, text, row in told]
    path.write_bytes(pickle.dumps({"clip_embedding": rows, "captions": captions}, 4))
    return str(path)


def numbers(rows: int, seed: int = 1) -> torch.Tensor:
    return 9 * torch.randn(rows, DIM, generator=torch.Generator().manual_seed(seed))


def settings(tiny: Tiny, **changed: object) -> train.TrainSettings:
    given = {"start": tiny.captioner.captioner, "prefix_length": 3, "loop": LOOP}
    return train.TrainSettings.model_validate(given | changed)


# --- the original's pickles ---------------------------------------------------------------------


def test_a_pickle_is_joined_by_number_of_coco_and_file_without_ending(
    tmp_path: Path, out: str
) -> None:
    rows = numbers(4)
    rows[1] = rows[0]
    told: list[tuple[str | int, str, int]]
    told = [(391895, "a cat.", 0), (391895, "one cat.", 1), ("00000007", "a car.", 2)]
    url = pickled(tmp_path / "a.pkl", [*told, ("9", "a boat.", 3)], rows)
    found = captionfiles.join(url, out)
    known = ids(out)
    assert found.captions == {
        known[COCO]: ["a cat.", "one cat."],
        known["00000007.jpg"]: ["a car."],
    }
    assert found.unmatched == 1


def test_one_name_of_two_embeddings_is_refused_by_name(tmp_path: Path, out: str) -> None:
    told = [("00000007", "a cat.", 0), ("00000007", "a car.", 1)]
    url = pickled(tmp_path / "a.pkl", told, numbers(2))
    with pytest.raises(SettingsError, match=r"names two images '00000007'.*--embeddings file"):
        captionfiles.join(url, out)


def test_the_embeddings_of_a_pickle_are_kept_with_their_lengths(tmp_path: Path, tiny: Tiny) -> None:
    rows = numbers(3)
    rows[1] = rows[0]
    told = [("1", "a cat.", 0), ("1", "one cat.", 1), ("2", " ", 2), ("2", "a car.", 2)]
    url = pickled(tmp_path / "a.pkl", told, rows.half())
    found = pairs.gather(str(tmp_path / "none"), tiny.encoder, url, "file")
    assert found.table["reference_captions"].to_pylist() == [["a cat.", "one cat."], ["a car."]]
    assert (found.blank, found.unmatched, found.fit.dim) == (1, 0, DIM)
    unit_ND = tables.vectors(found.table)
    norm_N = found.table["embedding_norm"].to_numpy()
    assert np.allclose(np.linalg.norm(unit_ND, axis=1), 1.0, atol=1e-6)
    assert np.allclose(unit_ND * norm_N[:, None], rows.half().float().numpy()[[0, 2]], atol=1e-5)


@pytest.mark.parametrize("normalized", [True, False])
def test_training_on_a_pickle_needs_no_images(tmp_path: Path, tiny: Tiny, normalized: bool) -> None:
    told = [(str(n), f"a {thing}.", n) for n, thing in enumerate(("cat", "car", "boat"))]
    url = pickled(tmp_path / "a.pkl", told, numbers(3))
    chosen = settings(tiny, captions=url, embeddings="file", normalized=normalized)
    where = layout.Run("run", (tmp_path / "new").as_uri(), "2026-11-20")
    done = train.train(where, settings=chosen, encoder=tiny.encoder)
    assert (done.images, done.captions, done.was_there) == (3, 3, False)
    card = cards.read_card(done.folder)
    assert (card.normalized, card.encoder.dim) == (normalized, DIM)
    assert train.train(where, settings=chosen, encoder=tiny.encoder).was_there
    other = chosen.model_copy(update={"normalized": not normalized})
    assert not train.train(where, settings=other, encoder=tiny.encoder).was_there


def test_a_pickle_of_another_width_or_without_length_is_refused(tmp_path: Path, tiny: Tiny) -> None:
    url = pickled(tmp_path / "a.pkl", [("1", "a cat.", 0)], torch.ones(1, 7))
    with pytest.raises(SettingsError, match=r"embeddings of 7 numbers, but .* gives 16.*--model"):
        pairs.gather("memory://none", tiny.encoder, url, "file")
    url = pickled(tmp_path / "b.pkl", [("1", "a cat.", 0)], torch.zeros(1, DIM))
    with pytest.raises(SettingsError, match=r"The embedding in row 0 of .* has length 0"):
        pairs.gather("memory://none", tiny.encoder, url, "file")
    url = pickled(tmp_path / "c.pkl", [("1", " ", 0)], torch.ones(1, DIM))
    with pytest.raises(SettingsError, match=r"Every caption in .* is blank"):
        pairs.gather("memory://none", tiny.encoder, url, "file")


def test_what_is_no_pickle_has_no_embeddings(tmp_path: Path, tiny: Tiny) -> None:
    (tmp_path / "a.csv").write_text("image,caption\na.png,a cat.\n")
    with pytest.raises(SettingsError, match=r"needs `--captions FILE`, a pickle of the original"):
        pairs.gather("memory://none", tiny.encoder, str(tmp_path / "a.csv"), "file")


def test_rows_that_parse_conceptual_counts_anew_are_put_right(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = numbers(5)
    told = [("v0", "a", 0), ("v1", "b", 1), ("t0", "c", 0), ("t1", "d", 1), ("t2", "e", 2)]
    url = pickled(tmp_path / "conceptual_clip_ViT-B_32_train.pkl", told, rows)
    found, captions = oldpickles.read(url)
    assert [[one.text for one in of_row] for of_row in captions] == [[c] for c in "abcde"]
    assert torch.equal(found, rows)
    assert "counted anew after 2 of them" in caplog.text
    told[4] = ("t2", "e", 3)  # no such defect: who knows what it is
    with pytest.raises(SettingsError, match="must have a caption, but 2 have none"):
        oldpickles.read(pickled(tmp_path / "b.pkl", told, rows))


def test_the_real_pickle_is_of_732_images_with_three_captions_each(tmp_path: Path) -> None:
    if not REAL.is_dir():
        pytest.skip(f"the original's data file is not at {REAL}")
    url = str(REAL / "oscar_split_ViT-B_32_train.pkl")
    encoder = EmbedSettings(model="ViT-B/32")  # as the original calls it; nothing is fetched
    found = pairs.gather(str(tmp_path), encoder, url, "file")
    assert found.fit.model_id == "ViT-B-32-quickgelu__openai"
    assert {len(texts) for texts in found.table["reference_captions"].to_pylist()} <= {1, 2, 3}
    assert found.table.num_rows == 732
    wanted = json.loads((REAL / "captions_ViT-B_32.json").read_text())
    with np.load(REAL / "embeddings_ViT-B_32.npz") as copy:
        raw_ND = copy["emb"].astype(np.float32)
    by_name = {
        name.partition("@")[0]: n for n, name in enumerate(found.table["image_id"].to_pylist())
    }
    unit_ND = tables.vectors(found.table) * found.table["embedding_norm"].to_numpy()[:, None]
    for one in wanted[::97]:
        row = by_name[one["image_id"]]
        assert np.allclose(unit_ND[row], raw_ND[one["clip_embedding"]], atol=1e-5)
        assert one["caption"].strip() in found.table["reference_captions"][row].as_py()


# --- tars with text -----------------------------------------------------------------------------


def tar(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


def sample(key: str, text: str, **told: object) -> dict[str, bytes]:
    """Return a sample as img2dataset writes it."""
    told = {"caption": text, "key": key, "status": "success"} | told
    image = {f"{key}.jpg": b"\xff\xd8 no picture at all"}
    return image | {f"{key}.json": json.dumps(told).encode(), f"{key}.txt": text.encode()}


def test_tars_are_joined_by_key_url_or_image_id(tmp_path: Path, out: str) -> None:
    known = ids(out)
    shard = manifest.shards(out)[0]
    rows = tables.read(layout.manifest(out, shard), ["image_id", "source_uri"]).to_pylist()
    address = next(row["source_uri"] for row in rows if row["image_id"] == known["dog.png"])
    (tmp_path / "tars").mkdir()
    tar(
        tmp_path / "tars" / "0.tar",
        sample("00000007", "a car.") | sample("x1", "?", url="http://x"),
    )
    files = sample("x2", "a dog.", url=address) | sample("x3", "a cat.", image_id=known[COCO])
    tar(tmp_path / "tars" / "1.tar", files)
    for url in (f"{tmp_path}/tars", f"{tmp_path}/tars/*.tar"):
        found = captionfiles.join(url, out)
        assert found.captions == {
            known["00000007.jpg"]: ["a car."],
            known["dog.png"]: ["a dog."],
            known[COCO]: ["a cat."],
        }
        assert (found.unmatched, found.blank) == (1, 0)
    assert len(captionfiles.join(f"{tmp_path}/tars/0.tar", out).captions) == 1


def test_a_broken_caption_file_in_a_tar_is_blank_and_told(
    tmp_path: Path, out: str, caplog: pytest.LogCaptureFixture
) -> None:
    files = sample("dog", "a dog.") | {
        "00000007.txt": "caf\u00e9".encode("latin-1"),
        "y.json": b"{",
    }
    tar(tmp_path / "0.tar", files)
    found = captionfiles.join(str(tmp_path / "0.tar"), out)
    assert (len(found.captions), found.blank, found.unmatched) == (1, 2, 0)
    assert "the captions of 2 samples cannot be read, the first of 00000007" in caplog.text


def test_a_tar_that_is_cut_is_refused(tmp_path: Path, out: str) -> None:
    tar(tmp_path / "0.tar", sample("dog", "a dog."))
    data = (tmp_path / "0.tar").read_bytes()
    (tmp_path / "0.tar").write_bytes(data[:1560])
    with pytest.raises(SettingsError, match=r"The captions in .*0.tar cannot be read"):
        captionfiles.join(str(tmp_path / "0.tar"), out)


def test_a_folder_without_tars_has_no_captions(tmp_path: Path, out: str) -> None:
    (tmp_path / "none").mkdir()
    with pytest.raises(NotFoundError, match=r"no captions at .*none: no file, and no `.tar`"):
        captionfiles.join(str(tmp_path / "none"), out)


def test_training_from_tars_alone(tmp_path: Path, tiny: Tiny) -> None:
    """Tars as img2dataset writes them, read where they are: images, captions and all."""
    (tmp_path / "tars").mkdir()
    files: dict[str, bytes] = {}
    for n, text in enumerate(("a cat.", "a car.", "a boat.")):
        draw(tmp_path / "one.png", n)
        made = sample(f"00000000{n}", text)
        del made[f"00000000{n}.jpg"]
        files |= {f"00000000{n}.png": (tmp_path / "one.png").read_bytes()} | made
    tar(tmp_path / "tars" / "00000.tar", files)
    run = night(f"{tmp_path}/tars/*.tar", tmp_path / "out", tiny)[0].run
    done = train.train(run, settings=settings(tiny), encoder=tiny.encoder)
    assert (done.images, done.captions) == (3, 3)
    again = settings(tiny, captions=f"{tmp_path}/tars/*.tar")
    assert train.train(run, settings=again, encoder=tiny.encoder).was_there  # the same captions


def test_samples_of_tars_that_count_anew_are_joined_by_address(tmp_path: Path, tiny: Tiny) -> None:
    (tmp_path / "tars").mkdir()
    for n, text in enumerate(("a cat.", "a car.")):
        draw(tmp_path / "one.png", n)
        made = sample("0", text)
        del made["0.jpg"]
        files = {"0.png": (tmp_path / "one.png").read_bytes()} | made
        tar(tmp_path / "tars" / f"{n}.tar", files)
    run = night(f"{tmp_path}/tars/*.tar", tmp_path / "out", tiny)[0].run
    found = captionfiles.join(f"{tmp_path}/tars", run.out)
    assert sorted(found.captions.values()) == [["a car."], ["a cat."]]

"""Proposed label sets: which images, which clusters, which words, and a draft that can be used."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from clipcap import embedding, storage, tables
from clipcap.embedding import EmbedSettings, Speed
from clipcap.errors import NotFoundError, SettingsError
from clipcap.labels import check, proposing, sets
from clipcap.labels.proposing import ProposeSettings
from tests.nights import Tiny, draw, make_tiny, night

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
IMAGES = 12


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A random encoder whose tokenizer has byte pairs or words."""
    return make_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, tiny: Tiny) -> str:
    """An output of twelve drawings in six shards."""
    folder = tmp_path_factory.mktemp("proposing")
    for n in range(IMAGES):
        draw(folder / "in" / f"drawing-{n}.png", n)
    night(folder / "in", folder / "out", tiny)
    return storage.canonical(str(folder / "out"))


def checked(folder: Path, found: proposing.Proposal) -> sets.LabelSet:
    """Return the draft as a label set."""
    path = folder / "draft.toml"
    path.write_text(proposing.draft(found, "draft"), encoding="utf-8")
    return sets.load(str(path))


def test_the_draft_is_a_label_set_and_the_same_each_time(
    out: str, tiny: Tiny, tmp_path: Path
) -> None:
    settings = ProposeSettings(clusters=4)
    found = proposing.propose(out, settings=settings, encoder=tiny.encoder)
    again = proposing.propose(out, settings=settings, encoder=tiny.encoder)
    assert found == again
    label_set = checked(tmp_path, found)
    assert label_set.names == tuple(one.name for one in found.clusters)
    assert sum(one.images for one in found.clusters) == IMAGES == found.live
    assert [one.images for one in found.clusters] == sorted(
        (one.images for one in found.clusters), reverse=True
    )
    text = (tmp_path / "draft.toml").read_text()
    assert f"# {found.clusters[0].images} images like" in text
    assert all(f'"{key}"' in text for key in found.clusters[0].keys)
    other = ProposeSettings(clusters=4, seed=3, images=6)
    few = proposing.propose(out, settings=other, encoder=tiny.encoder)
    assert (few.images, few.live) == (6, IMAGES)
    assert "drawn from 12" in proposing.draft(few, "few")


def test_which_images_are_drawn_does_not_hang_on_shards(out: str, tiny: Tiny) -> None:
    ref = embedding.reference(tiny.encoder)
    every = proposing._drawn(out, ref, ProposeSettings())
    few = proposing._drawn(out, ref, ProposeSettings(images=5))
    assert few.keys == every.keys[:5]
    np.testing.assert_array_equal(few.embedding_BD, every.embedding_BD[:5])
    assert len(set(every.keys)) == IMAGES
    assert proposing._drawn(out, ref, ProposeSettings(images=5, seed=1)).keys != few.keys


def test_words_of_ones_own(out: str, tiny: Tiny, tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("# mine\nred ball\n Red  Ball \n\nhouse\nb\x07d\ncat\n")
    assert proposing.words(str(path)) == ["red ball", "house", "cat"]
    settings = ProposeSettings(clusters=2, words=str(path), template="a {} here.")
    found = proposing.propose(out, settings=settings, encoder=tiny.encoder)
    assert {one.name for one in found.clusters} < {"red ball", "house", "cat"}
    assert checked(tmp_path, found).templates == ("a {} here.",)
    with pytest.raises(SettingsError, match="a word for each of"):
        proposing.propose(
            out, settings=settings.model_copy(update={"clusters": 6}), encoder=tiny.encoder
        )


def test_what_cannot_be_proposed(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="is not there"):
        proposing.words(str(tmp_path / "none.txt"))
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(SettingsError, match="must be UTF-8"):
        proposing.words(str(tmp_path / "latin.txt"))
    empty = storage.canonical(str(tmp_path / "out"))
    with pytest.raises(NotFoundError, match="must be images in"):
        proposing.propose(empty, settings=ProposeSettings(), encoder=tiny.encoder)
    same_BD = np.zeros((5, 4), np.float32)
    with pytest.raises(SettingsError, match="all 5 look the same"):
        proposing._clustered(same_BD, ProposeSettings())


def test_embeddings_that_are_no_numbers_are_refused(
    out: str, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(table: pa.Table) -> np.ndarray[Any, Any]:
        return np.full_like(vectors(table), np.nan)

    vectors = tables.vectors
    monkeypatch.setattr(tables, "vectors", broken)
    with pytest.raises(SettingsError, match="must be of numbers"):
        proposing.propose(out, settings=ProposeSettings(), encoder=tiny.encoder)


def test_an_encoder_with_words_of_its_own_is_offered_no_others() -> None:
    """The bundled model has one token for all that it does not know."""
    encoder = embedding.load(EmbedSettings(), Speed())
    listed = ["cat", "zebra", "red cat", "red zebra", "cat-like", "house"]
    assert proposing._known(listed, "a photo of a {}.", encoder) == ["cat", "red cat", "house"]
    with pytest.raises(SettingsError, match="--words FILE"):
        proposing._known(["zebra", "cat"], "a {}.", encoder)


def test_the_bundled_words_are_many_and_their_own() -> None:
    found = proposing.words()
    assert 4_000 < len(found) < 10_000
    assert {"dog", "beach", "birthday party", "screenshot"} <= set(found)
    lines = [line for line in proposing.WORDS.read_text().splitlines() if line[0] != "#"]
    assert found == lines
    assert len({check.folded(word) for word in found}) == len(found)
    assert "WordNet 3.0 Copyright 2006 by Princeton University" in proposing.WORDS.read_text()


@pytest.mark.skipif(not DATA.is_dir(), reason="needs ../shared/data")
def test_real_clusters_get_names_that_fit() -> None:
    """Photographs of people and dogs, named out of the 1,203 words of LVIS."""
    image_BD = np.load(DATA / "flickr8k" / "clip_vit_b32_openai.npy").astype(np.float32)
    text_WD = np.load(DATA / "clip_text" / "lvis1203_vit_b32_openai.npy").astype(np.float32)
    known = (DATA / "clip_text" / "lvis1203.txt").read_text().splitlines()
    image_BD /= np.linalg.norm(image_BD, axis=1, keepdims=True)
    text_WD /= np.linalg.norm(text_WD, axis=1, keepdims=True)
    special_BD = image_BD - image_BD.mean(axis=0)
    cluster_B = proposing._clustered(special_BD, ProposeSettings(clusters=20))
    keys = [str(n) for n in range(len(image_BD))]
    found = proposing._named(cluster_B, special_BD, keys, (known, text_WD))
    said = {word for one in found for word in (one.name, *one.others)}
    assert {"dog", "skateboard", "snowboard"} <= said
    assert len({one.name for one in found}) == len(found) == 20
    dogs = next(one for one in found if "dog" in (one.name, *one.others))
    captions = (DATA / "flickr8k" / "captions.tsv").read_text()
    order = (DATA / "flickr8k" / "order.txt").read_text().split()
    for key in dogs.keys:
        assert re.search(rf"{re.escape(order[int(key)])}.*\bdogs?\b", captions)

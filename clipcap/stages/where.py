"""Label sets and an output in, where in each image each label is seen out: a table for each shard.

A folder of the caller's has the embeddings of the windows (`crops/`) and what is seen through them
(`places/`); it is no part of the output, where each row is an image. Another question to the same
folder looks at no image again.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import pyarrow as pa
from pydantic import Field

from clipcap import (
    commits,
    crops,
    embedding,
    layout,
    placerows,
    registry,
    storage,
    windows,
)
from clipcap.commits import Commit, Fingerprint
from clipcap.crops import Crops
from clipcap.embedding import EmbedSettings, Speed
from clipcap.errors import NotFoundError, SettingsError
from clipcap.labels import bank, sets
from clipcap.labels.bank import Given
from clipcap.layout import Shard
from clipcap.passes import Looked
from clipcap.placerows import Seen
from clipcap.settings import Settings, digest
from clipcap.windows import Grid

if TYPE_CHECKING:
    from clipcap.labels.heat import Finder

VERSION: Final = 1
"""Raised by hand when the meaning of a row changes."""


class WhereSettings(Settings):
    """What is looked for, and through which windows. Every field changes the result."""

    label_sets: tuple[str, ...] = ("scene_places", "scene_things")
    """Bundled names, paths or URLs of label sets: TOML or JSON, or Parquet if they were fitted."""
    labels: tuple[str, ...] = ()
    """Labels that every image gets a row for, and no others; empty: the best of each image."""
    grid: str = Field(default="3", pattern=windows.PATTERN)
    """Windows of an image: `3` is three rows of three, `2x5` two rows of five; 16 at the most."""
    overlap: bool = True
    """Windows of twice the step: what lies on the border of two cells is seen whole."""
    top_k: int = Field(default=5, gt=0)
    """Labels of an image that get a row, beside those that are accepted."""
    threshold: float = Field(default=0.5, ge=0, le=1)
    """Lowest score of an accepted label, where the label set has no threshold of its own."""


@dataclass(slots=True)
class Places:
    """What became of a call."""

    folder: str
    windows: int
    """Of an image."""
    images: int = 0
    """That were looked through."""
    without: int = 0
    """Live images whose windows cannot be looked at."""
    computed: int = 0
    """Images whose windows were not there already."""
    written: int = 0
    unchanged: int = 0
    removed: int = 0
    """Tables of places: written, as they must be, of shards that are gone."""
    seen: dict[tuple[str, str], Counter[str]] = field(default_factory=dict)
    """Of label set and label, in how many images it is accepted, by place."""


def where(
    out: str, folder: str, *, settings: WhereSettings, encoder: EmbedSettings, speed: Speed
) -> Places:
    """Write for every live image of an output where labels are seen in it.

    Args:
        out: the canonical URL of the output; what it holds of embeddings stands for whole images.
        folder: where `crops/` and `places/` are written.
        settings: what is looked for.
        encoder: that of the embeddings.
        speed: where it runs.

    Raises:
        SettingsError: a label that no set has, or a folder that holds something else.
        NotFoundError: there is no such label set, or a shard is not embedded.
        StorageError: images cannot be read.
    """
    folder = storage.canonical(folder)
    before = commits.made_from(out, folder, crops.OF)
    given = [bank.load(name) for name in settings.label_sets]
    sets.require_own_names(one.label_set for one in given)
    _require_known(settings.labels, given)
    ref = embedding.reference(encoder)
    sources = embedding.of_output(out, ref)
    grid = Grid.of(settings.grid, overlap=settings.overlap)
    looked_at = Crops(out, folder, Looked(encoder, speed, ref), grid)
    made = looked_at.make(sources)
    done = Places(folder, grid.count, without=made.without, computed=made.computed)
    work = _Work(looked_at, settings, given)
    for shard, source in sources.items():
        _count(work.commit(shard, source, done), done)
    for url in before:
        if layout.shard_of(url) not in sources:
            storage.delete(url)
            done.removed += "/places/" in url
    return done


def url(folder: str, shard: Shard) -> str:
    """Return where the places of a shard lie."""
    return layout.in_folder(f"{folder}/places", shard)


def _require_known(labels: Sequence[str], given: Sequence[Given]) -> None:
    known = [name for one in given for name in one.label_set.names]
    for name in labels:
        if name not in known:
            raise SettingsError(registry.unknown("label", name, known))


def _count(commit: Commit, done: Places) -> None:
    done.images += int(commit.metadata["images"])
    for label_set, label, counted in json.loads(commit.metadata["seen"]):
        done.seen.setdefault((label_set, label), Counter()).update(counted)


class _Work:
    """What all shards have in common; text is encoded when the first of them needs it."""

    def __init__(self, looked_at: Crops, settings: WhereSettings, given: Sequence[Given]) -> None:
        self.crops, self.settings, self.given = looked_at, settings, given
        self._finders: dict[str, Finder] = {}
        how = settings.model_dump(mode="json", include={"labels", "top_k", "threshold"})
        named = [[one.label_set.name, one.sha256] for one in given]
        self._asked = digest(["where", VERSION, layout.RECIPES, named, how])

    def commit(self, shard: Shard, source: Commit, done: Places) -> Commit:
        """Return the places of a shard, written if they are not as they must be."""
        crop = commits.find(self.crops.url(shard))
        if crop is None:
            raise NotFoundError(f"{self.crops.url(shard)} went while it was needed.")
        wanted = Fingerprint(self._asked, digest([crop.fingerprint, source.fingerprint]))
        there = commits.find(url(self.crops.folder, shard))
        if there is not None and there.fingerprint == wanted.value:
            done.unchanged += 1
            return there
        seen = Seen.read(crop, source, self.crops.grid.count)
        made = [placerows.SCHEMA.empty_table()]
        for one in self.given:
            if (finder := self._finder(one, source)) is not None:
                found = finder.find(seen.whole_BD, seen.window_BKD)
                made.append(placerows.rows(found, seen, one, self.crops.grid))
        table = pa.concat_tables(made).sort_by(
            [(name, "ascending") for name in ("key", "label_set", "rank")]
        )
        told = {
            crops.OF: self.crops.out,
            "images": str(len(seen.whole_BD)),
            "seen": json.dumps(placerows.counted(table)),
            "label_sets": json.dumps([one.label_set.name for one in self.given]),
            "model_id": self.crops.looked.ref.model_id,
        }
        done.written += 1
        return commits.publish(
            url(self.crops.folder, shard), table, fingerprint=wanted, run_id="", metadata=told
        )

    def _finder(self, given: Given, source: Commit) -> Finder | None:
        """Return what finds the labels of a set; None if it has none that were asked for."""
        from clipcap.labels.heat import Finder

        names, settings = given.label_set.names, self.settings
        chosen = [n for n, name in enumerate(names) if name in settings.labels]
        if settings.labels and not chosen:
            return None
        name = given.label_set.name
        if name not in self._finders:
            looked = self.crops.looked
            made = bank.of(given, source, out=self.crops.out, encoder=looked.encoder)
            own = given.label_set.threshold
            least = settings.threshold if own is None else own
            self._finders[name] = Finder(made, threshold=least, top_k=settings.top_k, chosen=chosen)
        return self._finders[name]

"""A bucket of pictures and an output in memory: changes, nights, and what must be true at the end.

Nothing is asked of the output but what a reader sees: all files below the folder of a table.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from clipcap import keys, layout, manifest, storage, tables
from clipcap.embedding import EmbedSettings, Speed
from clipcap.planning import PackSettings
from clipcap.scratch import ScratchSettings
from clipcap.stages.caption import CaptionSettings
from clipcap.stages.label import LabelSettings
from clipcap.stages.publish import PublishSettings
from clipcap.stages.shard import ShardSettings
from clipcap.verify import verify
from flows.nightly import nightly
from flows.settings import NightlySettings
from tests.chaos import standins
from tests.chaos.store import Actor, Store

BROKEN = 0
"""The colour of bytes that are no picture."""
TOP_K = 2
FIRST_DAY = date(2026, 6, 1)
RECORDS = ("runs", "shard_runs", "reports", "_manifests", "_latest.json", "_SUCCESS")
"""What a night writes that finds everything done: its own records."""
LABELS = (("cat", "dog", "house"), ("ant", "bee", "gnu", "hen"))
_NUMBERS = count()


def rgb(colour: int) -> tuple[int, int, int]:
    """Return the levels of a colour; no two colours below 256 share them."""
    return colour, colour * 31 % 256, colour * 101 % 256


@cache
def picture(colour: int) -> bytes:
    """Return the file of a picture of one colour."""
    if colour == BROKEN:
        return b"this is no picture"
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), rgb(colour)).save(stream, "PNG")
    return stream.getvalue()


@dataclass(frozen=True)
class Models:
    """Which encoder, captioner and label set a night takes, by number."""

    encoder: int = 0
    captioner: int = 0
    label_set: int = 0


@dataclass(frozen=True)
class Folder:
    """A folder of the local disk with the captioners and label sets of all nights."""

    path: Path

    @classmethod
    def made(cls, path: Path) -> Folder:
        """Write what nights may choose from."""
        for encoder in (0, 1):
            ref = standins.colours().reference(f"colours-{encoder}")
            for captioner in (0, 1):
                standins.make_captioner(path, f"teller-{captioner}", ref)
        for number, names in enumerate(LABELS):
            text = f'names = {list(names)}\ntemplates = ["a {{}}."]\n'
            (path / f"set{number}.toml").write_text(text)
        return cls(path)

    def settings(self, chosen: Models) -> NightlySettings:
        """Return a night's settings."""
        captioner = f"teller-{chosen.captioner}-colours-{chosen.encoder}"
        return NightlySettings(
            shard=ShardSettings(
                pack=PackSettings(max_images=2),
                max_delete_rate=1,
                scratch=ScratchSettings(folder=str(self.path)),
            ),
            embed=EmbedSettings(model=f"colours-{chosen.encoder}"),
            speed=Speed(batch_size=2, device="cpu"),
            caption=CaptionSettings(captioner=str(self.path / captioner)),
            label=LabelSettings(
                label_sets=(str(self.path / f"set{chosen.label_set}.toml"),), top_k=TOP_K
            ),
            drift=None,
            publish=PublishSettings(report_images=0),
            shards_per_partition=2,
            max_reject_rate=1,
        )


@dataclass
class Work:
    """What the models were asked for."""

    embedded: int
    captioned: int

    @classmethod
    def now(cls) -> Work:
        """Return the counts until now."""
        loaded = standins.colours().LOADED.values()
        return cls(sum(one.images for one in loaded), standins.CAPTIONED["images"])

    def since(self, before: Work) -> tuple[int, int]:
        """Return images embedded and images captioned since then."""
        return self.embedded - before.embedded, self.captioned - before.captioned


@dataclass
class World:
    """A bucket, an output, a calendar, and what the next night takes."""

    store: Store
    folder: Folder
    chosen: Models = Models()
    day: int = 0
    bucket: dict[str, int] = field(default_factory=dict)
    objects: dict[str, Any] = field(default_factory=dict)
    name: int = field(default_factory=lambda: next(_NUMBERS))

    def kept(self) -> World:
        """Return this world as it is now, for `again`."""
        return replace(self, bucket=dict(self.bucket), objects=dict(self.store.objects))

    def again(self) -> World:
        """Let the world be once more as it was when it was kept."""
        self.store.objects = dict(self.objects)
        self.allow()
        return replace(self, bucket=dict(self.bucket))

    at: str = ""
    """Another source than its own."""
    root: str = "memory://"
    """What its URLs begin with."""

    @property
    def source(self) -> str:
        return self.at or f"{self.root}source-{self.name}"

    @property
    def out(self) -> str:
        return f"{self.root}out-{self.name}"

    def put(self, path: str, colour: int) -> None:
        """Add or replace a picture."""
        self.bucket[path] = colour
        storage.write(f"{self.source}/{path}", picture(colour))

    def remove(self, path: str) -> None:
        """Delete a picture, if it is there."""
        if self.bucket.pop(path, None) is not None:
            storage.delete(f"{self.source}/{path}")

    def rename(self, path: str, to: str) -> None:
        """Give a picture another name, if it is there."""
        if path in self.bucket:
            self.put(to, self.bucket[path])
            self.remove(path)

    def deny(self, path: str) -> None:
        """Let a picture be out of reach, if it is there: it is listed, and may not be read."""
        if path in self.bucket:
            self.store.denied.add(f"{self.source}/{path}")

    def allow(self) -> None:
        """Let all pictures be within reach again."""
        self.store.denied.clear()

    def choose(self, **models: int) -> None:
        """Let the next nights take other models."""
        self.chosen = replace(self.chosen, **models)

    def next_day(self) -> None:
        """Let a day go by."""
        self.day += 1
        self.store.age(self.out, timedelta(hours=25))

    def night(
        self, actor: Actor | None = None, models: Models | None = None
    ) -> list[tuple[str, str]]:
        """Run one night; return what it changed, as calls and paths below the output."""
        actor = actor or Actor()
        self.store.actor = actor
        try:
            nightly.fn(
                self.source,
                self.out,
                self.folder.settings(models or self.chosen),
                logical_date=FIRST_DAY + timedelta(days=self.day),
            )
        finally:
            self.store.actor = None
        return [(kind, url.removeprefix(f"{self.out}/")) for kind, url in actor.changes]


def require_exact(world: World) -> None:
    """Check every table against the bucket: each image once, computed from these very bytes."""
    require_sharded(world)
    vectors = require_embedded(world)
    require_captioned(world, vectors)
    require_labelled(world, vectors)
    found = verify(world.out, mode="full")
    assert [one for one in found.problems if one.severity == "error"] == []


def require_sharded(world: World) -> None:
    """Check manifests, tars and rejects: each picture once, with its bytes; else a reject."""
    live = _live(world)
    rows = _rows(world.out, "manifest")
    assert sorted(row["source_uri"] for row in rows) == sorted(live)
    tars = {
        shard: storage.read(layout.tar(world.out, layout.Shard(*shard)))
        for shard in {(row["dt"], row["shard"]) for row in rows}
    }
    for row in rows:
        tar, start = tars[row["dt"], row["shard"]], row["member_offset"]
        assert tar[start : start + row["member_bytes"]] == picture(live[row["source_uri"]])
    rejected = sorted(row["source_uri"] for row in _rows(world.out, "rejects"))
    broken = {path for path, colour in world.bucket.items() if colour == BROKEN}
    assert rejected == sorted(f"{world.source}/{path}" for path in broken)
    assert manifest.orphan_rejects(world.out) == []


def _live(world: World) -> dict[str, int]:
    return {f"{world.source}/{path}": colour for path, colour in world.bucket.items() if colour}


def require_embedded(world: World) -> dict[str, Sequence[float]]:
    """Check embeddings; return those of now. Of other models there may be live rows, no others."""
    colours = {keys.image_id(uri): colour for uri, colour in _live(world).items()}
    seen = _by("model_id", _rows(world.out, "embeddings"))
    for model_id, rows in seen.items():
        _require_once(rows, colours)
        for row in rows:
            np.testing.assert_allclose(
                row["embedding"], unit(model_id, colours[row["image_id"]]), atol=2e-3
            )
    now = seen.get(f"colours-{world.chosen.encoder}", [])
    vectors = {row["image_id"]: row["embedding"] for row in now}
    assert vectors.keys() == colours.keys()
    return vectors


def require_captioned(world: World, vectors: dict[str, Sequence[float]]) -> None:
    """Check captions: those of the captioner of now say what it says of these embeddings."""
    told = _by("captioner_id", _rows(world.out, "captions"))
    for rows in told.values():
        _require_once(rows, vectors)
    captioner = f"teller-{world.chosen.captioner}"
    captions = {row["image_id"]: row["caption"] for row in told.get(captioner, [])}
    assert captions == {
        image: standins.caption_of(captioner, vector) for image, vector in vectors.items()
    }


def require_labelled(world: World, vectors: dict[str, Sequence[float]]) -> None:
    """Check labels: the best one of the label set of now is the nearest to the embedding."""
    sets = _by("label_set", _rows(world.out, "labels"))
    for number, names in enumerate(LABELS):
        rows = sets.get(f"set{number}", [])
        pairs = [(row["image_id"], row["rank"]) for row in rows]
        assert len(set(pairs)) == len(pairs)
        assert {image for image, _ in pairs} <= vectors.keys()
        if number != world.chosen.label_set:
            continue
        model = f"colours-{world.chosen.encoder}"
        text_CD = np.stack(
            [_unit(standins.colours().text_vector(model, f"a {one}.")) for one in names]
        )
        best = {row["image_id"]: row for row in rows if row["rank"] == 1}
        assert best.keys() == vectors.keys()
        for image, row in best.items():
            similarity_C = text_CD @ np.asarray(vectors[image])
            assert abs(row["similarity"] - similarity_C.max()) < 1e-3
            assert similarity_C[names.index(row["label"])] > similarity_C.max() - 1e-3


def _require_once(rows: list[dict[str, Any]], live: Mapping[str, object]) -> None:
    images = [row["image_id"] for row in rows]
    assert len(set(images)) == len(images)
    assert set(images) <= live.keys()


def unit(model_id: str, colour: int) -> Any:  # noqa: ANN401 - an array
    """Return the embedding of a picture, as it must stand in the table."""
    return _unit(standins.colours().vector(model_id, rgb(colour)))


def _unit(vector_D: Any) -> Any:  # noqa: ANN401 - an array
    return vector_D / np.linalg.norm(vector_D)


def _rows(out: str, name: layout.Table) -> list[dict[str, Any]]:
    """Return every row of a table, as whoever reads all files below its folder sees them."""
    return [
        {**row, "dt": layout.shard_of(found.url).dt}
        for found in storage.listed(layout.table(out, name))
        for row in tables.read(found.url).to_pylist()
    ]


def _by(column: str, rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row[column], []).append(row)
    return found

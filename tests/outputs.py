"""A folder in, a small finished output of three nights out, by the real stages.

Drawings of the picture book in several formats, one turned by EXIF, captions beside some, broken
files, names that are HTML; then a night on which one image is new, one changed and two are gone;
then one with nothing new.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from clipcap import storage, tables
from clipcap.bundled.scenes import caption, draw, random_scene
from clipcap.cards import read_card
from clipcap.layout import Table
from clipcap.outcomes import Night
from clipcap.stages.caption import CaptionSettings
from clipcap.stages.publish import Published
from tests.captioners import tiny_captioner
from tests.nights import Tiny, make_tiny, night

NIGHTS = ("2026-11-18", "2026-11-19", "2026-11-20")
PICTURES = 10
LISTED = PICTURES + 7
"""Objects that the first night lists: drawings, one of them twice, and what `spoil` adds."""
SCRIPT = "<script>alert(1)</script>"
_FORMATS = ("JPEG", "PNG", "WEBP")
_ENDINGS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
_SIZES = ((128, 128), (160, 120), (96, 144))
_MODEL_TAG, _ORIENTATION_TAG, _TURN_RIGHT = 0x0110, 0x0112, 6


@dataclass(frozen=True)
class Output:
    """A finished output: `url` is canonical; the nights are in order of their dates."""

    url: str
    source: Path
    tiny: Tiny
    nights: tuple[tuple[Night, Published], ...]

    @property
    def folder(self) -> Path:
        """The output as a path."""
        path = storage.local_path(self.url)
        assert path is not None
        return path


def build(folder: Path, *, pictures: int = PICTURES) -> Output:
    """Make the source, the models and the output below `folder`; takes some seconds."""
    source, out, tiny = folder / "in", folder / "out", models(folder / "models")
    fill(source, pictures)
    spoil(source)
    nights = [night(source, out, tiny, dt=NIGHTS[0])]
    (source / "scene-01.png").unlink()
    (source / "empty.jpg").unlink()
    save(source / "scene-02.webp", 102)
    save(source / "scene-late.png", 103)
    nights.append(night(source, out, tiny, dt=NIGHTS[1]))
    nights.append(night(source, out, tiny, dt=NIGHTS[2]))
    return Output(storage.canonical(str(out)), source, tiny, tuple(nights))


def models(folder: Path) -> Tiny:
    """Write tiny models; the captioner says many things and does not always come to an end."""
    tiny = make_tiny(folder)
    card = read_card(tiny.captioner.captioner)
    captioner = tiny_captioner(3, stop_bonus=0.6)
    captioner.card = card.model_copy(update={"captioner_id": "talkative"})
    captioner.save(str(folder / "talkative"))
    return replace(tiny, captioner=CaptionSettings(captioner=str(folder / "talkative")))


def fill(source: Path, pictures: int) -> None:
    """Write drawings; every third has captions beside it, the last two are near-duplicates."""
    last = source
    for number in range(pictures):
        form = _FORMATS[number % len(_FORMATS)]
        path = source / f"scene-{number:02d}.{_ENDINGS[form]}"
        said, last = save(path, number), path
        if number % 3 == 0:
            path.with_suffix(".txt").write_text(f"{said}\n{SCRIPT} a second caption\n")
    with Image.open(last) as opened:
        opened.convert("RGB").save(source / "scene-again.jpg", quality=90)


def save(path: Path, seed: int) -> str:
    """Draw one scene into a file, its format by the ending; return its true caption."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, 7])
    scene = random_scene(rng)
    draw(scene, rng, _SIZES[seed % len(_SIZES)]).save(path)
    return caption(scene)


def spoil(source: Path) -> None:
    """Add what a bucket holds besides good images, and one good image with hostile words."""
    exif = Image.Exif()
    exif[_MODEL_TAG] = SCRIPT
    exif[_ORIENTATION_TAG] = _TURN_RIGHT
    stream = io.BytesIO()
    Image.new("RGB", (90, 60), (200, 120, 40)).save(stream, "JPEG", exif=exif)
    name = SCRIPT.replace("/", "\u2215")
    (source / f"{name}.jpg").write_bytes(stream.getvalue())
    (source / f"{name} broken.jpg").write_bytes(stream.getvalue()[:400])
    (source / "cut.jpg").write_bytes((source / "scene-00.jpg").read_bytes()[:900])
    (source / "empty.jpg").write_bytes(b"")
    (source / "page.png").write_bytes(b"<html>not an image</html>")
    Image.new("RGB", (5, 3)).save(source / "speck.png")


def copied(out: Output, folder: Path) -> Output:
    """Return a copy that may be spoilt; its nights say that they wrote it."""
    shutil.copytree(out.folder, folder)
    url = storage.canonical(str(folder))

    def moved(done: Night) -> Night:
        outcomes = tuple(
            replace(one, url=one.url.replace(out.url, url, 1)) for one in done.outcomes
        )
        return replace(done, run=replace(done.run, out=url), outcomes=outcomes)

    nights = tuple((moved(done), published) for done, published in out.nights)
    return replace(out, url=url, nights=nights)


def change(path: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    """Edit every row of one file of a table; its footer stays as it was."""
    table = tables.read(str(path))
    rows = table.to_pylist()
    for row in rows:
        edit(row)
    rewrite(path, pa.Table.from_pylist(rows, schema=table.schema))


def rewrite(path: Path, table: pa.Table) -> None:
    """Write other rows or columns into one file of a table; its footer stays as it was."""
    metadata = pq.read_schema(path).metadata
    footer = {k.decode(): v.decode() for k, v in metadata.items() if k != b"contract"}
    path.write_bytes(tables.to_bytes(table, footer))


def files(out: Output, name: Table) -> list[Path]:
    """Return the files of a table."""
    return sorted((out.folder / name).rglob("*.parquet"))


def asked(database: duckdb.DuckDBPyConnection, query: str) -> list[dict[str, Any]]:
    """Return the rows that DuckDB answers."""
    found = database.execute(query)
    names = [column[0] for column in found.description]
    return [dict(zip(names, row, strict=True)) for row in found.fetchall()]


if __name__ == "__main__":
    import sys

    build(Path(sys.argv[1]))

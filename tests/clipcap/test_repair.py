"""Whatever is broken in an output, `repair` and one more night make it what it was before."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from clipcap import layout, manifest, shards, storage, tables, verify
from clipcap.errors import DamagedError, NotFoundError
from clipcap.layout import Shard, Table
from clipcap.stages.shard import ShardSettings
from clipcap.verify import Mode, tarmending
from tests import outputs
from tests.clipcap.test_life import NAMES, picture
from tests.command import clipcap
from tests.nights import night, shard_night
from tests.outputs import Output
from tests.tables import glob

COUNTED: tuple[Table, ...] = ("embeddings", "captions", "labels", "manifest", "rejects")


def said(out: str) -> dict[str, Any]:
    """Return what an output says of every image, however its shards are cut."""
    live = {
        row["source_uri"]: [
            row[name]
            for name in ("image_id", "key", "source_etag", "content_sha256", "phash", "width",
                         "reference_captions", "flags", "exif", "media_type")
        ]
        for row in glob(out, "manifest").to_pylist()
    }  # fmt: skip
    captions = {row["image_id"]: row["caption"] for row in glob(out, "captions").to_pylist()}
    labels = sorted(
        (row["image_id"], row["label_set"], row["rank"], row["label"], round(row["score"], 4))
        for row in glob(out, "labels").to_pylist()
    )
    embedded = {
        row["image_id"]: [round(value, 2) for value in row["embedding"]]
        for row in glob(out, "embeddings").to_pylist()
    }
    rejects = {row["source_uri"]: row["reason"] for row in glob(out, "rejects").to_pylist()}
    counts = {name: glob(out, name).num_rows for name in COUNTED}
    return {
        "live": live, "captions": captions, "labels": labels, "embedded": embedded,
        "rejects": rejects, "counts": counts,
    }  # fmt: skip


def first_seen(out: str) -> dict[str, Any]:
    """Return when each live image was seen first."""
    rows = glob(out, "manifest").to_pylist()
    return {row["source_uri"]: row["first_seen_at"] for row in rows}


@pytest.fixture(scope="module")
def sound(made: Output) -> dict[str, Any]:
    """What the output says before anything is broken."""
    return said(made.url)


@pytest.fixture
def out(made: Output, tmp_path: Path) -> Path:
    """A copy of it, free to be spoilt."""
    return Path(shutil.copytree(made.folder, tmp_path / "out"))


class Case:
    """An output to be broken: its files, and how many images a break costs."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.url = storage.canonical(str(out))
        self.shard = max(manifest.shards(self.url), key=lambda one: len(self.rows("manifest", one)))

    def file(self, table: str, shard: Shard | None = None) -> Path:
        """Return the file of a table for one shard."""
        shard = shard or self.shard
        return next((self.out / table).rglob(f"dt={shard.dt}/{shard.name}.*"))

    def rows(self, table: str, shard: Shard | None = None) -> pa.Table:
        """Return the rows of that file."""
        return tables.read(str(self.file(table, shard)))

    @property
    def images(self) -> int:
        """How many images the shard holds."""
        return int(self.rows("manifest").num_rows)

    @property
    def with_rejects(self) -> Path:
        """Return a file of rejects."""
        return next((self.out / "rejects").rglob("*.parquet"))

    def rewrite(self, path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
        """Write other rows, and leave the footer."""
        outputs.rewrite(path, change(tables.read(str(path))))

    def edit(self, path: Path, **values: object) -> None:
        """Change the first row of a file."""

        def change(rows: pa.Table) -> pa.Table:
            changed = rows.to_pylist()
            changed[0] |= values
            return pa.Table.from_pylist(changed, schema=rows.schema)

        self.rewrite(path, change)

    def sign(self, path: Path, **values: str | None) -> None:
        """Change keys of a footer."""
        rows = tables.read(str(path))
        footer = tables.metadata(rows) | {k: v for k, v in values.items() if v is not None}
        for name in [name for name, value in values.items() if value is None]:
            footer.pop(name)
        path.write_bytes(tables.to_bytes(rows, footer))

    def listing(self) -> Path:
        """Return the list that `_latest.json` names."""
        named = json.loads((self.out / "_latest.json").read_text())
        return Path(self.out / named["manifest"])


def cut(path: Path) -> None:
    """Take the end of a file away."""
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path, at: int) -> None:
    """Change one bit."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(bytes(data))


def garble(path: Path) -> None:
    """Make of the footer what is no UTF-8."""
    data = path.read_bytes()
    at = data.rindex(b"git_commit")
    path.write_bytes(data[: at + 2] + b"\xce" + data[at + 3 :])


def drop(rows: pa.Table) -> pa.Table:
    """Lose one image."""
    return rows.filter(pc.not_equal(rows["image_id"], rows["image_id"][0]))


def twice(rows: pa.Table) -> pa.Table:
    """Have one row twice."""
    return pa.concat_tables([rows, rows.slice(0, 1)])


def without(table: str, case: Case) -> None:
    """Lose a column of a table."""
    case.rewrite(case.file(table), lambda rows: rows.drop_columns(["extra_json"]))


def strange(case: Case) -> None:
    """Add a row of an image that nobody knows."""
    path = case.file("captions")
    rows = case.rows("captions").to_pylist()
    rows.append({**rows[0], "image_id": "0" * 32})
    case.rewrite(path, lambda old: pa.Table.from_pylist(rows, schema=old.schema))


def moved(case: Case) -> None:
    """Copy a manifest to another shard."""
    path = case.file("manifest")
    shutil.copy(path, path.with_stem("copied"))


def doubled(case: Case) -> None:
    """Have a whole second shard of the same images, as two runs at once may leave it."""
    path, tar = case.file("manifest"), case.file("shards")
    case.rewrite(path, lambda rows: rows)
    table = case.rows("manifest")
    at = table.schema.get_field_index("shard")
    other = table.set_column(at, table.schema.field(at), pa.array(["f" * 16] * table.num_rows))
    shutil.copy(tar, tar.with_stem("f" * 16))
    path.with_stem("f" * 16).write_bytes(tables.to_bytes(other, tables.metadata(table)))


def clash(case: Case) -> None:
    """Have an image live and rejected."""
    live = case.rows("manifest").to_pylist()[0]
    case.edit(case.with_rejects, image_id=live["image_id"], source_uri=live["source_uri"])


def break_header(case: Case) -> None:
    """Spoil the header of the first image in the tar."""
    flip(case.file("shards"), case.rows("manifest")["member_offset"][0].as_py() - 500)


def break_image(case: Case) -> None:
    """Spoil the bytes of the first image in the tar."""
    flip(case.file("shards"), case.rows("manifest")["member_offset"][0].as_py() + 20)


def halve_tar(case: Case) -> None:
    """Keep the first image of a tar only, and half of the second."""
    rows = case.rows("manifest")
    starts = sorted(rows["member_offset"].to_pylist())
    tar = case.file("shards")
    tar.write_bytes(tar.read_bytes()[: starts[1] + 10])


def lost_list(case: Case, text: str) -> None:
    """Spoil the newest list."""
    case.listing().write_text(text)


Break = Callable[[Case], object]
Passes = Callable[[Case], int]
ALL: Passes = lambda case: case.images  # noqa: E731
ONE: Passes = lambda _: 1  # noqa: E731
NONE: Passes = lambda _: 0  # noqa: E731

BREAKS: dict[str, tuple[Break, str, Passes, Mode]] = {
    # an object of a table cannot be read
    "cut manifest": (lambda c: cut(c.file("manifest")), "unreadable", ALL, "fast"),
    "cut embeddings": (lambda c: cut(c.file("embeddings")), "unreadable", ALL, "fast"),
    "cut captions": (lambda c: cut(c.file("captions")), "unreadable", NONE, "fast"),
    "cut labels": (lambda c: cut(c.file("labels")), "unreadable", NONE, "fast"),
    "cut rejects": (lambda c: cut(c.with_rejects), "unreadable", NONE, "fast"),
    "cut run": (lambda c: cut(next((c.out / "runs").rglob("*.parquet"))), "unreadable", NONE,
                "fast"),
    "cut shard_runs": (lambda c: cut(next((c.out / "shard_runs").rglob("*.parquet"))),
                       "unreadable", NONE, "fast"),
    "empty embeddings": (lambda c: c.file("embeddings").write_bytes(b""), "unreadable", ALL,
                         "fast"),
    "a bit of a page": (lambda c: flip(c.file("embeddings"), 200), "unreadable", ALL, "fast"),
    # schema
    **{
        f"lost column of {name}": (
            partial(without, name), "schema", NONE, "fast")
        for name in ("manifest", "captions", "labels", "embeddings")
    },
    "column too many": (lambda c: c.rewrite(c.file("captions"), lambda rows: rows.append_column(
        "dt", pa.nulls(rows.num_rows, pa.string()))), "schema", NONE, "fast"),
    "lost embedding column": (lambda c: c.rewrite(
        c.file("embeddings"), lambda rows: rows.drop_columns(["embedding"])), "schema", ALL,
        "fast"),
    "lost column of runs": (lambda c: c.rewrite(
        next((c.out / "runs").rglob("*.parquet")), lambda rows: rows.drop_columns(["host"])),
        "schema", NONE, "fast"),
    # footers
    "footer without members": (lambda c: c.sign(c.file("embeddings"), members=None), "footer",
                               ALL, "fast"),
    "another fingerprint": (lambda c: c.sign(c.file("captions"), fingerprint="0" * 64),
                            "fingerprint", NONE, "fast"),
    "manifest of another fingerprint": (
        lambda c: c.sign(c.file("manifest"), fingerprint="0" * 64), "fingerprint", NONE, "fast"),
    "a footer that is no text": (lambda c: garble(c.file("captions")), "unreadable", NONE, "fast"),
    "manifest without source": (lambda c: c.sign(c.file("manifest"), source=None), "footer", ALL,
                                "fast"),
    # rows against the manifest
    "row missing in embeddings": (lambda c: c.rewrite(c.file("embeddings"), drop), "missing", ONE,
                                  "fast"),
    "row missing in captions": (lambda c: c.rewrite(c.file("captions"), drop), "missing", NONE,
                                "fast"),
    "row missing in labels": (lambda c: c.rewrite(c.file("labels"), drop), "missing", NONE,
                              "fast"),
    "row missing in manifest": (lambda c: c.rewrite(c.file("manifest"), drop), "members", ONE,
                                "fast"),
    "row twice in embeddings": (lambda c: c.rewrite(c.file("embeddings"), twice), "duplicate",
                                NONE, "fast"),
    "row twice in captions": (lambda c: c.rewrite(c.file("captions"), twice), "duplicate", NONE,
                              "fast"),
    "row twice in labels": (lambda c: c.rewrite(c.file("labels"), twice), "duplicate", NONE,
                            "fast"),
    "row twice in manifest": (lambda c: c.rewrite(c.file("manifest"), twice), "duplicate", NONE,
                              "fast"),
    "row twice in rejects": (lambda c: c.rewrite(c.with_rejects, twice), "duplicate", NONE,
                             "fast"),
    "row of nobody": (strange, "orphan", NONE, "fast"),
    # values
    "not a unit vector": (lambda c: c.edit(c.file("embeddings"), embedding=[0.5] * 16), "content",
                          ONE, "fast"),
    "no length": (lambda c: c.edit(c.file("embeddings"), embedding_norm=0.0), "content", ONE,
                  "fast"),
    "model of another folder": (lambda c: c.edit(c.file("embeddings"), model_id="other"),
                                "content", ONE, "fast"),
    "status outside the list": (lambda c: c.edit(c.file("captions"), status="maybe"), "content",
                                NONE, "fast"),
    "no caption": (lambda c: c.edit(c.file("captions"), caption=None), "content", NONE, "fast"),
    "score over 1": (lambda c: c.edit(c.file("labels"), score=1.5), "content", NONE, "fast"),
    "id of another": (lambda c: c.edit(c.file("manifest"), image_id="0" * 32), "content", ONE,
                      "fast"),
    "key with a dot": (lambda c: c.edit(c.file("manifest"), key="a.b"), "content", ONE, "fast"),
    "strange flag": (lambda c: c.edit(c.file("manifest"), flags=["odd"]), "content", ONE, "fast"),
    "reason outside the list": (lambda c: c.edit(c.with_rejects, reason="bad_mood"), "content",
                                NONE, "fast"),
    "wrong retryable": (lambda c: c.edit(c.with_rejects, retryable=True), "content", NONE,
                        "fast"),
    "run that loses images": (lambda c: c.edit(next((c.out / "runs").rglob("*.parquet")),
                                               listed=999), "content", NONE, "fast"),
    # the same image in two places
    "copied manifest": (moved, "duplicate", NONE, "fast"),
    "second shard": (doubled, "duplicate", NONE, "fast"),
    "live and rejected": (clash, "duplicate", NONE, "fast"),
    # tars
    "no tar": (lambda c: c.file("shards").unlink(), "missing", ALL, "fast"),
    "half a tar": (halve_tar, "tar", lambda c: c.images - 1, "fast"),
    "tar without its end": (
        lambda c: c.file("shards").write_bytes(c.file("shards").read_bytes()[:-1024]),
        "tar", NONE, "full"),
    "a bit of an image": (break_image, "tar", ONE, "full"),
    "a bit of a header": (break_header, "tar", NONE, "full"),
    "a tar of noise": (lambda c: c.file("shards").write_bytes(b"x" * 99), "tar", ALL, "fast"),
    # what is of no image
    "lost manifest": (lambda c: c.file("manifest").unlink(), "orphan", ALL, "fast"),
    "lost embeddings": (lambda c: c.file("embeddings").unlink(), "published", ALL, "fast"),
    "lost captions": (lambda c: c.file("captions").unlink(), "published", NONE, "fast"),
    "lost rejects": (lambda c: c.with_rejects.unlink(), "published", NONE, "fast"),
    "stray file": (lambda c: shutil.copy(c.file("captions"), c.out / "captions" / "x.parquet"),
                   "unknown", NONE, "fast"),
    # what a run leaves at its end
    "no latest": (lambda c: (c.out / "_latest.json").unlink(), "unpublished", NONE, "fast"),
    "broken latest": (lambda c: (c.out / "_latest.json").write_text("{"), "unreadable", NONE,
                      "fast"),
    "no list": (lambda c: c.listing().unlink(), "missing", NONE, "fast"),
    "broken list": (lambda c: lost_list(c, '{"objects": [{"urk": 1}]}'), "unreadable", NONE,
                    "fast"),
    "no _SUCCESS": (lambda c: (c.out / "_SUCCESS").unlink(), "unpublished", NONE, "fast"),
    "no README": (lambda c: (c.out / "README.md").unlink(), "missing", NONE, "fast"),
    "no contract": (lambda c: (c.out / "contract.json").write_text("[]"), "unreadable", NONE,
                    "fast"),
    "an older contract.json": (lambda c: (c.out / "contract.json").write_text('{"contract": 0}'),
                               "content", NONE, "fast"),
    "broken label embeddings": (lambda c: cut(next((c.out / "_labelsets").rglob("*.parquet"))),
                                "unreadable", NONE, "fast"),
}  # fmt: skip


@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_output_becomes_what_it_was(
    made: Output, sound: dict[str, Any], out: Path, name: str
) -> None:
    spoil, kind, passes, mode = BREAKS[name]
    case = Case(out)
    most, seen = passes(case), first_seen(case.url)
    spoil(case)
    found = verify.verify(case.url, mode=mode)
    assert kind in {one.kind for one in found.problems}

    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    planned = verify.repair(found, apply=False)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    assert sorted(verify.repair(found, apply=True)) == sorted(planned)
    again = verify.verify(case.url, mode=mode)
    assert verify.repair(again, apply=False) == ()

    done, _ = night(made.source, out, made.tiny, dt="2026-11-21")
    assert said(case.url) == sound
    assert sum(one.computed for one in done.of("embed")) == most
    after = verify.verify(case.url, mode="full")
    assert [one for one in after.problems if one.kind != "orphan"] == []
    if kind in ("tar", "missing") and name != "no list":
        assert first_seen(case.url) == seen


def test_nothing_is_written_where_nothing_is_broken(made: Output) -> None:
    with (
        patch.object(storage, "write", side_effect=AssertionError("wrote")),
        patch.object(storage, "delete", side_effect=AssertionError("deleted")),
    ):
        assert verify.repair(verify.verify(made.url, mode="full"), apply=True) == ()


def test_what_cannot_be_made_anew_is_kept_where_nobody_reads_it(out: Path) -> None:
    case = Case(out)
    stray, run = out / "captions" / "x.parquet", next((out / "runs").rglob("*.parquet"))
    stray.write_bytes(b"mine")
    cut(run)
    verify.repair(verify.verify(case.url), apply=True)
    assert (out / "_set_aside" / "captions" / "x.parquet").read_bytes() == b"mine"
    assert (out / "_set_aside" / run.relative_to(out)).is_file()
    assert not stray.exists()
    assert not run.exists()


def test_a_table_of_another_model_does_not_say_that_it_is_whole(
    made: Output, out: Path, tmp_path: Path
) -> None:
    """A night brings it to the live images, but cannot make the row that was lost."""
    case = Case(out)
    old = case.file("captions")
    folder = out / "captions" / "captioner=older"
    other = folder / old.relative_to(next((out / "captions").glob("captioner=*")))
    other.parent.mkdir(parents=True)

    def of_older(rows: pa.Table) -> pa.Table:
        at = rows.schema.get_field_index("captioner_id")
        column = pa.array(["older"] * rows.num_rows)
        return drop(rows.set_column(at, rows.schema.field(at), column))

    other.write_bytes(old.read_bytes())
    case.rewrite(other, of_older)
    verify.repair(verify.verify(case.url), apply=True)
    for dt in ("2026-11-21", "2026-11-22"):
        before = other.stat().st_mtime_ns if dt == "2026-11-22" else None
        night(made.source, out, made.tiny, dt=dt)
        rows = tables.read(str(other))
        assert rows.num_rows == case.images - 1
        assert tables.metadata(rows)["members"] != manifest.members(case.rows("manifest"))
        assert before in (None, other.stat().st_mtime_ns)


class Killed(BaseException):
    """Stands for SIGKILL."""


def test_a_repair_that_was_killed_is_repaired_by_another(
    made: Output, sound: dict[str, Any], out: Path
) -> None:
    """However often it dies, at each of its writes: in the end everything is as it was."""
    case = Case(out)
    for name in ("cut embeddings", "row missing in captions", "half a tar", "second shard",
                 "cut rejects", "cut run", "broken latest", "no README"):  # fmt: skip
        BREAKS[name][0](case)
    real = {name: getattr(storage, name) for name in ("write", "delete")}
    for number in range(40):
        left = [1 + number % 3]

        def dying(
            name: str, *args: object, left: list[int] = left, after: int = number % 2
        ) -> None:
            left[0] -= 1
            if left[0] == 0 and not after:
                raise Killed
            real[name](*args)
            if left[0] == 0:
                raise Killed

        with (
            patch.object(storage, "write", lambda *args: dying("write", *args)),
            patch.object(storage, "delete", lambda *args: dying("delete", *args)),
        ):
            try:
                verify.repair(verify.verify(case.url), apply=True)
            except Killed:
                continue
        break
    else:
        pytest.fail("it never came to its end")
    night(made.source, out, made.tiny, dt="2026-11-21")
    assert said(case.url) == sound
    assert verify.verify(case.url, mode="full").errors == ()


NOISE = ("remove", "cut", "flip", "empty")


@pytest.mark.parametrize("seed", range(int(os.environ.get("CLIPCAP_REPAIRS", "10"))))
def test_whatever_half_of_an_output_is_left_becomes_what_it_was(
    made: Output, sound: dict[str, Any], out: Path, seed: int
) -> None:
    """Objects removed, cut, emptied or with a flipped bit: nothing wrong is left, nothing lost."""
    rng = random.Random(seed)
    case = Case(out)
    share = rng.choice((0.05, 0.5, 0.9))
    files = sorted(path for path in out.rglob("*") if path.is_file())
    for path in files:
        if rng.random() < share:
            _spoil(path, rng, rng.choice(NOISE if seed % 3 else ("remove",)))
    _require_mended(case, made, sound)


@pytest.mark.parametrize(
    "gone",
    ["manifest", "shards", "embeddings", "captions", "labels", "rejects", "runs", "_manifests",
     "_latest.json", "_SUCCESS", "contract.json"],
)  # fmt: skip
def test_a_whole_table_that_is_gone_comes_back(
    made: Output, sound: dict[str, Any], out: Path, gone: str
) -> None:
    path = out / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    _require_mended(Case(out) if gone not in ("manifest",) else None, made, sound, out)


def _spoil(path: Path, rng: random.Random, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "remove":
        path.unlink()
    elif how == "empty" or not data:
        path.write_bytes(b"")
    elif how == "cut":
        path.write_bytes(data[: rng.randrange(len(data))])
    else:
        at = rng.randrange(len(data))
        data[at] ^= 1 << rng.randrange(8)
        path.write_bytes(bytes(data))


def _require_mended(
    case: Case | None, made: Output, sound: dict[str, Any], out: Path | None = None
) -> None:
    folder = case.out if case else out
    assert folder is not None
    url = storage.canonical(str(folder))
    with suppress(NotFoundError):  # nothing of it is left
        verify.repair(verify.verify(url, mode="full"), apply=True)
    night(made.source, folder, made.tiny, dt="2026-11-21")
    assert said(url) == sound
    left = verify.verify(url, mode="full")
    assert [one for one in left.problems if one.kind != "orphan"] == []


def test_an_image_that_changed_in_a_tar_of_the_source_is_read_again(tmp_path: Path) -> None:
    """Its bytes are others, but the tar's version is not: no listing would have shown it."""
    source, out = tmp_path / "in", storage.canonical(f"{tmp_path}/out")
    source.mkdir()
    files = [(name[:3], "png", picture(n + 1)) for n, name in enumerate(NAMES[:4])]
    tar = source / "a.tar"
    tar.write_bytes(shards.pack(files)[0])
    settings = ShardSettings(kind="tars")
    shard_night(str(source), out, settings)
    (shard,) = manifest.shards(out)
    row = tables.read(layout.manifest(out, shard)).to_pylist()[1]
    seen, status = first_seen(out), tar.stat()
    data = bytearray(tar.read_bytes())
    start = row["member_offset"]
    other = picture(40)
    data[start : start + row["member_bytes"]] = other.ljust(row["member_bytes"], b"\0")
    tar.write_bytes(bytes(data))
    os.utime(tar, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert verify.verify(out).ok
    found = verify.verify(out, mode="full")
    (mending,) = (
        one for one in verify.repair(found, apply=True) if one.place.startswith("manifest/")
    )
    assert "read again" in mending.why
    plan = shard_night(str(source), out, settings, dt="2026-11-21")
    assert (plan.changed, plan.unchanged) == (1, 3)
    assert verify.verify(out, mode="full").errors == ()
    assert first_seen(out) == seen


def test_a_tar_with_damage_between_its_images_keeps_them_where_they_are() -> None:
    """Sidecars that cannot be read become one member that `webdataset` skips."""
    files = [("ant", "png", picture(1)), ("ant", "txt", b"an ant"), ("bee", "png", picture(2))]
    data, members = shards.pack(files)
    rows = [
        {
            "image_id": one.name,
            "member": one.name,
            "member_offset": one.offset,
            "member_bytes": one.length,
            "content_sha256": hashlib.sha256(content).hexdigest(),
        }
        for one in (members[0], members[2])
        for content in [data[one.offset : one.offset + one.length]]
    ]
    spoilt = bytearray(data)
    spoilt[members[1].offset - 512] ^= 1
    whole, lost = tarmending.mended(bytes(spoilt), rows)
    assert lost == set()
    names = [one.name for one in shards.members(whole)]
    assert names == ["ant.png", tarmending.LOST, "bee.png"]
    assert len(whole) == len(data)
    assert tarmending.mended(whole, rows) == (whole, set())
    assert tarmending.mended(data, rows)[0] is data


def test_the_command_says_what_it_would_do_and_does_it_when_asked(out: Path) -> None:
    case = Case(out)
    assert clipcap("verify", out).code == 0
    cut(case.file("embeddings"))
    would = clipcap("verify", out)
    assert would.code == 1
    assert "would: remove embeddings/" in would.out
    assert "--repair" in would.out
    assert case.file("embeddings").is_file()
    told = json.loads(clipcap("verify", out, "--json").out)
    assert (told["repaired"], [one["what"] for one in told["mended"]]) == (False, ["remove"])
    done = clipcap("verify", out, "--repair")
    assert done.code == 0
    assert "done: remove embeddings/" in done.out
    assert f"clipcap run SOURCE {out}" in done.out
    with pytest.raises(StopIteration):
        case.file("embeddings")


def test_a_night_over_a_damaged_output_says_how_it_is_repaired(made: Output, out: Path) -> None:
    cut(Case(out).file("embeddings"))
    with pytest.raises(DamagedError, match="clipcap verify OUT --repair"):
        night(made.source, out, made.tiny, dt="2026-11-21")

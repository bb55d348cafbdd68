"""The main job on a real bucket: photographs and hostile files in, everything accounted for."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import patch

import pytest

from clipcap import storage, verify
from clipcap.encoders import openclip
from clipcap.stages import caption
from flows.nightly import nightly
from flows.settings import NightlySettings
from tests.nights import draw
from tests.servers import S3Address, make_bucket
from tests.tables import glob

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
PEAK_KB = 3 * 1024 * 1024
SETTINGS = NightlySettings(max_reject_rate=1.0)
# A child's `ru_maxrss` counts its parent until `exec`; the kernel's own high-water mark does not.
RUN = """
import pathlib, re, sys
from flows.nightly import nightly
from flows.settings import NightlySettings
nightly.fn(sys.argv[1], sys.argv[2], NightlySettings(max_reject_rate=1.0))
print(re.search("VmHWM: *\\t* *([0-9]+) kB", pathlib.Path("/proc/self/status").read_text())[1])
"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def upload(files: dict[str, bytes]) -> None:
    """Write objects, many at a time."""
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda item: storage.write(*item), files.items()))


def photographs_and_hostile_files(bucket: str) -> dict[str, bytes]:
    """Return URL and bytes of the 80 photographs and the 994 odd, broken and malicious files."""
    photographs = SHARED / "coco_photos" / "images"
    hostile = SHARED / "hostile" / "files"
    if not (photographs.is_dir() and hostile.is_dir()):
        pytest.skip(f"the photographs and hostile files are not in {SHARED}")
    found = {f"{bucket}/coco/{path.name}": path for path in photographs.iterdir()}
    found |= {
        f"{bucket}/hostile/{path.relative_to(hostile).as_posix()}": path
        for path in hostile.rglob("*")
        if path.is_file()
    }
    return {url: path.read_bytes() for url, path in found.items()}


def require_exact(out: str, urls: set[str]) -> None:
    """Check that each object is a live image or a reject, and every table has the live ones."""
    live = glob(out, "manifest")["source_uri"].to_pylist()
    rejects = glob(out, "rejects")["source_uri"].to_pylist()
    assert sorted([*live, *rejects]) == sorted(urls)
    ids = sorted(glob(out, "manifest")["image_id"].to_pylist())
    for name in ("embeddings", "captions"):
        assert sorted(glob(out, name)["image_id"].to_pylist()) == ids
    labels = glob(out, "labels").to_pylist()
    for name in ("scene_places", "scene_things"):
        first = [row["image_id"] for row in labels if row["rank"] == 1 and row["label_set"] == name]
        assert sorted(first) == ids
    assert verify.verify(out).problems == ()


def test_a_bucket_of_photographs_and_hostile_files(
    s3_environment: S3Address, tmp_path: Path
) -> None:
    bucket = make_bucket(s3_environment, f"photos-{tmp_path.parent.name[-8:]}".lower())
    out = make_bucket(s3_environment, f"results-{tmp_path.parent.name[-8:]}".lower())
    objects = photographs_and_hostile_files(bucket)
    upload(objects)

    command = [sys.executable, "-c", RUN, bucket, out]
    done = subprocess.run(command, check=True, timeout=600, stdout=subprocess.PIPE, text=True)
    assert int(done.stdout.splitlines()[-1]) < PEAK_KB
    require_exact(out, set(objects))

    with (
        patch.object(openclip, "load", side_effect=AssertionError("loaded an encoder")),
        patch.object(caption, "load", side_effect=AssertionError("loaded a captioner")),
        patch("clipcap.images.decode", side_effect=AssertionError("decoded an image")),
        patch("clipcap.intake.take_in", side_effect=AssertionError("read an image")),
    ):
        second = nightly.fn(bucket, out, SETTINGS).night.plan
    assert second is not None
    assert (second.new, second.changed, second.deleted, second.unchanged) == (0, 0, 0, len(objects))

    changed = ten_added_five_replaced_three_deleted(bucket, objects, tmp_path)
    third = nightly.fn(bucket, out, SETTINGS).night
    assert third.plan is not None
    counts = (third.plan.new, third.plan.changed, third.plan.deleted)
    assert counts == (10, 5, 3)
    for stage in ("shard", "embed", "caption"):
        assert sum(outcome.computed for outcome in third.outcomes if outcome.stage == stage) == 15
    require_exact(out, set(objects))
    now = {
        row["source_uri"]
        for row in glob(out, "captions").to_pylist()
        if row["run_id"] == third.run.run_id
    }
    assert now == changed


def ten_added_five_replaced_three_deleted(
    bucket: str, objects: dict[str, bytes], folder: Path
) -> set[str]:
    """Change the bucket, and `objects` with it; return what is new or replaced."""
    for n in range(15):
        draw(folder / f"drawing-{n}.png", n)
    photographs = sorted(url for url in objects if "/coco/" in url)
    urls = [f"{bucket}/new/drawing-{n}.png" for n in range(10)] + photographs[:5]
    fresh = {url: (folder / f"drawing-{n}.png").read_bytes() for n, url in enumerate(urls)}
    upload(fresh)
    objects |= fresh
    for url in photographs[5:8]:
        storage.delete(url)
        del objects[url]
    return set(fresh)

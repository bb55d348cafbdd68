"""The page of a report asks nothing of any network, trusts no text and can be read by everybody."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from clipcap import manifest, report, storage
from clipcap.report.rejected import EXAMPLES
from clipcap.stability import Canary, Drift, Measure, Part
from clipcap.thumbnails import thumbnail
from tests import outputs
from tests.outputs import SCRIPT, Output
from tests.pages import Page, render

STILL_LIVE = 10
"""Images of the first night that the later nights left as they were."""


def test_the_page_asks_nothing_of_any_network(made: Output) -> None:
    text = report.render(made.nights[0][0], images=200)
    page = Page(text)
    (policy,) = [
        str(meta["content"])
        for meta in page.all("meta")
        if meta.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy.startswith("default-src 'none'; img-src data:;")
    for _, attributes in page.tags:
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:image/jpeg;base64,", "#")), value
    assert "url(" not in text
    assert "@import" not in text
    assert page.all("link") == page.all("iframe") == []


def test_the_pages_own_script_is_the_only_one_that_may_run(made: Output) -> None:
    text = report.render(made.nights[0][0], images=1)
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = re.search(r"script-src (?:'|&#39;)sha256-([^'&]+)", text)
    assert digest is not None
    assert base64.b64decode(digest[1]) == hashlib.sha256(script.encode()).digest()


def test_no_text_of_others_becomes_html(made: Output, tmp_path: Path) -> None:
    """File names, captions, labels, EXIF, references, errors, parameters: all somebody's text."""
    done = outputs.copied(made, tmp_path / "out").nights[0][0]
    hostile = f"{SCRIPT}\"><img src=x onerror=alert(1)>'"

    def spoil(row: dict[str, Any]) -> None:
        for name in ("source_uri", "caption", "label", "error_message"):
            if name in row:
                row[name] = hostile
        if "exif" in row:
            row["exif"] = json.dumps({"Make": hostile, "Model": hostile})
            row["reference_captions"] = [hostile]
        if "candidates" in row:
            row["candidates"] = [{"text": hostile, "logprob_mean": 0.0, "clip_score": 0.1}] * 2
            row["review_reasons"] = row["review_reasons"] and [hostile]

    for name in ("manifest", "captions", "labels", "rejects"):
        for path in (tmp_path / "out" / name).rglob("*.parquet"):
            outputs.change(path, spoil)
    page_text = report.render(
        replace(done, params_json=json.dumps({"source": hostile}), flow=hostile), images=200
    )
    page = Page(page_text)
    assert page.open == []
    assert len(page.all("script")) == 1
    assert "<script>alert" not in page_text
    assert all(str(image["src"]).startswith("data:") for image in page.all("img"))
    assert not [a for _, attributes in page.tags for a in attributes if a.startswith("on")]
    assert page.text.count(SCRIPT) > 12


def test_thousands_of_rejects_are_counted_and_a_few_are_shown(
    made: Output,
    tmp_path: Path,
) -> None:
    done = outputs.copied(made, tmp_path / "out").nights[0][0]
    target = next(outcome.shard for outcome in done.of("shard") if outcome.rejected)
    row = manifest.read_rejects(done.run.out, target).to_pylist()[0]
    reasons = ("not_an_image", "timeout", "decompression_bomb")
    rows = [
        row | {"source_uri": f"s3://b/{n}.jpg", "reason": reasons[n % 3], "retryable": n % 3 == 1}
        for n in range(6_000)
    ]
    manifest.publish_rejects(rows, target, run=done.run)
    text = report.render(done, images=0)
    page = Page(text)
    assert len(text) < 100_000
    assert re.search(r"not an image 2 00[01] images", page.text)
    assert "timeout 2 000 images, tried again next night" in page.text
    assert page.text.count(f"The first {EXAMPLES}") == 3
    assert page.text.count("s3://b/") <= 3 * EXAMPLES


def test_a_tar_that_is_gone_leaves_a_note_not_a_failure(made: Output, tmp_path: Path) -> None:
    done = outputs.copied(made, tmp_path / "out").nights[0][0]
    shutil.rmtree(tmp_path / "out" / "shards")
    page = render(done)
    assert page.all("img") == []
    assert page.text.count("This image cannot be shown.") == STILL_LIVE


def test_an_output_in_a_bucket_has_a_report_too(made: Output, bucket: str) -> None:
    """Tables are read whole, images by ranges."""
    for path in made.folder.rglob("*.*"):
        if path.is_file():
            storage.write(f"{bucket}/{path.relative_to(made.folder)}", path.read_bytes())
    done = made.nights[0][0]
    outcomes = tuple(
        replace(one, url=one.url.replace(made.url, bucket, 1)) for one in done.outcomes
    )
    page = render(replace(done, run=replace(done.run, out=bucket), outcomes=outcomes))
    assert len(page.all("img")) == STILL_LIVE


def test_a_thumbnail_is_turned_small_and_bare(made: Output) -> None:
    stream = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (4000, 2000), "red").save(
        stream, "JPEG", exif=exif, comment=b"taken at my secret home"
    )
    data = base64.b64decode(thumbnail(stream.getvalue()).partition(",")[2])
    with Image.open(io.BytesIO(data)) as opened:
        assert opened.size == (80, 160)
        assert not opened.getexif()
    assert b"secret" not in data


def test_keyboard_and_screen_reader_find_their_way(made: Output) -> None:
    page = render(made.nights[0][0])
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for link in page.all("a"):
        assert str(link["href"]).removeprefix("#") in ids
    for section in page.all("section"):
        assert section["aria-labelledby"] in ids
    assert all(image["alt"] for image in page.all("img"))
    (box,) = [field for field in page.all("input") if field["type"] == "search"]
    assert box["aria-label"]
    assert page.all("html")[0]["lang"] == "en"


def test_no_label_or_canary_of_others_becomes_html_either(made: Output) -> None:
    hostile = f"{SCRIPT}\"><img src=x onerror=alert(1)>'"
    part = Part(hostile, 0.9, 0.1)
    measure = Measure("label mix", hostile, 1.0, 0.1, "warn", 0.25, parts=(part,))
    canary = Canary(hostile, hostile, hostile, hostile, 0.5, None, "warn", hostile)
    drift = Drift(100, 100, 1, (measure,), (canary,))
    text = report.render(replace(made.nights[0][0], drift=drift), images=0)
    page = Page(text)
    assert page.open == []
    assert SCRIPT not in text
    assert page.all("img") == []
    assert hostile in page.text
    assert "look" in page.text

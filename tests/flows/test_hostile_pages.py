"""Scripts planted where strangers write: names, captions, EXIF, labels; every page is parsed."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt
from PIL import Image

from clipcap import report
from clipcap.stability import Canary, Drift, Measure, Part
from clipcap.stages.label import LabelSettings
from flows._artifacts import summary
from flows.nightly import nightly
from flows.settings import NightlySettings
from tests.command import clipcap
from tests.nights import Tiny, draw
from tests.pages import Page
from tests.settings import nightly_settings

HOSTILE = [
    "<script>alert(1)</script>",
    "\"onerror=alert(1) x='",
    "]]><svg onload=alert(1)>",
    "javascript:alert(1)",
    "<img src=x onerror=alert(1)>",
    "[a](javascript:alert(1)) ![b](http://evil.test/x.png)",
    "`</code><iframe src=//evil.test>`",
    "--> </title></style><base href=//evil.test>",
    "{{ 7 * 7 }}{% raw %}",
    "| a | b |\n|---|---|",
]
SLASH = "\u2215"  # looks like one, and may stand in a name
NAMES = [f"{text.replace('/', SLASH)} {n}.png" for n, text in enumerate(HOSTILE)]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ALLOWED = {"data:image/jpeg;base64,", "#"}


def require_harmless(text: str) -> Page:
    """Check that nothing of what was planted became a tag, an attribute or an address."""
    page = Page(text)
    assert page.open == []
    assert len(page.all("script")) <= 1  # the page's own, which its policy names by digest
    for tag, attributes in page.tags:
        assert tag not in ("iframe", "base", "object", "embed", "form", "link", "foreignobject")
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "xlink:href", "action", "srcset"):
                assert any(str(value).startswith(start) for start in ALLOWED), (tag, value)
    policy = [one for one in page.all("meta") if "http-equiv" in one]
    assert str(policy[0]["content"]).startswith("default-src 'none'")
    return page


def moved(text: str) -> Measure:
    """Return a measure of a label set and of labels with hostile names."""
    return Measure("label mix", text, 0.9, 0.1, "stop", 0.5, 0.9, 0.1, (Part(text, 0.9, 0.1),))


def strayed(text: str) -> Canary:
    """Return a canary image with a hostile name and label."""
    return Canary(text, text, text, text, 0.1, None, "stop", f"{text} is not {text}")


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory, tiny: Tiny) -> tuple[Path, NightlySettings]:
    """A night over images with hostile names, sidecars and EXIF, labelled with hostile labels."""
    folder = tmp_path_factory.mktemp("planted")
    source = folder / "in"
    for n, (name, text) in enumerate(zip(NAMES, HOSTILE, strict=True)):
        draw(source / name, n)
        with Image.open(source / name) as image:
            exif = image.getexif()
            exif[271] = exif[272] = text
            image.save(source / name, exif=exif)
        (source / name).with_suffix(".txt").write_text(text)
    (source / f"{NAMES[0]}.broken.png").write_bytes(b"\x89PNG<script>alert(1)</script>")
    labels = folder / "labels <script>.toml"
    one_line = [text.replace("\n", " ") for text in HOSTILE]
    labels.write_text(f"names = {json.dumps(one_line)}\ntemplates = ['{{}}']\n")
    settings = nightly_settings(
        tiny,
        max_images=20,
        label=LabelSettings(label_sets=(str(labels),)),
        max_reject_rate=1.0,
    )
    nightly.fn(str(source), str(folder / "out"), settings)
    return folder, settings


def test_the_report_of_a_night_holds_all_of_it_as_text(
    planted: tuple[Path, NightlySettings],
) -> None:
    folder, _ = planted
    (file,) = (folder / "out" / "reports").rglob("index.html")
    page = require_harmless(file.read_text())
    for text in HOSTILE[:-1]:
        assert page.text.count(" ".join(text.split())) >= 1, text
    assert HOSTILE[4] in page.text


def test_the_page_of_places_holds_all_of_it_as_text(
    planted: tuple[Path, NightlySettings], tiny: Tiny, tmp_path: Path
) -> None:
    folder, settings = planted
    words = ("--model", tiny.encoder.model, "--label-set", settings.label.label_sets[0])
    page = tmp_path / "page.html"
    ended = clipcap(
        "where", folder / "out", "--to", tmp_path / "to", *words, "--threshold", 0, "--page", page
    )
    assert ended.code == 0, ended.err
    assert HOSTILE[0] in require_harmless(page.read_text()).text


def test_the_page_of_judged_labels_holds_all_of_it_as_text(
    planted: tuple[Path, NightlySettings], tiny: Tiny, tmp_path: Path
) -> None:
    folder, settings = planted
    truth = [
        {"image": name, "label": HOSTILE[n % 5].replace("\n", " ")} for n, name in enumerate(NAMES)
    ]
    (tmp_path / "truth.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in truth))
    page = tmp_path / "page.html"
    ended = clipcap(
        "labels", "evaluate", folder / "out", settings.label.label_sets[0],
        "--truth", tmp_path / "truth.jsonl", "--page", page, "--model", tiny.encoder.model,
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert HOSTILE[0] in require_harmless(page.read_text()).text


def test_the_page_of_judged_captions_holds_all_of_it_as_text(
    planted: tuple[Path, NightlySettings], tmp_path: Path
) -> None:
    """The sidecars are its references."""
    page = tmp_path / "page.html"
    ended = clipcap("evaluate", planted[0] / "out", "--page", page)
    assert ended.code == 0, ended.err
    assert HOSTILE[0] in require_harmless(page.read_text()).text


def test_no_artifact_of_prefect_shows_any_of_it_as_markdown(
    planted: tuple[Path, NightlySettings],
) -> None:
    """Whatever its pages make of HTML in Markdown: there is none."""
    folder, settings = planted
    finished = nightly.fn(str(folder / "in"), str(folder / "out"), settings)
    night = finished.night
    assert finished.published is not None
    for text in HOSTILE:
        drift = Drift(measures=(moved(text),), canaries=(strayed(text),))
        out = f"s3://bucket/{text}"
        told = replace(night, run=replace(night.run, out=out), drift=drift)
        published = replace(finished.published, report_url=f"{out}/report.html")
        markdown = summary(told, published)
        assert "canary" in markdown
        html = MarkdownIt("commonmark", {"html": True}).enable("table").render(markdown)
        page = Page(html)
        known = {"h1", "p", "code", "ul", "li", "a", "em", "strong"}
        assert {tag for tag, _ in page.tags} <= known, html
        (link,) = page.all("a")
        assert str(link["href"]).startswith("s3://bucket/")
        assert page.text.count(" ".join(text.split())) >= 4, html


def test_what_moved_is_told_on_the_report_as_text(planted: tuple[Path, NightlySettings]) -> None:
    folder, settings = planted
    night = nightly.fn(str(folder / "in"), str(folder / "out"), settings).night
    measures = tuple(moved(text) for text in HOSTILE)
    canaries = tuple(strayed(text) for text in HOSTILE)
    drift = Drift(images=9, before=9, nights=2, measures=measures, canaries=canaries)
    page = require_harmless(report.render(replace(night, drift=drift), images=10))
    for text in HOSTILE:
        assert " ".join(text.split()) in page.text


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")
def test_a_browser_runs_none_of_it(planted: tuple[Path, NightlySettings], tmp_path: Path) -> None:
    """A script that ran would change the page before the browser writes it down."""
    file = min((planted[0] / "out" / "reports").rglob("index.html"))
    loud = file.read_text().replace("alert(1)", "document.title=String(7*191)")
    page = tmp_path / "page.html"
    page.write_text(loud)
    assert "document.title" in loud
    browser: list[Any] = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    run = subprocess.run(
        [*browser, f"--user-data-dir={tmp_path}/profile", f"file://{page}"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert "</html>" in run.stdout, run.stderr[-500:]
    assert "1337" not in run.stdout.partition("</title>")[0]
    assert "<title>" in run.stdout

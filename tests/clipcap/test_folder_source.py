"""What a folder or bucket promises: every file once, and with it what people wrote beside it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from clipcap import storage
from clipcap.errors import NotFoundError, SettingsError
from clipcap.sample import Sample
from clipcap.sources import folder


def listed(url: Path | str, **chosen: str | bool) -> list[Sample]:
    return list(folder.samples(folder.Settings.model_validate({"url": str(url), **chosen})))


COCO = {
    "images": [{"id": 7, "file_name": "a.jpg"}, {"id": 8, "file_name": "x/b c.jpg"}],
    "annotations": [
        {"image_id": 7, "caption": " one "},
        {"image_id": 8, "caption": "three"},
        {"image_id": 7, "caption": "two"},
        {"image_id": 7, "caption": " "},
    ],
}


def laid_out(place: Path, *names: str) -> Path:
    for name in names:
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"content of {name}")
    return place


def names(found: list[Sample], place: Path | str) -> list[str]:
    return [storage.name_below(one.source_uri, storage.canonical(str(place))) for one in found]


def beside(found: list[Sample], place: Path) -> dict[str, list[str]]:
    """Return the sidecars of each image, by name."""
    at = storage.canonical(str(place))
    return {
        storage.name_below(one.source_uri, at): [
            storage.name_below(sidecar.at.url, at) for sidecar in one.sidecars
        ]
        for one in found
    }


class TestFiles:
    """Which files are looked at."""

    def test_every_file_is_a_sample_whatever_its_name(self, tmp_path: Path) -> None:
        """Content decides what is an image; what is none becomes a reject, not passed over."""
        laid_out(tmp_path, "a.jpg", "b", "c.mp4", "deep/er/ü 1#.JPEG", "notes.txt", "data.json")
        assert names(listed(tmp_path), tmp_path) == [
            "a.jpg", "b", "c.mp4", "data.json", "deep/er/ü 1#.JPEG", "notes.txt",
        ]  # fmt: skip

    def test_hidden_ones_are_not_looked_at(self, tmp_path: Path) -> None:
        laid_out(tmp_path, ".DS_Store", ".thumbnails/a.jpg", "a.jpg", "x/.b.jpg")
        assert names(listed(tmp_path), tmp_path) == ["a.jpg"]

    @pytest.mark.parametrize(
        ("glob", "expected"),
        [
            ("*.jpg", ["2025/a.jpg", "2026/b.jpg", "2026/in/c.jpg"]),
            ("2026/*", ["2026/b.jpg", "2026/in/c.jpg", "2026/in/d.png"]),
            ("2026/*.jpg", ["2026/b.jpg", "2026/in/c.jpg"]),
            ("*/?.p[np]g", ["2026/in/d.png"]),
        ],
    )
    def test_a_pattern_chooses(self, tmp_path: Path, glob: str, expected: list[str]) -> None:
        laid_out(tmp_path, "2025/a.jpg", "2026/b.jpg", "2026/in/c.jpg", "2026/in/d.png")
        assert names(listed(tmp_path, glob=glob), tmp_path) == expected

    def test_the_output_inside_the_source_is_left_out(self, tmp_path: Path) -> None:
        laid_out(tmp_path, "a.jpg", "out/shards/s.tar", "outside/b.jpg")
        found = listed(tmp_path, leave_out=f"{tmp_path}/out/")
        assert names(found, tmp_path) == ["a.jpg", "outside/b.jpg"]

    def test_one_file_is_a_source_too(self, tmp_path: Path) -> None:
        laid_out(tmp_path, "a.jpg", "b.jpg")
        found = listed(tmp_path / "a.jpg")
        assert [one.source_uri for one in found] == [storage.canonical(f"{tmp_path}/a.jpg")]

    def test_a_folder_that_is_not_there_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(NotFoundError, match="it is not there"):
            listed(tmp_path / "nowhere")


class TestSidecars:
    """Files of text beside an image ride with it."""

    def test_they_are_found_by_either_name(self, tmp_path: Path) -> None:
        laid_out(
            tmp_path, "a.jpg", "a.txt", "b.jpg", "b.jpg.txt", "c.jpg", "c.TXT", "d.jpg", "d.json",
            "d.jpg.txt", "e.jpg", "f", "f.txt",
        )  # fmt: skip
        assert beside(listed(tmp_path), tmp_path) == {
            "a.jpg": ["a.txt"],
            "b.jpg": ["b.jpg.txt"],
            "c.jpg": ["c.TXT"],
            "d.jpg": ["d.jpg.txt", "d.json"],
            "e.jpg": [],
            "f": ["f.txt"],
        }

    def test_the_fuller_name_is_the_nearer(self, tmp_path: Path) -> None:
        laid_out(tmp_path, "a.jpg", "a.png", "a.txt", "a.png.txt")
        assert beside(listed(tmp_path), tmp_path) == {"a.jpg": ["a.txt"], "a.png": ["a.png.txt"]}

    def test_those_of_another_folder_are_not_ours(self, tmp_path: Path) -> None:
        laid_out(tmp_path, "x/a.jpg", "y/a.txt", "a.txt")
        assert beside(listed(tmp_path), tmp_path) == {"a.txt": [], "x/a.jpg": [], "y/a.txt": []}

    def test_a_pattern_for_images_keeps_their_sidecars(self, tmp_path: Path) -> None:
        """`--glob '*.jpg'` once lost every caption, because `a.txt` does not match it."""
        laid_out(tmp_path, "a.jpg", "a.txt", "b.png", "b.txt")
        assert beside(listed(tmp_path, glob="*.jpg"), tmp_path) == {"a.jpg": ["a.txt"]}

    def test_what_the_project_wrote_is_no_caption_by_a_person(self, tmp_path: Path) -> None:
        laid_out(tmp_path, "a.jpg", "a.jpg.clipcap.txt", "a.jpg.clipcap.json")
        assert beside(listed(tmp_path), tmp_path) == {"a.jpg": []}

    def test_without_them_they_are_files_like_others(self, tmp_path: Path) -> None:
        laid_out(tmp_path, "a.jpg", "a.txt")
        assert beside(listed(tmp_path, sidecars=False), tmp_path) == {"a.jpg": [], "a.txt": []}

    def test_a_changed_one_makes_its_image_a_new_version(self, tmp_path: Path) -> None:
        laid_out(tmp_path, "a.jpg", "a.txt", "b.jpg")
        before = listed(tmp_path)
        (tmp_path / "a.txt").write_text("another caption")
        after = listed(tmp_path)
        assert [x.etag == y.etag for x, y in zip(before, after, strict=True)] == [False, True]


class TestCaptions:
    """One file of captions for all images."""

    @pytest.mark.parametrize(
        "content",
        [
            COCO,
            {"a.jpg": ["one", "two"], "b c.jpg": "three"},
            {"captions": {"a.jpg": ["one ", "", "two"], "x/b c.jpg": ["three"]}, "objects": {}},
        ],
    )
    def test_they_are_found_by_path_or_name(
        self, tmp_path: Path, content: dict[str, object]
    ) -> None:
        laid_out(tmp_path, "a.jpg", "x/b c.jpg", "x/d.jpg")
        (tmp_path / "all.json").write_text(json.dumps(content))
        found = listed(tmp_path, captions=f"{tmp_path}/all.json")
        assert names(found, tmp_path) == ["a.jpg", "x/b c.jpg", "x/d.jpg"]
        assert [one.captions for one in found] == [("one", "two"), ("three",), ()]

    @pytest.mark.parametrize(
        "told",
        [
            {**COCO, "annotations": [{"image_id": 7, "caption": text} for text in (None, 1, "a")]},
            {"a.jpg": [None, {"raw": "b"}, "a", ["c"]]},
        ],
    )
    def test_only_text_is_a_caption(self, tmp_path: Path, told: dict[str, object]) -> None:
        laid_out(tmp_path, "a.jpg")
        (tmp_path / "told.json").write_text(json.dumps(told))
        [sample] = listed(tmp_path, captions=str(tmp_path / "told.json"))
        assert sample.captions == ("a",)

    @pytest.mark.parametrize("told", ["[" * 200_000, "{", "[]", "5", '{"a.jpg": 5}'])
    def test_a_captions_file_of_another_form_is_refused(self, tmp_path: Path, told: str) -> None:
        laid_out(tmp_path, "a.jpg")
        (tmp_path / "told.json").write_text(told)
        with pytest.raises(SettingsError, match=r"captions file .*told\.json must be"):
            listed(tmp_path, captions=str(tmp_path / "told.json"))

    def test_other_captions_are_another_version_of_their_image(self, tmp_path: Path) -> None:
        laid_out(tmp_path, "a.jpg", "b.jpg")
        etags = []
        for text in ("one", "two"):
            (tmp_path / "all.json").write_text(json.dumps({"a.jpg": [text], "b.jpg": ["same"]}))
            etags.append([one.etag for one in listed(tmp_path, captions=f"{tmp_path}/all.json")])
        assert [x == y for x, y in zip(*etags, strict=True)] == [False, True]

    @pytest.mark.parametrize(
        "content",
        ["{broken", "[]", "3", "null", '{"annotations": [{"image_id": 1, "caption": "x"}]}',
         '{"images": [], "annotations": [{"image_id": 1, "caption": "x"}]}', '{"a.jpg": 3}'],
    )  # fmt: skip
    def test_a_file_of_another_form_is_refused(self, tmp_path: Path, content: str) -> None:
        laid_out(tmp_path, "a.jpg")
        (tmp_path / "all.json").write_text(content)
        with pytest.raises(SettingsError, match=r"all\.json must be"):
            listed(tmp_path, captions=f"{tmp_path}/all.json")


@pytest.mark.s3
def test_a_bucket_is_a_folder(bucket: str) -> None:
    for name in ("x/ü 1#.jpg", "x/ü 1#.txt", "x/.hidden", "y/a.jpg"):
        storage.write(f"{bucket}/{name}", b"content")
    (found,) = listed(f"{bucket}/x/")
    info = storage.info(f"{bucket}/x/ü 1#.jpg")
    assert info is not None
    assert found.source_uri == f"{bucket}/x/ü 1#.jpg"
    assert found.etag.startswith(f"{info.etag}+txt=")
    assert found.size_bytes == 7
    assert [sidecar.at.url for sidecar in found.sidecars] == [f"{bucket}/x/ü 1#.txt"]
    assert names(listed(bucket, glob="y/*"), bucket) == ["y/a.jpg"]

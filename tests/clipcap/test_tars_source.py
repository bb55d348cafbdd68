"""What existing WebDataset tars promise: each image is one byte range, and no tar is half read."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipcap import containers, objects, shards, storage
from clipcap.errors import NotFoundError, SettingsError, StorageError
from clipcap.sample import Sample
from clipcap.sources import tars
from tests.pictures import picture
from tests.web import serving

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
LONG = "d/" * 70 + "n" * 60  # too long for a header of any form
Files = dict[str, bytes]


def listed(url: Path | str, leave_out: str = "") -> list[Sample]:
    return list(tars.samples(tars.Settings(url=str(url), leave_out=leave_out)))


def tar_of(files: Files, form: int = tarfile.PAX_FORMAT, kind: bytes = tarfile.REGTYPE) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form) as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.type, entry.mtime = len(data), kind, 1_700_000_000
            archive.addfile(entry, io.BytesIO(data))
    return stream.getvalue()


def written(folder: Path, data: bytes, name: str = "a.tar") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def read(sample: Sample) -> bytes:
    return storage.read_range(sample.at.url, sample.at.offset, sample.at.length)


def members(found: list[Sample]) -> list[str]:
    return [sample.source_uri.partition("#")[2] for sample in found]


def refused(path: Path, caplog: pytest.LogCaptureFixture) -> str:
    """Return why a tar is refused, after a look at what is listed in its place."""
    caplog.clear()
    (only,) = listed(path)
    assert only.source_uri == storage.canonical(str(path))
    assert only.size_bytes <= 2, "a broken tar may be larger than memory"
    assert len(read(only)) == only.size_bytes
    assert len(caplog.messages) == 1
    return caplog.messages[0]


class TestMembers:
    """Offsets, names and headers of every form."""

    @pytest.mark.parametrize("form", FORMATS)
    def test_every_image_is_a_byte_range(self, tmp_path: Path, form: str) -> None:
        files = {f"in/{number}.png": picture(number) for number in range(5)} | {"b.jpg": b""}
        found = listed(written(tmp_path, tar_of(files, FORMATS[form])))
        assert dict(zip(members(found), map(read, found), strict=True)) == files
        assert [sample.size_bytes for sample in found] == [
            len(files[name]) for name in members(found)
        ]

    @pytest.mark.parametrize("form", ["gnu", "pax"])
    def test_long_and_odd_names_are_kept(self, tmp_path: Path, form: str) -> None:
        files = {f"{LONG}.png": b"1", "größe 1#2?.png": b"2", "a\nb.png": b"3", "\udcff.png": b"4"}
        found = listed(written(tmp_path, tar_of(files, FORMATS[form])))
        assert dict(zip(members(found), map(read, found), strict=True)) == {
            f"{LONG}.png": b"1",
            "gr%C3%B6%C3%9Fe%201%232%3F.png": b"2",
            "a%0Ab.png": b"3",
            "%FF.png": b"4",
        }

    def test_our_own_shards_are_read(self, tmp_path: Path) -> None:
        data, packed = shards.pack([(f"k{n}", "png", picture(n)) for n in range(3)])
        found = listed(written(tmp_path, data))
        assert [(one.at.offset, one.at.length) for one in found] == [
            (member.offset, member.length) for member in packed
        ]

    @given(
        files=st.dictionaries(
            st.text("ab/ü1 ", min_size=1, max_size=120).map(lambda name: f"d/{name.strip('/')}x"),
            st.binary(max_size=1_500),
            max_size=8,
        ),
        form=st.sampled_from(sorted(FORMATS.values())),
    )
    def test_what_the_standard_library_writes_is_found_where_it_finds_it(
        self, tmp_path_factory: pytest.TempPathFactory, files: Files, form: int
    ) -> None:
        named = {f"{name}.png": data for name, data in sorted(files.items())}
        try:
            data = tar_of(named, form)
        except ValueError:  # ustar cannot hold the name
            return
        found = listed(written(tmp_path_factory.mktemp("any"), data))
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            expected = sorted((entry.offset_data, entry.size) for entry in archive)
        assert sorted((one.at.offset, one.at.length) for one in found) == expected

    def test_images_are_not_read_while_listing(self, tmp_path: Path) -> None:
        """A tar of 40 GB, nearly all of it a hole, is listed at once and without its bytes."""
        header = tarfile.TarInfo("big.jpg")
        header.size = 20 * 2**30
        path = tmp_path / "a.tar"
        with path.open("wb") as stream:
            for name in ("big.jpg", "bigger.jpg"):
                header.name = name
                stream.write(header.tobuf(tarfile.GNU_FORMAT))
                stream.seek(header.size, io.SEEK_CUR)
            stream.write(bytes(1_024))
        assert members(listed(path)) == ["big.jpg", "bigger.jpg"]


class TestSamples:
    """What belongs to an image, and what is an image."""

    def test_captions_ride_with_every_image_of_their_sample(self, tmp_path: Path) -> None:
        files = {
            "a.jpg": b"1", "a.json": b"{}", "a.png": b"2", "a.txt": b"text",
            "a.caption": b"other", "a.cls": b"7", "a.clipcap.txt": b"ours", "b.caption": b"cap",
            "b.jpg": b"3", "c.jpg": b"4",
        }  # fmt: skip
        found = listed(written(tmp_path, tar_of(files)))
        assert members(found) == ["a.jpg", "a.png", "b.jpg", "c.jpg"]
        kept = [
            {
                sidecar.suffix: storage.read_range(
                    sidecar.at.url, sidecar.at.offset, sidecar.at.length
                )
                for sidecar in sample.sidecars
            }
            for sample in found
        ]
        assert kept == [{"txt": b"text", "json": b"{}"}] * 2 + [{"txt": b"cap"}, {}]

    def test_what_may_be_an_image_is_not_left_out(self, tmp_path: Path) -> None:
        """Contents decide later: a sample without an image's extension is listed as it is."""
        files = {"a.bin": b"1", "a.txt": b"", "lone.txt": b"2", "noext": b"3", "v.mp4": b"4"}
        found = listed(written(tmp_path, tar_of(files)))
        assert members(found) == ["a.bin", "lone.txt", "noext", "v.mp4"]
        assert [len(sample.sidecars) for sample in found] == [1, 0, 0, 0]

    def test_what_tools_leave_behind_is_not_looked_at(self, tmp_path: Path) -> None:
        files = {"._a.jpg": b"", ".git/b.jpg": b"", "__meta__": b"", "./a.jpg": b"1", "a.jpg": b"2"}
        assert members(listed(written(tmp_path, tar_of(files)))) == ["./a.jpg", "a.jpg"]

    def test_folders_are_no_samples_and_a_link_named_like_an_image_is_one(
        self, tmp_path: Path
    ) -> None:
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w") as archive:
            for name, kind in (
                ("d", tarfile.DIRTYPE),
                ("d/a.jpg", tarfile.SYMTYPE),
                ("d/b.jpg", tarfile.LNKTYPE),
                ("d/pipe", tarfile.FIFOTYPE),
                ("d/null", tarfile.CHRTYPE),
            ):
                entry = tarfile.TarInfo(name)
                entry.type, entry.linkname = kind, "/etc/passwd"
                archive.addfile(entry)
        found = listed(written(tmp_path, stream.getvalue()))
        assert members(found) == ["d/a.jpg", "d/b.jpg"]
        assert all(read(sample).startswith(b"d/") for sample in found), "headers, so no images"

    def test_a_changed_tar_is_a_new_version_of_its_images(self, tmp_path: Path) -> None:
        before = listed(written(tmp_path, tar_of({"a.jpg": b"1", "b.jpg": b"2"})))
        after = listed(written(tmp_path, tar_of({"a.jpg": b"1", "b.jpg": b"2", "c.jpg": b"333"})))
        assert len({sample.etag for sample in before + after}) == 5


class TestBrokenTars:
    """A tar that cannot be taken whole is one sample, to become a reject; the others are listed."""

    @pytest.mark.parametrize(
        ("data", "why"),
        [
            (b"", "no bytes"),
            (b"\x1f\x8b" + bytes(600), "compressed; unpack it"),
            (picture(1), "no tar header at byte 0"),
            (tar_of({"../a.jpg": b"1"}), "leads out of it"),
            (tar_of({"/etc/a.jpg": b"1"}), "leads out of it"),
            (tar_of({"a.jpg": b"1"}) + tar_of({"b.jpg": b"2"}), "bytes follow"),
            (tar_of({"a.jpg": b"1", "b.jpg": b"2", "a.txt": b"3"}), "lies in two places"),
            (shards.pack([("a", "jpg", b"1")])[0][:1024] * 2 + bytes(1024), "is there twice"),
            (tar_of({"a.jpg": b"1"}, kind=tarfile.GNUTYPE_SPARSE), "sparse"),
        ],
    )
    def test_it_says_why(
        self, tmp_path: Path, data: bytes, why: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        assert why in refused(written(tmp_path, data), caplog)

    @pytest.mark.parametrize("length", [100, 600, 900, 1_100, 2_100])
    def test_a_cut_one_is_refused(
        self, tmp_path: Path, length: int, caplog: pytest.LogCaptureFixture
    ) -> None:
        data = tar_of({"a.jpg": b"1" * 1_000, "b.jpg": b"2" * 1_000}, tarfile.GNU_FORMAT)
        assert "refused" in refused(written(tmp_path, data[:length]), caplog)

    def test_one_without_its_end_is_taken_and_told(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        data = tar_of({"a.jpg": b"1"}, tarfile.GNU_FORMAT)
        assert members(listed(written(tmp_path, data[:1_024]))) == ["a.jpg"]
        assert "no end mark" in caplog.text

    def test_an_empty_one_holds_nothing(self, tmp_path: Path) -> None:
        assert listed(written(tmp_path, tar_of({}))) == []

    @pytest.mark.parametrize("size", [-512, -1024, 2**60])
    @pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
    def test_a_size_that_lies_ends_the_walk(
        self, tmp_path: Path, size: int, kind: bytes, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A negative size sends the standard library round in circles (CVE-2025-8194)."""
        entry = tarfile.TarInfo("a.jpg")
        entry.size, entry.type = size, kind
        data = entry.tobuf(tarfile.GNU_FORMAT) + bytes(2_048)
        assert "more than there are" in refused(written(tmp_path, data), caplog)

    @pytest.mark.parametrize("note", [b"99 path=a\n", b"0 path=a\n", b"path", b"16 size=-999999\n"])
    def test_a_broken_pax_header_is_refused(
        self, tmp_path: Path, note: bytes, caplog: pytest.LogCaptureFixture
    ) -> None:
        entry = tarfile.TarInfo("x")
        entry.size, entry.type = len(note), tarfile.XHDTYPE
        data = entry.tobuf() + note.ljust(512, b"\0") + tar_of({"a.jpg": b"1"})
        assert "refused" in refused(written(tmp_path, data), caplog)

    def test_a_header_as_large_as_memory_is_refused(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        entry = tarfile.TarInfo("x")
        entry.size, entry.type = 2**32, tarfile.XHDTYPE
        path = written(tmp_path, entry.tobuf(tarfile.GNU_FORMAT))
        with path.open("r+b") as stream:
            stream.truncate(2**33)
        assert "the header at byte 0" in refused(path, caplog)

    @given(at=st.integers(0, 3_071), value=st.integers(0, 255), end=st.integers(1, 3_072))
    def test_any_damage_is_listed_or_refused(
        self, tmp_path_factory: pytest.TempPathFactory, at: int, value: int, end: int
    ) -> None:
        data = bytearray(tar_of({"a.jpg": b"1" * 600, "ü.jpg": b"2"})[:3_072])
        data[at] = value
        path = written(tmp_path_factory.mktemp("any"), bytes(data[:end]))
        found = listed(path)
        assert len({sample.source_uri for sample in found}) == len(found)
        assert all(len(read(sample)) == sample.size_bytes for sample in found)

    def test_the_others_are_listed(self, tmp_path: Path) -> None:
        written(tmp_path, b"no tar", "b.tar")
        for name in ("a", "c"):
            written(tmp_path, tar_of({f"{name}.jpg": b"1"}), f"{name}.tar")
        at = storage.canonical(str(tmp_path))
        assert [found.source_uri for found in listed(tmp_path)] == [
            f"{at}/a.tar#a.jpg",
            f"{at}/b.tar",
            f"{at}/c.tar#c.jpg",
        ]


class TestPlaces:
    """A tar, a folder of them, a pattern."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        for name in ("x/a 1.tar", "x/b.tar", "y/c.tar", "d.tar", "x/notes.txt", "x.tar.d/e.tar"):
            written(tmp_path, tar_of({f"{Path(name).stem[0]}.jpg": b"1"}), name)
        return tmp_path

    @pytest.mark.parametrize(
        ("below", "expected"),
        [
            ("", "adebc"), ("x", "ab"), ("x/a 1.tar", "a"), ("*.tar", "adebc"), ("x/*.tar", "ab"),
            ("[xy]/*", "abc"), ("x/?.tar", "b"), ("x.tar.d", "e"),
        ],
    )  # fmt: skip
    def test_they_are_found(self, folder: Path, below: str, expected: str) -> None:
        found = listed(f"{folder}/{below}".rstrip("/"))
        assert sorted(name[0] for name in members(found)) == sorted(expected)

    def test_the_output_is_left_out(self, folder: Path) -> None:
        """Our own shards lie in the output, and would be listed as a source of the next night."""
        found = listed(folder, leave_out=f"{folder}/x")
        assert sorted(members(found)) == ["c.jpg", "d.jpg", "e.jpg"]

    @pytest.mark.parametrize("below", ["z", "z.tar", "*.rat", "x/notes"])
    def test_no_tar_is_an_error(self, folder: Path, below: str) -> None:
        with pytest.raises(NotFoundError):
            listed(f"{folder}/{below}")

    def test_another_file_is_an_error(self, folder: Path) -> None:
        with pytest.raises(SettingsError, match=r"ends in `\.tar`"):
            listed(f"{folder}/x/notes.txt")


@pytest.fixture
def large() -> Files:
    return {f"{number}.png": picture(number, size=(900, 300)) for number in range(6)}


@pytest.mark.s3
def test_a_bucket_gives_members_by_range(bucket: str, large: Files) -> None:
    """Members of 0.8 MB: some headers share a window, others need one of their own."""
    for name in ("a", "b#1"):
        storage.write(f"{bucket}/tars/{name}.tar", tar_of(large))
    storage.write(f"{bucket}/tars/empty.tar", b"")
    found = listed(f"{bucket}/tars/*.tar")
    assert [sample.source_uri for sample in found[-2:]] == [
        f"{bucket}/tars/b#1.tar#5.png",
        f"{bucket}/tars/empty.tar",
    ]
    assert [read(sample) for sample in found] == [*large.values(), *large.values(), b""]
    alone = [(sample.source_uri, sample.etag) for sample in listed(f"{bucket}/tars/a.tar")]
    assert alone == [(sample.source_uri, sample.etag) for sample in found[:6]]
    with pytest.raises(NotFoundError, match=r"no `\.tar`"):
        listed(f"{bucket}/tars/z.tar")
    with pytest.raises(NotFoundError, match="does not exist"):
        listed("s3://no-such-bucket-here/*.tar")


def test_the_web_gives_members_by_range(large: Files) -> None:
    with serving({"/a.tar": tar_of(large)}) as web:
        found = listed(f"{web.url}/a.tar")
        assert [read(sample) for sample in found] == list(large.values())
        web.has_ranges = False
        with pytest.raises(StorageError, match="sends the whole"):
            listed(f"{web.url}/a.tar")


def test_of_a_bucket_of_images_only_the_tars_are_held(tmp_path: Path) -> None:
    """400 bytes for each object: gigabytes for a source of millions, of which a few are tars."""
    for name in ("in/b.tar", "in/A.TAR", "other/c.tar", "out/d.tar"):
        written(tmp_path, tar_of({"a.png": picture(1)}), name)
    for n in range(50):
        written(tmp_path, b"", f"in/{n}.png")
    made: list[str] = []

    def info(*said: Any) -> storage.ObjectInfo:  # noqa: ANN401
        made.append(said[0])
        return storage.ObjectInfo(*said)

    with patch.object(objects, "ObjectInfo", info):
        some = containers.archives(f"{tmp_path}/*", ".tar", leave_out=f"{tmp_path}/out")
    urls = [storage.canonical(f"{tmp_path}/{name}") for name in ("in/A.TAR", "in/b.tar")]
    assert [one.url for one in some] == [*urls, storage.canonical(f"{tmp_path}/other/c.tar")]
    assert len(made) == 4
    some = containers.archives(f"{tmp_path}/in/*", ".tar")
    assert [one.url for one in some] == urls

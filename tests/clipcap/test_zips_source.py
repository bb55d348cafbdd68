"""What zip archives promise: a member is one range, unpacked within bounds; none is half read."""

from __future__ import annotations

import io
import struct
import tracemalloc
import warnings
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipcap import packed, storage, zipfiles
from clipcap.errors import ImageError, NotFoundError, SettingsError, StorageError
from clipcap.images import ImageSettings
from clipcap.intake import Refused, take_in
from clipcap.planning import Todo
from clipcap.sample import Sample
from clipcap.sources import zips
from clipcap.workers import WorkerSettings
from tests.pictures import picture
from tests.web import serving

Files = dict[str, bytes]
LARGE = 2**20
WORKERS = WorkerSettings(processes=2)
METHODS = {"stored": zipfile.ZIP_STORED, "deflated": zipfile.ZIP_DEFLATED}
MODES = {"link": 0o120777, "pipe": 0o010644, "device": 0o060644}


class Unseekable(io.BytesIO):
    """A pipe: sizes are written behind each member, since nobody can go back."""

    def seekable(self) -> bool:
        return False

    def seek(self, *_: int) -> int:
        raise io.UnsupportedOperation

    def tell(self) -> int:
        raise io.UnsupportedOperation


def zip_of(files: Files, method: int = zipfile.ZIP_DEFLATED, *, streamed: bool = False) -> bytes:
    stream = Unseekable() if streamed else io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of duplicate names, which are what some tests are about
        with zipfile.ZipFile(stream, "w", method) as archive:
            for name, data in files.items():
                archive.writestr(name, data)
    return stream.getvalue()


def entry_of(name: str, *, mode: int = 0o100644, system: int = 3) -> zipfile.ZipInfo:
    found = zipfile.ZipInfo(name)
    found.external_attr, found.create_system = mode << 16, system
    return found


def written(folder: Path, data: bytes, name: str = "a.zip") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def listed(url: Path | str, leave_out: str = "") -> list[Sample]:
    return list(zips.samples(zips.Settings(url=str(url), leave_out=leave_out)))


def read(sample: Sample) -> bytes:
    return packed.Reader().image(sample, LARGE)


def names(found: list[Sample]) -> list[str]:
    return [sample.source_uri.partition("#")[2] for sample in found]


def inside(url: Path | str) -> Files:
    found = listed(url)
    return dict(zip(names(found), map(read, found), strict=True))


def refused(path: Path, caplog: pytest.LogCaptureFixture) -> str:
    """Return why an archive is refused, after a look at what becomes of it."""
    caplog.clear()
    (only,) = listed(path)
    assert only.source_uri == storage.canonical(str(path))
    (reject,) = take_in([Todo(only)], ImageSettings(), WORKERS)
    assert isinstance(reject, Refused)
    assert reject.reason in ("not_an_image", "empty_file")
    assert len(caplog.messages) == 1
    return caplog.messages[0]


def reasons(path: Path, settings: ImageSettings | None = None) -> dict[str, str]:
    """Return what becomes of every member in the shard stage."""
    found = listed(path)
    taken = take_in([Todo(sample) for sample in found], settings or ImageSettings(), WORKERS)
    said = [one.reason if isinstance(one, Refused) else "taken" for one in taken]
    return dict(zip(names(found), said, strict=True))


class TestMembers:
    """Ranges, names, methods and forms."""

    @pytest.mark.parametrize("streamed", [False, True])
    @pytest.mark.parametrize("method", METHODS)
    def test_every_member_is_one_range(
        self, tmp_path: Path, method: str, *, streamed: bool
    ) -> None:
        files = {f"in/{n}.png": picture(n) for n in range(5)} | {"b.jpg": b"", "c": b"x" * 70_000}
        path = written(tmp_path, zip_of(files, METHODS[method], streamed=streamed))
        assert inside(path) == files
        assert {sample.at.form for sample in listed(path)} == {"zip"}
        assert [sample.size_bytes for sample in listed(path)] == [
            len(data) for _, data in sorted(files.items())
        ]

    @given(
        files=st.dictionaries(
            st.text("ab/ü1 -", min_size=1, max_size=60).map(lambda name: f"d/{name.strip('/ ')}x"),
            st.binary(max_size=1_500),
            max_size=8,
        ),
        method=st.sampled_from(sorted(METHODS.values())),
        streamed=st.booleans(),
        before=st.binary(max_size=40),
    )
    def test_what_the_standard_library_writes_is_read_as_it_reads_it(
        self,
        tmp_path_factory: pytest.TempPathFactory,
        files: Files,
        method: int,
        *,
        streamed: bool,
        before: bytes,
    ) -> None:
        data = before + zip_of(files, method, streamed=streamed)
        path = written(tmp_path_factory.mktemp("any"), data)
        archive = storage.info(storage.canonical(str(path)))
        assert archive is not None
        found = {one.name: packed.Reader().read(one.at, LARGE) for one in zipfiles.members(archive)}
        with zipfile.ZipFile(path) as archived:
            assert found == {name: archived.read(name) for name in archived.namelist()}

    def test_odd_names_are_kept(self, tmp_path: Path) -> None:
        files = {"größe 1#2?.png": b"1", "a\nb.png": b"2", f"{'d/' * 90}n.png": b"3"}
        assert inside(written(tmp_path, zip_of(files))) == {
            "gr%C3%B6%C3%9Fe%201%232%3F.png": b"1",
            "a%0Ab.png": b"2",
            f"{'d/' * 90}n.png": b"3",
        }

    @pytest.mark.parametrize(
        ("raw", "expected"),
        [
            (b"gr\x94\xe1e.png", "größe.png"),  # cp437, as DOS wrote it
            ("größe.png".encode(), "größe.png"),  # UTF-8 without saying so, as macOS does
        ],
    )
    def test_names_without_a_mark_are_utf8_or_cp437(
        self, tmp_path: Path, raw: bytes, expected: str
    ) -> None:
        plain = "x" * len(raw)
        data = zip_of({plain: b"1"}).replace(plain.encode(), raw)
        (found,) = zips.members(info_of(written(tmp_path, data)))
        assert found.source_uri.endswith(f"#{quote(expected)}")

    def test_the_name_in_an_extra_field_counts_where_it_is_of_this_member(
        self, tmp_path: Path
    ) -> None:
        archived = {}
        for name, of in (("a.png", b"a.png"), ("b.png", b"another")):
            entry = zipfile.ZipInfo(name)
            told = b"\1" + struct.pack("<I", zlib.crc32(of)) + f"größe-{name}".encode()
            entry.extra = struct.pack("<HH", 0x7075, len(told)) + told
            archived[entry] = b"1"
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            for entry, data in archived.items():
                archive.writestr(entry, data)
        found = [
            one.name for one in zipfiles.members(info_of(written(tmp_path, stream.getvalue())))
        ]
        assert found == ["größe-a.png", "b.png"]

    def test_folders_of_dos_are_folders(self, tmp_path: Path) -> None:
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            for name, system in (("in|a.png", 0), ("in|", 0), ("up|b.png", 3)):
                archive.writestr(entry_of(name, system=system), b"1" if name[-1] == "g" else b"")
        data = stream.getvalue().replace(b"|", b"\\")
        assert names(listed(written(tmp_path, data))) == ["in/a.png", "up%5Cb.png"]

    def test_a_folder_is_none_by_its_mode_too(self, tmp_path: Path) -> None:
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            archive.writestr(entry_of("a.png", mode=0o040755), b"")
            archive.writestr("b.png", b"1")
        assert names(listed(written(tmp_path, stream.getvalue()))) == ["b.png"]

    @pytest.mark.parametrize("comment", [b"", b"PK\5\6" + bytes(19), b"PK\5\6", b"x" * 65_535])
    def test_a_comment_and_bytes_before_it_change_nothing(
        self, tmp_path: Path, comment: bytes
    ) -> None:
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            archive.writestr("a.png", picture(1))
            archive.comment = comment
        assert inside(written(tmp_path, picture(2) + stream.getvalue())) == {"a.png": picture(1)}

    @pytest.mark.parametrize("method", METHODS)
    def test_what_was_taken_out_leaves_a_gap(self, tmp_path: Path, method: str) -> None:
        path = tmp_path / "a.zip"
        with zipfile.ZipFile(path, "w", METHODS[method]) as archive:
            for number in range(3):
                with archive.open(f"{number}.png", "w", force_zip64=True) as member:
                    member.write(picture(number))
        with zipfile.ZipFile(path, "a") as archive:
            archive.filelist.pop(1)
            archive.writestr("3.png", picture(3))
        assert inside(path) == {f"{number}.png": picture(number) for number in (0, 2, 3)}

    def test_images_are_not_read_while_listing(self, tmp_path: Path) -> None:
        """Five sparse gigabytes: sizes and offsets of 64 bits, and a listing that takes no time."""
        path = tmp_path / "a.zip"
        with path.open("wb") as stream:
            stream.seek(5 * 2**30)
            with zipfile.ZipFile(stream, "w") as archive:
                with archive.open("a.png", "w", force_zip64=True) as member:
                    member.write(picture(1))
                archive.writestr("b.png", picture(2))
        found = listed(path)
        assert [read(sample) for sample in found] == [picture(1), picture(2)]
        assert found[0].at.offset >= 5 * 2**30

    def test_more_members_than_16_bits_can_count(self, tmp_path: Path) -> None:
        path = tmp_path / "a.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for number in range(2**16 + 5):
                archive.writestr(f"{number}.png", b"")
        assert len(listed(path)) == 2**16 + 5


class TestRejects:
    """A member that cannot be had is a reject of its own, with the reason that is true."""

    @pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    def test_other_methods_are_not_supported(self, tmp_path: Path, method: int) -> None:
        path = written(tmp_path, zip_of({"a.png": picture(1)}, method))
        assert reasons(path) == {"a.png": "unsupported_format"}
        assert listed(path)[0].at.length == 30, "the bytes need not come for that"

    @pytest.mark.parametrize("flag", [0x01, 0x41])
    def test_what_is_encrypted_is_not_supported(self, tmp_path: Path, flag: int) -> None:
        data = bytearray(zip_of({"a.png": picture(1)}))
        data[6] |= flag
        data[data.index(b"PK\1\2") + 8] |= flag
        assert reasons(written(tmp_path, bytes(data))) == {"a.png": "unsupported_format"}

    @pytest.mark.parametrize("kind", MODES)
    def test_what_is_no_file_is_no_image(self, tmp_path: Path, kind: str) -> None:
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            for name in ("a.png", "elsewhere", "b.txt"):
                archive.writestr(entry_of(name, mode=MODES[kind]), picture(1))
            archive.writestr("b.png", picture(2))
        path = written(tmp_path, stream.getvalue())
        assert reasons(path) == {"a.png": "not_an_image", "b.png": "taken"}
        assert listed(path)[1].sidecars == ()

    @pytest.mark.parametrize("method", METHODS)
    def test_damage_is_noticed(self, tmp_path: Path, method: str) -> None:
        data = bytearray(zip_of({"a.bmp": picture(1, form="BMP")}, METHODS[method]))
        data[500] ^= 0xFF
        assert reasons(written(tmp_path, bytes(data))) == {"a.bmp": "decode_failed"}

    def test_a_bomb_is_not_unpacked(self, tmp_path: Path) -> None:
        """A member says that it has 100 bytes, and has a hundred million."""
        data = bytearray(zip_of({"a.png": bytes(100_000_000)}))
        for at in (22, data.index(b"PK\1\2") + 24):
            data[at : at + 4] = struct.pack("<I", 100)
        path = written(tmp_path, bytes(data))
        tracemalloc.start()
        try:
            assert reasons(path) == {"a.png": "decompression_bomb"}
            assert tracemalloc.get_traced_memory()[1] < 10_000_000
        finally:
            tracemalloc.stop()

    def test_one_that_says_so_is_too_large(self, tmp_path: Path) -> None:
        path = written(tmp_path, zip_of({"a.png": bytes(100_000)}))
        assert reasons(path, ImageSettings(max_bytes=99_999)) == {"a.png": "too_large"}

    @pytest.mark.parametrize("method", METHODS)
    def test_no_more_than_the_most_is_unpacked(self, method: str) -> None:
        member = zip_of({"a": bytes(1_000)}, METHODS[method])
        assert zipfiles.unzipped(member[: member.index(b"PK\1\2")], 1_000) == bytes(1_000)
        with pytest.raises(ImageError, match="more than 999"):
            zipfiles.unzipped(member[: member.index(b"PK\1\2")], 999)

    @given(
        data=st.binary(max_size=80), method=st.sampled_from([0, 8]), flags=st.integers(0, 0xFFFF)
    )
    def test_any_bytes_are_unpacked_or_refused(self, data: bytes, method: int, flags: int) -> None:
        header = b"PK\3\4" + struct.pack("<3H", 20, flags, method)
        with suppress(ImageError):
            assert len(zipfiles.unzipped(header + data, 1_000)) <= 1_000


class TestCaptions:
    """What lies beside an image, in a file of its own or in a table."""

    def test_files_of_text_ride_with_their_image(self, tmp_path: Path) -> None:
        files = {
            "in/a.v1.jpg": b"1", "in/a.v1.txt": b"one", "in/a.v1.jpg.json": b"{}", "a.v1.JSON": b"",
            "b.png": b"2", "b.TXT": b"two", "b.clipcap.txt": b"ours", "notes.txt": b"alone",
        }  # fmt: skip
        found = listed(written(tmp_path, zip_of(files)))
        assert names(found) == ["a.v1.JSON", "b.png", "in/a.v1.jpg", "notes.txt"]
        reader = packed.Reader()
        beside = [
            {one.suffix: reader.read(one.at, LARGE) for one in sample.sidecars} for sample in found
        ]
        assert beside == [{}, {"txt": b"two"}, {"txt": b"one", "json": b"{}"}, {}]

    def test_a_text_that_is_a_bomb_is_a_bad_sidecar(self, tmp_path: Path) -> None:
        path = written(tmp_path, zip_of({"a.png": picture(1), "a.txt": bytes(2**21)}))
        assert reasons(path) == {"a.png": "bad_sidecar"}

    @pytest.mark.parametrize(
        ("name", "table"),
        [
            ("in/metadata.csv", 'file_name,text\na.png,"one, two"\nb/c.png,three\n'),
            (
                "in/metadata.jsonl",
                '{"file_name": "a.png", "text": "one, two"}\n'
                '{"file_name": "b/c.png", "text": "three"}',
            ),
        ],
    )
    def test_a_table_as_imagefolder_has_it_gives_captions(
        self, tmp_path: Path, name: str, table: str
    ) -> None:
        files = {"in/a.png": b"1", "in/b/c.png": b"2", "a.png": b"3", name: table.encode()}
        found = listed(written(tmp_path, zip_of(files)))
        assert {
            name: sample.captions for name, sample in zip(names(found), found, strict=True)
        } == {
            "a.png": (),
            "in/a.png": ("one, two",),
            "in/b/c.png": ("three",),
        }

    def test_another_table_is_a_file_like_any(self, tmp_path: Path) -> None:
        path = written(tmp_path, zip_of({"metadata.csv": b"a,b\n1,2\n", "a.png": b"1"}))
        assert names(listed(path)) == ["a.png", "metadata.csv"]


class TestBrokenArchives:
    """One that cannot be taken whole is one sample, to become a reject; the others are listed."""

    @pytest.mark.parametrize(
        ("data", "why"),
        [
            (b"", "no bytes"),
            (picture(1), "no end"),
            (b"PK\3\4" + bytes(40), "no end"),
            (zip_of({"a.png": b"1"}) + b"\n", "no end"),
            (zip_of({"../a.png": b"1"}), "leads out of it"),
            (zip_of({"in/../../a.png": b"1"}), "leads out of it"),
            (zip_of({"/etc/a.png": b"1"}), "leads out of it"),
            (zip_of({"C|/a.png": b"1"}).replace(b"|", b":"), "leads out of it"),
            (zip_of({"a|.png": b"1"}).replace(b"|", b"\0"), "leads out of it"),
            (zip_of({"a.png": b"1", "b.png": b"2"}).replace(b"b.png", b"a.png"), "is there twice"),
            (zip_of({"metadata.csv": b"file_name\n\xff"}), "cannot be read"),
        ],
    )
    def test_it_says_why(
        self, tmp_path: Path, data: bytes, why: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        assert why in refused(written(tmp_path, data), caplog)

    @pytest.mark.parametrize("cut", [1, 10, 22, 60, 150, 900])
    def test_a_cut_one_is_refused(
        self, tmp_path: Path, cut: int, caplog: pytest.LogCaptureFixture
    ) -> None:
        data = zip_of({"a.png": picture(1), "b.png": picture(2)})
        assert "no end" in refused(written(tmp_path, data[:-cut]), caplog)

    def test_an_archive_inside_of_a_cut_one_is_not_taken_for_it(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        data = zip_of({"in.zip": zip_of({"a.png": b"1"}), "b.png": b"2"}, zipfile.ZIP_STORED)
        assert "no end" in refused(written(tmp_path, data[:-30]), caplog)

    def test_members_that_share_their_bytes_are_refused(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A bomb of 46 MB unpacks to 281 TB when each of its members is quoted by the others."""
        data = bytearray(zip_of({"a.png": bytes(5_000), "b.png": bytes(5_000)}))
        second = data.rindex(b"PK\1\2")
        data[second + 42 : second + 46] = bytes(4)  # where the first one begins
        assert "overlaps" in refused(written(tmp_path, bytes(data)), caplog)

    def test_a_member_that_reaches_into_the_directory_is_refused(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        data = bytearray(zip_of({"a.png": b"1"}))
        at = data.index(b"PK\1\2")
        data[at + 20 : at + 24] = struct.pack("<I", 4_000)
        assert "overlaps" in refused(written(tmp_path, bytes(data)), caplog)

    @pytest.mark.parametrize(
        ("at", "value", "why"),
        [
            (4, b"\1\0", "several files"),
            (10, b"\7\0", "7 members"),
            (12, b"\xff\xff\xff\x7f", "more than there is"),
            (16, b"\xff\xff\xff\x7f", "more than there is"),
        ],
    )
    def test_an_end_that_lies_is_refused(
        self, tmp_path: Path, at: int, value: bytes, why: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        data = bytearray(zip_of({"a.png": b"1"}))
        start = len(data) - 22 + at
        data[start : start + len(value)] = value
        assert why in refused(written(tmp_path, bytes(data)), caplog)

    @pytest.mark.parametrize("which", [20, 24, 42])
    def test_a_size_of_64_bits_that_is_missing_is_refused(
        self, tmp_path: Path, which: int, caplog: pytest.LogCaptureFixture
    ) -> None:
        data = bytearray(zip_of({"a.png": b"1"}))
        at = data.index(b"PK\1\2") + which
        data[at : at + 4] = b"\xff" * 4
        assert "is missing" in refused(written(tmp_path, bytes(data)), caplog)

    def test_a_size_that_no_table_can_hold_is_refused(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            entry = zipfile.ZipInfo("a.png")
            entry.extra = struct.pack("<HHQ", 1, 8, 2**64 - 1)
            archive.writestr(entry, b"1")
        data = bytearray(stream.getvalue())
        at = data.index(b"PK\1\2") + 24
        data[at : at + 4] = b"\xff" * 4
        assert "says that it has" in refused(written(tmp_path, bytes(data)), caplog)

    @given(at=st.integers(0, 2_000), value=st.integers(0, 255), end=st.integers(1, 2_000))
    def test_any_damage_is_listed_or_refused(
        self, tmp_path_factory: pytest.TempPathFactory, at: int, value: int, end: int
    ) -> None:
        data = bytearray(zip_of({"a.png": b"1" * 600, "ü.png": b"2"}))
        data[at % len(data)] = value
        path = written(tmp_path_factory.mktemp("any"), bytes(data[-end:]))
        found = listed(path)
        assert len({sample.source_uri for sample in found}) == len(found)
        taken = take_in([Todo(sample) for sample in found], ImageSettings(), WORKERS)
        assert all(isinstance(one, Refused) for one in taken)

    def test_the_others_are_listed(self, tmp_path: Path) -> None:
        written(tmp_path, b"no zip", "b.zip")
        for name in ("a", "c"):
            written(tmp_path, zip_of({f"{name}.jpg": b"1"}), f"{name}.zip")
        at = storage.canonical(str(tmp_path))
        assert [found.source_uri for found in listed(tmp_path)] == [
            f"{at}/a.zip#a.jpg",
            f"{at}/b.zip",
            f"{at}/c.zip#c.jpg",
        ]

    def test_what_tools_leave_behind_is_not_looked_at(self, tmp_path: Path) -> None:
        files = {
            "__MACOSX/._a.jpg": b"",
            ".git/b.jpg": b"",
            "in/": b"",
            "in/.DS_Store": b"",
            "a": b"1",
        }
        assert names(listed(written(tmp_path, zip_of(files)))) == ["a"]

    def test_an_empty_one_holds_nothing(self, tmp_path: Path) -> None:
        assert listed(written(tmp_path, zip_of({}))) == []


class TestPlaces:
    """An archive, a folder of them, a pattern."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        for name in ("x/a 1.zip", "x/b.ZIP", "y/c.zip", "d.zip", "x/notes.txt", "x.zip.d/e.zip"):
            written(tmp_path, zip_of({f"{Path(name).stem[0]}.jpg": b"1"}), name)
        return tmp_path

    @pytest.mark.parametrize(
        ("below", "expected"),
        [
            ("", "abcde"), ("x", "ab"), ("x/a 1.zip", "a"), ("*.zip", "acde"), ("x/*.zip", "a"),
            ("[xy]/*", "abc"), ("x/?.ZIP", "b"), ("x.zip.d", "e"),
        ],
    )  # fmt: skip
    def test_they_are_found(self, folder: Path, below: str, expected: str) -> None:
        found = listed(f"{folder}/{below}".rstrip("/"))
        assert sorted(name[0] for name in names(found)) == sorted(expected)

    def test_the_output_is_left_out(self, folder: Path) -> None:
        found = listed(folder, leave_out=f"{folder}/x")
        assert sorted(names(found)) == ["c.jpg", "d.jpg", "e.jpg"]

    @pytest.mark.parametrize("below", ["z", "z.zip", "*.piz", "x/notes"])
    def test_no_archive_is_an_error(self, folder: Path, below: str) -> None:
        with pytest.raises(NotFoundError):
            listed(f"{folder}/{below}")

    def test_another_file_is_an_error(self, folder: Path) -> None:
        with pytest.raises(SettingsError, match=r"ends in `\.zip`"):
            listed(f"{folder}/x/notes.txt")


@pytest.mark.s3
def test_a_bucket_gives_members_by_range(bucket: str) -> None:
    files = {f"{number}.png": picture(number, size=(900, 300)) for number in range(4)}
    for name in ("a", "b#1"):
        storage.write(f"{bucket}/zips/{name}.zip", zip_of(files))
    storage.write(f"{bucket}/zips/empty.zip", b"")
    found = listed(f"{bucket}/zips/*.zip")
    assert [sample.source_uri for sample in found[-2:]] == [
        f"{bucket}/zips/b#1.zip#3.png",
        f"{bucket}/zips/empty.zip",
    ]
    assert [read(sample) for sample in found] == [*files.values(), *files.values(), b""]
    with pytest.raises(NotFoundError, match=r"no `\.zip`"):
        listed(f"{bucket}/zips/z.zip")


def test_the_web_gives_members_by_range() -> None:
    files = {f"{number}.png": picture(number, size=(900, 300)) for number in range(4)}
    with serving({"/a.zip": zip_of(files)}) as web:
        found = listed(f"{web.url}/a.zip")
        assert [read(sample) for sample in found] == list(files.values())
        web.has_ranges = False
        with pytest.raises(StorageError, match="sends the whole"):
            listed(f"{web.url}/a.zip")


def info_of(path: Path) -> storage.ObjectInfo:
    found = storage.info(storage.canonical(str(path)))
    assert found is not None
    return found

"""What a shard's tar promises: the same bytes for the same samples, and exact offsets."""

from __future__ import annotations

import hashlib
import io
import random
import tarfile
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipcap import shards
from clipcap.errors import SettingsError

File = tuple[str, str, bytes]
GOLDEN = "31b6ee6ff24803592546a58138c813d5f262c62b5e2ad8d3c2e6e53830451b63"

keys = st.text("abzAZ09_-", min_size=1, max_size=80)
extensions = st.sampled_from(["jpg", "png", "txt", "json"])
contents = st.one_of(st.binary(max_size=1_100), st.sampled_from([512, 1024]).map(bytes))
many_files = st.dictionaries(st.tuples(keys, extensions), contents, max_size=12).map(
    lambda named: [(key, extension, data) for (key, extension), data in named.items()]
)
tars = many_files.map(lambda files: shards.pack(files)[0])


def names(files: list[File]) -> list[str]:
    return [f"{key}.{extension}" for key, extension, _ in files]


@given(many_files)
def test_the_standard_library_reads_what_was_packed(files: list[File]) -> None:
    tar, _ = shards.pack(files)
    with tarfile.open(fileobj=io.BytesIO(tar), mode="r:") as archive:
        found = {entry.name: archive.extractfile(entry) for entry in archive}
    read = {name: stream.read() for name, stream in found.items() if stream is not None}
    assert read == dict(zip(names(files), (data for *_, data in files), strict=True))


@given(many_files)
def test_each_member_is_one_byte_range(files: list[File]) -> None:
    tar, members = shards.pack(files)
    ranges = {member.name: tar[member.offset : member.offset + member.length] for member in members}
    assert ranges == dict(zip(names(files), (data for *_, data in files), strict=True))
    assert list(shards.members(tar)) == members


@given(many_files, st.randoms(use_true_random=False))
def test_order_and_repetition_do_not_change_a_byte(files: list[File], order: random.Random) -> None:
    shuffled = list(files)
    order.shuffle(shuffled)
    assert shards.pack(shuffled) == shards.pack(files)


@given(many_files)
def test_the_members_of_a_sample_lie_together_and_in_order(files: list[File]) -> None:
    _, members = shards.pack(files)
    split = [tuple(member.name.split(".")) for member in members]
    assert split == sorted(split)


@given(many_files)
def test_nothing_says_when_or_by_whom_it_was_made(files: list[File]) -> None:
    with tarfile.open(fileobj=io.BytesIO(shards.pack(files)[0])) as archive:
        for entry in archive:
            assert (entry.mtime, entry.uid, entry.gid, entry.mode) == (0, 0, 0, 0o644)
            assert (entry.uname, entry.gname) == ("", "")


@given(tars, st.data())
def test_a_cut_tar_is_told_from_a_whole_one(tar: bytes, data: st.DataObject) -> None:
    end = data.draw(st.integers(0, len(tar) - 1))
    with pytest.raises(SettingsError, match=r"two empty blocks|not one of ours"):
        list(shards.members(tar[:end]))


@given(tars, tars)
def test_bytes_after_the_end_are_refused(tar: bytes, more: bytes) -> None:
    with pytest.raises(SettingsError, match="two empty blocks"):
        list(shards.members(tar + more))


@given(tars, st.data())
def test_damage_to_a_header_is_seen(tar: bytes, data: st.DataObject) -> None:
    """Damage to an image is not: the manifest has a digest of each."""
    at = data.draw(st.integers(0, len(tar) - 1))
    damaged = bytearray(tar)
    damaged[at] ^= data.draw(st.integers(1, 255))
    members = list(shards.members(tar))
    if any(one.offset <= at < one.offset + -(-one.length // 512) * 512 for one in members):
        assert list(shards.members(bytes(damaged))) == members
    else:
        with pytest.raises(SettingsError, match=r"not one of ours|two empty blocks"):
            list(shards.members(bytes(damaged)))


@pytest.mark.parametrize("key", ["", "a.b", "a/b", "ü", "a b", "k" * 81, "../a"])
def test_a_key_that_would_tear_or_merge_samples_is_refused(key: str) -> None:
    with pytest.raises(SettingsError, match="`key` must be"):
        shards.pack([(key, "jpg", b"")])


def test_a_name_twice_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"'a\.jpg' twice"):
        shards.pack([("a", "jpg", b"1"), ("b", "jpg", b""), ("a", "jpg", b"2")])


def test_the_form_is_frozen() -> None:
    """A shard written by an older version has the same name and the same bytes today."""
    tar, _ = shards.pack([("b", "txt", b"caption"), ("a-1", "jpg", b"\xff\xd8" * 300)])
    assert hashlib.sha256(tar).hexdigest() == GOLDEN
    assert zlib.crc32(shards.pack([])[0]) == zlib.crc32(bytes(1_024))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # leaves files open
def test_webdataset_reads_the_samples(tmp_path: Path) -> None:
    import webdataset

    files = [(f"k{n}", form, f"{n}{form}".encode()) for n in range(3) for form in ("jpg", "txt")]
    (tmp_path / "a.tar").write_bytes(shards.pack(files)[0])
    dataset = webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False)
    assert [(sample["__key__"], sample["jpg"], sample["txt"]) for sample in dataset] == [
        (f"k{n}", f"{n}jpg".encode(), f"{n}txt".encode()) for n in range(3)
    ]


@given(many_files, st.integers(min_value=1, max_value=2_000), st.data())
def test_members_of_some_keys_are_copied_as_if_only_they_had_been_packed(
    files: list[File], chunk: int, data: st.DataObject
) -> None:
    wanted = data.draw(st.sets(st.sampled_from([key for key, *_ in files] or ["none"])))
    tar, _ = shards.pack(files)
    chunks = [tar[at : at + chunk] for at in range(0, len(tar), chunk)]
    pieces, members = shards.joined(shards.kept(chunks, wanted))
    alone, expected = shards.pack([file for file in files if file[0] in wanted])
    assert b"".join(pieces) == alone
    assert list(members.values()) == expected


def test_what_is_no_file_is_passed_over_and_a_cut_tar_is_refused() -> None:
    tar, members = shards.pack([("a", "jpg", b"1" * 700), ("b", "jpg", b"2" * 700)])
    comment = bytearray(tar)
    comment[members[0].offset - shards.BLOCK + 156] = ord("g")
    found = [member.name for member, _ in shards.kept([bytes(comment)], {"a", "b"})]
    assert found == ["b.jpg"]
    for end in (300, 900, 2_000, members[1].offset + 800):
        with pytest.raises(SettingsError, match="is cut"):
            list(shards.kept([tar[:end]], {"a", "b"}))

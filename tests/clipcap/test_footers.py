"""Footers of an output: each is read once in its life, and never believed of another version."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest

from clipcap import commits, layout, storage, tables
from clipcap.footers import Footers
from clipcap.storage import ObjectInfo
from tests.nights import Tiny, draw, make_tiny, night


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Tiny models that fit each other."""
    return make_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def out(tmp_path: Path, tiny: Tiny) -> str:
    """An output of three shards, published once."""
    for n in range(6):
        draw(tmp_path / "in" / f"{n}.png", n)
    night(tmp_path / "in", tmp_path / "out", tiny, max_images=2)
    return storage.canonical(str(tmp_path / "out"))


def asked(out: str) -> list[str]:
    """Return the objects whose footers are read for a whole list, once it has been published."""
    with patch.object(commits, "find", side_effect=commits.find) as found:
        Footers(out).entries()
    return sorted(call.args[0].removeprefix(f"{out}/") for call in found.call_args_list)


def test_what_was_published_is_not_asked_again(out: str) -> None:
    """Publishing read every footer four times, one after the other: hours, after years."""
    assert asked(out) == []


def test_an_object_that_was_written_since_is_asked(out: str) -> None:
    url = storage.listed(layout.table(out, "captions"))[0].url
    there = commits.find(url)
    assert there is not None
    commits.republish(there, url, tables.read(url).slice(1), members="others", run_id="later")
    assert asked(out) == [url.removeprefix(f"{out}/")]
    found = Footers(out).of(layout.folder_of(url))[layout.shard_of(url)]
    assert (found.rows, found.metadata["members"]) == (1, "others")


def test_an_object_of_a_store_that_tells_no_time_is_asked(out: str) -> None:
    """Without it an etag is made of the size: another object of the same size looks the same."""
    real = storage.listed

    def timeless(url: str) -> list[ObjectInfo]:
        return [replace(info, modified_at=None) for info in real(url)]

    with patch.object(storage, "listed", timeless):
        assert len(asked(out)) == 12


@pytest.fixture
def timeless() -> Iterator[None]:
    """A store that tells no time, and of versions no more than that there is an object."""
    real = storage.listed

    def listed(url: str) -> list[ObjectInfo]:
        return [replace(info, modified_at=None, etag="0") for info in real(url)]

    with patch.object(storage, "listed", listed):
        yield


def test_where_no_time_is_told_an_object_is_asked_once_in_a_life(out: str, timeless: None) -> None:
    looked = Footers(out)
    with patch.object(commits, "find", side_effect=commits.find) as found:
        looked.of(layout.table(out, "manifest"))
        assert len(looked.entries()) == len(looked.entries())
    assert len(found.call_args_list) == 12


def test_where_no_time_is_told_what_a_caller_may_have_written_is_asked_again(
    out: str, timeless: None
) -> None:
    looked = Footers(out)
    for info, there in looked.commits(storage.listed(layout.table(out, "captions"))):
        assert there is not None
        commits.republish(there, info.url, tables.read(info.url), members="new", run_id="later")
    told = [one["members"] for one in looked.entries() if one["url"].startswith("captions/")]
    assert told == ["new"] * 3


def test_a_list_says_of_each_object_what_its_footer_says(out: str) -> None:
    looked = Footers(out)
    for name in layout.PER_SHARD:
        for info, said in looked.commits(storage.listed(layout.table(out, name))):
            there = commits.find(info.url)
            assert said is not None
            assert there is not None
            assert (said.rows, said.fingerprint, said.recipe) == (
                there.rows, there.fingerprint, there.recipe,
            )  # fmt: skip
            assert said.metadata.items() <= there.metadata.items()


@pytest.mark.parametrize("text", [b"{", b"[]", b'{"run_id": 1}', b'{"run_id": "gone"}'])
def test_where_the_newest_list_cannot_be_read_every_object_is_asked(out: str, text: bytes) -> None:
    storage.write(layout.latest(out), text)
    assert len(asked(out)) == 12


def test_lists_of_earlier_versions_say_too_little_to_be_believed(out: str) -> None:
    listing = storage.listed(f"{out}/_manifests")[0].url
    storage.write(listing, storage.read(listing).replace(b'"members"', b'"once"'))
    assert len(asked(out)) == 12

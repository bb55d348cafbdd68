"""What names promise: the same for the same source, legal everywhere, and no two alike."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipcap import keys
from clipcap.errors import SettingsError

uris = st.text(min_size=1, max_size=200)


@given(uris)
def test_any_source_has_a_legal_key_without_a_dot(uri: str) -> None:
    """A dot would merge two samples of a tar into one."""
    key = keys.sample_key(uri)
    assert keys.is_key(key)
    assert len(key) <= 53


@given(uris, uris)
def test_two_sources_never_share_a_name(one: str, other: str) -> None:
    assert (keys.image_id(one) == keys.image_id(other)) == (one == other)
    assert (keys.sample_key(one) == keys.sample_key(other)) == (one == other)


def test_names_that_differ_in_a_dot_or_a_folder_alone_are_kept_apart() -> None:
    """`img.v1.jpg` and `img.v2.jpg` come back from a WebDataset reader as one sample."""
    same = ["s3://b/img.v1.jpg", "s3://b/img.v2.jpg", "s3://b/img.v1.png", "s3://b/x/img.v1.jpg"]
    found = {keys.sample_key(uri) for uri in same}
    assert len(found) == 4
    assert all(key.startswith("img-") for key in found)


@pytest.mark.parametrize(
    ("uri", "image_id", "key"),
    [
        ("s3://b/cats/Tom 1.jpg", "6d7319387925", "Tom_1"),
        ("file:///p/%C3%BC.png", "", "C3_BC"),
        ("s3://b/a.tar#in/b c.jpg", "", "b_c"),
        ("s3://b/.hidden", "", ""),
        (f"s3://b/{'long' * 40}.jpg", "", "long" * 10),
    ],
)
def test_a_person_recognises_the_file(uri: str, image_id: str, key: str) -> None:
    tail = keys.image_id(uri)[:12]
    assert keys.sample_key(uri) == (f"{key}-{tail}" if key else tail)
    assert tail.startswith(image_id)


def test_an_image_id_never_changes() -> None:
    """It joins every table of an output, over years."""
    assert keys.image_id("s3://bucket/a.jpg") == "7756651f71d7fea83fd332c9731335cd"
    assert len(keys.image_id("")) == 32


@given(st.text(max_size=100))
def test_a_name_in_a_path_is_one_folder(text: str) -> None:
    try:
        name = keys.path_name(text)
    except SettingsError:
        return
    assert name == keys.path_name(name)
    assert not set(name) - set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")
    assert name.strip(".") == name


@pytest.mark.parametrize("text", ["", "/", "..", "ü", "a" * 121])
def test_a_name_of_nothing_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="name in a path"):
        keys.path_name(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("openai/clip-vit-base-patch32", "openai__clip-vit-base-patch32"), ("ViT-B-32", "ViT-B-32")],
)
def test_a_model_keeps_a_name_that_can_be_read(text: str, expected: str) -> None:
    assert keys.path_name(text) == expected

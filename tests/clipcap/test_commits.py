"""The commit of the running code: what groups of shards are held against."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import clipcap
from clipcap import commits

COMMIT = "4f2a" * 10


@pytest.fixture
def git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The `.git` of a checkout that the library is said to lie in, on the branch main."""
    monkeypatch.delenv("CLIPCAP_GIT_COMMIT", raising=False)
    monkeypatch.setattr(clipcap, "__file__", str(tmp_path / "clipcap" / "__init__.py"))
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
    commits.git_commit.cache_clear()
    yield tmp_path / ".git"
    commits.git_commit.cache_clear()


def test_a_branch_in_a_file_of_its_own(git: Path) -> None:
    (git / "packed-refs").write_text(f"{'0' * 40} refs/heads/main\n")
    (git / "refs" / "heads").mkdir(parents=True)
    (git / "refs" / "heads" / "main").write_text(f"{COMMIT}\n")
    assert commits.git_commit() == COMMIT


def test_a_branch_that_gc_packed(git: Path) -> None:
    """`git pull` packs now and then by itself; the commit was unknown from there on."""
    (git / "packed-refs").write_text(
        f"# pack-refs with: peeled\n{'0' * 40} refs/heads/main2\n{COMMIT} refs/heads/main\n"
    )
    assert commits.git_commit() == COMMIT


def test_no_branch_and_no_checkout(git: Path) -> None:
    assert commits.git_commit() == ""
    (git / "HEAD").write_text(f"{COMMIT}\n")
    commits.git_commit.cache_clear()
    assert commits.git_commit() == COMMIT


def test_an_image_says_it_in_its_environment(git: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPCAP_GIT_COMMIT", COMMIT)
    assert commits.git_commit() == COMMIT

"""What processes tell each other of a group of shards: one small object, its own try's alone."""

from __future__ import annotations

from pathlib import Path

import pytest

import clipcap
from clipcap import commits, groups, layout, plans, storage
from clipcap.errors import (
    ClipcapError,
    HubError,
    SettingsError,
    TransientStorageError,
    WorkerLostError,
)
from clipcap.groups import Failure, Group, Told
from clipcap.layout import Run, Shard
from clipcap.outcomes import Outcome

SHARDS = [Shard("2026-11-20", "a"), Shard("2026-11-21", "b")]
DONE = Outcome("embed", SHARDS[0], "written", 2, "u", "f", 1.5, 0.5, 2, reasons=(("oom", 1),))


@pytest.fixture
def group(tmp_path: Path) -> Group:
    """A group of two shards."""
    return groups.of(
        SHARDS, "describe", Run("run-1", storage.canonical(str(tmp_path)), "2026-11-21")
    )


def test_outcomes_come_back_as_they_were_told(group: Group) -> None:
    groups.write(group, Told(by="one", outcomes=(DONE,)))
    told = groups.read(group, "one")
    assert told is not None
    assert (told.outcomes, told.failure) == ((DONE,), None)
    assert (list(group.named), str(group)) == (SHARDS, "describe 2026-11-20/a and 1 more")


def test_what_another_try_has_told_is_no_answer_of_this_one(group: Group) -> None:
    """A process that is killed has told nothing; one that was taken for dead may tell late."""
    assert groups.read(group, "one") is None
    groups.write(
        group, Told(by="one", failure=Failure(kind="X", sentence="no", is_retryable=False))
    )
    assert groups.read(group, "two") is None
    groups.write(group, Told(by="two", outcomes=(DONE,)))
    groups.write(group, Told(by="one"))
    told = groups.read(group, "two")
    assert told is not None
    assert told.outcomes == (DONE,)


def test_the_object_lies_beside_the_plans_and_goes_with_them(group: Group) -> None:
    groups.write(group, Told(by="one"))
    assert [one.url for one in storage.listed(layout.plans_of(group.run))] == [
        f"{group.out}/_plans/run-1/groups/{group.name}-one.json"
    ]
    plans.clear(group.run)
    assert storage.listed(layout.plans(group.out)) == []


@pytest.mark.parametrize(
    ("kind", "is_retryable", "expected"),
    [
        ("SettingsError", False, SettingsError),
        ("HubError", False, HubError),
        ("TransientStorageError", True, TransientStorageError),
        ("WorkerLostError", True, WorkerLostError),
        ("ConnectionResetError", True, TransientStorageError),
        ("ValueError", False, ClipcapError),
        ("ImageError", False, ClipcapError),
        ("SettingsError", True, TransientStorageError),
    ],
)
def test_an_error_is_raised_again_with_its_sentence_and_whether_another_try_helps(
    kind: str, is_retryable: bool, expected: type[ClipcapError]
) -> None:
    error = Failure(kind=kind, sentence="why", is_retryable=is_retryable).error
    assert (type(error), str(error), error.retryable) == (expected, "why", is_retryable)


def test_an_object_that_another_version_wrote_says_so(group: Group) -> None:
    storage.write(layout.group(group.run, f"{group.name}-one"), b'{"by": "one", "results": []}')
    with pytest.raises(ClipcapError, match="another version"):
        groups.read(group, "one")


def test_other_code_than_planned_a_group_refuses_it(
    group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    def require(version: str, git_commit: str) -> None:
        groups.require_same_code((version, git_commit), groups.code(), where="The worker")

    require(group.version, group.git_commit)
    with pytest.raises(SettingsError, match=rf"clipcap 9\.9\.9.*but runs {clipcap.__version__}"):
        require("9.9.9", group.git_commit)

    monkeypatch.setattr(commits, "git_commit", lambda: "2" * 40)
    with pytest.raises(
        SettingsError, match=r"git 111111111111\), but runs .*222222222222.*restart"
    ):
        require(group.version, "1" * 40)
    require(group.version, "")  # an installed wheel


def test_a_group_that_nobody_planned_is_refused() -> None:
    with pytest.raises(SettingsError, match="not by hand"):
        groups.require_known(Group())


def test_a_group_may_tell_of_an_address_that_carries_a_signature() -> None:
    """One reject whose address had a token ended every shared night, and none in one process."""
    example = "https://host.example/a.jpg?token=abc (not_found)"
    outcome = Outcome(
        "shard", Shard("2026-11-20", "a"), "written", 0, "u", "f", 0.0, 0.0, examples=(example,)
    )
    told = Told(by="x", outcomes=(outcome,), failure=Failure(
        kind="ClipcapError", sentence="https://***@host.example/?sig=***", is_retryable=False
    ))  # fmt: skip
    assert Told.model_validate_json(told.model_dump_json()) == told

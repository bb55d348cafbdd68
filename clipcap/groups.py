"""A group of shards in, what became of it out, as one small JSON object beside the plans.

Whoever shares a night among several processes hears of them through these objects alone: nothing is
pickled, and a process that was killed has left none. Each has the name of the flow run that wrote
it, so that what an earlier try has left is not taken for the answer of a later one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

import clipcap
from clipcap import commits, errors, layout, storage
from clipcap.errors import (
    ClipcapError,
    ImageError,
    NotFoundError,
    SettingsError,
    TransientStorageError,
)
from clipcap.layout import Run, Shard
from clipcap.outcomes import Outcome
from clipcap.plans import MOST_SHARDS
from clipcap.settings import Settings, digest

Phase = Literal["shard", "describe"]

_KINDS: Final = {
    kind.__name__: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, ClipcapError) and kind is not ImageError
}


_PLAIN: Final = ConfigDict(frozen=True, extra="forbid")
"""No settings: what is told may name an address that nobody should have asked for."""


class Group(Settings):
    """Shards of one run that one process takes, and the code that planned them."""

    run_id: str = ""
    """The run that the group is of."""
    out: str = ""
    """URL of the output."""
    dt: str = ""
    """The logical date of the run."""
    phase: Phase = "describe"
    """`shard` writes planned shards; `describe` embeds, captions and labels shards."""
    shards: tuple[str, ...] = Field(default=(), max_length=MOST_SHARDS)
    """The shards, as `{dt}/{name}`."""
    version: str = ""
    """Version of the code that planned them."""
    git_commit: str = ""
    """Its git commit, where that is known."""

    def __str__(self) -> str:
        more = len(self.shards) - 1
        first = self.shards[0] if self.shards else "nothing"
        return f"{self.phase} {first}{f' and {more} more' if more > 0 else ''}"

    @property
    def name(self) -> str:
        """Its name: the same in every try."""
        return f"{self.phase}-{digest(self.shards)[:16]}"

    @property
    def run(self) -> Run:
        """The run that the group is of."""
        return Run(self.run_id, self.out, self.dt)

    @property
    def named(self) -> tuple[Shard, ...]:
        """The shards."""
        return tuple(Shard(*one.split("/", 1)) for one in self.shards)


class Failure(BaseModel):
    """Why a group was not done: the error's class, its sentence, and whether another try helps."""

    model_config = _PLAIN

    kind: str
    sentence: str
    is_retryable: bool

    @property
    def error(self) -> ClipcapError:
        """The same error once more, to be raised where the group was asked for."""
        other = TransientStorageError if self.is_retryable else ClipcapError
        kind = _KINDS.get(self.kind, other)
        return (kind if kind.retryable == self.is_retryable else other)(self.sentence)


class Told(BaseModel):
    """What the flow run `by` has told of a group: outcomes, or why there are none."""

    model_config = _PLAIN

    by: str
    outcomes: tuple[Outcome, ...] = ()
    failure: Failure | None = None


def of(shards: Sequence[Shard], phase: Phase, run: Run) -> Group:
    """Return a group of a run, signed with the code that runs here."""
    version, git_commit = code()
    return Group(
        run_id=run.run_id,
        out=run.out,
        dt=run.dt,
        phase=phase,
        shards=tuple(map(str, shards)),
        version=version,
        git_commit=git_commit,
    )


def require_known(group: Group) -> None:
    """Do nothing where a group is one.

    Raises:
        SettingsError: nobody has planned it.
    """
    if not (group.shards and group.out and group.run_id):
        raise SettingsError(
            "A group must have shards, but has none: groups are started by a night whose settings "
            "have `dispatch`, not by hand. Run the deployment of the night instead."
        )


def code() -> tuple[str, str]:
    """Return the version and, where it is known, the git commit of the code that runs here."""
    return clipcap.__version__, commits.git_commit()


def require_same_code(planned: tuple[str, str], runs: tuple[str, str], *, where: str) -> None:
    """Do nothing where what `runs` somewhere is the code that has `planned` a night.

    Raises:
        SettingsError: it is not; says which they are, and what to do.
    """
    if planned[0] == runs[0] and (planned[1] == runs[1] or not (planned[1] and runs[1])):
        return
    raise SettingsError(
        f"{where} must run the code that planned the night, clipcap {_shown(*planned)}, but runs "
        f"{_shown(*runs)} instead. Bring both machines to one version, restart it, deploy "
        "again, and start the night again; what is done is not done twice."
    )


def _shown(version: str, git_commit: str) -> str:
    return f"{version} (git {git_commit[:12]})" if git_commit else version


def write(group: Group, told: Told) -> None:
    """Write down what became of a group."""
    storage.write(_url(group, told.by), told.model_dump_json().encode())


def read(group: Group, by: str) -> Told | None:
    """Return what a flow run has told of a group; None if it has told nothing.

    Raises:
        StorageError: it cannot be read.
    """
    url = _url(group, by)
    try:
        return Told.model_validate_json(storage.read(url))
    except NotFoundError:
        return None
    except ValidationError as error:
        raise ClipcapError(
            f"{url} must say what became of a group of shards, but does not: it was written by "
            "another version. Bring the workers to the version of the night, and run again."
        ) from error


def _url(group: Group, by: str) -> str:
    """Return where a try tells: in an object of its own, or a late one would cover the next's."""
    return layout.group(group.run, f"{group.name}-{by}" if by else group.name)
